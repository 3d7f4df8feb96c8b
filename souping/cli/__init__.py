"""The process of the command line: its signals, standard streams that cannot end a run, and help without Hydra."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from souping.core.fields import pick
from souping.core.system import __version__
from souping.core.types import UserError

ENDING = (signal.SIGTERM, signal.SIGHUP)
EXIT_STATUSES: list[int] = []
"""Exit statuses of what failed without ending the process: a job of a multirun, an output that is full."""


REPLACE = "souping-replace"
"""Name of the handler of characters that a standard stream cannot show."""


class Ended(KeyboardInterrupt):
    """End by a signal, which cleans up as an interrupt does. Arguments: a description, the exit status."""


def interrupts_raise() -> None:
    """From here an interrupt is a `KeyboardInterrupt` again, and so are SIGTERM and SIGHUP unless ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    # as the package leaves it until a job begins
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def end(signum: int, frame: FrameType | None) -> None:
    """Leave through every clean-up, once: a second signal would stop those."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    raise Ended(f"ended by {signal.Signals(signum).name}", 128 + signum)


class StandardStream(io.FileIO):
    """Standard output or error. If it is full or closed, one message says so and the run goes on."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            # a reader that has seen enough needs no word
            if error.errno != errno.EPIPE and self.fileno() == 1:
                EXIT_STATUSES.append(2)
                print(
                    f"standard output: {error.strerror}; the run goes on without it",
                    file=sys.stderr,
                )
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make the standard streams safe: a closed one becomes the null device, so that no file of the run replaces it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _safe(1, sys.stdout, sys.__stdout__)
    sys.stderr = _safe(2, sys.stderr, sys.__stderr__)


def _safe(number: int, stream: TextIO | None, first: TextIO | None) -> TextIO:
    if stream is not None and (stream is not first or not isinstance(stream, io.TextIOWrapper)):
        return stream  # a test's or a notebook's
    encoding = stream.encoding if stream else "utf-8"
    # Whatever was set for standard output, because most handlers raise an error.
    errors = REPLACE if number == 1 else "backslashreplace"
    raw = io.BufferedWriter(StandardStream(number, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, line_buffering=True)


def replace(error: UnicodeError) -> tuple[str, int]:
    """Handler of encoding errors: a plain hyphen for a minus sign, a question mark for any other character."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].replace("\N{MINUS SIGN}", "-")
    return re.sub("[^-]", "?", text), error.end


codecs.register_error(REPLACE, replace)


def stop(message: str, code: int) -> None:
    """End the process with a message on standard error."""
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr)
    sys.exit(code)


# ------------------------------------------------------------ commands

COMMANDS: Mapping[str, str] = {
    "check": "rehearse a run on five items per category",
    "plan": "show what a run costs and what is missing here, and stop",
    "merge": "average checkpoints by weights that you know, without evaluation",
    "names": "list which tensor of a soup comes from which tensors of the candidates",
    "show": "show answers of a run side by side: what the soup fixed or broke",
    "compare": "an honest verdict for any two evaluation logs",
}
"""{command: what it does}; `conf/config.yaml` lists them in its help."""
STANDS_FOR: Mapping[str, tuple[str, ...]] = {
    "check": ("check=true",),
    "plan": ("plan=true",),
    "merge": ("+experiment=merge",),
    "names": ("+experiment=merge", "merge.names=show"),
}
"""{command: the overrides that it stands for}; the other commands have arguments of their own."""
RUN = re.compile(r"\+{0,2}run=(.*)", re.DOTALL)
"""Override that names a finished run."""


def finished_run(words: Sequence[str]) -> str | None:
    """The folder of a finished run that `run=` names, the last of several."""
    return next((match[1] for word in reversed(words) if (match := RUN.fullmatch(word))), None)


def as_overrides(command: str, words: Sequence[str]) -> list[str]:
    """The words after a command, with the overrides that it stands for.

    Raises:
        UserError: `merge` beside another experiment.
    """
    experiment = next((word for word in words if re.match(r"\+{0,2}experiment=", word)), "")
    if command == "names":
        return _names(words, experiment)
    overrides = [word for word in STANDS_FOR[command] if word not in words]
    if command == "merge" and overrides and experiment:
        raise UserError(f"merge and {experiment} are two experiments: leave one of them out")
    return [*words, *overrides]


def _names(words: Sequence[str], experiment: str) -> list[str]:
    """The overrides of `names`: of another `experiment`, with the user's rules, and with any weights."""
    merge, show = STANDS_FOR["names"]
    added = [show]
    if not experiment:
        added.append(merge)
        if not any(word.startswith("optimiser") for word in words):
            added.append("optimiser=uniform")
    # Rules of the user's are applied: merge.names=FILE becomes merge.names=show:FILE.
    return [
        *added,
        *(re.sub(r"^merge\.names=(?!show)", "merge.names=show:", word) for word in words),
    ]


def misplaced(command: str) -> str:
    """What to do about a command that is not the first word."""
    anywhere = ""
    if command in STANDS_FOR:
        anywhere = f", or {' '.join(STANDS_FOR[command])} in any place"
    return f"{command} is a command, which comes first: python -m souping {command} ...{anywhere}"


def completed() -> bool:
    """Complete commands for a shell; False if Hydra has to complete the other words.

    The shell passes the line in COMP_LINE. Hydra does not know commands, so it gets their overrides.
    """
    app, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    command, space, after = line.lstrip().partition(" ")
    if not space:
        print("\n".join(name for name in (*COMMANDS, "help") if name.startswith(command)))
    elif command in STANDS_FOR:
        os.environ["COMP_LINE"] = f"{app} {' '.join(STANDS_FOR[command])} {after}"
    elif command == "help":
        print("\n".join((*COMMANDS, *groups())))
    return bool(space) and command in ("compare", "help", "show")


# ------------------------------------------------------------ help and version

HELP_FLAGS = ("--help", "-h")


def folder() -> Path:
    """The folder of the YAML files: in the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "conf"


def answered(words: Sequence[str]) -> bool:
    """Print what `--version`, `help`, `--help` or `help NAME...` request; False if the words are something else.

    Raises:
        UserError: there is no such group or command.
    """
    if "--version" in words:
        print(f"souping {__version__}")
        return True
    names = [word for word in words if word not in HELP_FLAGS][words[:1] == ["help"] :]
    if len(names) == len(words) or not all(word.isidentifier() for word in names):
        return False
    print("\n".join(line for name in names for line in keys(name)) if names else overview())
    return True


def overview() -> str:
    """The help of `conf/config.yaml`, with the groups and their choices."""
    import yaml

    text = str(yaml.safe_load((folder() / "config.yaml").read_text())["hydra"]["help"]["template"])
    lines = "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())
    return text.replace("$APP_CONFIG_GROUPS", lines).rstrip()


def groups() -> list[str]:
    return sorted(
        path.name for path in folder().iterdir() if path.is_dir() and not path.name.startswith("_")
    )


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def keys(group: str) -> Iterator[str]:
    """The choices of a group, and their keys with defaults and remarks as files have them; or what a command does."""
    if group in COMMANDS:
        yield f"usage: python -m souping {group} ...\n\n{COMMANDS[group]}"
        if group in STANDS_FOR:
            yield f"the same as {' '.join(STANDS_FOR[group])}"
        # `merge` is a group too
        if group not in groups():
            return
        yield ""
    pick(group, [*groups(), *COMMANDS], "help: group or command")
    for name in choices(group):
        yield f"{'+' * (group == 'experiment')}{group}={name}"
        text = (folder() / group / f"{name}.yaml").read_text()
        yield from (
            f"  {line}" for line in text.splitlines() if not line.strip().startswith(("_", "# @"))
        )
        yield ""
