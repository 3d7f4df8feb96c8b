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
"""Time that reading or comparing an expression may take; what takes longer counts as unequal."""

Known = Mapping[tuple[str, str, str], float]
"""{(question, scorer, answer's text): score}"""
Grade = Callable[[Sequence[Item], Sequence[str], Known], tuple[list[float], UserError | None]]
"""grade(items, outputs, what is known) -> (scores, the first error); NaN where a scorer could not be called."""


@dataclass(frozen=True)
class Scorer:
    """Way to score outputs, and to check an answer when items are read."""

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
    """Whether the item can be scored at all.

    Raises:
        UserError: unknown scorer or language, or an answer that the scorer cannot read.
    """
    if item.user_scorer is None:
        _scorer(item).check(item)


def _scorer(item: Item) -> Scorer:
    if item.scorer not in SCORERS:
        hint = f" (for your own: benchmark.scorers={{{item.scorer}: my_module.my_function}})"
        pick(item.scorer, SCORERS, f"item {item.id}: scorer", hint)
    return SCORERS[item.scorer]


# Scorers of texts


def _exact(item: Item, output: str) -> float:
    return float(plain_text(output) in map(plain_text, _answers(item)))


def _references_of(item: Item) -> list[Json]:
    """The reference: a text, or a list of which any is right."""
    return item.answer if isinstance(item.answer, list) else [item.answer]


def _answers(item: Item) -> list[str]:
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
    return UserError(f"item {item.id}: a `{item.scorer}` answer is {form}, not {item.answer!r:.60}")


def plain_text(text: str) -> str:
    """A text without a difference in white space."""
    return " ".join(text.split())


def _contains(item: Item, output: str) -> float:
    said = plain_text(output).casefold()
    return float(any(plain_text(answer).casefold() in said for answer in _answers(item)))


def _matches(item: Item, output: str) -> float:
    return float(any(_found(pattern, output) for pattern in _answers(item)))


def _found(pattern: str, output: str) -> bool:
    try:
        return regex.search(pattern, output, timeout=PATTERN_TIMEOUT_S) is not None
    except TimeoutError:
        return False


def _check_pattern(item: Item) -> None:
    _check_texts(item)
    for pattern in _answers(item):
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError) as error:
            raise UserError(
                f"item {item.id}: {pattern!r:.60} is not a regular expression: {error}"
            ) from None


def _choice(item: Item, output: str) -> float:
    return float(
        chosen_letter(output) in {answer.strip("() .").upper() for answer in _answers(item)}
    )


def _check_choice(item: Item) -> None:
    _check_texts(item)
    if not all(re.fullmatch(r"[A-Za-z]", answer.strip("() .")) for answer in _answers(item)):
        raise _refused(item, "a letter or a list of letters")


def chosen_letter(output: str) -> str:
    r"""The letter that an output settles on, upper case, empty if there is none.

    In this order: the last `\boxed{B}`; the last "answer is B", "Answer: (B)", "option B"; a letter that opens the
    output (`B`, `B)`, `(B) Paris`); the last letter that stands alone and is not a word ("A cat" and "I think" are).
    """
    for pattern in (BOXED, SAID):
        letters = pattern.findall(output)
        if letters:
            return str(letters[-1]).upper()
    first = LEADING_LETTER.match(output)
    if first:
        return first[1].upper()
    letters = LONE_LETTER.findall(output)
    return str(letters[-1]).upper() if letters else ""


def _f1(item: Item, output: str) -> float:
    """Overlap of words with the best of the answers: harmonic mean of precision and recall, as SQuAD has it."""
    return max(_overlap(_words(answer), _words(output)) for answer in _answers(item))


def _words(text: str) -> list[str]:
    """Words of a text in small letters, without punctuation and the articles a, an, the (SQuAD's own rule)."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _overlap(expected: Sequence[str], said: Sequence[str]) -> float:
    if not expected or not said:
        return float(list(expected) == list(said))
    common = (Counter(expected) & Counter(said)).total()
    return 2 * common / (len(expected) + len(said))


# Numbers and mathematics


def _number(item: Item, output: str) -> float:
    expected = _as_number(item.answer)
    said = last_number(output)
    if expected is None:
        raise _refused(item, "a finite number")
    return float(said is not None and math.isclose(said, expected, rel_tol=1e-9, abs_tol=1e-12))


def _check_number(item: Item) -> None:
    if _as_number(item.answer) is None:
        raise _refused(item, "a finite number")


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
_FOUND = re.compile(
    rf"(?<![\d.])[-+\u2212]?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d))?"
)


def last_number(text: str) -> float | None:
    """The last number written in a text, None if there is none.

    A hyphen between word characters is not a sign: `3-4` ends in 4.
    """
    matches = deque(_FOUND.finditer(text), maxlen=1)
    if not matches:
        return None
    number = matches[0][0]
    start = matches[0].start()
    if number[0] in "-+\u2212" and start and text[start - 1].isalnum():
        number = number[1:]
    return _finite(number)


def _equal(item: Item, output: str) -> float:
    """Whether the last expression in the output (in a box, in LaTeX, or plain) is one of the answers."""
    _check_library()
    from math_verify import verify

    said = _expressions(output)
    limit = EXPRESSION_TIMEOUT_S if _main() else None
    try:
        return float(
            any(verify(list(gold), list(said), timeout_seconds=limit) for gold in _references(item))
        )
    except Exception:  # an output is anything, and sympy raises all kinds
        return 0.0


def _check_mathematics(item: Item) -> None:
    """Refuse an answer in which math-verify finds no expression, and a machine without the library."""
    _check_library()
    if any(isinstance(answer, bool) for answer in _references_of(item)) or not all(
        _references(item)
    ):
        raise _refused(item, "a number or an expression")


def _references(item: Item) -> list[tuple[object, ...]]:
    return [
        _expressions(text if MATHEMATICS.search(text) else f"${text}$") for text in _answers(item)
    ]


@lru_cache(maxsize=4096)
def _expressions(text: str) -> tuple[object, ...]:
    """What math-verify reads in a text, as sympy objects and as texts."""
    from math_verify import parse

    for name in ("math_verify", "math_verify.parser", "math_verify.grader", "math_verify.utils"):
        # it warns of missing timeouts and of every odd output
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return tuple(
            parse(text[-20_000:], parsing_timeout=EXPRESSION_TIMEOUT_S if _main() else None)
        )
    except Exception:  # an output is anything
        return ()


def _main() -> bool:
    """Whether alarms can stop what takes too long: Python sets them in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


def _check_library() -> None:
    if find_spec("math_verify") is None:
        raise UserError("the scorer `math` needs the library math-verify", fix=install("math"))


def _unanswerable(item: Item, output: str) -> float:
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
    "math": Scorer(_equal, _check_mathematics),
    "call": Scorer(calls.score_calls, calls.check_call_item),
    TEXT: Scorer(_unanswerable, lambda _: None),
}


# The user's


def load_scorers(scorers: Mapping[str, str]) -> dict[str, UserScorer]:
    """{name: scorer} of `benchmark.scorers={name: my_module.my_function}`. A file of items only names a scorer and
    imports nothing; the configuration says what the name stands for.

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
    where = f"benchmark.scorers.{name}={path}"
    parent, _, attribute = path.rpartition(".")
    try:
        module = import_module(parent)
        function = getattr(module, attribute)
    except Exception as error:  # whatever the module does while it is imported
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"{where} cannot be imported: {reason}; write my_module.my_function"
        ) from error
    if inspect.isclass(function) or not callable(function):
        lack = "" if inspect.isclass(function) else f" ({type(function).__name__} lacks __call__)"
        raise UserError(
            f"{where} is not a function of (item, output){lack}: name one, or an object that can be called"
        )
    if isinstance(function, Judge):
        return UserScorer(
            name=name, function=function, digest=function.fingerprint, threads=function.threads
        )
    return UserScorer(name=name, function=function, digest=_source(module, function, path, where))


def _source(
    module: ModuleType, function: Callable[[Item, str], float], path: str, where: str
) -> str:
    """Digest of the files that decide a score: the named module, and that of the function or its class."""
    files = []
    for part in (module, _definition(function)):
        source: str | None = None
        # builtins raise, members of extension modules have none
        with suppress(TypeError):
            source = inspect.getsourcefile(part)
        if source is None:
            raise UserError(f"{where} has no Python source: call it in a function of your own")
        files.append(Path(source))
    texts = [file.read_bytes() for file in dict.fromkeys(files) if file.is_file()]
    return hashlib.sha256(b"\0".join([path.encode(), *texts])).hexdigest()


def _definition(function: Callable[[Item, str], float]) -> Any:
    """The function itself, or the class of an object that can be called."""
    inner = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) else type(inner)


def user_score(item: Item, output: str) -> float:
    """Score of an output by the item's own scorer.

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
    """Scores of outputs on items by their own scorers. Equal answers are scored once, several at a time if the scorer
    allows it. After an error no further scorer is called; scores so far are kept."""
    keys = list[tuple[str, str, str]]()
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
        try:
            scores[key] = user_score(unknown[key], key[2])
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
