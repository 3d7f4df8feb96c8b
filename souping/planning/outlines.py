"""Benchmarks by their published sizes, for machines where their items cannot be read: counts, no content.

Sizes: BFCL's files of bfcl-eval 2026.3.23 (v3's 17 hold 4,441 items); MGSM, 250 problems a language (Shi et al. 2022);
FLORES-200's devtest, 1,012 sentences (NLLB Team 2022); infinite-Bench's tasks (Zhang et al. 2024, table 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from souping.bfcl_tree import LIVE, MULTI_TURN
from souping.core import Item

BFCL: Mapping[str, int] = {
    "simple_python": 400,
    "simple_java": 100,
    "simple_javascript": 50,
    "multiple": 200,
    "parallel": 200,
    "parallel_multiple": 200,
    "irrelevance": 240,
    **LIVE,
    **dict.fromkeys(MULTI_TURN, 200),
}
TASKS: tuple[tuple[str, int, int], ...] = (
    (r"mgsm_\w+_[a-z]{2}", 250, 1),
    (r"flores36", 1012, 36),
    (r"infinitebench_longbook_qa_en", 351, 1),
    (r"infinitebench_longbook_choice_en", 229, 1),
    (r"infinitebench_longdialogue_qa_en", 200, 1),
)
"""(pattern of a task's name, documents of one leaf task, leaf tasks)."""


def outline(evaluator: Any) -> tuple[Item, ...]:
    """Items without content, as many as the evaluator's benchmark has; none where one of its parts is not known."""
    if type(evaluator).__name__ == "BfclEvaluator":
        sizes = _bfcl(evaluator)
        shared = set(MULTI_TURN)
    else:
        sizes = _tasks(getattr(evaluator, "tasks", []))
        shared = set(sizes) if getattr(evaluator, "group", "") == "doc" else set()
    limit = getattr(evaluator, "limit", None)
    return tuple(
        Item(
            id=f"{name}/{number}",
            category=name,
            prompt="",
            answer="",
            group=f"shared {number}" if name in shared else "",
        )
        for name, size in sizes.items()
        for number in range(min(size, limit) if isinstance(limit, int) else size)
    )


def _bfcl(evaluator: Any) -> dict[str, int]:
    from souping.evaluate.bfcl.items import chosen

    names = chosen(evaluator.version, evaluator.categories)
    return {name: BFCL[name] for name in names} if set(names) <= set(BFCL) else {}


def _tasks(tasks: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for task in tasks:
        known = next((row for row in TASKS if isinstance(task, str) and re.fullmatch(row[0], task)), None)
        if known is None:
            return {}
        _, size, leaves = known
        found |= {task if leaves == 1 else f"{task} {leaf}": size for leaf in range(1, leaves + 1)}
    return found
