"""Items of a family: 1,000 to choose, 3,000 to test, and pools to train on that share no question with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from benchmarks.soup_families.design import Family
from benchmarks.soup_families.skills import (
    DIGITS,
    LETTERS,
    SKILLS,
    QuestionAnswer,
    world,
)
from souping.core.types import BoolArray, IntArray

VOCABULARY = ("<pad>", "<end>", "=", "?", ":", *SKILLS, *DIGITS, *LETTERS)
TOKENS = {symbol: number for number, symbol in enumerate(VOCABULARY)}
PAD = 0
LENGTH = 20
"""Tokens of the longest item."""
ITEMS = 4000
CHOOSING = 1000
SELECTING = 250
POOL = 6000
"""Examples of a skill to train on."""


@dataclass(frozen=True, kw_only=True)
class Items:
    """Tokenised items [I, LENGTH] of a family, category by category.

    The answer of an item starts at token `start` [I] and ends, with its end token, before `end` [I].
    """

    tokens: IntArray
    start: IntArray
    end: IntArray


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a family is trained on and tested with; the i-th pool is of the i-th category."""

    categories: tuple[str, ...]
    items: Items
    pools: tuple[Items, ...]


def category_of(categories: int) -> IntArray:
    """Number of each item's category [4000]."""
    return np.repeat(np.arange(categories), ITEMS // categories)


def is_choosing(categories: int) -> BoolArray:
    """Marks the items to choose with [4000], the first quarter of each category."""
    place = np.arange(ITEMS) % (ITEMS // categories)
    return place < CHOOSING // categories


def is_selecting(categories: int) -> BoolArray:
    """Marks the items on which ingredients are selected [4000], the first quarter of those to choose with."""
    place = np.arange(ITEMS) % (ITEMS // categories)
    return place < SELECTING // categories


def encode(skill: str, examples: Sequence[QuestionAnswer]) -> Items:
    """Tokens `skill question = answer <end>`, padded at the end."""
    tokens = np.full((len(examples), LENGTH), PAD)
    start = np.zeros(len(examples), dtype=np.int64)
    end = np.zeros(len(examples), dtype=np.int64)
    for row, (question, answer) in enumerate(examples):
        symbols = [skill, *question, "=", *answer, "<end>"]
        tokens[row, : len(symbols)] = [TOKENS[symbol] for symbol in symbols]
        start[row] = len(question) + 2
        end[row] = len(symbols)
    return Items(tokens=tokens, start=start, end=end)


def joined(parts: Sequence[Items]) -> Items:
    return Items(
        tokens=np.concatenate([part.tokens for part in parts]),
        start=np.concatenate([part.start for part in parts]),
        end=np.concatenate([part.end for part in parts]),
    )


def data_of(family: Family) -> Data:
    """Categories, items and pools of a family, which follow from its seed."""
    random = Random(family.seed)
    own = world(random)
    # kept in the order of all skills
    drawn = set(random.sample(list(SKILLS), family.categories))
    categories = tuple(name for name in SKILLS if name in drawn)
    items = []
    pools = []
    for name in categories:
        held_out: dict[tuple[str, ...], QuestionAnswer] = {}
        while len(held_out) < ITEMS // family.categories:
            example = SKILLS[name](random, own)
            held_out.setdefault(tuple(example[0]), example)
        pool: list[QuestionAnswer] = []
        while len(pool) < POOL:
            example = SKILLS[name](random, own)
            if tuple(example[0]) not in held_out:
                pool.append(example)
        items.append(encode(name, list(held_out.values())))
        pools.append(encode(name, pool))
    return Data(categories=categories, items=joined(items), pools=tuple(pools))


def answer_mask(items: Items) -> Tensor:
    """Marks the tokens of the answers [I, LENGTH]."""
    place = np.arange(LENGTH)
    return torch.from_numpy((place >= items.start[:, None]) & (place < items.end[:, None]))
