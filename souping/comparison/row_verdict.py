"""Verdict of a row of `souping compare` (better, no-worse, ...), and the policy that says which rows decide."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, get_args

from souping.core.fields import pick, text_of
from souping.core.types import Json, UserError, frozen
from souping.statistics.corrections import release
from souping.statistics.score_table import MOST_LOST

Word = Literal["better", "much-worse", "worse", "no-worse", "undecided"]
WORDS: tuple[Word, ...] = get_args(Word)
FAIL_ON: tuple[Word, ...] = ("worse", "much-worse")
AVERAGE = "average"
LENGTHS = ("tokens", "characters")
TRUNCATED = f"more than {100 * MOST_LOST:.0f} % of the answers are truncated"
MISSING = "missing answers"
Limits = tuple[float, float]


@frozen
class Margin:
    """A loss that does not matter: an amount (points of a score from 0 to 1, else the metric's own unit), or, if
    `relative`, a percentage of the baseline's mean."""

    amount: float
    relative: bool = False

    @classmethod
    def of(cls, value: Json, where: str) -> Margin:
        """The margin from `1.5` or `"5%"`; `where` is the key that an error names.

        Raises:
            UserError: it is neither, or not above 0.
        """
        relative = isinstance(value, str) and value.rstrip().endswith("%")
        try:
            amount = float(str(value).rstrip().removesuffix("%"))
        except ValueError:
            amount = 0.0
        if not 0 < amount < float("inf") or isinstance(value, bool):
            raise UserError(
                f'{where}={value}: a margin is a number above 0, or a share such as "5%"'
            )
        return cls(amount=amount, relative=relative)


@frozen
class Policy:
    """Margins by row, and the rows that decide besides the average row. A row without a margin of its own has the
    common `margin` if its scores are from 0 to 1, or if it is averaged."""

    margin: Margin | None = None
    margins: Mapping[str, Margin] = field(default_factory=dict)
    required: frozenset[str] = frozenset()

    @property
    def named(self) -> frozenset[str]:
        """The rows that the policy names."""
        return self.required.union(self.margins)

    def check(self, rows: Collection[str]) -> None:
        """Refuse a policy that names a row that is not among `rows` (UserError)."""
        for name in sorted(self.named):
            # The row of length is in tokens or in characters: one of the two is there.
            for other in LENGTHS:
                if name in LENGTHS and name not in rows and other in rows:
                    raise UserError(
                        f"policy: task {name}: the row of length is in {other} here: write [tasks.{other}]"
                    )
            pick(name, rows, "policy: task")

    def margin_of(
        self, name: str, base: float, is_mean: bool, averaged: bool = False
    ) -> float | None:
        """The margin of a row, None if it has none: a fraction if the row `is_mean` of scores from 0 to 1, else in the
        metric's unit.

        `base` is the baseline's mean, and `averaged` says whether the row has a weight in the average.
        """
        # The margin of all rows is for scores from 0 to 1, and for any metric that is averaged.
        default = self.margin if is_mean or averaged else None
        margin = self.margins.get(name, default)
        if margin is None:
            return None
        if margin.relative:
            return margin.amount * (abs(base) / 100)
        return margin.amount * (0.01 if is_mean else 1.0)


def read_policy(path: Path, margin: Margin | None = None) -> Policy:
    """A policy in TOML: `margin`, and for each task `[tasks.NAME]` with `margin` and `required`.

    The argument `margin` wins over the file's.

    Raises:
        UserError: it is not TOML, or has an unknown key or value.
    """
    try:
        table = tomllib.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    tasks = table.get("tasks", {})
    if not isinstance(tasks, dict) or not all(isinstance(task, dict) for task in tasks.values()):
        raise UserError(f"{path}: tasks: each task is a table, [tasks.NAME]")
    for key in table:
        pick(key, ("margin", "tasks"), f"{path}: key")

    margins: dict[str, Margin] = {}
    required = set()
    for name, task in tasks.items():
        for key in task:
            pick(key, ("margin", "required"), f"{path}: tasks.{name}: key")
        if not isinstance(task.get("required", False), bool):
            raise UserError(f"{path}: tasks.{name}.required={task['required']}: true or false")
        if task.get("required"):
            required.add(name)
        if "margin" in task:
            margins[name] = Margin.of(task["margin"], f"{path}: tasks.{name}.margin")
    if margin is None and "margin" in table:
        margin = Margin.of(table["margin"], f"{path}: margin")
    return Policy(margin=margin, margins=margins, required=frozenset(required))


def verdict_of(
    limits: Sequence[Limits], margin: float | None, words: Collection[Word] = WORDS
) -> tuple[Word, str]:
    """(the first of the words that holds, the reason if it is undecided because of missing answers, else empty).

    The first of the `limits` is the interval of the scores as the harness counted them. Others allow for missing
    answers, and a word must hold for whatever lies in any of them.
    """
    lowest = min(low for low, _ in limits)
    highest = max(high for _, high in limits)
    word = _first_word((lowest, highest), margin, words)
    if word == "undecided" and _first_word(limits[0], margin, words) != "undecided":
        return word, MISSING
    return word, ""


def _first_word(limits: Limits, margin: float | None, words: Collection[Word]) -> Word:
    """The first of the words, in the order of `WORDS`, that the interval of a gain supports."""
    low, high = limits
    supported = {"better": low > 0, "worse": high < 0, "undecided": True}
    # With a margin, a loss that is shown to be smaller is `no-worse`, not `worse`.
    if margin is not None:
        supported["much-worse"] = high < -margin
        supported["worse"] = high < 0 and low <= -margin
        supported["no-worse"] = low > -margin
    return next(word for word in WORDS if word in words and supported.get(word))


def decide(
    margins: Mapping[str, float | None], limits: Callable[[str, float], Sequence[Limits]]
) -> dict[str, tuple[Word, str]]:
    """{row: (verdict, why it is undecided or empty)} of the required rows {row: margin}.

    `limits` gives the intervals of a row at the level divided by a number of tests. As one bad row is enough to fail,
    `worse` and `much-worse` are held to Holm's levels over the rows; the others, all of which must hold, need no
    correction.
    """
    # {word that fails: rows of which it holds}. One row alone needs no correction.
    failing: dict[Word, set[str]] = {}
    if len(margins) > 1:
        failing = {word: _held(margins, limits, word) for word in FAIL_ON}
    verdicts = {}
    for name, margin in margins.items():
        words = [word for word in WORDS if word not in failing or name in failing[word]]
        word, reason = verdict_of(limits(name, 1.0), margin, words)
        uncorrected, _ = verdict_of(limits(name, 1.0), margin)
        if word == "undecided" and uncorrected in failing:
            reason = f"{uncorrected} alone, but not among {len(margins)} deciding rows (Holm)"
        verdicts[name] = (word, reason)
    return verdicts


def _held(
    margins: Mapping[str, float | None],
    limits: Callable[[str, float], Sequence[Limits]],
    word: Word,
) -> set[str]:
    """Rows of which the word, `worse` or `much-worse`, holds at Holm's levels.

    A row without a margin is never much worse, but takes part with any loss. So both words are tested over the same
    rows, and a row that is held to be much worse is also held to be worse: the two together have one error.
    """

    def is_held(name: str, tests: int) -> bool:
        """Whether the whole interval, as one of this many tests, is below 0, or below minus the margin."""
        end = 0.0
        if word == "much-worse":
            end = -(margins[name] or 0.0)
        return all(high < end for _, high in limits(name, float(tests)))

    # `release` does not say which rows it showed: they hold with the number of tests that it gives.
    tests_of = release(margins, is_held)
    return {name for name, tests in tests_of.items() if is_held(name, tests)}
