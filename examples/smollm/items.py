"""Files with the items of both experiments: solutions for `evaluator=loss`, choices for lm-evaluation-harness.

An item with choices shows the beginning of the solution and of three solutions of development problems, all in one
language. The most likely one, per character, is the model's answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from examples.smollm.problems import Problems, Solution
from souping.core.files import write_atomically
from souping.core.types import Json

BEGINNING = 60
"""Characters of a choice."""
WRONG = 3
"""Wrong choices."""
LOSS_FILE = "items.jsonl"
TASK_FOLDER = "tasks"
TASK = """\
task: smollm_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def write_items(problems: Problems, work: Path) -> None:
    """Write the files for both experiments into the working folder."""
    held_out = problems.parts["items"]
    loss = [loss_row(solution, problems) for solution in held_out]
    choices = [choice_row(solution, problems) for solution in held_out]
    tasks = work / TASK_FOLDER
    tasks.mkdir(parents=True, exist_ok=True)
    data = tasks / "choices.jsonl"
    task = TASK.format(data=json.dumps(str(data.absolute())))
    write_atomically(work / LOSS_FILE, _lines(loss))
    write_atomically(data, _lines(choices))
    write_atomically(tasks / "choices.yaml", task.encode())


def _lines(rows: Sequence[dict[str, Json]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def loss_row(solution: Solution, problems: Problems) -> dict[str, Json]:
    """Item of `evaluator=loss`."""
    return {
        "id": solution.id,
        "category": solution.language,
        "group": problems.groups[solution.problem],
        "prompt": solution.prompt,
        "answer": solution.code,
    }


def choice_row(solution: Solution, problems: Problems) -> dict[str, Json]:
    """Document of the task; wrong choices and their order follow from the item's id."""
    random = Random(solution.id)
    right = solution.code[:BEGINNING]
    beginnings = set[str]()
    for other in problems.parts["development"]:
        if other.language == solution.language:
            beginnings.add(other.code[:BEGINNING])
    choices = [right, *random.sample(sorted(beginnings - {right}), WRONG)]
    random.shuffle(choices)
    return {
        "id": solution.id,
        "category": solution.language,
        "group": problems.groups[solution.problem],
        "prompt": solution.prompt,
        "choices": choices,
        "label": choices.index(right),
    }
