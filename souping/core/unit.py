"""Units of scores: what an evaluator's scores mean, and which direction is better.

Everything between an evaluator and a report computes with inner scores: higher is better, and 0.01 is the usual margin.
`Unit.inner` makes them where records become scores, and `Unit.raw` takes them back where numbers are written for
readers. Nothing in between has to know the unit. What is shown is worded here.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar

from souping.core.text import DASH, UNSAFE, confidence, if_finite, minus, signed
from souping.core.types import FloatArray, frozen

MARGIN = 0.01
"""The usual margin of inner scores: a gain below it is no reason to soup."""
MOST_DIGITS = 12
"""Most decimals with which a unit's scores are shown."""
LARGEST_SCALE = 1e9
"""Scale and smallest gain of a unit lie between 1 / LARGEST_SCALE and this."""
SCORE_ROUNDING = 1e-9
"""By how much a score from 0 to 1, or a mean of such scores, may leave that range."""
FloatOrArray = TypeVar("FloatOrArray", float, FloatArray)


class Estimate(NamedTuple, Generic[FloatOrArray]):
    """A score, or a difference of scores, with the limits of its interval.

    Whoever writes one into a report unpacks all of it, so that mypy finds every such place if it gets another score.
    """

    value: FloatOrArray
    low: FloatOrArray
    high: FloatOrArray


@frozen
class Unit:
    """Unit of an evaluator's scores.

    A score is shown multiplied by `scale` and with `digits` decimals, followed by `symbol`, or by `name` if it is a
    difference. `meaning` says what it measures. `min_gain` is the usual smallest gain that matters, as it is shown.
    `fractions` says whether all scores lie between 0 and 1.
    """

    name: str = "points"
    symbol: str = "%"
    meaning: str = "percent correct"
    higher_is_better: bool = True
    scale: float = 100.0
    digits: int = 1
    min_gain: float = 1.0
    fractions: bool = True

    def __post_init__(self) -> None:
        """Refuse a unit in which no number can be shown. A file that holds one may have been edited.

        Raises:
            ValueError: a number is out of range, or a word is not one line that a terminal can show.
        """
        for size in (self.scale, self.min_gain):
            if not 1 / LARGEST_SCALE <= size <= LARGEST_SCALE:
                bounds = f"{1 / LARGEST_SCALE:g} to {LARGEST_SCALE:g}"
                raise ValueError(f"unit {self.name!r}: {size} as scale or min_gain is not {bounds}")
        if not 0 <= self.digits <= MOST_DIGITS:
            raise ValueError(f"unit {self.name!r}: digits={self.digits} is not 0 to {MOST_DIGITS}")
        words = f"{self.name}{self.symbol}{self.meaning}"
        if not self.meaning or UNSAFE.search(words) or "\n" in words:
            raise ValueError(
                f"unit: name={self.name!r}, symbol={self.symbol!r} and meaning={self.meaning!r} "
                "must each be one line without control characters, and the meaning not empty"
            )

    @cached_property
    def factor(self) -> float:
        """Inner score of a score of 1."""
        direction = 1.0 if self.higher_is_better else -1.0
        return direction * MARGIN * self.scale / self.min_gain

    def inner(self, score: FloatOrArray) -> FloatOrArray:
        """The inner score of a score, or of a difference of scores."""
        return score * self.factor

    def raw(self, inner: FloatOrArray) -> FloatOrArray:
        """The score, or difference of scores, for an inner one."""
        # Adding 0 turns -0.0 into 0.0.
        return inner / self.factor + 0.0

    def raw_estimate(self, estimate: Estimate[FloatOrArray]) -> Estimate[FloatOrArray]:
        """The estimate for one in inner scores."""
        value, low, high = estimate
        # If lower scores are better, the lower inner limit is the upper limit of the scores.
        if not self.higher_is_better:
            low, high = high, low
        return Estimate(self.raw(value), self.raw(low), self.raw(high))

    def size(self, inner: float) -> float:
        """An inner difference in the unit of scores, with the sign of the inner one: a gain is positive."""
        return inner / abs(self.factor)

    def inner_margin(self, margin: float | None) -> float:
        """The inner margin of a margin as users type it, such as 3 for 3 points; of `min_gain` if it is None."""
        if margin is None:
            margin = self.min_gain
        return margin / self.scale * abs(self.factor)

    # ------------------------------------------------------------ words

    def text(self, score: float, sign: bool = False, more: int = 0) -> str:
        """`78.1`; with `sign`, `+1.2`. `more` is a number of decimals beyond the unit's usual ones."""
        plus = "+" if sign else ""
        return f"{self.scale * score + 0.0:{plus}.{self.digits + more}f}"

    def score(self, score: float | None, sign: bool = False, more: int = 0) -> str:
        """As `text`, with a typographic minus; a dash if the score is not known or not finite."""
        known = if_finite(score)
        if known is None:
            return DASH
        return signed(self.text(known, sign, more))

    def points(self, score: float | None, sign: bool = False) -> str:
        """`1.2 points`; with `sign`, `+1.2 points`."""
        return f"{self.score(score, sign)} {self.name}"

    def end(self, score: float | None, sign: bool = False) -> str:
        """A limit of an interval. The limit of a difference (`sign`) has a sign even if it rounds to 0."""
        figure = self.score(score, sign)
        known = if_finite(score)
        # Not the limit of a difference, not known, exactly 0, or with a sign already.
        if not sign or not known or re.search("[1-9]", figure):
            return figure
        if known > 0:
            return f"+{figure}"
        return f"{minus('-')}{figure}"

    def interval(
        self, low: float | None, high: float | None, sign: bool = False, middle: str = " to "
    ) -> str:
        """`74.1 to 82.0`, with `middle` between the limits; empty if one of them is not known."""
        ends = (self.end(low, sign), self.end(high, sign))
        return "" if DASH in ends else middle.join(ends)

    def limits(self, low: float | None, high: float | None, level: float | None) -> str:
        """`95 % interval +0.4 to +6.6` of a difference."""
        limits = self.interval(low, high, sign=True) or "without limits"
        return f"{confidence(level)} interval {limits}"

    def brackets(
        self, mean: float | None, low: float | None, high: float | None, sign: bool = False
    ) -> str:
        """`78.1 [74.1, 82.0]`: the narrow form, for terminals."""
        text = self.score(mean, sign)
        limits = self.interval(low, high, sign, middle=", ")
        if limits:
            text += f" [{limits}]"
        return text

    def gain(self, score: float | None) -> float:
        """The inner score of a score in a report, to sort by; 0 if the score is not known."""
        return self.inner(score or 0.0)

    def level(self, score: float, more: int = 0) -> str:
        """`78.1 %`, with `more` decimals than usual."""
        return f"{minus(self.text(score, more=more))} {self.symbol}"

    def amount(self, score: float) -> str:
        """A positive difference in words: `1 point`, `0.25 points`."""
        figure = f"{self.scale * score:.4g}"
        name = self.name
        if figure == "1":
            name = name.removesuffix("s")
        return f"{figure} {name}"

    def heading(self, what: str) -> str:
        """Title of a column or an axis of scores."""
        comma = "" if self.symbol == "%" else ","
        return f"{what}{comma} {self.symbol}"

    @property
    def better_side(self) -> str:
        """Side of 0 on which a difference is a gain."""
        return "Right" if self.higher_is_better else "Left"

    def colours(self, scheme: str) -> str:
        """Name of a matplotlib colour scheme, reversed if lower scores are better."""
        return scheme if self.higher_is_better else f"{scheme}_r"


POINTS = Unit()
BITS_PER_BYTE = Unit(
    name="bits per byte",
    symbol="bits per byte",
    meaning="bits per byte of text (lower is better)",
    higher_is_better=False,
    scale=1.0,
    digits=4,
    min_gain=0.005,
    fractions=False,
)
