"""Texts for people: names safe to print, lists of them, near misses, sizes."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from souping.core.types import Missing, UserError

UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff]"
    "|[\ud800-\udfff\U000e0000-\U000e007f]"
)
"""What commands a terminal, turns the direction of writing, or is not a character; line ends and tabs are safe."""


def safe(text: str) -> str:
    """A text that is safe to show: control characters and the like become escapes such as `\\x1b`."""
    return UNSAFE.sub(lambda match: _escape(match.group()), text)


def one_line(text: str) -> str:
    """A name or a sentence that is safe to show, on one line: line ends and tabs are escaped too."""
    return re.sub(r"[\n\t]", lambda match: _escape(match.group()), safe(text))


def _escape(text: str) -> str:
    return text.encode("unicode_escape", "backslashreplace").decode("ascii")


DASH = "\N{EN DASH}"
"""Stands for a number that is not known."""


def if_finite(value: float | None) -> float | None:
    """A number to show, None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value


def minus(text: str) -> str:
    """A figure for people, with the typographic minus, which is as wide as a plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def signed(figure: str) -> str:
    """A figure such as `+1.2` for people. What rounds to zero has no sign."""
    if not re.search("[1-9]", figure):
        return figure.lstrip("+-")
    return minus(figure)


def confidence(level: float | None) -> str:
    """The level of an interval in percent: `95 %`, or `99.17 %` at a later look. A level that is not known is 95 %."""
    if level is None:
        level = 0.95
    percent = f"{100 * level:.4g}"
    if percent == "100":
        # No interval has a level of 100 %: at late looks it has digits up to the first one that is not a 9.
        error_percent = float(f"{100 * (1 - level):.1g}")
        percent = f"{100 - error_percent:.12g}"
    return f"{percent} %"


BYTE_UNITS = {
    "": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}


def human(nbytes: int) -> str:
    """Bytes in the decimal unit that reads best."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"


def parse_size(size: int | str, key: str) -> int:
    """Bytes in a size such as 5GB, 500MB or 1GiB; a bare number is bytes (UserError: it is not a size, at `key`)."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)\s*", str(size), re.IGNORECASE)
    if match:
        unit = match.group(2).upper()
        # `5G` is 5GB.
        unit_bytes = BYTE_UNITS.get(unit) or BYTE_UNITS.get(f"{unit}B", 0)
        nbytes = float(match.group(1)) * unit_bytes
        part_of_a_byte = unit == "" and nbytes % 1
        if 1 <= nbytes < 1 << 62 and not part_of_a_byte:
            return int(nbytes)
    raise UserError(f"{key}={size} must be a positive size such as 5GB or 500MB")


def closest(name: str, options: Iterable[str]) -> str:
    """The option that is most like a name; empty if none is near."""
    return "".join(get_close_matches(name, list(options), n=1, cutoff=0.6))


def nearest(name: str, options: Iterable[str]) -> str:
    """`; did you mean NAME?` for the end of an error's line, nothing if no option is near."""
    near = closest(name, options)
    return f"; did you mean {one_line(near)}?" if near else ""


def check_pointer(where: str | Path, start: str | bytes) -> None:
    """Refuse a file that Git LFS did not download, by the `start` of its content (UserError); `where` is its name."""
    text = start.decode("latin-1") if isinstance(start, bytes) else start
    if text.startswith("version https://git-lfs"):
        raise UserError(
            f"{where}: a Git LFS pointer in place of the file: run `git lfs pull` where it was cloned"
        )


def shown(name: str) -> str:
    """A name from a file, safe to print: control characters escaped, long ones cut."""
    text = _escape(name)
    if len(text) > 120:
        text = text[:117] + "..."
    return text


def listed(names: Iterable[str], limit: int = 10) -> str:
    """Names as text, at most `limit` of them, then how many more there are."""
    safe_names = [shown(name) for name in names]
    text = ", ".join(safe_names[:limit])
    if len(safe_names) > limit:
        text += f" and {len(safe_names) - limit} more"
    return text


def is_user_code(target: Callable[..., Any]) -> bool:
    """Whether a class or function is the user's, not one of this package."""
    return target.__module__.split(".")[0] != "souping"


@cache
def source_of(target: Callable[..., Any]) -> str:
    """The name of a user's class or function, with the file and line where it begins if its source can be found."""
    name = f"{target.__module__}.{target.__qualname__}"
    with suppress(OSError, TypeError):
        return f"{name} ({inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]})"
    return name


def named(component: object) -> str:
    """The name of a component's class, or of a function; with its module and place if it is the user's."""
    target: Any = component.func if isinstance(component, partial) else component
    # A component is an object of its class.
    if not inspect.isroutine(target):
        target = type(target)
    if is_user_code(target):
        return source_of(target)
    return str(target.__name__)


def stripped_lines(text: str | BaseException) -> list[str]:
    """The lines of a message that hold something."""
    return [line.strip() for line in str(text).splitlines() if line.strip()]


def first_line(error: BaseException) -> str:
    """The first useful line of a message, with the next one if it ends in a colon; without a message, the class."""
    lines = stripped_lines(error)
    if not lines:
        return type(error).__name__
    # Lines that begin with an HTTP status or with general advice say little.
    advice = re.compile(r"\d{3} |For more|Make sure|Please")
    useful = [line for line in lines if not advice.match(line)] or lines
    text = useful[0]
    if text.endswith(":"):
        text = " ".join(useful[:2])
    return text.rstrip(".")[:300]


@cache
def install(extra: str) -> str:
    """The command that installs what an extra of this package needs."""
    from importlib.metadata import PackageNotFoundError, requires

    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():  # a checkout
        return f'pip install -e "{root}[{extra}]"'
    try:
        requirements = [requirement.partition(";") for requirement in requires("souping") or ()]
    except PackageNotFoundError:  # neither a checkout nor installed
        return f'pip install -e ".[{extra}]"'
    packages = [name.strip() for name, _, marker in requirements if f'extra == "{extra}"' in marker]
    # If there is no extra of this name, the name is that of a package that souping always needs.
    return "pip install " + " ".join(f'"{name}"' for name in packages or [extra])


def missing(package: str, fix: str = "") -> list[Missing]:
    """What is missing if a package is not installed; else empty. The default `fix` installs the extra of that name."""
    if find_spec(package):
        return []
    return [Missing(what=f"the package {package} is not installed", fix=fix or install(package))]
