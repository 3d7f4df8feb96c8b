"""Bits per byte of uniform soups on solutions, as `evaluator=loss` counts them; one file for each soup."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from examples.smollm.problems import Solution
from souping.core.files import write_atomically
from souping.core.protocols import LoadedModel
from souping.core.types import Item
from souping.evaluate.engines.transformers import load_module, load_tokenizer, quiet_transformers
from souping.evaluate.loss import LossEvaluator
from souping.merge.local import LocalMerge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVALUATOR = LossEvaluator(device="cpu", threads=1, dtype="bfloat16", batch_size=4)
SEPARATOR = "+"
"""Between the ingredients in a soup's name."""


class UniformSoup(LoadedModel):
    """Average of models in equal parts, loaded."""

    eos_token_ids = ()

    def __init__(self, folders: Mapping[str, Path]) -> None:
        first = next(iter(folders.values()))
        quiet_transformers()
        self.soup = SEPARATOR.join(folders)
        self._folder = first
        self._tokenizer = load_tokenizer(first)
        self._module = load_module(first, EVALUATOR.machine.module_settings())
        pool = LocalMerge().open(folders)
        recipe = pool.recipe(dict.fromkeys(folders, 1 / len(folders)))
        pool.live(self._module).load_soup(recipe)

    @property
    def module(self) -> PreTrainedModel:
        return self._module

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self._tokenizer

    @property
    def folder(self) -> Path:
        return self._folder


def solution_item(solution: Solution) -> Item:
    return Item(
        id=solution.id,
        category=solution.language,
        prompt=solution.prompt,
        answer=solution.code,
    )


def bits_per_byte(folders: Mapping[str, Path], solutions: Sequence[Solution]) -> list[float]:
    """Scores of the uniform soup of models on solutions, in order; lower is better."""
    items = [solution_item(solution) for solution in solutions]
    soup = UniformSoup(folders)
    scores = dict[str, float]()
    for batch in EVALUATOR.batches(items):
        for record in EVALUATOR.evaluate(soup, batch):
            scores[record.item] = record.score
    return [scores[item.id] for item in items]


def soups_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Ingredients of every uniform soup: one model, all, three, then the rest."""
    sizes = dict.fromkeys([1, len(names), 3, *range(1, len(names) + 1)])
    soups = list[tuple[str, ...]]()
    for size in sizes:
        soups += combinations(names, size)
    return soups


def score_file(folder: Path, members: Sequence[str]) -> Path:
    return folder / f"{SEPARATOR.join(members)}.json"


def score(
    members: Sequence[str], models: Path, solutions: Sequence[Solution], folder: Path
) -> list[float]:
    """Scores of a uniform soup on the items; those that its file in `folder` lacks are computed and added to it."""
    path = score_file(folder, members)
    known = dict[str, float]()
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    missing = [solution for solution in solutions if solution.id not in known]
    if missing:
        scores = bits_per_byte({name: models / name for name in members}, missing)
        known |= dict(zip([solution.id for solution in missing], scores, strict=True))
        write_atomically(path, json.dumps(known).encode())
    return [known[solution.id] for solution in solutions]
