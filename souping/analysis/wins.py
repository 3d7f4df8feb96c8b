"""Wins of soups: over their parents by category (`parents`), and over their ingredients item by item (`wins`).

`parents`: in how many categories is a soup above both of its parents, and above at least one? Figure 5 of arXiv
2511.13254 counts this over a population of soups; here it is every soup of the search. By chance, if a soup and its K
parents were equally good, it is above all of them in 1 / (K + 1) of the categories and above at least one in
K / (K + 1): 1/3 and 2/3 for two parents. Equal scores make both rarer, so that the chance is counted from the scores
themselves: of every category's K + 1 scores each is as likely to be the soup's.

`wins`: what does the soup keep of its ingredients, and what does it solve that they do not? Appendices B and D of the
paper, on the report fold; examples are of the search fold, so that nobody reads the report's items. Where an item has
several answers its score p is their mean; the item then counts as solved by its share p, failed by 1 - p, and answers
of two models are independent given the item, so that products of shares are unbiased.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from souping.analysis.base import SINGLE_SELECTED, Analysis, Draws, NotEstimableError, RunScores
from souping.analysis.correlation import GroupSums
from souping.analysis.intervals import Z95, rate
from souping.core.fields import component
from souping.core.types import (
    FloatArray,
    Item,
    ItemScores,
    Names,
    Recipe,
    Record,
    ScoreMatrix,
    digest,
)
from souping.core.unit import POINTS, Unit
from souping.report.analyses import AnalysisResult
from souping.report.content import MaybeFloat, MaybeInt, NamedNumbers
from souping.report.format import clean, count, in_words, percent
from souping.report.plots import COLOURS, INK, Drawing, canvas, figure
from souping.report.tables import Section, TableCell, TableGrid, grid

# ------------------------------------------------------------ over parents, by category

MEAN_TIE = 1e-12
"""Means that differ by less are equal: only the order of a sum tells them apart."""
WINS_SALT = 0x9A4E


@component
class Parents(Analysis):
    """Categories in which each soup of the search beats all, and at least one, of its parents.

    Intervals of the shares: +- 1.96 standard errors by `draws` bootstrap draws of the search fold's groups.
    """

    draws: Draws = 400

    def analyse(self, run: RunScores) -> ParentsResult:
        soups = [
            soup
            for soup in run.mixtures()
            if all(run.single(p).id in run.search for p in soup.ingredients)
        ]
        if not soups:
            raise NotEstimableError(too_few(run, 1))
        names = list(dict.fromkeys(parent for soup in soups for parent in soup.ingredients))
        rows = {run.single(name).id: run.search[run.single(name).id] for name in names}
        scores = ScoreMatrix.from_items(rows | {soup.id: run.search[soup.id] for soup in soups})
        order = {name: scores.models.index(run.single(name).id) for name in names}
        parents = [[order[name] for name in soup.ingredients] for soup in soups]
        place = [scores.models.index(soup.id) for soup in soups]
        drawn = GroupSums.of(scores).draws(self.draws, np.random.default_rng(WINS_SALT))
        wins = _beaten(scores.values[None], place, parents)[:, 0]
        counted = []
        for soup, (beats_all, beats_one) in zip(soups, wins.sum(axis=-1).T, strict=True):
            counted.append(
                SoupWins(
                    recipe_id=soup.id,
                    weights=dict(zip(soup.ingredients, soup.weights, strict=True)),
                    beats_all=int(beats_all),
                    beats_one=int(beats_one),
                )
            )
        beaten = _beaten(drawn, place, parents)
        chances = _chances(scores.values, place, parents)
        return ParentsResult(
            fold="search",
            categories=scores.categories,
            soups=tuple(counted),
            beats_all=_beaten_share(wins[0], beaten[0], chances[0]),
            beats_one=_beaten_share(wins[1], beaten[1], chances[1]),
        )


def too_few(run: RunScores, needed: int) -> str:
    """How many soups answered the whole search fold, and how to have more."""
    whole = len(run.mixtures())
    if len(run.soups.ingredients) < 2:
        return SINGLE_SELECTED
    head = f"{whole} soup{'' if whole == 1 else 's'} of the search answered its whole fold; it takes {needed}"
    return f"{head}: use optimiser=grid, or optimiser=nevergrad with few ingredients"


def _beaten(
    values: FloatArray, soups: Sequence[int], parents: Sequence[Sequence[int]]
) -> FloatArray:
    """values [D, M, C] -> whether each soup is above all, and above at least one of its parents, [2, D, S, C]."""
    out = np.zeros((2, len(values), len(soups), values.shape[2]))
    for place, (soup, others) in enumerate(zip(soups, parents, strict=True)):
        above = values[:, [soup]] > values[:, others] + MEAN_TIE
        out[:, :, place] = above.all(axis=1), above.any(axis=1)
    return out


def _chances(
    values: FloatArray, soups: Sequence[int], parents: Sequence[Sequence[int]]
) -> FloatArray:
    """values [M, C] -> chance of both wins in each category, were the soup any one of its family, [2, S, C]."""
    out = np.zeros((2, len(soups), values.shape[1]))
    for place, (soup, others) in enumerate(zip(soups, parents, strict=True)):
        family = values[[soup, *others]]
        top = family >= family.max(axis=0) - MEAN_TIE
        out[0, place] = (top.sum(axis=0) == 1) / len(family)
        out[1, place] = (family > family.min(axis=0) + MEAN_TIE).sum(axis=0) / len(family)
    return out


def _beaten_share(wins: FloatArray, drawn: FloatArray, chances: FloatArray) -> WinShare:
    """The share of (soup, category) pairs [S, C] that are wins, its interval by draws, and the share by chance."""
    share = float(wins.mean())
    margin = Z95 * float(drawn.mean(axis=(1, 2)).std(ddof=1))
    return WinShare(
        share=share,
        low=max(0.0, share - margin),
        high=min(1.0, share + margin),
        chance=float(chances.mean()),
    )


WIN_KINDS = {"beats_all": "above all parents", "beats_one": "above at least one"}


@dataclass(frozen=True, kw_only=True)
class SoupWins:
    """A soup against its parents."""

    recipe_id: str
    """id of the soup's recipe"""
    weights: NamedNumbers
    """{ingredient: weight}"""
    beats_all: MaybeInt
    """categories in which it is above all parents"""
    beats_one: MaybeInt
    """categories in which it is above at least one"""


@dataclass(frozen=True, kw_only=True)
class WinShare:
    """Share of (soup, category) pairs."""

    share: MaybeFloat
    """share that are wins"""
    low: MaybeFloat
    """lower limit of the 95 % interval"""
    high: MaybeFloat
    """upper limit"""
    chance: MaybeFloat
    """share by chance"""

    def text(self) -> str:
        limits = POINTS.interval(self.low, self.high)
        return f"{percent(self.share)} % ({limits}; by chance {percent(self.chance)} %)"


@dataclass(frozen=True, kw_only=True)
class ParentsResult(AnalysisResult):
    """In how many categories soups beat their parents."""

    folded = True
    fold: str
    """fold of the items"""
    categories: Names
    """categories"""
    soups: tuple[SoupWins, ...]
    """soups of the search"""
    beats_all: WinShare
    """above all parents"""
    beats_one: WinShare
    """above at least one"""

    def section(self, unit: Unit) -> Section:
        shares = [f"{vars(self)[key].text()} {kind}" for key, kind in WIN_KINDS.items()]
        head = (
            f"{count(len(self.soups))} soups against their parents in {count(len(self.categories))} categories of the "
            f"search fold: {', '.join(shares)}."
        )
        note = (
            "By chance: if a soup and its parents were equally good, any of their scores might be the soup's. The mean "
            "of the parents' scores is never above all, and always above one."
        )
        return Section("Do soups beat their parents?", (head, note), "parents")

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """Soups by the number of categories that they win."""
        size = len(self.categories)
        colours = {"beats_one": COLOURS["uniform_all"], "beats_all": COLOURS["soup"]}
        with canvas():
            plot, axes = figure(8.2, 2.5)
            for shift, (key, colour) in enumerate(colours.items()):
                counts = Counter(int(vars(soup)[key] or 0) for soup in self.soups)
                places = [n + 0.4 * (0.5 - shift) for n in range(size + 1)]
                heights = [counts[n] for n in range(size + 1)]
                axes.bar(places, heights, 0.38, color=colour, label=WIN_KINDS[key])
                chance = (vars(self)[key].chance or 0.0) * size
                axes.axvline(chance, color=colour, linewidth=1.4, linestyle="--")
            axes.set_xticks(range(size + 1))
            axes.set_xlabel("categories of the search fold (dashed: the mean by chance)")
            axes.set_ylabel("soups")
            axes.grid(axis="x", visible=False)
            axes.locator_params(axis="y", integer=True)
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handlelength=1.0, labelcolor=INK
            )
        alt = (
            f"Histogram of the soups ({len(self.soups)}) by the number of categories in which they "
            "beat their parents."
        )
        return (Drawing("parents", plot, alt),)


# ------------------------------------------------------------ over ingredients, item by item

RULE = "on the search fold: the first items of each kind by the hash of their prompt, every category before any twice"
NOT_BY_ITEM = "no item is solved or not by a corpus metric (BLEU) or a loss: it takes scores from 0 to 1, item by item"
EXAMPLE_CHARS = 600
"""Characters of a prompt or an answer that an example shows."""
SOLVED_ROUNDING = 1e-6


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

    def analyse(self, run: RunScores) -> WinsResult:
        soup = run.soups.soup
        if len(soup.ingredients) < 2:
            raise NotEstimableError(
                "the recipe is a single model: there is nothing to hold it against"
            )
        recipes = {name: run.single(name) for name in soup.ingredients}
        lacking = sum(r.id not in run.report for r in (soup, *recipes.values()))
        if lacking:
            lack = f"{lacking} of the soup and its ingredients lack answers to the report fold"
            raise NotEstimableError(f"{lack}: run it again to evaluate the rest")
        if any(record.statistics for record in run.read(soup, "report").values()):
            raise NotEstimableError(NOT_BY_ITEM)
        items = run.report[soup.id].items
        found = self._solved(
            [run.report[r.id] for r in (soup, *recipes.values())], tuple(recipes), run.answers
        )
        groups = np.unique([item.group for item in items], return_inverse=True)[1].astype(np.int64)
        means = [float(found.soup.mean()), *found.ingredients.mean(axis=1).tolist()]
        kept = []
        for name, solved in zip(recipes, found.ingredients, strict=True):
            of_solved = _share(solved, found.soup, groups)
            of_failed = _share(1 - solved, found.soup, groups)
            kept.append(KeptShares(name=name, kept=of_solved, gained=of_failed))
        return WinsResult(
            fold="report",
            items=len(items),
            answers=run.answers,
            solved=dict(zip(("soup", *found.names), means, strict=True)),
            kept=tuple(kept),
            by_failures=_by_failures(found, groups),
            rule=RULE,
            examples=self._examples(run, recipes),
        )

    def _solved(self, scores: Sequence[ItemScores], names: tuple[str, ...], answers: int) -> Solved:
        """The scores as shares of right answers; graded ones are right from `solved` on.

        Raises:
            NotEstimableError: scores are not fractions of 1, such as those of a corpus metric or a loss.
        """
        values = np.stack([score.values for score in scores])
        if not (
            np.isfinite(values).all()
            and values.min() >= -SOLVED_ROUNDING
            and values.max() <= 1 + SOLVED_ROUNDING
        ):
            raise NotEstimableError(NOT_BY_ITEM)
        if np.abs(values * answers - np.round(values * answers)).max() >= SOLVED_ROUNDING:
            values = (values >= self.solved).astype(float)
        return Solved(names=names, soup=values[0], ingredients=values[1:])

    def _examples(self, run: RunScores, recipes: Mapping[str, Recipe]) -> tuple[AnswerExample, ...]:
        """Items of three kinds with the answers of all, in the order of the kinds; none of the report fold is shown."""
        soup = run.soups.soup
        if any(r.id not in run.search for r in (soup, *recipes.values())):
            return ()
        items = run.search[soup.id].items
        found = self._solved(
            [run.search[r.id] for r in (soup, *recipes.values())], tuple(recipes), run.answers
        )
        fails = found.ingredients.max(axis=0) == 0
        solves = found.ingredients.min(axis=0) == 1
        most = found.ingredients.sum(axis=0) >= len(recipes) - 1
        kinds = {
            "solved, though every ingredient fails": (found.soup == 1) & fails,
            "failed, though every ingredient solves it": (found.soup == 0) & solves,
            "solved, though one ingredient fails": (found.soup == 1) & most & ~solves & ~fails,
        }
        answers = {name: run.read(r, "search") for name, r in {"soup": soup, **recipes}.items()}
        examples = list[AnswerExample]()
        for kind, mask in kinds.items():
            chosen = _chosen(items, np.flatnonzero(mask).tolist(), self.examples)
            examples += [_example(kind, items[i], answers) for i in chosen]
        return tuple(examples)


def _share(weights: FloatArray, values: FloatArray, groups: NDArray[np.int64]) -> ItemShare:
    """Share sum(w v) / sum(w) with its 95 % interval: Wilson's by groups where items count whole, else the ratio's
    normal limits with the variance between groups."""
    total = float(weights.sum())
    if total < SOLVED_ROUNDING:
        return ItemShare(items=0.0, share=None, low=None, high=None)
    if np.isin(weights, (0.0, 1.0)).all():
        found = rate(values[weights == 1], groups[weights == 1])
        return ItemShare(items=total, share=found.mean, low=found.low, high=found.high)
    share = float((weights * values).sum() / total)
    pull = np.bincount(groups, weights * (values - share)) / total
    margin = Z95 * float(np.sqrt((pull**2).sum() * len(pull) / max(1, len(pull) - 1)))
    low = max(0.0, share - margin)
    high = min(1.0, share + margin)
    return ItemShare(items=total, share=share, low=low, high=high)


def _by_failures(found: Solved, groups: NDArray[np.int64]) -> tuple[FailureShare, ...]:
    """The soup where none, one, .. and all of the ingredients fail; an item's weight is the chance of so many."""
    chances = np.zeros((len(found.names) + 1, len(found.soup)))
    chances[0] = 1.0
    for share in found.ingredients:
        chances[1:] = chances[1:] * share + chances[:-1] * (1 - share)
        chances[0] *= share
    shares = [_share(weights, found.soup, groups) for weights in chances]
    return tuple(FailureShare(fail=j, **vars(share)) for j, share in enumerate(shares))


def _chosen(items: Sequence[Item], places: Sequence[int], number: int) -> list[int]:
    """The first places by the hash of the items' prompts; no category twice before every other had its turn."""
    order = sorted(places, key=lambda i: digest([items[i].identity, items[i].id]))
    turns: dict[str, int] = {}
    ranked = []
    for i in order:
        turns[items[i].category] = turns.get(items[i].category, 0) + 1
        ranked.append((turns[items[i].category], i))
    return [i for _, i in sorted(ranked, key=lambda pair: pair[0])[:number]]


def _example(kind: str, item: Item, answers: Mapping[str, Mapping[str, Record]]) -> AnswerExample:
    """An item with its question, its reference, and each model's answer."""
    shown = {}
    for name, records in answers.items():
        record = records.get(item.id)
        if record is not None:
            text = _cut(record.output)
            shown[name] = ExampleAnswer(text=text, score=record.score, outcome=record.outcome)
    question = item.prompt
    if not isinstance(question, str):
        question = next((str(m["content"]) for m in reversed(question) if m.get("content")), "")
    if len(question) > EXAMPLE_CHARS:
        question = f"\N{HORIZONTAL ELLIPSIS}{question[-EXAMPLE_CHARS:]}"
    answer = item.answer
    reference = answer if isinstance(answer, str) else json.dumps(answer, default=str)
    return AnswerExample(
        kind=kind,
        item=item.id,
        category=item.category,
        prompt=question,
        reference=_cut(reference),
        answers=shown,
    )


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARS else f"{text[:EXAMPLE_CHARS]}\N{HORIZONTAL ELLIPSIS}"


# How it is shown


@dataclass(frozen=True, kw_only=True)
class ItemShare:
    """Share of some items that the soup solves."""

    items: MaybeFloat
    """number of these items; several answers count as shares of one"""
    share: MaybeFloat
    """share"""
    low: MaybeFloat
    """lower limit of the 95 % interval"""
    high: MaybeFloat
    """upper limit"""

    def cell(self) -> TableCell:
        return TableCell(percent(self.share), POINTS.interval(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class FailureShare(ItemShare):
    """The same for items that some ingredients fail."""

    fail: MaybeInt
    """number of ingredients that fail"""


@dataclass(frozen=True, kw_only=True)
class KeptShares:
    """The soup against an ingredient."""

    name: str
    """ingredient"""
    kept: ItemShare
    """of the items that the ingredient solves"""
    gained: ItemShare
    """of those that it fails"""


@dataclass(frozen=True, kw_only=True)
class ExampleAnswer:
    """A model's answer."""

    text: str
    """answer, at most 600 characters of it"""
    score: MaybeFloat
    """score"""
    outcome: str
    """how it ended"""

    def verdict(self) -> str:
        words = {1.0: "yes", 0.0: "no"}
        word = words.get(self.score or 0.0) or percent(self.score)
        if self.outcome in ("finished", ""):
            return word
        return f"{word} ({clean(self.outcome)})"


@dataclass(frozen=True, kw_only=True)
class AnswerExample:
    """An item of the search fold."""

    kind: str
    """what the soup does, and its ingredients"""
    item: str
    """id of the item"""
    category: str
    """category"""
    prompt: str
    """end of the prompt"""
    reference: str
    """right answer"""
    answers: Mapping[str, ExampleAnswer]
    """{model: answer}"""

    def section(self) -> Section:
        """Its question, its reference, and each model's answer."""
        rows = []
        for name in sorted(self.answers, key=lambda name: name != "soup"):
            answer = self.answers[name]
            rows.append((clean(name), clean(answer.text), answer.verdict()))
        above = (f"Prompt: {clean(self.prompt)}", f"Reference: {clean(self.reference)}")
        title = f"{clean(self.category)}: {clean(self.kind)} ({clean(self.item)})"
        table = grid(("model", "answer", "right"), rows, left=(0, 1, 2))
        return Section(title, above, grids=(table,))


@dataclass(frozen=True, kw_only=True)
class WinsResult(AnalysisResult):
    """What the soup keeps of its ingredients."""

    fold: str
    """fold of the items"""
    items: MaybeInt
    """items"""
    answers: MaybeInt
    """answers per item"""
    solved: NamedNumbers
    """{model: share of items that it solves}, `soup` among them"""
    kept: tuple[KeptShares, ...]
    """the soup against each ingredient"""
    by_failures: tuple[FailureShare, ...]
    """the soup where none, one, .. and all ingredients fail"""
    rule: str
    """how the examples were chosen"""
    examples: tuple[AnswerExample, ...]
    """items with all answers"""

    def section(self, unit: Unit) -> Section:
        """What is kept, and the soup where none, one or all fail; the rest is folded away."""
        kept = []
        for row in self.kept:
            cell = row.kept.cell()
            limits = f" ({cell.sub})" if cell.sub else ""
            kept.append(f"{cell.text} %{limits} of {clean(row.name)}'s")
        head = f"Of the items that an ingredient solves the soup keeps {in_words(kept)}."
        folded = [Section("By ingredient", grids=(self._by_ingredient(),))]
        if self.examples:
            examples = tuple(example.section() for example in self.examples)
            rule = f"Chosen {clean(self.rule)}."
            folded.append(Section("Examples, side by side", (rule,), folded=examples))
        title = "What did the soup keep of its ingredients?"
        return Section(title, (head,), grids=(self._failures(),), folded=tuple(folded))

    def _by_ingredient(self) -> TableGrid:
        rows = []
        for row in self.kept:
            solved = percent(self.solved.get(row.name))
            rows.append((clean(row.name), solved, row.kept.cell(), row.gained.cell()))
        header = (
            "ingredient",
            "it solves, %",
            "the soup keeps, %",
            "and gains of the rest, %",
        )
        return grid(header, rows)

    def _failures(self) -> TableGrid:
        last = len(self.by_failures) - 1
        words = {0: "none", 1: "exactly one"} if last > 1 else {0: "none"}
        words[last] = "all"
        rows = []
        for place, row in enumerate(self.by_failures):
            rows.append((words.get(place, str(place)), count(row.items), row.cell()))
        return grid(("ingredients that fail", "items", "the soup solves, %"), rows)
