"""Entry of the command line: help, version and commands; a run loads Hydra. Every error is reported here."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence

from souping.cli.commands import COMMANDS, PLANNED, TYPED, as_overrides, has_parser
from souping.cli.process import DEBUG, EXIT_STATUSES, Ended, open_streams, stop
from souping.core.fields import pick
from souping.core.text import first_line, safe
from souping.core.types import UserError


def main() -> None:
    """Entry of `python -m souping`. Exit status 0; 2 (the user can fix it) or 1 (a fault of ours); 130 (Ctrl-C), 129
    (SIGHUP) or 143 (SIGTERM)."""
    # A job switches it on again. Objects made by imports never die: scanning them costs 10 % of the start.
    gc.disable()
    open_streams()
    EXIT_STATUSES.clear()
    # Without this, Hydra prints its own trace and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        _run_words()
        sys.stdout.flush()
    except KeyboardInterrupt as end:
        _stop_interrupted(end)
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        _stop_failed(error)
    if EXIT_STATUSES:
        sys.exit(EXIT_STATUSES[0])


def _stop_interrupted(end: KeyboardInterrupt) -> None:
    """End the process after Ctrl-C or a signal."""
    # A module that was not imported has no sweep to end, and importing it takes long.
    if "souping.cli.sweep" in sys.modules:
        from souping.cli.sweep import end_sweep

        end_sweep()
    words = "interrupted"
    code = 130
    if isinstance(end, Ended):
        # A signal, not Ctrl-C: it has its own words and exit status.
        words, code = end.args
    stop(f"{words}: what was evaluated is in the store; the same command continues", code)


def _stop_failed(error: Exception) -> None:
    """End the process with an error in words."""
    try:
        from souping.cli.errors import format_error
        from souping.cli.sweep import end_sweep
    except ModuleNotFoundError as missing:
        # A dependency is missing, as it may be on a machine that only compares logs.
        what = safe(f"{type(error).__name__}: {first_line(error)}")
        package = error.name if isinstance(error, ModuleNotFoundError) else missing.name
        fix = (
            f"{package} is not installed: install souping with its dependencies, without --no-deps"
        )
        stop(f"{what}\n{fix}", 2 if isinstance(error, UserError | OSError | ImportError) else 1)
    else:
        end_sweep()
        stop(*format_error(error))


def _run_words() -> None:
    """Do what the command line says. An exit status other than 0 goes to EXIT_STATUSES."""
    words = sys.argv[1:]
    TYPED[:] = words
    # `help compare` is `compare --help`: that command parses its arguments itself.
    if len(words) == 2 and words[0] == "help" and has_parser(words[1]):
        words = [words[1], "--help"]
    first = "".join(words[:1])
    if not has_parser(first):
        from souping.cli.help import answered

        if answered(words):
            return
    if {"-sc", "--shell-completion"} & {*words}:
        from souping.cli.help import completed

        if completed():
            return
    # A first word of letters is a command. KEY=VALUE, also typed as `KEY =VALUE`, and files are words of `run`.
    if re.fullmatch(r"[a-z][a-z_-]*", first) and not "".join(words[1:]).startswith("="):
        pick(first, [*COMMANDS, "help"], "command", " (overrides: KEY=VALUE)")
    else:
        first = "run"
        words = ["run", *words]
    # `plan merge ...` is the command `merge`, which is only planned; `plan ...` plans a run.
    plans = first == "plan" and "".join(words[1:2]) in PLANNED
    if plans:
        words = words[1:]
    status = _run_command(words[0], words[1:], plans)
    EXIT_STATUSES.extend(filter(None, [status]))


def _run_command(name: str, arguments: Sequence[str], plans: bool) -> int | None:
    """Do what a command says, or plan it; the exit status, None for a command that only ends with 0 or an error."""
    if name in ("analyse", "upload"):
        from souping.cli import finished

        finished.ON_RUNS[name](list(map(_at_home, arguments)), plans)
        return None
    if name in ("ask", "tell"):
        from souping.cli import ask_and_tell

        return ask_and_tell.VERBS[name](arguments)
    if name == "compare":
        from souping.cli import compare

        return compare.compare_logs(arguments)
    if name == "list":
        from souping.cli.listing import list_runs

        list_runs(arguments)
        return None
    if name == "show":
        from souping.cli.show import show

        show(arguments)
        return None
    # All others are composed by Hydra.
    from souping.cli.choice_files import with_installed
    from souping.cli.job import opened, split_options, start
    from souping.cli.settings_file import with_file

    options, words = split_options(arguments)
    if name != "rebuild":
        words = with_file(words)
    overrides = with_installed(as_overrides(name, words))
    if plans:
        overrides.append("action.plan=true")
    # Hydra's own parser needs its options first.
    sys.argv[1:] = [*options, *map(opened, map(_at_home, overrides))]
    start()
    return None


def _at_home(word: str) -> str:
    """An override with each bare `~/` written out: neither a shell nor Hydra's grammar takes one inside a value."""
    home = os.path.expanduser("~")
    # A quoted value is taken as it stands, and so is a home folder that would need quotes itself.
    if re.search("[\"']", word) or not re.fullmatch(r"[\w./@+-]+", home):
        return word
    return re.sub(r"(?<=[=,:\[ ])~(?=/)", home, word)
