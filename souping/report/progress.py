"""What a run prints: progress on the terminal, and the same lines with their times in run.log."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from souping.core.system import provenance, versions
from souping.core.text import human, one_line, safe
from souping.report import format

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.table import Table

LOG = "run.log"
EARLY = ("config.yaml", "selection.json", "order.jsonl", LOG)
"""Files that a run writes before it has results; a run that is refused removes them."""
LONGEST_HEAD = 2**16
"""Characters at the start of run.log that hold the command."""
PAUSE = 20.0
"""Seconds between two lines about one stage or transfer."""
log = logging.getLogger("souping.run")


class Progress:
    """Context manager that shows the stages of a run: a live bar on a terminal, else a line every `PAUSE` seconds.

    The lines of a `quiet` progress go to run.log alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars = _bars() if _live() else None
        self._begin("", answers=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is None:
            self.end_stage()

    def stage(self, name: str, answers: int | None = None, trials: int | None = None) -> None:
        """End the last stage and begin one of this many answers and trials, if the numbers are known."""
        self.end_stage()
        self._begin(format.clean(name), answers, trials)
        self._show_bar()
        self._line(f"{self._name}: {answers:,} answers" if answers else self._name)

    @property
    def current(self) -> str:
        """Name of the stage that was begun last."""
        return self._name

    def advance(self, answers: int) -> None:
        """Count this many more answers."""
        self._done += answers
        self._update()

    def trial(self, best: str) -> None:
        """Count one more trial; `best` is the best objective so far as text, with its unit."""
        self._trials += 1
        self._best = best
        self._update()

    def end_stage(self) -> None:
        """Write the final line of the stage. Without progress since the last call, there is none."""
        if self._done or self._trials:
            self._line(self._state(self._name))
            # Starts the counts at 0, so that a second call writes nothing.
            self._begin(self._name, answers=None)

    def show(self, table: Table) -> None:
        """Print a table beside the results."""
        side_console().print(table)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While the block runs, the live display is gone, so that another one can use the terminal."""
        if self._bars is not None:
            self._bars.stop()
        try:
            yield
        finally:
            if self._bars is not None:
                self._bars.start()

    def say(self, line: str) -> None:
        """Print a line and add it to run.log; a quiet progress does not print."""
        if self._quiet:
            log.info("%s", one_line(line))
        else:
            say(line)

    def _line(self, line: str) -> None:
        """Write a line of progress to run.log, and print it unless a live display shows it already."""
        if self._bars is None:
            self.say(line)
        else:
            log.info("%s", one_line(line))

    def _begin(self, name: str, answers: int | None, trials: int | None = None) -> None:
        """Start counts and clock of a stage of this many answers and trials; None: not known."""
        self._name = name
        self._total = answers
        self._all_trials = trials
        # Answers and trials so far, and the best objective as text.
        self._done = 0
        self._trials = 0
        self._best = ""
        # Times when the stage began and when its last line was written.
        self._started = time.monotonic()
        self._said = self._started

    def _show_bar(self) -> None:
        """On a live display, put a bar of this stage in place of the last one's."""
        if self._bars is not None:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(self._name, total=self._total, state="")
            self._bars.start()

    def _update(self) -> None:
        """Move the bar, and every `PAUSE` seconds write a line."""
        if self._bars is not None and self._bars.task_ids:
            state = self._state("")
            self._bars.update(
                self._bars.task_ids[-1], total=self._total, completed=self._done, state=state
            )
        if time.monotonic() - self._said > PAUSE:
            self._said = time.monotonic()
            self._line(self._state(self._name))

    def _state(self, name: str) -> str:
        """`name, 120 of 400 answers, 31 answers/s, 9.0 s left`, as far as it is known; without a name, the rest."""
        facts = [name, _progress_text(self._done, self._total, "answers")]
        if self._trials:
            facts.append(_progress_text(self._trials, self._all_trials, "trials"))
            facts.append(f"best {self._best}")
        seconds = time.monotonic() - self._started
        # A rate over less time says nothing.
        if self._done and seconds > 0.2:
            rate = self._done / seconds
            digits = ",.0f" if rate >= 10 else ".2g"
            facts.append(f"{rate:{digits}} answers/s")
            # Not above 0 if the total is not known.
            remaining = (self._total or 0) - self._done
            if remaining > 0:
                facts.append(f"{format.seconds_text(remaining / rate)} left")
        return ", ".join(filter(None, facts))


class Throughput(Progress):
    """Progress of a transfer: a context manager to be called with (bytes done, bytes in all), from any thread.

    Nothing is shown if it is never called.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._begin(name, answers=None)

    def __call__(self, done: int, total: int) -> None:
        if self._total is None:
            self._total = total
            self._show_bar()
        # Calls of several threads may come out of order.
        self._done = max(self._done, done)
        self._update()

    def end_stage(self) -> None:
        """Print the final line, also where a live display showed the progress."""
        if self._done:
            say(self._state(self._name))

    def _state(self, name: str) -> str:
        """`name: 1.2 GB of 5.0 GB in 3.4 s, 353 MB/s`; without a name, the part after the colon."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        amount = f"{human(self._done)} of {human(self._total or 0)}"
        state = f"{amount} in {seconds:.1f} s, {human(int(self._done / seconds))}/s"
        return f"{name}: {state}" if name else state


def _progress_text(done: int, total: int | None, unit: str) -> str:
    """`120 of 400 answers`, or `120 answers` without a total; empty if both are 0 or unknown."""
    if total:
        return f"{done:,} of {total:,} {unit}"
    if done:
        return f"{done:,} {unit}"
    return ""


def on_terminal() -> bool:
    """Whether a person may be watching; rich would say the same after 70 ms of imports."""
    return sys.stderr.isatty() or sys.stdout.isatty()


def _live() -> bool:
    """Whether the terminal can redraw lines, as a live display needs."""
    if not on_terminal():
        return False
    console = side_console()
    return console.is_terminal and not console.is_dumb_terminal


def _bars() -> Bars:
    """A live display that has not been started: a name, a bar and a text per task."""
    from rich.progress import BarColumn, Progress as Bars, TextColumn

    name = TextColumn("{task.description}", markup=False)
    state = TextColumn("{task.fields[state]}", markup=False)
    return Bars(name, BarColumn(bar_width=24), state, console=side_console(), transient=True)


def side_console() -> Console:
    """Standard error if it is a terminal, where a live display may be drawn; else standard output."""
    from rich.console import Console

    return Console(stderr=sys.stderr.isatty(), highlight=False)


def say(line: str) -> None:
    """Print a line beside the results and add it to run.log."""
    text = one_line(line)
    print(text, file=sys.stderr if sys.stderr.isatty() else sys.stdout, flush=True)
    log.info("%s", text)


class RunLog(logging.FileHandler):
    """run.log, without control characters. A full disk does not end the run."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w", encoding="utf-8", errors="backslashreplace")
        # A library that configures logging, as vLLM does, closes all handlers: the next line opens the file again.
        self.mode = "a"

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be written is left out."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Warnings(logging.Handler):
    """Warnings on standard error, whichever stream that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(one_line(f"warning: {record.getMessage()}"), file=sys.stderr)


def show_warnings() -> None:
    """Print the warnings of this package to standard error, also through loggers that Hydra's settings disabled."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "souping":
            logging.getLogger(name).disabled = False
    logger = logging.getLogger("souping")
    logger.setLevel(logging.WARNING)
    logger.handlers = [Warnings(logging.WARNING)]
    logger.propagate = False


@contextmanager
def logged(run_dir: Path, command: str, overrides: str = "") -> Iterator[None]:
    """While the block runs, write `run_dir`/run.log: what runs where, what `say` and warnings say, how it ended.

    `overrides` are the overrides of one job of a multirun.
    """
    handler = RunLog(run_dir / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("souping").addHandler(handler)
    log.setLevel(logging.INFO)
    begun = time.monotonic()
    try:
        for line in _log_head(command, overrides):
            log.info("%s", line)
        yield
    except BaseException as error:
        log.info("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        log.info("%.1f s", time.monotonic() - begun)
        logging.getLogger("souping").removeHandler(handler)
        handler.close()


def command_of(run_dir: Path) -> str:
    """The command that made a run, from the start of its run.log; empty if it has none."""
    if not (run_dir / LOG).is_file():
        return ""
    with (run_dir / LOG).open(encoding="utf-8", errors="replace") as file:
        return "".join(
            re.findall(r"^[\d:]+ command +(.+)", file.read(LONGEST_HEAD), re.MULTILINE)[:1]
        )


def _log_head(command: str, overrides: str) -> Iterator[str]:
    """The first lines of run.log: the command, when and where it runs, and versions."""
    # Without the settings, which config.yaml has.
    here = provenance(command, {})
    yield f"date       {here.date}"
    yield f"command    {command}"
    if overrides:
        yield f"overrides  {overrides}"
    yield f"folder     {os.getcwd()}"
    machine = [platform.node(), here.platform, f"{here.cpus} cores", *here.gpus]
    yield f"host       {', '.join(machine)}"
    installed = [f"{name} {number}" for name, number in versions().items()]
    yield f"versions   {', '.join(installed)}"
