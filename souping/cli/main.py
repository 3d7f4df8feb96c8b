"""Entry of the command line: help, version and commands; a run loads Hydra. Every error is reported here."""

from __future__ import annotations

import gc
import os
import re
import sys

from souping.cli.commands import COMMANDS, as_overrides, finished_run
from souping.cli.help import answered, completed
from souping.cli.process import EXIT_STATUSES, Ended, open_streams, stop
from souping.core.fields import pick
from souping.core.text import first_line, safe
from souping.core.types import UserError


def main() -> None:
    """Entry of `python -m souping`. Exit status 0; 2 (the user can fix it) or 1 (a fault of ours); 130 (Ctrl-C), 129
    (SIGHUP) or 143 (SIGTERM)."""
    # Objects made by imports never die: scanning them costs 10 % of the start.
    gc.disable()
    open_streams()
    EXIT_STATUSES.clear()
    # Without this, Hydra prints its own trace and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    debug = any(re.fullmatch(r"\+{0,2}debug=(true|True|1|yes|on)", a) for a in sys.argv[1:])
    try:
        _do()
        sys.stdout.flush()
    except KeyboardInterrupt as end:
        if "souping.cli.sweep" in sys.modules:
            from souping.cli.sweep import end_sweep

            end_sweep()
        words = "interrupted"
        code = 130
        if isinstance(end, Ended):
            words, code = end.args
        stop(f"{words}: what was evaluated is in the store; the same command continues", code)
    except Exception as error:
        if debug:
            raise
        try:
            from souping.cli.errors import format_error
            from souping.cli.sweep import end_sweep
        except ModuleNotFoundError as missing:
            # Only what `compare` needs is installed.
            what = safe(f"{type(error).__name__}: {first_line(error)}")
            package = error.name if isinstance(error, ModuleNotFoundError) else missing.name
            fix = f"{package} is not installed: install souping with its dependencies, without --no-deps"
            stop(f"{what}\n{fix}", 2 if isinstance(error, UserError | OSError | ImportError) else 1)
        else:
            end_sweep()
            stop(*format_error(error))
    if EXIT_STATUSES:
        sys.exit(EXIT_STATUSES[0])


def _do() -> None:
    first = "".join(sys.argv[1:2])
    arguments = sys.argv[2:]
    if first == "show":
        from souping.cli.show import show

        show(arguments)
        return
    if first == "list":
        from souping.cli.listing import list_runs

        list_runs(arguments)
        return
    if first == "compare":
        from souping.cli import compare

        EXIT_STATUSES.extend(filter(None, [compare.main(arguments)]))
        return
    if first in ("ask", "tell"):
        from souping.cli import asking

        EXIT_STATUSES.extend(filter(None, [asking.VERBS[first](arguments)]))
        return
    if answered(sys.argv[1:]):
        return
    if {"-sc", "--shell-completion"} & {*sys.argv[1:]} and completed():
        return
    # A word without `=` is a command.
    if re.fullmatch(r"[a-z][a-z_-]*", first) and not "".join(arguments).startswith("="):
        pick(first, COMMANDS, "command", " (overrides: KEY=VALUE)")
        sys.argv[1:] = as_overrides(first, arguments)
    sys.argv[1:] = map(_at_home, sys.argv[1:])
    if finished_run(sys.argv[1:]) is not None:
        from souping.cli.finished import add

        add(sys.argv[1:])
        return
    from souping.cli.job import start

    start()


def _at_home(word: str) -> str:
    """An override with each bare `~/` written out: neither a shell nor Hydra's grammar takes one inside a value."""
    home = os.path.expanduser("~")
    if re.search("[\"']", word) or not re.fullmatch(r"[\w./@+-]+", home):
        return word
    return re.sub(r"(?<=[=,:\[ ])~(?=/)", home, word)
