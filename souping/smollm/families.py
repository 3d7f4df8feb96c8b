"""Families of questions that share a function or a text, and the part that each family plays.

A family is a connected component: two questions belong together when they ask the same, or when one's functions
include one of the other's. Whole families go to one part, so that nothing that training saw is asked again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from souping import linked
from souping.smollm.questions import Question

Part = Literal["test", "development", "spare", "train"]
SALT = "souping smollm families, version 1"
SHARES: dict[Part, float] = {"test": 0.45, "development": 0.15, "spare": 0.1, "train": 0.3}
LARGEST = 60
"""Families above this size would make one group of a whole fold: they train."""


def families(questions: Sequence[Question]) -> dict[str, str]:
    """{question id: its family}, named after the family's first question."""
    return linked.groups((question.id, _shared(question)) for question in questions)


def _shared(question: Question) -> list[str]:
    text = re.sub(r"\W+", " ", question.text.lower()).strip()
    return [f"text:{text}", *(f"function:{f.name.lower()}" for f in question.functions)]


def parts(questions: Sequence[Question]) -> dict[str, Part]:
    """{question id: the part its family plays}, from a hash of the family; families above `LARGEST` train."""
    family = families(questions)
    sizes: dict[str, int] = {}
    for name in family.values():
        sizes[name] = sizes.get(name, 0) + 1
    played = {name: "train" if size > LARGEST else _draw(name, SHARES) for name, size in sizes.items()}
    return {question: played[name] for question, name in family.items()}


def place(*words: str) -> float:
    """Where words stand in [0, 1): the first 64 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256("\0".join((SALT, *words)).encode()).digest()[:8], "big") / 2**64


def _draw(family: str, shares: Mapping[Part, float]) -> Part:
    at, total = place("part", family), 0.0
    for part, share in shares.items():
        total += share
        if at < total:
            return part
    return "train"
