"""`python -m souping.evaluate.bfcl install [--full]` makes bfcl-eval's own environment; `status` says what is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from souping.core.files import said
from souping.core.types import UserError
from souping.evaluate.bfcl.environment import COMMAND, LEVELS, folder_of, install, pinned, place_of, present


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line on standard error."""
    options = _parser().parse_args(arguments)
    place = place_of(options.dir)
    try:
        if options.action == "install":
            made = install(place, "full" if options.full else "minimal", options.python)
            print(f"bfcl-eval {made.version}, {made.level}: {made.folder}")
        else:
            print("\n".join(status(place)))
    except (UserError, OSError) as error:
        print(f"error: {said(error)}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m souping.evaluate.bfcl", description=__doc__)
    parser.add_argument("--dir", help="where environments are kept (default: $SOUPING_BFCL, ~/.cache/souping/bfcl)")
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("install", help="make the environment; nothing happens where it is there")
    make.add_argument("--full", action="store_true", help="all of bfcl-eval's requirements: multi-turn and agentic too")
    make.add_argument("--python", help="the Python to make it with (default: this one)")
    show = actions.add_parser("status", help="say which environments are there")
    for action in (make, show):  # --dir may stand on either side
        action.add_argument("--dir", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def status(place: Path) -> list[str]:
    """One line an environment."""
    there = {environment.level: environment for environment in present(place)}
    lines = []
    for level in LEVELS:
        absent = f"not there: {COMMAND}{' --full' if level == 'full' else ''}"
        where = str(folder_of(level, place)) if level in there else absent
        lines.append(f"bfcl-eval {pinned(level)} {level:8} {where}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
