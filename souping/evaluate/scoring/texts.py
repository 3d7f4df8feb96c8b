"""Scorers that read a text: `regex`, `contains`, `choice` (letters) and `f1`."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import regex

from souping.core.types import Item, UserError

PATIENCE = 1.0
"""Seconds that a pattern may search an output; one that takes longer has not matched."""
SAID = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|was|would\s+be|must\s+be|should\s+be))?)[\s:*_=]*"
    r"(?:\(|\[|\*\*|\\boxed\{|\\text\{|\")*\s*(?i:option\s+|choice\s+)?\(?"
    r"([A-Z](?![A-Za-z'])|[a-z](?=\s*(?:[).\]*}\",;:]|$)))"
)
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Za-z])\)?\s*\}")
FIRST = re.compile(r"\W*([A-Za-z])(?:\s*[).:\]*_,]|\s*$|\s*\n)")
ALONE = re.compile(r"(?<![\w'])\(?([B-HJ-Z]|A(?!\s+[a-z])|I(?!\s+[a-z])|(?<=\()[a-z](?=\)))\)?(?![\w'])")


def answers(item: Item) -> list[str]:
    """The reference: a text, or a list of which any is right."""
    given = item.answer if isinstance(item.answer, list) else [item.answer]
    return [str(answer) for answer in given]


def check_texts(item: Item) -> None:
    """Refuse an answer that is no text, no number, and no list of those."""
    given = item.answer if isinstance(item.answer, list) else [item.answer]
    fine = all(isinstance(a, str | int | float) and not isinstance(a, bool) and str(a).strip() for a in given)
    if not given or not fine:
        raise UserError(f"item {item.id}: a `{item.scorer}` answer is one text or several, not {item.answer!r:.60}")


def plain(text: str) -> str:
    """A text without a difference in white space."""
    return " ".join(text.split())


def contains(item: Item, output: str) -> float:
    """Whether the output holds an answer, whatever the case and the white space."""
    said = plain(output).casefold()
    return float(any(plain(answer).casefold() in said for answer in answers(item)))


def matches(item: Item, output: str) -> float:
    """Whether a pattern is found anywhere in the output."""
    return float(any(_found(pattern, output) for pattern in answers(item)))


def _found(pattern: str, output: str) -> bool:
    try:
        return regex.search(pattern, output, timeout=PATIENCE) is not None
    except TimeoutError:
        return False


def check_pattern(item: Item) -> None:
    """Refuse an answer that is no regular expression."""
    check_texts(item)
    for pattern in answers(item):
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise UserError(f"item {item.id}: {pattern!r:.60} is no regular expression: {error}") from None


def choice(item: Item, output: str) -> float:
    """Whether the letter that the output settles on is the answer's."""
    return float(chosen(output) in {answer.strip("() .").upper() for answer in answers(item)})


def check_choice(item: Item) -> None:
    """Refuse an answer that is no letter."""
    check_texts(item)
    for answer in answers(item):
        if not re.fullmatch(r"[A-Za-z]", answer.strip("() .")):
            raise UserError(f"item {item.id}: a `choice` answer is a letter or a list of letters, not {answer!r:.60}")


def chosen(output: str) -> str:
    r"""The letter that an output settles on, upper case, empty where there is none.

    In this order: the last `\boxed{B}`; the last "answer is B", "Answer: (B)", "option B"; a letter that opens the
    output (`B`, `B)`, `(B) Paris`); the last letter that stands alone and is no word ("A cat" and "I think" are).
    """
    for pattern in (BOXED, SAID):
        letters = pattern.findall(output)
        if letters:
            return str(letters[-1]).upper()
    first = FIRST.match(output)
    if first:
        return first[1].upper()
    alone = ALONE.findall(output)
    return str(alone[-1]).upper() if alone else ""


def f1(item: Item, output: str) -> float:
    """Overlap of words with the best of the answers: harmonic mean of precision and recall, as SQuAD has it."""
    return max(_overlap(words(answer), words(output)) for answer in answers(item))


def words(text: str) -> list[str]:
    """Words of a text in small letters, without punctuation and the articles a, an, the (SQuAD's own rule)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _overlap(wanted: Sequence[str], said: Sequence[str]) -> float:
    if not wanted or not said:
        return float(list(wanted) == list(said))
    common = (Counter(wanted) & Counter(said)).total()
    return 2 * common / (len(wanted) + len(said))
