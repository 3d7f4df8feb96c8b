"""`souping ask` and `souping tell`: the next soups of a run that others evaluate, and their results."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from souping.cli.commands import add_overrides, command_line, parser_of
from souping.cli.listing import named_folder
from souping.core.arguments import Arguments, positive
from souping.core.fields import pick
from souping.core.files import error_text
from souping.core.folders import check_unlinked
from souping.core.text import safe
from souping.core.types import UserError
from souping.runs.open_soups import ORDER_FILE, asked_soups, home_of, tell

if TYPE_CHECKING:
    from souping.runs.asking import OpenSoup

WHAT_ASK_ENDS_WITH = (
    """For runs with `evaluator=command executor=files`. The last call ends with the report."""
)
WHAT_TELL_TAKES = """ID=LOG, ID for the log in its folder `out`, or ID=failed. A LOG is any that `compare` reads."""
UNUSED_KEYS = ("evaluator.command=", "evaluator.scratch=")
"""Keys by which a run's configuration could start a program, if soups were not evaluated elsewhere."""


def ask(arguments: Sequence[str]) -> int:
    """Go on with a run until it waits for soups or ends; the exit status, 0."""
    parser = _parser("ask", WHAT_ASK_ENDS_WITH)
    parser.add_argument("-n", type=positive, metavar="N", help="soups that are open at once")
    parser.add_argument("--write-models", action="store_true", help="model folders too")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each open soup")
    add_overrides(parser)
    options = parser.parse_intermixed_args(arguments)
    # With --json, everything else goes to standard error.
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        soups = _open_soups(options)
    if options.json:
        for soup in soups:
            print(json.dumps(vars(soup)))
    return 0


def _open_soups(options: argparse.Namespace) -> Sequence[OpenSoup]:
    """Go on with a run; the soups for which it waits afterwards, none if the run ended."""
    from souping.cli.finished import begin, configuration
    from souping.cli.settings_from_config import run_settings
    from souping.report.progress import logged
    from souping.runs.execute import execute

    run_dir = _run_dir(options.run_dir)
    if (run_dir / "report.json").is_file():
        print(f"this run has its report: open {safe(shlex.quote(str(run_dir / 'report.html')))}")
        return []
    begin()
    # Paths of its configuration start in the folder where it was started.
    os.chdir(home_of(run_dir))
    plain = configuration(
        run_dir, options.overrides, allow_code=options.allow_code, unused=UNUSED_KEYS
    )
    settings = run_settings(plain, run_dir)
    if settings.executor.evaluates_here:
        raise UserError(f"{run_dir} was not started with executor=files")
    # A new store would lack the looks that were counted.
    if not settings.store_path.is_file():
        raise UserError(f"store={settings.store_path} does not exist: name the store of this run")
    executor = settings.executor.handing_out(options.n, options.write_models)
    # The run began when its configuration was written.
    age = time.time() - (run_dir / "config.yaml").stat().st_mtime
    settings = replace(settings, executor=executor, started=settings.started - age)
    with logged(run_dir, command_line()):
        waiting = execute(settings).waiting
    return waiting.soups if waiting else []


def take_results(arguments: Sequence[str]) -> int:
    """Take the results of soups into a run; the exit status, 2 if one was refused (the others are taken), else 0."""
    parser = _parser("tell", WHAT_TELL_TAKES)
    parser.add_argument("results", nargs="+", metavar="ID[=LOG]")
    options = parser.parse_args(arguments)
    soups = {str(number): path for number, path in asked_soups(_run_dir(options.run_dir)).items()}
    status = 0
    for word in options.results:
        name, _, source = word.partition("=")
        try:
            print(safe(f"{name}: {tell(soups[pick(name, soups, 'ID')], source)}"))
        except (UserError, OSError) as error:
            print(safe(f"{name}: {error_text(error)}"), file=sys.stderr)
            status = 2
    return status


def _parser(verb: str, more: str) -> Arguments:
    """The parser of `ask` or `tell`; `more` is help below what the command does."""
    parser = parser_of(verb, more)
    parser.add_argument("run_dir", metavar="RUN", help="folder of the run")
    return parser


def _run_dir(text: str) -> Path:
    """The folder of a run with open soups (UserError if it is none, or contains links)."""
    run_dir = named_folder(text).absolute()
    if not (run_dir / ORDER_FILE).is_file():
        raise UserError(
            f"{run_dir} is not a run with open soups: start one with evaluator=command executor=files"
        )
    check_unlinked(run_dir)
    return run_dir


VERBS = {"ask": ask, "tell": take_results}
