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
    """The folder for `evaluator.include_path`, whole or not at all; what stood there is replaced.

    Columns of a document: `id` (BFCL's), `category`, `group`, `prompt`, `choices`, `label`.
    """
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    names = [c for c in FILES if any(item.category == c for item in items)]
    for category in names:
        rows = [json.dumps(row(item)) for item in items if item.category == category]
        (beside / f"{category}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        data = json.dumps(str((out / f"{category}.jsonl").absolute()))
        (beside / f"{category}.yaml").write_text(TASK.format(task=PREFIX + category, data=data), encoding="utf-8")
    tasks = "".join(f"  - {PREFIX}{category}\n" for category in names)
    (beside / "all.yaml").write_text(f"group: {GROUP}\ntask:\n{tasks}", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
    return out


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
