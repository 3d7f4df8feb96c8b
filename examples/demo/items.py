"""Items of the demo: the same file from the same seed, many small groups, nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from examples.demo.tasks import MAKERS, Task
from souping.core.files import write_atomically
from souping.core.types import Item

SEED = 51
"""Chosen so that every category has at least 20 items in every split; scores played no part."""
DEV_SEED = 1_000_003
"""Seed of the items that the family was developed on; no item of `items.jsonl` is among them."""
PER_CATEGORY = 128


def make(seed: int, per_category: int) -> list[Task]:
    """Tasks in the order of the categories, `per_category` of each, no prompt twice.

    Two or three questions are asked about each scene (the functions in the prompt): they are one group.
    """
    tasks: list[Task] = []
    for category in MAKERS:
        stream = _stream(seed, category)
        seen: dict[str, Task] = {}
        while len(seen) < per_category:
            task = next(stream)
            seen.setdefault(task.key, task)
        tasks += seen.values()
    return tasks


def _stream(seed: int, category: str) -> Iterator[Task]:
    number = 0
    while True:
        scene = f"{seed} {category} {number}"
        for question in range(Random(scene).choice((2, 3))):
            yield MAKERS[category](Random(f"{scene} scene"), Random(f"{scene} question {question}"))
        number += 1


def development(per_category: int) -> list[Task]:
    """Items for looking at models while they are made: another seed, and nothing that `items.jsonl` holds."""
    shipped = {task.key for task in make(SEED, PER_CATEGORY)}
    drawn = [task for task in make(DEV_SEED, 2 * per_category) if task.key not in shipped]
    by_category: list[Task] = []
    for name in MAKERS:
        tasks_of_category = [task for task in drawn if task.category == name]
        by_category += tasks_of_category[:per_category]
    return by_category


def as_items(tasks: Sequence[Task]) -> list[Item]:
    """Tasks as the items of a benchmark; ids count from 0 within a category."""
    rows = [json.loads(line) for line in _lines(tasks)]
    return [Item(**row) for row in rows]


def write_items(path: Path) -> int:
    """Write the items file and return the number of items; always the same bytes."""
    lines = _lines(make(SEED, PER_CATEGORY))
    write_atomically(path, "".join(lines).encode())
    return len(lines)


def _lines(tasks: Sequence[Task]) -> list[str]:
    counts = dict.fromkeys(MAKERS, 0)
    lines = []
    for task in tasks:
        lines.append(_line(task, f"{task.category}_{counts[task.category]}"))
        counts[task.category] += 1
    return lines


def _line(task: Task, name: str) -> str:
    row = {
        "id": name,
        "category": task.category,
        "group": task.group,
        "prompt": task.prompt,
        "answer": task.answer,
        "scorer": "call",
        "language": task.language,
    }
    return json.dumps(row) + "\n"
