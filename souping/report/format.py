"""Words and numbers as people read them: labels, percent, intervals, escapes. Nothing here draws or writes."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps

from souping.core.text import DASH, UNSAFE, if_finite, signed
from souping.core.types import Json

ROW_KINDS: Mapping[str, str] = {
    "soup": "soup",
    "uniform_selected": "uniform over the ingredients",
    "uniform_topk": "uniform over the best candidates",
    "uniform_all": "uniform over all candidates",
    "router": "router",
    "last": "last checkpoint",
    "best_candidate": "best candidate",
    "trainer_best": "the trainer's best",
    "trainer_average": "the trainer's average",
    "decayed": "decayed branch",
    "shuffled": "same weights on other checkpoints",
    "ingredient": "ingredient",
    "candidate": "candidate, not selected",
}
"""The kinds of a row in the order they are shown, with their labels."""


def dashed(show: Callable[[float], str]) -> Callable[[float | None], str]:
    """A function like `show` that gives a dash for a number that is not known or not finite."""

    @wraps(show)
    def show_known(value: float | None) -> str:
        value = if_finite(value)
        if value is None:
            return DASH
        return show(value)

    return show_known


def percent(value: float | None, digits: int = 1) -> str:
    """0.7812 -> `78.1`; a dash for a number that is not known or not finite."""
    value = if_finite(value)
    if value is None:
        return DASH
    return signed(f"{100 * value:.{digits}f}")


def verdict_word(verdict: str) -> str:
    """The verdict of a report (`higher`, `lower`) as a word about the soup; any other as it is."""
    word = clean(verdict)
    return {"higher": "better", "lower": "worse"}.get(word, word)


@dashed
def rho(value: float) -> str:
    """A correlation, with two decimals."""
    return signed(f"{value:.2f}")


@dashed
def p_value(value: float) -> str:
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}"


@dashed
def four_digits(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


@dashed
def share(value: float) -> str:
    """A share of bootstrap draws, as whole percent."""
    return f"{100 * value:.0f} %"


@dashed
def count(value: float) -> str:
    """A whole number, `12,345`."""
    return f"{value:,.0f}"


@dashed
def seconds_text(value: float) -> str:
    """A duration: `12.3 s`, `2 min 5 s` or `1 h 20 min`."""
    if value < 90:
        return f"{value:.1f} s"
    minutes, remainder = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {remainder} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clean(value: Json) -> str:
    """A value as one line without control characters, whatever users call their models; nothing for None."""
    text = "" if value is None else str(value)
    # A lone surrogate cannot be written as UTF-8: it becomes a question mark.
    text = text.encode("utf-8", "replace").decode()
    return UNSAFE.sub(" ", re.sub(r"\s", " ", text)).strip()


def short(value: Json, limit: int = 28) -> str:
    """At most `limit` characters, the middle left out: names often differ at their ends."""
    text = clean(value)
    if len(text) <= limit:
        return text
    # One character is the ellipsis.
    tail = limit // 2
    return f"{text[: limit - tail - 1]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"


def escape_html(value: Json) -> str:
    return html.escape(clean(value), quote=True)


def escape_markdown(value: Json) -> str:
    """Text that Markdown shows as it is, in a table cell too."""
    text = re.sub(r"([\\`*\[\]|~$])", r"\\\1", clean(value))
    # Underscores inside a word need no escape.
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # At the start of a line, these would begin a heading or a list.
    text = re.sub(r"^([#+-]|\d+[.)])(?=\s)", r"\\\1", text)
    # Before a space, `&` and `<` begin nothing; behind one, `>` ends nothing.
    text = re.sub("&(?! )", "&amp;", text)
    return re.sub("(?<! )>", "&gt;", re.sub("<(?! )", "&lt;", text))


def in_words(names: Sequence[Json]) -> str:
    """`a, b and c`."""
    words = [clean(name) for name in names]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


BARE = re.compile(r"(?!(?i:null|true|false|nan|inf)\Z)(\.{0,2}/|[a-zA-Z_])[\w/.@+-]*", re.ASCII)
"""Texts that Hydra's grammar takes for texts without quotes."""


def quoted(text: str) -> str:
    """A text in Hydra's grammar, which reads exactly this text: bare where it can be, else in double quotes."""
    if BARE.fullmatch(text):
        return text
    # OmegaConf reads an escaped `${` as text, with half of the backslashes before it.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    # Hydra reads a backslash as an escape only in front of a quote, the closing one included.
    escaped = re.sub(r'(\\*)("|\Z)', lambda m: m[1] * 2 + (m[2] and '\\"'), text)
    return f'"{escaped}"'
