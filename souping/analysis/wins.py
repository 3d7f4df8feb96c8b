"""Wins of soups over their ingredients: by category (`category_wins`), and item by item (`item_wins`).

`category_wins`: in how many categories is a soup above both of its ingredients, and above at least one?
Figure 5 of arXiv 2511.13254 counts this over a population of soups; here it is every soup of the
search. By chance, if a soup and its K ingredients were equally good, it is above all of them in
1 / (K + 1) of the categories and above at least one in K / (K + 1): 1/3 and 2/3 for two ingredients.
Equal scores make both rarer, so the chance is counted from the scores: of every category's K + 1
scores each is as likely to be the soup's.

`item_wins`: what does the soup keep of its ingredients, and what does it solve that they do not?
Appendices B and D of the paper, on the test split; examples are of the search split, so that nobody
reads the report's items. Where an item has several answers its score p is their mean; the item then
counts as solved by its share p, failed by 1 - p, and answers of two models are independent given
the item, so that products of shares are unbiased.

Shape legend: M models, S soups, K ingredients, C categories, I items, G groups, D draws.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from souping.analysis.base import SINGLE_SELECTED, Analysis, NotEstimableError, RunScores
from souping.analysis.correlation import GroupSums
from souping.core.fields import component
from souping.core.types import (
    FloatArray,
    IntArray,
    Item,
    ItemScores,
    Names,
    Recipe,
    Record,
    ScoreMatrix,
    digest,
    frozen,
)
from souping.core.unit import POINTS, Unit
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import Section, TableCell, TableGrid, grid
from souping.report.content import MaybeFloat, MaybeInt, NamedNumbers
from souping.report.format import clean, count, in_words, percent
from souping.report.plots import COLOURS, INK, Drawing, canvas, figure
from souping.statistics.corrections import Z95
from souping.statistics.intervals import rate
from souping.statistics.score_table import ModelScores, group_numbers, one_category

# ------------------------------------------------------------ over ingredients, by category

# Means that differ by less are equal: only the order of a sum tells them apart.
MEAN_TIE = 1e-12
WINS_SALT = 0x9A4E
# Bootstrap draws for the intervals.
WINS_DRAWS = 400


@component
class CategoryWins(Analysis):
    """Categories in which each soup of the search beats all, and at least one, of its ingredients.

    Intervals of the shares: +- 1.96 standard errors by `WINS_DRAWS` bootstrap draws of the search split's groups.
    """

    def analyse(self, run: RunScores) -> CategoryWinsResult:
        # Soups all of whose ingredients answered the whole search split, and the recipe ids of these.
        mixtures = []
        ingredient_ids = []
        for soup in run.mixtures():
            singles = [run.single(name).id for name in soup.ingredients]
            if run.search.keys() >= set(singles):
                mixtures.append(soup)
                ingredient_ids.append(singles)
        if not mixtures:
            raise NotEstimableError(too_few(run, 1))

        # Scores of the ingredients and of the soups, and their rows in the table.
        ids = [*itertools.chain(*ingredient_ids), *(soup.id for soup in mixtures)]
        scores = ScoreMatrix.from_items({name: run.search[name] for name in ids})
        soups = [scores.models.index(soup.id) for soup in mixtures]
        ingredients = [list(map(scores.models.index, singles)) for singles in ingredient_ids]

        wins = _beaten(scores.values[None], soups, ingredients)[:, 0]  # [2, S, C]
        drawn = GroupSums.of(scores).draws(WINS_DRAWS, np.random.default_rng(WINS_SALT))
        drawn_wins = _beaten(drawn, soups, ingredients)
        chances = _chances(scores.values, soups, ingredients)
        counts = wins.sum(axis=-1).astype(int)
        rows = []
        for s, soup in enumerate(mixtures):
            row = SoupWins(
                recipe_id=soup.id,
                weights=soup.shares,
                beats_all=int(counts[0, s]),
                beats_one=int(counts[1, s]),
            )
            rows.append(row)
        return CategoryWinsResult(
            split="search",
            categories=scores.categories,
            soups=tuple(rows),
            beats_all=_beaten_share(wins[0], drawn_wins[0], chances[0]),
            beats_one=_beaten_share(wins[1], drawn_wins[1], chances[1]),
        )


def too_few(run: RunScores, needed: int) -> str:
    """How many soups answered the whole search split, and how to have more."""
    if len(run.soups.ingredients) < 2:
        return SINGLE_SELECTED
    soups = len(run.mixtures())
    ending = "" if soups == 1 else "s"
    head = f"{soups} soup{ending} of two or more ingredients answered the whole search split; it takes {needed}"
    return f"{head}: use optimiser=grid, or optimiser=nevergrad with few ingredients"


def _beaten(
    values: FloatArray, soups: Sequence[int], ingredients: Sequence[Sequence[int]]
) -> FloatArray:
    """Whether each soup is above all (first), and above at least one (second) of its ingredients, [2, D, S, C].

    `values` are [D, M, C]. `soups` [S] are numbers of models, and `ingredients` those of each soup's ingredients.
    """
    wins = np.zeros((2, len(values), len(soups), values.shape[2]))
    for s, (soup, ingredients_of_soup) in enumerate(zip(soups, ingredients, strict=True)):
        above = values[:, [soup]] > values[:, ingredients_of_soup] + MEAN_TIE
        wins[0, :, s] = above.all(axis=1)
        wins[1, :, s] = above.any(axis=1)
    return wins


def _chances(
    values: FloatArray, soups: Sequence[int], ingredients: Sequence[Sequence[int]]
) -> FloatArray:
    """Chance of each kind of win (`_beaten`) in each category if any score of a family might be the soup's, [2, S, C].

    `values` are [M, C]; a family is a soup with its ingredients, each by its number in `values`.
    """
    chances = np.zeros((2, len(soups), values.shape[1]))
    for s, (soup, ingredients_of_soup) in enumerate(zip(soups, ingredients, strict=True)):
        family = values[[soup, *ingredients_of_soup]]
        highest = family >= family.max(axis=0) - MEAN_TIE
        above_one = family > family.min(axis=0) + MEAN_TIE
        chances[0, s] = (highest.sum(axis=0) == 1) / len(family)
        chances[1, s] = above_one.sum(axis=0) / len(family)
    return chances


def _beaten_share(wins: FloatArray, drawn: FloatArray, chances: FloatArray) -> WinShare:
    """The share of (soup, category) pairs [S, C] that are wins, its interval by draws, and the share by chance."""
    share = float(wins.mean())
    margin = Z95 * float(drawn.mean(axis=(1, 2)).std(ddof=1))  # drawn [D, S, C]
    return WinShare(
        share=share,
        low=max(0.0, share - margin),
        high=min(1.0, share + margin),
        chance=float(chances.mean()),
    )


WIN_KINDS = {"beats_all": "above all ingredients", "beats_one": "above at least one"}


@frozen
class SoupWins:
    """A soup against its ingredients."""

    recipe_id: str
    """id of the soup's recipe"""
    weights: NamedNumbers
    """{ingredient: weight}"""
    beats_all: MaybeInt
    """categories in which it is above all ingredients"""
    beats_one: MaybeInt
    """categories in which it is above at least one"""


@frozen
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
        """Share, interval and share by chance, for a sentence."""
        limits = POINTS.interval(self.low, self.high)
        return f"{percent(self.share)} % ({limits}; by chance {percent(self.chance)} %)"


@frozen
class CategoryWinsResult(AnalysisResult):
    """In how many categories soups beat their ingredients."""

    folded = True
    split: str
    """split of the items"""
    categories: Names
    """categories"""
    soups: tuple[SoupWins, ...]
    """soups of the search"""
    beats_all: WinShare
    """above all ingredients"""
    beats_one: WinShare
    """above at least one"""

    def section(self, unit: Unit) -> Section:
        """The shares of both kinds of wins, with those by chance."""
        shares = [f"{vars(self)[key].text()} {kind}" for key, kind in WIN_KINDS.items()]
        head = (
            f"Soups against their ingredients in {count(len(self.categories))} categories of the search split, number "
            f"of soups (two or more ingredients, whole split) {count(len(self.soups))}: {', '.join(shares)}."
        )
        note = (
            "By chance: if a soup and its ingredients were equally good, any of their scores might be the soup's. The "
            "mean of the ingredients' scores is never above all, and always above one."
        )
        return Section("Do soups beat their ingredients?", (head, note), "category_wins")

    def drawings(self, unit: Unit) -> tuple[Drawing, ...]:
        """Soups by the number of categories that they win."""
        size = len(self.categories)
        # (kind, share of wins, number of categories that each soup wins, colour)
        one = [soup.beats_one for soup in self.soups]
        every = [soup.beats_all for soup in self.soups]
        kinds = (
            ("beats_one", self.beats_one, one, COLOURS["uniform_all"]),
            ("beats_all", self.beats_all, every, COLOURS["soup"]),
        )
        with canvas():
            plot, axes = figure(8.2, 2.5)
            for side, (kind, share, won, colour) in enumerate(kinds):
                counts = Counter(int(number or 0) for number in won)
                # Two bars side by side.
                x = np.arange(size + 1) + 0.4 * (0.5 - side)
                heights = [counts[n] for n in range(size + 1)]
                axes.bar(x, heights, 0.38, color=colour, label=WIN_KINDS[kind])
                chance = (share.chance or 0.0) * size
                axes.axvline(chance, color=colour, linewidth=1.4, linestyle="--")
            axes.set_xticks(range(size + 1))
            axes.set_xlabel("categories of the search split (dashed: the mean by chance)")
            axes.set_ylabel("soups")
            axes.grid(axis="x", visible=False)
            axes.locator_params(axis="y", integer=True)
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handlelength=1.0, labelcolor=INK
            )
        alt = (
            f"Histogram of the soups ({len(self.soups)}) by the number of categories in which they "
            "beat their ingredients."
        )
        return (Drawing("category_wins", plot, alt),)


# ------------------------------------------------------------ over ingredients, item by item

RULE = "on the search split: the first items of each kind by the hash of their prompt, every category before any twice"
NOT_BY_ITEM = "no item is solved or not by a corpus metric (BLEU) or a loss: it takes scores from 0 to 1, item by item"
# Characters of a prompt or an answer that an example shows.
EXAMPLE_CHARS = 600
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
SOLVED_ROUNDING = 1e-6
# Graded scores: an item counts as solved from this score on.
SOLVED_FROM = 0.5
# Examples of each kind.
EXAMPLES = 2


@frozen
class Solved:
    """Share of each item's answers that are right, of the soup and of the ingredients `names`."""

    names: tuple[str, ...]
    soup: FloatArray  # [I]
    ingredients: FloatArray  # [K, I]


@component
class ItemWins(Analysis):
    """Kept shares, wins by how many ingredients fail, and examples."""

    def analyse(self, run: RunScores) -> ItemWinsResult:
        soup = run.soups.soup
        if len(soup.ingredients) < 2:
            raise NotEstimableError(
                "the recipe is a single model: there is nothing to hold it against"
            )
        models = {"soup": soup} | {name: run.single(name) for name in soup.ingredients}
        missing = [model for model in models.values() if model.id not in run.test]
        if missing:
            lack = f"{len(missing)} of the soup and its ingredients lack answers to the test split"
            raise NotEstimableError(f"{lack}: run it again to evaluate the rest")
        # Only corpus metrics have statistics.
        if any(record.statistics for record in run.read(soup, "test").values()):
            raise NotEstimableError(NOT_BY_ITEM)

        solved = self._solved(run.test, models, run.answers)
        items = run.test[soup.id].items
        groups = group_numbers([item.group for item in items])
        solved_shares = {"soup": float(solved.soup.mean())}
        kept = []
        for name, values in zip(solved.names, solved.ingredients, strict=True):
            solved_shares[name] = float(values.mean())
            of_solved = _share(values, solved.soup, groups)
            of_failed = _share(1 - values, solved.soup, groups)
            kept.append(KeptShares(name=name, kept=of_solved, gained=of_failed))
        return ItemWinsResult(
            split="test",
            items=len(items),
            answers=run.answers,
            solved=solved_shares,
            kept=tuple(kept),
            by_failures=_by_failures(solved, groups),
            rule=RULE,
            examples=self._examples(run, models),
        )

    def _solved(
        self, scores: Mapping[str, ItemScores], models: Mapping[str, Recipe], answers: int
    ) -> Solved:
        """The scores of the soup and its ingredients as shares of right answers.

        Graded ones are right from `SOLVED_FROM` on.

        Raises:
            NotEstimableError: scores are not fractions of 1, such as those of a corpus metric or a loss.
        """
        values = np.stack([scores[model.id].values for model in models.values()])
        in_range = values.min() >= -SOLVED_ROUNDING and values.max() <= 1 + SOLVED_ROUNDING
        if not np.isfinite(values).all() or not in_range:
            raise NotEstimableError(NOT_BY_ITEM)
        # Scores are graded unless each is a whole number of right answers, of the answers per item.
        right = values * answers
        if np.abs(right - np.round(right)).max() >= SOLVED_ROUNDING:
            values = (values >= SOLVED_FROM).astype(float)
        _, *names = models  # without the soup, which is the first
        return Solved(names=tuple(names), soup=values[0], ingredients=values[1:])

    def _examples(self, run: RunScores, models: Mapping[str, Recipe]) -> tuple[AnswerExample, ...]:
        """Items of three kinds with the answers of all models, in the order of the kinds.

        They are of the search split: nobody reads the report's items.
        """
        if any(model.id not in run.search for model in models.values()):
            return ()
        solved = self._solved(run.search, models, run.answers)
        all_fail = solved.ingredients.max(axis=0) == 0
        all_solve = solved.ingredients.min(axis=0) == 1
        # With several answers per item, the failed shares of all ingredients sum to 1 at most.
        one_fails = ~all_solve & (solved.ingredients.sum(axis=0) >= len(solved.names) - 1)
        kinds = {
            "solved, though every ingredient fails": (solved.soup == 1) & all_fail,
            "failed, though every ingredient solves it": (solved.soup == 0) & all_solve,
            "solved, though one ingredient fails": (solved.soup == 1) & one_fails,
        }

        items = run.search[run.soups.soup.id].items
        answers = {name: run.read(model, "search") for name, model in models.items()}
        examples = []
        for kind, of_kind in kinds.items():
            for i in _chosen(items, np.flatnonzero(of_kind).tolist(), EXAMPLES):
                examples.append(_example(kind, items[i], answers))
        return tuple(examples)


def _share(weights: FloatArray, values: FloatArray, groups: IntArray) -> ItemShare:
    """Share sum(w v) / sum(w) of items [I] with their weights w, and its 95 % interval.

    It is Wilson's interval by groups if all weights are 0 or 1, else a normal interval of the ratio with the variance
    between groups. Without any weight, there is no share.
    """
    total = float(weights.sum())
    if total < SOLVED_ROUNDING:
        return ItemShare(items=0.0, share=None, low=None, high=None)
    if np.isin(weights, (0.0, 1.0)).all():
        counted = weights == 1
        items = one_category(groups[counted])
        share, low, high = rate(ModelScores(items=items, values=values[counted])).estimate
        return ItemShare(items=total, share=share, low=low, high=high)

    # A ratio is linear in the groups by their influence [G]; n / (n - 1) sum of its squares.
    share = float((weights * values).sum() / total)
    influence = np.bincount(groups, weights * (values - share)) / total
    n = len(influence)
    margin = Z95 * float(np.sqrt((influence**2).sum() * n / max(1, n - 1)))
    low = max(0.0, share - margin)
    high = min(1.0, share + margin)
    return ItemShare(items=total, share=share, low=low, high=high)


def _by_failures(solved: Solved, groups: IntArray) -> tuple[FailureShare, ...]:
    """The soup on the items that none, one, .. and all of the ingredients fail.

    An item's weight is the chance that exactly this number of ingredients fail it.
    """
    # Chance that j of the ingredients fail an item [K + 1, I], ingredient by ingredient.
    chances = np.zeros((len(solved.names) + 1, len(solved.soup)))
    chances[0] = 1.0
    for solves in solved.ingredients:
        chances[1:] = chances[1:] * solves + chances[:-1] * (1 - solves)
        chances[0] *= solves
    shares = []
    for failing, weights in enumerate(chances):
        share = _share(weights, solved.soup, groups)
        shares.append(
            FailureShare(
                fail=failing, items=share.items, share=share.share, low=share.low, high=share.high
            )
        )
    return tuple(shares)


def _chosen(items: Sequence[Item], places: Sequence[int], number: int) -> list[int]:
    """The first `number` of some `places` in `items`, in the order of a hash of the prompts.

    No category comes twice before every other category has had its turn.
    """
    by_hash = sorted(places, key=lambda i: digest([items[i].prompt_digest, items[i].id]))
    turns = Counter[str]()
    turn_of = {}
    for i in by_hash:
        category = items[i].category
        turns[category] += 1
        turn_of[i] = turns[category]
    return sorted(by_hash, key=lambda i: turn_of[i])[:number]


def _example(kind: str, item: Item, answers: Mapping[str, Mapping[str, Record]]) -> AnswerExample:
    """An item with its question, its reference, and each model's answer."""
    examples = {}
    for name, records in answers.items():
        record = records.get(item.id)
        if record is not None:
            text = _cut(record.output)
            examples[name] = ExampleAnswer(text=text, score=record.score, outcome=record.outcome)
    # The question of a chat is the last message that has content.
    question = item.prompt
    if not isinstance(question, str):
        contents = [str(message["content"]) for message in question if message.get("content")]
        question = contents[-1] if contents else ""
    if len(question) > EXAMPLE_CHARS:
        question = f"{ELLIPSIS}{question[-EXAMPLE_CHARS:]}"
    reference = item.answer
    if not isinstance(reference, str):
        reference = json.dumps(reference, default=str)
    return AnswerExample(
        kind=kind,
        item=item.id,
        category=item.category,
        prompt=question,
        reference=_cut(reference),
        answers=examples,
    )


def _cut(text: str) -> str:
    """The beginning of a text."""
    if len(text) <= EXAMPLE_CHARS:
        return text
    return f"{text[:EXAMPLE_CHARS]}{ELLIPSIS}"


# How it is shown


@frozen
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
        """The share in percent, and its interval below it."""
        return TableCell(percent(self.share), POINTS.interval(self.low, self.high))


@frozen
class FailureShare(ItemShare):
    """The same for items that some ingredients fail."""

    fail: MaybeInt
    """number of ingredients that fail"""


@frozen
class KeptShares:
    """The soup against an ingredient."""

    name: str
    """ingredient"""
    kept: ItemShare
    """of the items that the ingredient solves"""
    gained: ItemShare
    """of those that it fails"""


@frozen
class ExampleAnswer:
    """A model's answer."""

    text: str
    """answer, at most 600 characters of it"""
    score: MaybeFloat
    """score"""
    outcome: str
    """how it ended"""

    def verdict(self) -> str:
        """Whether it is right: `yes`, `no` or the percentage, and how it ended if it is not finished."""
        words = {1.0: "yes", 0.0: "no"}
        word = words.get(self.score or 0.0) or percent(self.score)
        if self.outcome in ("finished", ""):
            return word
        return f"{word} ({clean(self.outcome)})"


@frozen
class AnswerExample:
    """An item of the search split."""

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


@frozen
class ItemWinsResult(AnalysisResult):
    """What the soup keeps of its ingredients."""

    split: str
    """split of the items"""
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
        shares = []
        for row in self.kept:
            cell = row.kept.cell()
            limits = f" ({cell.sub})" if cell.sub else ""
            shares.append(f"{cell.text} %{limits} of {clean(row.name)}'s")
        head = f"Of the items that an ingredient solves the soup keeps {in_words(shares)}."
        folded = [Section("By ingredient", grids=(self._by_ingredient(),))]
        if self.examples:
            examples = tuple(example.section() for example in self.examples)
            rule = f"Chosen {clean(self.rule)}."
            folded.append(Section("Examples, side by side", (rule,), folded=examples))
        title = "What did the soup keep of its ingredients?"
        return Section(title, (head,), grids=(self._failures(),), folded=tuple(folded))

    def _by_ingredient(self) -> TableGrid:
        """What each ingredient solves, and what the soup keeps and gains."""
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
        """What the soup solves where none, one, .. and all of the ingredients fail."""
        last = len(self.by_failures) - 1
        words = {0: "none", 1: "exactly one"}
        words[last] = "all"
        rows = []
        for failing, row in enumerate(self.by_failures):
            rows.append((words.get(failing, str(failing)), count(row.items), row.cell()))
        return grid(("ingredients that fail", "items", "the soup solves, %"), rows)
