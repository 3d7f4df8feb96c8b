"""Wins item by item (`wins`): what the soup keeps of its ingredients, and what it solves that they do not.

Appendices B and D of arXiv 2511.13254, on the report fold; examples are of the search fold, so that nobody reads the
report's items.
Where an item has several answers its score p is their mean; the item then counts as solved by its share p, failed by
1 - p, and answers of two models are independent given the item, so that products of shares are unbiased.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from souping.analysis import Analysis, NotEstimableError, RunScores
from souping.analysis.intervals import Z95, rate
from souping.core.fields import component
from souping.core.types import FloatArray, Item, ItemScores, Json, Recipe, Record, digest, entries, number, part
from souping.report.format import clean, count, in_words, percent, percent_interval
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section, TableCell, TableGrid, grid

RULE = (
    "on the search fold, so that the report fold stays unseen: of each kind the first items by the hash of their "
    "prompt, no category twice before all had one"
)
CORPUS = "no item is solved or not by a corpus metric (BLEU) or a loss: it takes scores from 0 to 1, item by item"
LONGEST = 600
"""Characters of a prompt or an answer that an example shows."""
SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class Solved:
    """Share of an item's answers that are right, [I], for the soup and each ingredient."""

    names: tuple[str, ...]
    soup: FloatArray
    ingredients: FloatArray


@component
class Wins(Analysis):
    """Kept shares, wins by how many ingredients fail, and examples.

    `solved` is the score from which an item counts as solved, where scores are graded; `examples` is how many are shown
    of each kind.
    """

    solved: Annotated[float, Interval(gt=0, le=1)] = 0.5
    examples: Annotated[int, Interval(ge=0, le=100)] = 2

    def analyse(self, run: RunScores) -> dict[str, Json]:
        soup = run.soups.soup
        if len(soup.ingredients) < 2:
            raise NotEstimableError("the recipe is a single model: there is nothing to hold it against")
        recipes = {name: run.single(name) for name in soup.ingredients}
        lacking = sum(r.id not in run.report for r in (soup, *recipes.values()))
        if lacking:
            raise NotEstimableError(
                f"{lacking} of the soup and its ingredients have not answered the whole report fold; the same run "
                "again evaluates the rest"
            )
        if any(record.statistics for record in run.read(soup, "report").values()):
            raise NotEstimableError(CORPUS)
        items = run.report[soup.id].items
        found = self._solved([run.report[r.id] for r in (soup, *recipes.values())], tuple(recipes), run.answers)
        groups = np.unique([item.group for item in items], return_inverse=True)[1].astype(np.int64)
        means = [float(found.soup.mean()), *found.ingredients.mean(axis=1).tolist()]
        return {
            "fold": "report",
            "items": len(items),
            "answers": run.answers,
            "solved": dict(zip(("soup", *found.names), means, strict=True)),
            "kept": [_kept(found, k, groups) for k in range(len(recipes))],
            "by_failures": _by_failures(found, groups),
            "rule": RULE,
            "examples": self._examples(run, recipes),
        }

    def _solved(self, scores: Sequence[ItemScores], names: tuple[str, ...], answers: int) -> Solved:
        """The scores as shares of right answers; graded ones are right from `solved` on.

        Raises:
            NotEstimableError: scores are no fractions of 1, as those of a corpus metric or a loss are not.
        """
        values = np.stack([score.values for score in scores])
        if not (np.isfinite(values).all() and values.min() >= -SAME and values.max() <= 1 + SAME):
            raise NotEstimableError(CORPUS)
        if np.abs(values * answers - np.round(values * answers)).max() >= SAME:
            values = (values >= self.solved).astype(float)
        return Solved(names=names, soup=values[0], ingredients=values[1:])

    def _examples(self, run: RunScores, recipes: Mapping[str, Recipe]) -> list[Mapping[str, Json]]:
        """Items of three kinds with the answers of all, in the order of the kinds; none of the report fold is shown."""
        soup = run.soups.soup
        if any(r.id not in run.search for r in (soup, *recipes.values())):
            return []
        items = run.search[soup.id].items
        found = self._solved([run.search[r.id] for r in (soup, *recipes.values())], tuple(recipes), run.answers)
        fails = found.ingredients.max(axis=0) == 0
        solves = found.ingredients.min(axis=0) == 1
        most = found.ingredients.sum(axis=0) >= len(recipes) - 1
        kinds = {
            "solved, though every ingredient fails": (found.soup == 1) & fails,
            "failed, though every ingredient solves it": (found.soup == 0) & solves,
            "solved, though one ingredient fails": (found.soup == 1) & most & ~solves & ~fails,
        }
        answers = {name: run.read(r, "search") for name, r in {"soup": soup, **recipes}.items()}
        return [
            {"kind": kind, **_example(items[i], answers)}
            for kind, mask in kinds.items()
            for i in _chosen(items, np.flatnonzero(mask).tolist(), self.examples)
        ]


def _share(weights: FloatArray, values: FloatArray, groups: NDArray[np.int64]) -> dict[str, Json]:
    """Share sum(w v) / sum(w) with its 95 % interval: Wilson's by groups where items count whole, else the ratio's
    normal limits with the variance between groups."""
    total = float(weights.sum())
    if total < SAME:
        return {"items": 0.0, "share": None, "low": None, "high": None}
    if np.isin(weights, (0.0, 1.0)).all():
        found = rate(values[weights == 1], groups[weights == 1])
        return {"items": total, "share": found.mean, "low": found.low, "high": found.high}
    share = float((weights * values).sum() / total)
    pull = np.bincount(groups, weights * (values - share)) / total
    margin = Z95 * float(np.sqrt((pull**2).sum() * len(pull) / max(1, len(pull) - 1)))
    return {"items": total, "share": share, "low": max(0.0, share - margin), "high": min(1.0, share + margin)}


def _kept(found: Solved, k: int, groups: NDArray[np.int64]) -> dict[str, Json]:
    """What the soup keeps of an ingredient's solved items, and gains of those that it fails."""
    solved = found.ingredients[k]
    row: dict[str, Json] = {"name": found.names[k], "kept": _share(solved, found.soup, groups)}
    row["gained"] = _share(1 - solved, found.soup, groups)
    return row


def _by_failures(found: Solved, groups: NDArray[np.int64]) -> list[Mapping[str, Json]]:
    """The soup where none, one, .. and all of the ingredients fail; an item's weight is the chance of so many."""
    chances = np.zeros((len(found.names) + 1, len(found.soup)))
    chances[0] = 1.0
    for share in found.ingredients:
        chances[1:] = chances[1:] * share + chances[:-1] * (1 - share)
        chances[0] *= share
    return [{"fail": j, **_share(weights, found.soup, groups)} for j, weights in enumerate(chances)]


def _chosen(items: Sequence[Item], places: Sequence[int], number: int) -> list[int]:
    """The first places by the hash of the items' prompts; no category twice before every other had its turn."""
    order = sorted(places, key=lambda i: digest([items[i].identity, items[i].id]))
    turns: dict[str, int] = {}
    ranked = []
    for i in order:
        turns[items[i].category] = turns.get(items[i].category, 0) + 1
        ranked.append((turns[items[i].category], i))
    return [i for _, i in sorted(ranked, key=lambda pair: pair[0])[:number]]


def _example(item: Item, answers: Mapping[str, Mapping[str, Record]]) -> dict[str, Json]:
    """An item with its question, its reference, and each model's answer."""
    found = {name: records[item.id] for name, records in answers.items() if item.id in records}
    question = item.prompt
    if not isinstance(question, str):
        question = next((str(m["content"]) for m in reversed(question) if m.get("content")), "")
    return {
        "item": item.id,
        "category": item.category,
        "prompt": question if len(question) <= LONGEST else f"\N{HORIZONTAL ELLIPSIS}{question[-LONGEST:]}",
        "reference": _cut(item.answer if isinstance(item.answer, str) else json.dumps(item.answer, default=str)),
        "answers": {
            name: {"text": _cut(record.output), "score": record.score, "outcome": record.outcome}
            for name, record in found.items()
        },
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\N{HORIZONTAL ELLIPSIS}"


# How it is shown


def section(data: Row) -> Section:
    """A few sentences; the tables and examples are folded away."""
    kept = [f"{_percent_of(part(row, 'kept'))} of {clean(row.get('name'))}'s" for row in entries(data, "kept")]
    head = f"Of the items that an ingredient solves the soup keeps {in_words(kept)}. {_gains(data)}"
    examples = tuple(map(_example_section, entries(data, "examples")))
    folded = [
        Section("By ingredient", grids=(_kept_table(data),)),
        Section("By how many ingredients fail", grids=(_failures(data),)),
    ]
    if examples:
        folded.append(Section("Examples, side by side", (f"Chosen {clean(data.get('rule'))}.",), folded=examples))
    return Section("What did the soup keep of its ingredients?", (head,), folded=tuple(folded))


def _gains(data: Row) -> str:
    """The soup where all ingredients are right, exactly one fails, and all fail."""
    rows = entries(data, "by_failures")
    words = {0: "where every ingredient is right", 1: "where exactly one fails", len(rows) - 1: "where all fail"}
    shares = [
        f"{_percent_of(row)} {words[place]} ({count(row.get('items'))} items)"
        for place, row in enumerate(rows)
        if place in words and (number(row.get("items")) or 0.0) > 0
    ]
    return f"It solves {in_words(shares)}."


def _percent_of(share: Row) -> str:
    cell = _cell(share)
    return f"{cell.text} %{f' ({cell.sub})' if cell.sub else ''}"


def _cell(share: Row) -> TableCell:
    return TableCell(percent(share.get("share")), percent_interval(share.get("low"), share.get("high")))


def _kept_table(data: Row) -> TableGrid:
    rows, solved = entries(data, "kept"), part(data, "solved")
    header = ["ingredient", "it solves, %", "the soup keeps, %", "and gains of the rest, %"]
    lines: list[list[str | TableCell]] = [
        [
            clean(row.get("name")),
            percent(solved.get(str(row.get("name")))),
            *(_cell(part(row, key)) for key in ("kept", "gained")),
        ]
        for row in rows
    ]
    return grid(header, lines)


def _failures(data: Row) -> TableGrid:
    rows = entries(data, "by_failures")
    last = len(rows) - 1
    words = {0: "none", 1: "exactly one", last: "all"} if last > 1 else {0: "none", last: "all"}
    lines = [(words.get(place, str(place)), count(row.get("items")), _cell(row)) for place, row in enumerate(rows)]
    return grid(("ingredients that fail", "items", "the soup solves, %"), lines)


def _example_section(example: Row) -> Section:
    """One item: its question, its reference, and each model's answer."""
    answers = part(example, "answers")
    rows = [(name, part(answers, name)) for name in sorted(answers, key=lambda name: name != "soup")]
    lines = [(clean(name), clean(row.get("text")), _right(row)) for name, row in rows]
    above = (f"Prompt: {clean(example.get('prompt'))}", f"Reference: {clean(example.get('reference'))}")
    title = f"{clean(example.get('category'))}: {clean(example.get('kind'))} ({clean(example.get('item'))})"
    return Section(title, above, grids=(grid(("model", "answer", "right"), lines, left=(0, 1, 2)),))


def _right(record: Row) -> str:
    score, ended = number(record.get("score")) or 0.0, clean(record.get("outcome"))
    word = "yes" if score == 1 else "no" if score == 0 else percent(score)
    return word if ended in ("finished", "") else f"{word} ({ended})"


DISPLAYS["wins"] = Display(section, place=1)
