r"""Scorers: an item and a model's output -> a fraction of 1. They never raise on an output, whatever it is.

- `exact`: equal after every run of white space became one space and the ends were stripped; case and punctuation
  count. The answer may be a list: any of them is right.
- `number`: the last number in the output equals the answer. Signs, decimals, exponents and thousands separators
  (`1,234.5`) are read; units and words around it are not looked at.
- `contains`: the output holds the answer, whatever the case and the white space; a list of answers: any of them.
- `regex`: the pattern is found anywhere in the output; a pattern that takes more than a second has not matched.
- `choice`: the letter that the output settles on (`\boxed{B}`, "the answer is (B)", `B)`, the last letter alone).
- `f1`: overlap of words with the answer, as SQuAD has it; of several answers the best counts.
- `math`: numbers, expressions and LaTeX that are equal, by the library math-verify (extra `math`).
- `call`: the calls in the output are the answer's calls, as BFCL's checker compares them (`call_matcher`).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from souping.core.fields import pick
from souping.core.types import Item, Json, UserError
from souping.evaluate.scoring import call_matcher, mathematics, texts
from souping.evaluate.scoring.own import graded


@dataclass(frozen=True)
class Scorer:
    """Way to score outputs, to check an answer when items are read, and to tell when two outputs say the same."""

    score: Callable[[Item, str], float]
    check: Callable[[Item], None]
    read: Callable[[Item, str], str]


def score(item: Item, output: str) -> float:
    """Score of an output on an item, a fraction of 1.

    Raises:
        UserError: the item's scorer is not known or its answer is malformed; never because of the output.
    """
    return graded(item, output) if item.own is not None else _scorer(item).score(item, output)


def reading(item: Item, output: str) -> str:
    """What the item's scorer reads in an output: outputs of one reading say the same."""
    return texts.plain(output) if item.own is not None else _scorer(item).read(item, output)


def check(item: Item) -> None:
    """Whether the item can be scored at all.

    Raises:
        UserError: unknown scorer or language, or an answer that the scorer cannot read.
    """
    if item.own is None:
        _scorer(item).check(item)


def _scorer(item: Item) -> Scorer:
    own = f" (for your own: benchmark.scorers={{{item.scorer}: my_module.my_function}})"
    return SCORERS[pick(item.scorer, SCORERS, f"item {item.id}: scorer", own)]


def _exact(item: Item, output: str) -> float:
    return float(texts.plain(output) in [texts.plain(answer) for answer in texts.answers(item)])


def _check_exact(item: Item) -> None:
    answers = item.answer if isinstance(item.answer, list) else [item.answer]
    if not answers or not all(isinstance(a, str | int | float) and not isinstance(a, bool) for a in answers):
        raise UserError(f"item {item.id}: an `exact` answer is a text, or a list of texts, not {item.answer!r:.60}")


def _number(item: Item, output: str) -> float:
    wanted, said = _as_number(item.answer), last_number(output)
    if wanted is None:
        _check_number(item)
    return float(said is not None and wanted is not None and math.isclose(said, wanted, rel_tol=1e-9, abs_tol=1e-12))


def _check_number(item: Item) -> None:
    if _as_number(item.answer) is None:
        raise UserError(f"item {item.id}: a `number` answer is a finite number, not {item.answer!r:.60}")


def _as_number(answer: Json) -> float | None:
    if isinstance(answer, bool) or not isinstance(answer, int | float | str):
        return None
    return _finite(str(answer).strip())


def _finite(text: str) -> float | None:
    """The whole text as one finite number; separators are thousands' commas."""
    cleaned = text.replace("\u2212", "-")
    if re.search(r"\d,(?!\d{3}(?!\d))", cleaned):
        return None
    try:
        value = float(cleaned.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)"
_FOUND = re.compile(rf"(?<![\d.])[-+\u2212]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?")


def last_number(text: str) -> float | None:
    """The last number written in a text, None where there is none.

    A hyphen between word characters is no sign: `3-4` ends in 4.
    """
    matches = deque(_FOUND.finditer(text), maxlen=1)
    if not matches:
        return None
    number, start = matches[0][0], matches[0].start()
    if number[0] in "-+\u2212" and start and text[start - 1].isalnum():
        number = number[1:]
    return _finite(number)


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(_exact, _check_exact, lambda _, output: texts.plain(output)),
    "number": Scorer(_number, _check_number, lambda _, output: str(last_number(output))),
    "contains": Scorer(texts.contains, texts.check_texts, lambda _, output: texts.plain(output).casefold()),
    "regex": Scorer(texts.matches, texts.check_pattern, lambda _, output: texts.plain(output)),
    "choice": Scorer(texts.choice, texts.check_choice, lambda _, output: texts.chosen(output)),
    "f1": Scorer(texts.f1, texts.check_texts, lambda _, output: " ".join(texts.words(output))),
    "math": Scorer(mathematics.equal, mathematics.check, mathematics.reading),
    "call": Scorer(call_matcher.score, call_matcher.check, call_matcher.reading),
}
