"""Types of arguments of commands, for `argparse`."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from souping.core.types import UserError

LONGEST_TIMEOUT_S = 1e7


class Arguments(argparse.ArgumentParser):
    """Parser of a command, whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; help: {self.prog} --help")


def points(text: str) -> float:
    """A number of points, for `argparse`; `3%` is refused with the advice to write 3."""
    number = re.split(r"[^-+\d.e]", text)[0]
    if number != text:
        # 2 is an example, for a text that does not begin with a number.
        raise argparse.ArgumentTypeError(f"{text!r}: write the number alone, {number or 2}")
    return float(text)


def positive(text: str) -> int:
    """An integer of at least 1, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def seconds(text: str) -> float:
    """A number of seconds above 0, for `argparse`."""
    value = float(text)
    if not 0 < value <= LONGEST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {LONGEST_TIMEOUT_S:g}")
    return value
