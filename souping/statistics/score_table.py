"""Score table that all tests take: models' scores on the same items, and the bounds of missing answers.

An answer that was requested and never received counts as its harness says, mostly as wrong. Whether it would have been
right is not known, so a claim must hold three times: as counted, with the missing answers of one model right and those
of the others wrong, and the reverse. (All right or all wrong for both would cancel.)

Shape legend: R runs, I items, C categories.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from souping.core.protocols import Objective
from souping.core.scores import value_of
from souping.core.types import BoolArray, FloatArray, IntArray, Item, ItemScores
from souping.statistics.grouped import ZERO_DIFFERENCE, GroupedScores, GroupLayout, design

WARN_LOST = 0.02
"""Share of a model's answers that are truncated or missing from which on there is a warning."""
MOST_LOST = 0.2
"""Share above which nothing is claimed."""

# ---------------------------------------------------------------- items


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTable:
    """Items of a split, or of several tasks, as arrays.

    `names` are those of the categories, `coefficients` the objective's weights. `value` computes an
    objective that is not linear from category means [..., C]. `ranges` are by how much scores of a
    category can differ, 1 each if there are none.
    """

    names: tuple[str, ...]
    categories: IntArray  # [I]
    groups: IntArray  # [I]
    coefficients: FloatArray  # [C]
    value: Callable[[FloatArray], FloatArray] | None = None
    ranges: FloatArray | None = None  # [C]

    @classmethod
    def of(cls, items: Sequence[Item], objective: Objective) -> ItemTable:
        """Items as arrays, their categories in order of first appearance."""
        names = tuple(dict.fromkeys(item.category for item in items))
        return cls(
            names=names,
            categories=np.array([names.index(item.category) for item in items]),
            groups=group_numbers([item.group for item in items]),
            coefficients=objective.coefficients(names),
            value=value_of(objective, names),
        )

    def at(self, place: BoolArray) -> ItemTable:
        """The items of this mask [I]; only of a linear objective, whose coefficients are scaled to sum to 1.

        Categories without any of the items are left out.
        """
        if place.all():
            return self
        used, categories = np.unique(self.categories[place], return_inverse=True)
        weights = self.coefficients[used]
        return ItemTable(
            names=tuple(self.names[category] for category in used),
            categories=categories.astype(np.int64),
            groups=self.groups[place],
            coefficients=weights / weights.sum(),
            ranges=None if self.ranges is None else self.ranges[used],
        )

    def alone(self, category: int) -> ItemTable:
        """The items of one category, whose mean is the objective."""
        groups = self.groups[self.categories == category]
        ranges = None if self.ranges is None else self.ranges[[category]]
        return replace(one_category(groups, self.names[category]), ranges=ranges)

    @cached_property
    def layout(self) -> GroupLayout:
        """Groups and strata of the items."""
        return GroupLayout.of(self.categories, self.groups, self.coefficients, self.ranges)

    def grouped(self, values: FloatArray) -> GroupedScores:
        """Scores [I], or differences of them, summed by group and category."""
        return self.layout.grouped(values)

    def mean(self, values: FloatArray) -> float:
        """The linear objective of the scores [R, I] of several runs, by each item's mean over the runs."""
        sums = np.bincount(self.categories, values.mean(axis=0))
        means = self.coefficients * sums / np.bincount(self.categories)
        return float(means.sum())

    def score(self, values: FloatArray) -> float:
        """Objective of scores [I]."""
        if self.value is None:
            return self.grouped(values).objective
        # The means of all categories, also of those that have no weight.
        equal_weights = np.ones(len(self.names))
        scores = design(values, self.categories, self.groups, equal_weights)
        return float(self.value(scores.means))

    @cached_property
    def item_weights(self) -> FloatArray:
        """How far a linear objective moves if an item's score moves by 1, [I]."""
        sizes = np.bincount(self.categories, minlength=len(self.names))
        return np.asarray((self.coefficients / sizes)[self.categories])


def group_numbers(names: Sequence[str]) -> IntArray:
    """Number of each item's group [I], by the group's name. The order of groups decides what is drawn."""
    _, numbers = np.unique(names, return_inverse=True)
    return numbers.astype(np.int64)


def one_category(groups: IntArray, name: str = "") -> ItemTable:
    """Items of these groups [I], whose mean is the objective."""
    return ItemTable(names=(name,), categories=0 * groups, groups=groups, coefficients=np.ones(1))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelScores:
    """Scores of one model on the items, [I]."""

    items: ItemTable
    values: FloatArray

    def alone(self, category: int) -> ModelScores:
        """The scores of one category, whose mean is the objective then."""
        values = self.values[self.items.categories == category]
        return ModelScores(items=self.items.alone(category), values=values)

    @cached_property
    def grouped(self) -> GroupedScores:
        """Sums by group and category."""
        return self.items.grouped(self.values)

    @cached_property
    def ungrouped(self) -> GroupedScores:
        """Sums by group and category if each item were a group by itself."""
        ungrouped = replace(self.items, groups=np.arange(len(self.values)))
        return ungrouped.grouped(self.values)

    @cached_property
    def span(self) -> tuple[float, float]:
        """(lowest, highest) value that a mean of such scores can have."""
        return span(self.values)


# ---------------------------------------------------------------- answers


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Scores of one model, each [R, I].

    `counted` is nan where the harness left an item out; `lowest` and `highest` have missing answers
    wrong and right. `noise` is the variance of a score over the draw of its answers, nan for the
    score of a single answer.
    """

    counted: FloatArray
    lowest: FloatArray
    highest: FloatArray
    noise: FloatArray

    @classmethod
    def of(
        cls,
        values: FloatArray,
        missing: FloatArray | float = 0.0,
        noise: FloatArray | float = math.nan,
    ) -> Answers:
        """Scores [I] or [R, I], in which the share `missing` of an item's answers is missing and counted as wrong."""
        counted = np.atleast_2d(np.asarray(values, dtype=float))
        highest = counted
        if np.any(missing):
            highest = np.minimum(counted + missing, 1.0)
        return cls(
            counted=counted,
            lowest=counted,
            highest=highest,
            noise=np.broadcast_to(noise, counted.shape),
        )

    @cached_property
    def missing(self) -> int:
        """Scores that missing answers may change, in all runs."""
        return int((self.highest != self.lowest).sum())

    def at(self, place: BoolArray) -> Answers:
        """The items of this mask [I]."""
        return Answers(
            counted=self.counted[:, place],
            lowest=self.lowest[:, place],
            highest=self.highest[:, place],
            noise=self.noise[:, place],
        )

    def as_counted(self) -> Answers:
        """Missing answers are what the harness counts, and wrong where it left them out."""
        scores = np.where(np.isfinite(self.counted), self.counted, self.lowest)
        return replace(self, counted=scores, lowest=scores, highest=scores)

    def filled(self, right: bool) -> Answers:
        """Missing answers are right, or wrong, so that none is missing."""
        scores = self.highest if right else self.lowest
        return replace(self, counted=scores, lowest=scores, highest=scores)


def joined(tasks: Sequence[Answers]) -> Answers:
    """A model's answers to the items of several tasks, one after the other."""
    return Answers(
        counted=np.concatenate([task.counted for task in tasks], axis=1),
        lowest=np.concatenate([task.lowest for task in tasks], axis=1),
        highest=np.concatenate([task.highest for task in tasks], axis=1),
        noise=np.concatenate([task.noise for task in tasks], axis=1),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Scores of one model minus those of another, [I], within -bound..bound on the objective.

    They are `graded` unless in all runs of both models there are but two scores, right and wrong.
    """

    names: tuple[str, str]
    deltas: FloatArray
    grouped: GroupedScores
    bound: float
    graded: bool

    @property
    def discordant(self) -> float:
        """Share of items on which the two scores differ."""
        return float((self.deltas != 0).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTable:
    """Answers of several models to the same items. Every `lowest` and `highest` is finite."""

    items: ItemTable
    answers: Mapping[str, Answers]

    @classmethod
    def of(cls, items: ItemTable, answers: Mapping[str, Answers]) -> ScoreTable:
        """With the range of the scores in each category, if they are not from 0 to 1."""
        ranges = _ranges(items, [model.counted for model in answers.values()])
        return cls(items=replace(items, ranges=ranges), answers=answers)

    @classmethod
    def measured(
        cls, items: ItemTable, scores: Mapping[str, ItemScores], truncated: bool = False
    ) -> ScoreTable:
        """From {model: its scores} in a run of souping, where missing answers count as wrong.

        With `truncated`, answers that were cut off count as missing too. If a score is not between 0 and 1, it is not
        known what a missing answer could have scored, so none counts as missing.
        """
        spans = [span(np.asarray(model.values)) for model in scores.values()]
        bounded = bool(np.isfinite(spans).all())
        answers = {}
        for name, model in scores.items():
            values = model.values
            missing = model.unanswered
            if truncated:
                values = np.maximum(values - model.truncated, 0.0)
                missing = missing + model.truncated
            answers[name] = Answers.of(values, missing if bounded else 0.0, model.noise)
        return cls.of(items, answers)

    @classmethod
    def complete(cls, items: ItemTable, scores: Mapping[str, FloatArray]) -> ScoreTable:
        """From {model: its scores [I] or [R, I]}, none of which is missing."""
        answers = {name: Answers.of(values) for name, values in scores.items()}
        return cls.of(items, answers)

    def at(self, place: BoolArray) -> ScoreTable:
        """The items of this mask [I]."""
        if place.all():
            return self
        answers = {name: model.at(place) for name, model in self.answers.items()}
        return ScoreTable(items=self.items.at(place), answers=answers)

    def only(self, names: Collection[str]) -> ScoreTable:
        """The items of the categories that have one of these names."""
        categories = [number for number, name in enumerate(self.items.names) if name in names]
        return self.at(np.isin(self.items.categories, categories))

    def alone(self, category: int) -> ScoreTable:
        """The items of one category, whose mean is the objective."""
        place = self.items.categories == category
        answers = {name: model.at(place) for name, model in self.answers.items()}
        return ScoreTable(items=self.items.alone(category), answers=answers)

    @cached_property
    def scored(self) -> ScoreTable:
        """The items that have a counted score in every run of every model."""
        scored = [np.isfinite(model.counted).all(axis=0) for model in self.answers.values()]
        return self.at(np.asarray(np.all(scored, axis=0)))

    def counted(self, model: str) -> FloatArray:
        """Scores of a model, [R, I]."""
        return self.answers[model].counted

    def mean(self, model: str) -> FloatArray:
        """Mean over a model's runs, [I]."""
        return np.asarray(self.counted(model).mean(axis=0))

    def difference(self, a: str, b: str) -> GroupedScores:
        """Mean over the runs of model a minus that of model b, summed by group and category."""
        return self.items.grouped(without_rounding(self.mean(a) - self.mean(b)))

    def paired(self, a: str, b: str) -> Paired:
        """Mean over the runs of a minus that of b, item by item."""
        mean_a = self.mean(a)
        mean_b = self.mean(b)
        deltas = without_rounding(mean_a - mean_b)
        grouped = self.items.grouped(deltas)
        graded = not self._is_right_or_wrong(a, b)
        # Scores from 0 to 1, and right or wrong ones, differ by their range at most, others without limit.
        bound = float(grouped.weights @ grouped.layout.ranges)
        if graded and self.items.ranges is not None:
            bound = math.inf
        return Paired(names=(a, b), deltas=deltas, grouped=grouped, bound=bound, graded=graded)

    def _is_right_or_wrong(self, a: str, b: str) -> bool:
        """Whether both models have two scores at most, such as 0 and 100, in units of their categories' ranges."""
        counted = np.concatenate([self.counted(a), self.counted(b)])
        if self.items.ranges is not None:
            counted = counted / self.items.ranges[self.items.categories]
        # Without what is only rounding.
        return len(np.unique(counted.round(9))) <= 2

    @property
    def has_runs(self) -> bool:
        """Whether a model has several runs."""
        return any(len(model.counted) > 1 for model in self.answers.values())

    def missing(self, *models: str) -> int:
        """Scores of these models that missing answers may change."""
        return sum(self.answers[model].missing for model in models)

    def favouring(self, model: str, right: bool = True) -> ScoreTable:
        """The table in which the missing answers of a model are right and those of all others wrong.

        Unless `right`, it is the reverse.
        """
        answers = {}
        for name, scores in self.answers.items():
            is_favoured = name == model
            answers[name] = scores.filled(right=is_favoured == right)
        return replace(self, answers=answers)

    def corners(self, a: str, b: str) -> list[ScoreTable]:
        """What a claim on a and b must hold for: the scores as counted and, if answers are missing, both corners.

        Other models, of which runs may tell a variance, are as counted in all of them.
        """
        if not self.missing(a, b):
            return [self.scored]
        answers = {name: model.as_counted() for name, model in self.answers.items()}
        pair = {a: self.answers[a], b: self.answers[b]}
        table = replace(self, answers=answers | pair)
        return [self.scored, table.favouring(b), table.favouring(b, right=False)]


def without_rounding(differences: FloatArray) -> FloatArray:
    """Differences of scores, with 0 for what is only rounding: 2/3 may be written with 16 digits or with 15."""
    return np.where(np.abs(differences) > ZERO_DIFFERENCE, differences, 0.0)


def _ranges(items: ItemTable, scores: Sequence[FloatArray]) -> FloatArray | None:
    """By how much the scores [R, I] of several models can differ in each category, [C]; None if all are from 0 to 1.

    That is the distance from the lowest to the highest score, and from 0 if the lowest is above 0. Losses are turned,
    so they are below 0: their range ends at the highest of them, or at 0 if all are the same. If all scores of a
    category are 0, it is the largest range of the others.
    """
    lowest = np.full(len(items.coefficients), np.inf)
    highest = -lowest
    for counted in scores:
        categories = np.broadcast_to(items.categories, counted.shape)
        np.fmin.at(lowest, categories, counted)
        np.fmax.at(highest, categories, counted)
    if lowest.min() >= 0 and highest.max() <= 1:
        return None
    flat = lowest >= highest
    lowest = np.where(flat | (lowest > 0), np.minimum(lowest, 0.0), lowest)
    highest = np.where(flat, np.maximum(highest, 0.0), highest)
    ranges: FloatArray = highest - lowest
    ranges[ranges <= 0] = ranges.max()
    return ranges


def span(values: FloatArray) -> tuple[float, float]:
    """(lowest, highest) mean of such values: 0 and 1 if all of them lie between, else without limits."""
    if ((values >= 0) & (values <= 1)).all():
        return 0.0, 1.0
    return -math.inf, math.inf
