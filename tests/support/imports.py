"""Real output of lm-evaluation-harness on tiny models and local tasks, written by its own tracker."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Outcome
from tests.support.family import save_model

NAMES = ("ant", "bee", "cat")
TASKS = ("tiny_mc", "tiny_gen", "tiny_bleu")
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}{% if add_generation_prompt %}me: {% endif %}"
)
DOCS = 24


def adopted(words: Sequence[str], capfd: pytest.CaptureFixture[str]) -> Outcome:
    """The adopting command in this process."""
    from souping.cli.import_results import main

    code = main(list(words))
    captured = capfd.readouterr()
    return Outcome(code, captured.out, captured.err)


def make_models(folder: Path) -> Path:
    base = save_model(folder / "base", 0)
    for seed, name in enumerate(NAMES, start=1):
        save_model(folder / name, seed, base)
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def make_tasks(folder: Path) -> Path:
    """`tiny_mc` (choices), `tiny_gen` (two filters), `tiny_bleu` (corpus metrics) on the same documents."""
    folder.mkdir(parents=True)
    dice = random.Random(3)
    rows = [
        {
            "question": f"red {dice.randrange(10**4)}:",
            "choices": ["4", "d", "k"],
            "gold": dice.randrange(3),
            "answer": dice.choice("ax4"),
            "ref": " ".join(dice.choices(["444", "aa", "xx", "Q/ d"], k=5)),
        }
        for _ in range(DOCS)
    ]
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\nfewshot_split: test\n"
    )
    head += "doc_to_text: '{{question}}'\nmetadata:\n  version: 1.0\n"
    generation = (
        "output_type: generate_until\ngeneration_kwargs:\n  until: ['#']\n  max_gen_toks: 5\n  do_sample: false\n"
    )
    means = "    aggregation: mean\n    higher_is_better: true\n"
    choices = "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: gold\n"
    filters = "filter_list:\n" + "".join(
        f"  - name: {name}\n    filter:\n      - function: regex\n        regex_pattern: '{pattern}'\n"
        "      - function: take_first\n"
        for name, pattern in (("strict", "([A-Z])"), ("loose", "(.)"))
    )
    corpus = "".join(
        f"  - metric: {name}\n    aggregation: {name}\n    higher_is_better: true\n" for name in ("bleu", "chrf")
    )
    bodies = {
        "tiny_mc": choices + f"metric_list:\n  - metric: acc\n{means}",
        "tiny_gen": generation
        + filters
        + "doc_to_target: '{{answer}}'\n"
        + f"metric_list:\n  - metric: exact_match\n{means}",
        "tiny_bleu": generation + "doc_to_target: '{{ref}}'\nmetric_list:\n" + corpus,
    }
    for name, body in bodies.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{body}")
    return folder


def measure(model: Path, tasks: Path, out: Path, names: tuple[str, ...] = TASKS, **settings: Any) -> Path:
    """The folder of results and samples that `lm_eval --log_samples --output_path OUT` makes of a model."""
    from unittest.mock import patch

    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    arguments = {"pretrained": str(model), "dtype": settings.pop("dtype", "float32")}
    if "max_length" in settings:
        arguments["max_length"] = settings.pop("max_length")
    with patch("torch.utils.collect_env.get_pretty_env_info", lambda: ""):  # asks many commands, for seconds
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=list(names),
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            batch_size=settings.pop("batch_size", 16),
            device="cpu",
            log_samples=True,
            bootstrap_iters=0,
            evaluation_tracker=tracker,
            **settings,
        )
    assert results is not None
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in names:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return next(path for path in out.iterdir() if path.is_dir())
