r"""Scorers by name (`SCORERS`): an item and a model's output -> a fraction of 1. They never raise on an output.

- `exact`: equal after every run of white space became one space and the ends were stripped; case and punctuation
  count. The answer may be a list: any of them is right.
- `number`: the last number in the output equals the answer. Signs, decimals, exponents and thousands separators
  (`1,234.5`) are read; units and words around it are not looked at.
- `contains`: the output holds the answer, whatever the case and the white space; a list of answers: any of them.
- `regex`: the pattern is found anywhere in the output; a pattern that takes more than a second has not matched.
- `choice`: the letter that the output settles on (`\boxed{B}`, "the answer is (B)", `B)`, the last letter alone).
- `f1`: overlap of words with the answer, as SQuAD has it; of several answers the best counts.
- `math`: numbers, expressions and LaTeX that are equal, by the library math-verify (extra `math`).
- `loss`: none; the item is a text for `evaluator=loss`.
- `call`: the calls in the output are the answer's calls, as BFCL's checker compares them (`calls`).

Users add their own, or a `Judge`.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import re
import string
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import regex

from souping.core.fields import pick
from souping.core.text import first_line, install, named
from souping.core.types import TEXT, Item, Json, UserError, UserScorer
from souping.evaluate.scoring import calls
from souping.evaluate.scoring.judge import Judge

PATTERN_TIMEOUT_S = 1.0
"""Seconds that a pattern may search an output; one that takes longer has not matched."""
SAID = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|was|would\s+be|must\s+be|should\s+be))?)[\s:*_=]*"
    r"(?:\(|\[|\*\*|\\boxed\{|\\text\{|\")*\s*(?i:option\s+|choice\s+)?\(?"
    r"([A-Z](?![A-Za-z'])|[a-z](?=\s*(?:[).\]*}\",;:]|$)))"
)
BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\s*\(?([A-Za-z])\)?\s*\}")
LEADING_LETTER = re.compile(r"\W*([A-Za-z])(?:\s*[).:\]*_,]|\s*$|\s*\n)")
LONE_LETTER = re.compile(
    r"(?<![\w'])\(?([B-HJ-Z]|A(?!\s+[a-z])|I(?!\s+[a-z])|(?<=\()[a-z](?=\)))\)?(?![\w'])"
)
MATHEMATICS = re.compile(r"^[^\\$]*[A-Za-z]{2,}\s+[A-Za-z]{2,}[^\\$]*$|\$|\\boxed")
"""An answer that is a sentence or marks its mathematics itself; any other is an expression as it stands."""
EXPRESSION_TIMEOUT_S = 5
"""Seconds that reading or comparing an expression may take; what takes longer counts as unequal."""

Known = Mapping[tuple[str, str, str], float]
"""{(answer digest of the item, digest of its scorer, output): score} of outputs that were scored before"""
Grade = Callable[[Sequence[Item], Sequence[str], Known], tuple[list[float], UserError | None]]
"""grade(items, outputs, known scores) -> (scores, the first error); NaN for an output that was not scored"""


@dataclass(frozen=True)
class Scorer:
    """Way to score an output of an item, a fraction of 1, and to check the item's reference when items are read."""

    score: Callable[[Item, str], float]
    check: Callable[[Item], None]


def score(item: Item, output: str) -> float:
    """Score of an output on an item, a fraction of 1.

    Raises:
        UserError: the item's scorer is not known or its answer is malformed; never because of the output.
    """
    if item.user_scorer is not None:
        return user_score(item, output)
    return _scorer(item).score(item, output)


def check_item(item: Item) -> None:
    """Refuse an item that cannot be scored. Items with a scorer of the user's are not checked.

    Raises:
        UserError: unknown scorer or language, or an answer that the scorer cannot read.
    """
    if item.user_scorer is None:
        _scorer(item).check(item)


def _scorer(item: Item) -> Scorer:
    """The built-in scorer that an item names (UserError if it does not exist)."""
    if item.scorer not in SCORERS:
        hint = f" (for your own: benchmark.scorers={{{item.scorer}: my_module.my_function}})"
        pick(item.scorer, SCORERS, f"item {item.id}: scorer", hint)
    return SCORERS[item.scorer]


# Scorers of texts


def _exact(item: Item, output: str) -> float:
    return float(plain_text(output) in map(plain_text, _answers(item)))


def _references_of(item: Item) -> list[Json]:
    """The references of an item, any of which is right: its answer may be a list of them or one."""
    return item.answer if isinstance(item.answer, list) else [item.answer]


def _answers(item: Item) -> list[str]:
    """The references as texts."""
    return [str(answer) for answer in _references_of(item)]


def _check_texts(item: Item) -> None:
    """Refuse an answer that is not a text, a number, or a list of those."""
    references = _references_of(item)
    usable = bool(references)
    for reference in references:
        usable &= isinstance(reference, str | int | float) and not isinstance(reference, bool)
        # Only `exact` may want an empty answer.
        usable &= item.scorer == "exact" or bool(str(reference).strip())
    if not usable:
        raise _refused(item, "a text or a list of texts")


def _refused(item: Item, form: str) -> UserError:
    """The error for an answer that does not have the `form` that the item's scorer needs."""
    return UserError(f"item {item.id}: a `{item.scorer}` answer is {form}, not {item.answer!r:.60}")


def plain_text(text: str) -> str:
    """A text in which each run of white space is one space, without any at its ends."""
    return " ".join(text.split())


def _contains(item: Item, output: str) -> float:
    text = plain_text(output).casefold()
    return float(any(plain_text(answer).casefold() in text for answer in _answers(item)))


def _matches(item: Item, output: str) -> float:
    return float(any(_has_match(pattern, output) for pattern in _answers(item)))


def _has_match(pattern: str, output: str) -> bool:
    """Whether a pattern is found anywhere in an output within the time limit."""
    try:
        return regex.search(pattern, output, timeout=PATTERN_TIMEOUT_S) is not None
    except TimeoutError:
        return False


def _check_pattern(item: Item) -> None:
    """Refuse an answer that is not a regular expression or a list of them."""
    _check_texts(item)
    for pattern in _answers(item):
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise UserError(
                f"item {item.id}: {pattern!r:.60} is not a regular expression: {error}"
            ) from None


def _choice(item: Item, output: str) -> float:
    # An answer may be written `(b)` or `B.`
    letters = {answer.strip("() .").upper() for answer in _answers(item)}
    return float(chosen_letter(output) in letters)


def _check_choice(item: Item) -> None:
    """Refuse an answer that is not a letter or a list of letters, with or without brackets and a point."""
    _check_texts(item)
    if not all(re.fullmatch(r"[A-Za-z]", answer.strip("() .")) for answer in _answers(item)):
        raise _refused(item, "a letter or a list of letters")


def chosen_letter(output: str) -> str:
    r"""The letter that an output settles on, in upper case; empty if it settles on none.

    In this order: the last `\boxed{B}`; the last "answer is B", "Answer: (B)", "option B"; a letter that opens the
    output (`B`, `B)`, `(B) Paris`); the last letter that stands alone and is not a word ("A cat" and "I think" are).
    """
    for pattern in (BOXED, SAID):
        letters = pattern.findall(output)
        if letters:
            return str(letters[-1]).upper()
    leading = LEADING_LETTER.match(output)
    if leading:
        return leading[1].upper()
    letters = LONE_LETTER.findall(output)
    return str(letters[-1]).upper() if letters else ""


def _f1(item: Item, output: str) -> float:
    """Overlap of words with the best of the answers: harmonic mean of precision and recall, as in SQuAD."""
    return max(_overlap(_words(answer), _words(output)) for answer in _answers(item))


def _words(text: str) -> list[str]:
    """Words of a text in small letters, without punctuation and the articles a, an, the (SQuAD's own rule)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _overlap(expected: Sequence[str], words: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of an output's words, counted as often as they occur."""
    # Without any words, only an answer without any is right.
    if not expected or not words:
        return float(list(expected) == list(words))
    common = (Counter(expected) & Counter(words)).total()
    return 2 * common / (len(expected) + len(words))


# Numbers and mathematics


def _number(item: Item, output: str) -> float:
    """1.0 if the last number in the output equals the answer, apart from rounding, else 0.0."""
    expected = _as_number(item.answer)
    if expected is None:
        raise _refused(item, "a finite number")
    number = last_number(output)
    return float(number is not None and math.isclose(number, expected, rel_tol=1e-9, abs_tol=1e-12))


def _check_number(item: Item) -> None:
    if _as_number(item.answer) is None:
        raise _refused(item, "a finite number")


def _as_number(answer: Json) -> float | None:
    """A reference as a finite number, None if it is not one; True and False are not."""
    if isinstance(answer, bool) or not isinstance(answer, int | float | str):
        return None
    return _finite(str(answer).strip())


def _finite(text: str) -> float | None:
    """The whole text as one finite number, with or without commas between thousands; None if it is not a number."""
    # U+2212 is the minus sign.
    cleaned = text.replace("\u2212", "-")
    # A comma that is not before three digits separates no thousands.
    if re.search(r"\d,(?!\d{3}(?!\d))", cleaned):
        return None
    try:
        value = float(cleaned.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)"
_NUMBER = re.compile(
    rf"(?<![\d.])[-+\u2212]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?"
)


def last_number(text: str) -> float | None:
    """The last number written in a text, None if the text has no number.

    A hyphen between word characters is not a sign: `3-4` ends in 4.
    """
    # The last match, without a list of all.
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    number = matches[0][0]
    start = matches[0].start()
    if number[0] in "-+\u2212" and start and text[start - 1].isalnum():
        number = number[1:]
    return _finite(number)


def _mathematics(item: Item, output: str) -> float:
    """1.0 if the last expression in the output (in a box, in LaTeX, or plain) equals one of the answers, else 0.0."""
    _check_library()
    from math_verify import verify

    expressions = list(_expressions(output))
    try:
        return float(
            any(
                verify(list(gold), expressions, timeout_seconds=_time_limit())
                for gold in _answer_expressions(item)
            )
        )
    except Exception:  # an output may be anything, and sympy raises all classes
        return 0.0


def _check_mathematics(item: Item) -> None:
    """Refuse an answer in which math-verify finds no expression, and a machine without the library."""
    _check_library()
    has_bool = any(isinstance(answer, bool) for answer in _references_of(item))
    if has_bool or not all(_answer_expressions(item)):
        raise _refused(item, "a number or an expression")


def _answer_expressions(item: Item) -> list[tuple[object, ...]]:
    """What math-verify reads in each answer, which is put in dollar signs if it is an expression alone."""
    return [
        _expressions(text if MATHEMATICS.search(text) else f"${text}$") for text in _answers(item)
    ]


@lru_cache(maxsize=4096)
def _expressions(text: str) -> tuple[object, ...]:
    """What math-verify reads in a text, as sympy objects and as texts; empty if it fails or takes too long."""
    from math_verify import parse

    for name in ("math_verify", "math_verify.parser", "math_verify.grader", "math_verify.utils"):
        # They warn of missing time limits and of every unusual output.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # The last expression counts, so the end of a long output is enough.
        return tuple(parse(text[-20_000:], parsing_timeout=_time_limit()))
    except Exception:  # an output may be anything
        return ()


def _time_limit() -> int | None:
    """Seconds for math-verify. None, no limit, outside the main thread: only there can Python set an alarm."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return EXPRESSION_TIMEOUT_S if in_main_thread else None


def _check_library() -> None:
    """Refuse the scorer `math` if its library is not installed (UserError)."""
    if find_spec("math_verify") is None:
        raise UserError("the scorer `math` needs the library math-verify", fix=install("math"))


def _unanswerable(item: Item, output: str) -> float:
    """The scorer of texts for evaluator=loss, which have no answer: always a UserError."""
    raise UserError(
        f'item {item.id}: scorer "loss" marks a text without an answer: use evaluator=loss'
    )


SCORERS: dict[str, Scorer] = {
    "exact": Scorer(_exact, _check_texts),
    "number": Scorer(_number, _check_number),
    "contains": Scorer(_contains, _check_texts),
    "regex": Scorer(_matches, _check_pattern),
    "choice": Scorer(_choice, _check_choice),
    "f1": Scorer(_f1, _check_texts),
    "math": Scorer(_mathematics, _check_mathematics),
    "call": Scorer(calls.score_calls, calls.check_call_item),
    TEXT: Scorer(_unanswerable, lambda _: None),
}


# The user's


def load_scorers(scorers: Mapping[str, str]) -> dict[str, UserScorer]:
    """{name: scorer} of `benchmark.scorers={name: my_module.my_function}`.

    A file of items only names a scorer, so it cannot run code; the configuration says what the name stands for.

    Raises:
        UserError: a name is taken, or its function cannot be imported, called or read.
    """
    for name in scorers:
        if name in SCORERS:
            raise UserError(
                f"benchmark.scorers.{name}: {name} is a built-in scorer: give yours another name"
            )
    return {name: _user_scorer(name, path) for name, path in scorers.items()}


def _user_scorer(name: str, path: str) -> UserScorer:
    """The function at `path`, my_module.my_function, as a scorer (UserError if it cannot be one)."""
    where = f"benchmark.scorers.{name}={path}"
    parent, _, attribute = path.rpartition(".")
    try:
        module = import_module(parent)
        function = getattr(module, attribute)
    except Exception as error:  # the module's own code may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{where} cannot be imported: {reason}; write my_module.my_function"
        ) from error
    if inspect.isclass(function) or not callable(function):
        lack = "" if inspect.isclass(function) else f" ({type(function).__name__} lacks __call__)"
        raise UserError(
            f"{where} is not a function of (item, output){lack}: name one, or an object that can be called"
        )
    # A judge's settings decide its scores, not its source.
    if isinstance(function, Judge):
        return UserScorer(
            name=name, function=function, digest=function.fingerprint, threads=function.threads
        )
    return UserScorer(name=name, function=function, digest=_source(module, function, path, where))


def _source(
    module: ModuleType, function: Callable[[Item, str], float], path: str, where: str
) -> str:
    """Digest of the files that decide a score: the named module's, and the one that defines the function or its class.

    `path` is the name in the configuration, and `where` the key with it, for messages.
    """
    files = []
    for part in (module, _definition(function)):
        source: str | None = None
        # Neither builtins, for which Python raises, nor members of extension modules have a source file.
        with suppress(TypeError):
            source = inspect.getsourcefile(part)
        if source is None:
            raise UserError(f"{where} has no Python source: call it in a function of your own")
        files.append(Path(source))
    texts = [file.read_bytes() for file in dict.fromkeys(files) if file.is_file()]
    return hashlib.sha256(b"\0".join([path.encode(), *texts])).hexdigest()


def _definition(function: Callable[[Item, str], float]) -> Any:
    """What defines a scorer's code: the function without its decorators, or the class of a callable object."""
    inner = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) else type(inner)


def user_score(item: Item, output: str) -> float:
    """Score of an output by the item's own scorer, `item.user_scorer`, which must not be None.

    Raises:
        UserError: the scorer fails, or its value is not a number from 0 to 1.
    """
    scorer = item.user_scorer
    assert scorer is not None
    try:
        value = scorer.function(item, output)
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(
            f"scorer {scorer.name}: {named(scorer.function)} fails on item {item.id}: {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(
            f"scorer {scorer.name}: {named(scorer.function)} gives {value!r:.60} for item {item.id}, not 0 to 1"
        )
    return float(value)


def user_scores(
    items: Sequence[Item], outputs: Sequence[str], known: Known
) -> tuple[list[float], UserError | None]:
    """(scores of the outputs by their items' own scorers, the first error).

    The `known` scores are reused, and equal outputs are scored once. Several outputs are scored at a time if all
    scorers allow it. After an error no further scorer is called; an output without a score has NaN.
    """
    keys = list[tuple[str, str, str]]()
    # {key of an output without a score: its item}
    unknown = dict[tuple[str, str, str], Item]()
    for item, output in zip(items, outputs, strict=True):
        key = (item.answer_digest, item.scorer_digest, output)
        keys.append(key)
        if key not in known:
            unknown[key] = item
    scores = dict(known)
    errors = list[UserError]()

    def grade(key: tuple[str, str, str]) -> None:
        if errors:
            return
        _, _, output = key
        try:
            scores[key] = user_score(unknown[key], output)
        except UserError as error:
            errors.append(error)

    allowed = [item.user_scorer.threads for item in unknown.values() if item.user_scorer]
    threads = min(allowed, default=1)
    if threads > 1:
        with ThreadPoolExecutor(threads, thread_name_prefix="souping-score") as pool:
            list(pool.map(grade, unknown))
    else:
        for key in unknown:
            grade(key)
    return [scores.get(key, math.nan) for key in keys], errors[0] if errors else None
