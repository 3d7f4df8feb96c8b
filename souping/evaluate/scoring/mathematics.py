"""Scorer `math`: equal numbers, expressions and LaTeX, as the library math-verify decides it (extra `math`)."""

from __future__ import annotations

import logging
import re
import threading
from functools import lru_cache
from importlib.util import find_spec

from souping.core.text import install
from souping.core.types import Item, UserError

WORDS = re.compile(r"^[^\\$]*[A-Za-z]{2,}\s+[A-Za-z]{2,}[^\\$]*$|\$|\\boxed")
"""An answer that is a sentence or marks its mathematics itself; any other is an expression as it stands."""
SECONDS = 5
"""Time that reading or comparing an expression may take; what takes longer counts as unequal."""


def equal(item: Item, output: str) -> float:
    """Whether the last expression in the output (in a box, in LaTeX, or plain) is one of the answers."""
    _check_installed()
    from math_verify import verify

    said = _expressions(output)
    limit = SECONDS if _main() else None
    try:
        return float(any(verify(list(gold), list(said), timeout_seconds=limit) for gold in _references(item)))
    except Exception:  # an output is anything, and sympy raises all kinds
        return 0.0


def check(item: Item) -> None:
    """Refuse an answer in which math-verify finds no expression, and a machine without the library."""
    _check_installed()
    given = item.answer if isinstance(item.answer, list) else [item.answer]
    for answer, read in zip(given, _references(item), strict=True):
        if isinstance(answer, bool) or not read:
            raise UserError(f"item {item.id}: a `math` answer is a number or an expression, not {answer!r:.60}")


def reading(item: Item, output: str) -> str:
    """The last expression of an output, in words that equal ones share."""
    _check_installed()
    said = _expressions(output)
    return str(said[0]) if said else ""


def _references(item: Item) -> list[tuple[object, ...]]:
    given = item.answer if isinstance(item.answer, list) else [item.answer]
    return [_expressions(str(answer) if WORDS.search(str(answer)) else f"${answer}$") for answer in given]


@lru_cache(maxsize=4096)
def _expressions(text: str) -> tuple[object, ...]:
    """What math-verify reads in a text, as sympy objects and as texts."""
    from math_verify import parse

    for name in ("math_verify", "math_verify.parser", "math_verify.grader", "math_verify.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # it warns of missing timeouts and of every odd output
    try:
        return tuple(parse(text[-20_000:], parsing_timeout=SECONDS if _main() else None))
    except Exception:  # an output is anything
        return ()


def _main() -> bool:
    """Whether alarms can stop what takes too long: Python sets them in the main thread alone."""
    return threading.current_thread() is threading.main_thread()


def _check_installed() -> None:
    if find_spec("math_verify") is None:
        raise UserError(f"the scorer `math` needs the library math-verify: {install('math')}")
