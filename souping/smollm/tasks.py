"""The items as tasks of lm-evaluation-harness: a YAML and a JSON Lines file a category."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from souping.smollm.items import Choice
from souping.smollm.questions import FILES

PREFIX = "smollm_"
GROUP = "smollm_tools"
"""The harness's group of all tasks."""
TASK = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
target_delimiter: " "
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def write(items: Sequence[Choice], out: Path) -> Path:
    """The folder for `evaluator.include_path`, whole or not at all; one that says the same stays as it is.

    Columns of a document: `id` (BFCL's), `category`, `group`, `prompt`, `choices`, `label`.
    """
    files = texts(items, out)
    if all((out / name).is_file() and (out / name).read_text(encoding="utf-8") == files[name] for name in files):
        return out  # a run may be reading it
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, text in files.items():
        (beside / name).write_text(text, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return out


def texts(items: Sequence[Choice], out: Path) -> dict[str, str]:
    """{file name: content} of the folder `out`, whose place the tasks name in full."""
    files = {}
    names = [c for c in FILES if any(item.category == c for item in items)]
    for category in names:
        rows = [json.dumps(row(item)) for item in items if item.category == category]
        data = json.dumps(str((out / f"{category}.jsonl").absolute()))
        files[f"{category}.jsonl"] = "\n".join(rows) + "\n"
        files[f"{category}.yaml"] = TASK.format(task=PREFIX + category, data=data)
    files["all.yaml"] = f"group: {GROUP}\ntask:\n" + "".join(f"  - {PREFIX}{category}\n" for category in names)
    return files


def row(item: Choice) -> dict[str, object]:
    """A document of a task."""
    return {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "prompt": item.prompt,
        "choices": list(item.choices),
        "label": item.label,
    }
