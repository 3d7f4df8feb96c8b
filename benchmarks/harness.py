"""`evaluator=lm_eval` against the harness called by hand on a folder.

    python benchmarks/harness.py [--rounds 5] [--documents 400] [--out benchmarks/results/harness-DATE.md]

On a demo model and tasks made of the demo's items: `write` (generate the call), `pick` (one of eight calls, by
log-likelihood) and `pick_shots` (the same after three examples). Both sides have their model loaded, use the same batch
size and one torch thread, and take turns within a round. Rates are medians over rounds of items a second of processor
time, which neighbours on a busy machine move less than the clock. By hand means `simple_evaluate` on a loaded model,
whole (it reads the task again, which takes little here), and the loop inside it, `evaluate`, alone on a loaded task.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from souping.core.protocols import Evaluator, LoadedModel
from souping.core.types import Item, Record
from tests.support.models import HeldModel, own_items

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
CHOICES = 8
TASKS = ("pick", "pick_shots", "write")
WRITE = """task: write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{gold}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
PICK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: {shots}
fewshot_split: test
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write_tasks(folder: Path, documents: int) -> None:
    """The demo's items as three tasks of the harness: `write`, `pick` and, with examples, `pick_shots`."""
    from souping import demo

    lines = Path(str(demo.path("items"))).read_text().splitlines()
    rows = [
        row for row in map(json.loads, lines) if row["answer"] and isinstance(row["answer"], list)
    ]
    dice = random.Random(0)
    rows = dice.sample(rows, min(documents, len(rows)))
    calls = [json.dumps(row["answer"][0]) for row in rows]
    data = []
    for number, row in enumerate(rows):
        others = dice.sample([c for c in calls if c != calls[number]], CHOICES - 1)
        answer = dice.randrange(CHOICES)
        choices = [*others[:answer], calls[number], *others[answer:]]
        data.append(
            {"prompt": row["prompt"], "gold": calls[number], "choices": choices, "answer": answer}
        )
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "write.yaml").write_text(WRITE.format(data=folder / "data.json"))
    for name, shots in (("pick", 0), ("pick_shots", 3)):
        (folder / f"{name}.yaml").write_text(
            PICK.format(name=name, shots=shots, data=folder / "data.json")
        )


def seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


class Sides:
    """Both ways of evaluating one task, ready to run."""

    def __init__(self, folder: Path, task: str, model: Path, batch_size: int) -> None:
        from lm_eval import evaluate, simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager

        from souping.evaluate.engines.transformers import load_module, load_tokenizer
        from souping.evaluate.lm_eval import HarnessEvaluator

        self.plain = HarnessEvaluator(
            tasks=[task], include_path=str(folder), batch_size=batch_size, threads=1, device="cpu"
        )
        module = load_module(model, self.plain.hosting.module_settings())
        served = HeldModel(module=module, tokenizer=load_tokenizer(model))
        items = own_items(self.plain)
        self.items = len(items)
        hand = HFLM(pretrained=str(model), dtype="float32", device="cpu", batch_size=batch_size)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        loaded = manager.load([task])
        if task == "write":
            loaded["tasks"][task].set_config("num_fewshot", 0)
        loaded["tasks"][task].set_fewshot_seed(1234)
        self.ways = {
            "evaluate, by hand": lambda: evaluate(lm=hand, task_dict=loaded, bootstrap_iters=0),
            "simple_evaluate, by hand": lambda: simple_evaluate(
                model=hand, tasks=[task], task_manager=manager, bootstrap_iters=0
            ),
            "evaluator=lm_eval": lambda: ours(self.plain, served, items),
        }


def ours(evaluator: Evaluator, served: LoadedModel, items: Sequence[Item]) -> list[Record]:
    """As a run does: batch by batch."""
    records = list[Record]()
    for batch in evaluator.batches(items):
        records += evaluator.evaluate(served, batch)
    return records


def measure(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Items a second of each way, a value a round; a round before them warms up."""
    taken: dict[str, list[float]] = {name: [] for name in sides.ways}
    for number in range(rounds + 1):
        for name, work in sides.ways.items():
            rate = sides.items / seconds(work)
            if number:
                taken[name].append(rate)
    return taken


def table(task: str, sides: Sides, taken: dict[str, list[float]]) -> str:
    hand = taken["simple_evaluate, by hand"]
    head = "| way | items/s | times `simple_evaluate` |"
    lines = [f"## `{task}`, {sides.items} documents", "", head, "|---|---|---|"]
    for name, rates in taken.items():
        ratio = statistics.median(r / h for r, h in zip(rates, hand, strict=True))
        lines.append(f"| {name} | {statistics.median(rates):.1f} | {ratio:.2f} |")
    return "\n".join(lines)


def main() -> None:
    from importlib.metadata import version

    import torch
    import transformers

    from souping import demo
    from souping.evaluate.engines.transformers import quiet_transformers

    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(f"benchmarks/results/harness-{today}.md"))
    given = parser.parse_args()
    quiet_transformers()
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    model = Path(str(demo.path(demo.CANDIDATES[0])))
    parts = [
        f"# `evaluator=lm_eval`, {today}",
        f"Demo model {demo.CANDIDATES[0]} in float32, batch size {given.batch_size}, one torch thread, "
        f"{given.rounds} rounds, lm_eval {version('lm_eval')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; items a second of processor time. "
        "`python benchmarks/harness.py`",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(Path(folder), given.documents)
        for task in TASKS:
            sides = Sides(Path(folder), task, model, given.batch_size)
            parts.append(table(task, sides, measure(sides, given.rounds)))
    text = "\n\n".join(parts) + "\n"
    given.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
