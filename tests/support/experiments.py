"""Stand-ins for what the experiments fetch: tiny checkpoints, tasks under the Hub data's names, a FLORES archive."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from tests.support.family import save_model
from tests.support.scripts import script

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}me: {% endif %}"
)
LANGUAGES = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "th", "zh")


def checkpoints(folder: Path, names: Sequence[str], **changes: Any) -> Path:
    """`folder/NAME` for each name: tiny Llamas of one family, with a chat template."""
    base = save_model(folder / "base", 0, **changes)
    for seed, name in enumerate(names, start=1):
        save_model(folder / name, seed, base, **changes)
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def pool(folder: Path, names: Sequence[str]) -> str:
    """The override that puts the stand-ins in the place of the Hub's models."""
    return f"pool.candidates=[{','.join(f'{{name: {name}, path: {folder / name}}}' for name in names)}]"


def _task(
    folder: Path, name: str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
) -> None:
    """The files of one lm_eval task."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "do_sample": False},
        "metadata": {"version": 1.0},
        **extra,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))


def mgsm(folder: Path, count: int) -> Path:
    """The ten `mgsm_native_cot_*` tasks on sums of ours; problem n is the same in every language."""
    folder.mkdir(parents=True)
    dice = random.Random(5)
    answers = [dice.choice("47x") for _ in range(count)]
    strict = ("strict-match", "The answer is (.)")
    loose = ("flexible-extract", "(.)")
    filters = [
        {
            "name": name,
            "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}],
        }
        for name, pattern in (strict, loose)
    ]
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    extra = {
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "filter_list": filters,
        "metric_list": [metric],
    }
    for language in LANGUAGES:
        rows = [
            {"question": f"{language} {n * 37 % 1000}:", "answer": answer}
            for n, answer in enumerate(answers)
        ]
        _task(folder, f"mgsm_native_cot_{language}", rows, extra)
    return folder


def flores_module() -> Any:
    """The module beside the FLORES tasks."""
    return script(ROOT / "souping" / "paper" / "tasks" / "flores36" / "flores36.py")


def flores(folder: Path, count: int) -> Path:
    """An archive of FLORES-200 as it is unpacked, with `count` made-up sentences in each language."""
    dice = random.Random(7)
    for split in ("dev", "devtest"):
        (folder / split).mkdir(parents=True)
        for language in flores_module().NAMES:
            lines = [" ".join(dice.choices(["444", "aa", "xx", "Q/"], k=4)) for _ in range(count)]
            (folder / split / f"{language}.{split}").write_text("\n".join(lines) + "\n")
    return folder


CHOSEN = {
    "bfcl_8b": ["xLAM-2-8b-fc-r", "ToolACE-2-8B", "watt-tool-8B"],
    "bfcl_70b": ["xLAM-2-70b-fc-r", "CoALM-70B", "watt-tool-70B", "functionary-medium-v3.1"],
    "mgsm": ["MetaMathOctopus-7B", "MetaMathOctopus-MAPO-DPO-7B"],
}
"""What selection makes of the published scores. At 70B the paper left functionary-medium out."""
