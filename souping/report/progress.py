"""What a run prints: progress on the terminal, and the same lines with their times in run.log."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from souping.core.system import provenance, versions
from souping.core.text import human, safe
from souping.report import format

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.table import Table

LOG = "run.log"
EARLY = ("config.yaml", "selection.json", LOG)
"""Files that a run writes before it has results; a run that is refused removes them."""
PAUSE = 20.0
"""Seconds between two lines about one stage or transfer."""
log = logging.getLogger("souping.run")


class Progress:
    """Context manager that shows the stages of a run: a live bar on a terminal, else a line every `PAUSE` seconds.

    The lines of a `quiet` one are in run.log alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars = _bars() if _live() else None
        self._begin("", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        if kind is None:
            self.end_stage()

    def stage(self, name: str, answers: int | None = None, trials: int | None = None) -> None:
        """Begin a stage of so many answers and trials, if they are known."""
        self.end_stage()
        self._begin(format.clean(name), answers, trials)
        self._show_bar()
        self._line(f"{self._name}: {answers:,} answers" if answers else self._name)

    @property
    def current(self) -> str:
        """Name of the stage that was begun last."""
        return self._name

    def advance(self, answers: int) -> None:
        self._done += answers
        self._update()

    def trial(self, best: str) -> None:
        """One more trial; `best` is the best objective so far, with its unit."""
        self._trials += 1
        self._best = best
        self._update()

    def end_stage(self) -> None:
        """Write the last line of a stage, once."""
        if self._done or self._trials:
            self._line(self._state(self._name))
            self._begin(self._name, None)

    def show(self, table: Table) -> None:
        side_console().print(table)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the live display away while another one uses the terminal."""
        if self._bars is not None:
            self._bars.stop()
        try:
            yield
        finally:
            if self._bars is not None:
                self._bars.start()

    def say(self, line: str) -> None:
        if self._quiet:
            log.info("%s", safe(line))
        else:
            say(line)

    def _line(self, line: str) -> None:
        """A line of progress: a live display has it already, run.log gets it in any case."""
        if self._bars is None:
            self.say(line)
        else:
            log.info(line)

    def _begin(self, name: str, total: int | None, trials: int | None = None) -> None:
        self._name = name
        self._total = total
        self._all_trials = trials
        self._done = self._trials = 0
        self._best = ""
        self._started = self._said = time.monotonic()

    def _show_bar(self) -> None:
        """A bar of this stage in place of the last one's."""
        if self._bars is not None:
            for task in self._bars.task_ids:
                self._bars.remove_task(task)
            self._bars.add_task(self._name, total=self._total, state="")
            self._bars.start()

    def _update(self) -> None:
        if self._bars is not None and self._bars.task_ids:
            state = self._state("")
            self._bars.update(
                self._bars.task_ids[-1], total=self._total, completed=self._done, state=state
            )
        if time.monotonic() - self._said > PAUSE:
            self._said = time.monotonic()
            self._line(self._state(self._name))

    def _state(self, name: str) -> str:
        facts = [name, _of(self._done, self._total, "answers")]
        if self._trials:
            facts.append(_of(self._trials, self._all_trials, "trials"))
            facts.append(f"best {self._best}")
        seconds = time.monotonic() - self._started
        # A rate over less time says nothing.
        if self._done and seconds > 0.2:
            rate = self._done / seconds
            digits = ",.0f" if rate >= 10 else ".2g"
            facts.append(f"{rate:{digits}} answers/s")
            remaining = (self._total or 0) - self._done
            if remaining > 0:
                facts.append(f"{format.seconds_text(remaining / rate)} left")
        return ", ".join(filter(None, facts))


class Throughput(Progress):
    """Context manager to be called with (bytes done, bytes in all), from any thread. Nothing is shown if it is never
    called."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._begin(name, None)

    def __call__(self, done: int, total: int) -> None:
        if self._total is None:
            self._total = total
            self._show_bar()
        self._done = max(self._done, done)
        self._update()

    def end_stage(self) -> None:
        if self._done:
            say(self._state(self._name))

    def _state(self, name: str) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        of = f"{human(self._done)} of {human(self._total or 0)}"
        amount = f"{of} in {seconds:.1f} s, {human(int(self._done / seconds))}/s"
        return f"{name}: {amount}" if name else amount


def _of(done: int, total: int | None, unit: str) -> str:
    if total:
        return f"{done:,} of {total:,} {unit}"
    if done:
        return f"{done:,} {unit}"
    return ""


def on_terminal() -> bool:
    """Whether a person may be watching; rich would say the same after 70 ms of imports."""
    return sys.stderr.isatty() or sys.stdout.isatty()


def _live() -> bool:
    if not on_terminal():
        return False
    console = side_console()
    return console.is_terminal and not console.is_dumb_terminal


def _bars() -> Bars:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description}", markup=False)
    state = TextColumn("{task.fields[state]}", markup=False)
    return Bars(name, BarColumn(bar_width=24), state, console=side_console(), transient=True)


def side_console() -> Console:
    """Standard error if it is a terminal, where a live display may be drawn; else standard output."""
    from rich.console import Console

    return Console(stderr=sys.stderr.isatty(), highlight=False)


def say(line: str) -> None:
    """Print a line beside the results and add it to run.log."""
    text = safe(line)
    print(text, file=sys.stderr if sys.stderr.isatty() else sys.stdout, flush=True)
    log.info("%s", text)


class RunLog(logging.FileHandler):
    """run.log, without control characters. A full disk does not end the run."""

    def format(self, record: logging.LogRecord) -> str:
        return safe(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        return None

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class Warnings(logging.Handler):
    """Warnings on standard error, whichever stream that is by then."""

    def emit(self, record: logging.LogRecord) -> None:
        print(safe(f"warning: {record.getMessage()}"), file=sys.stderr)


def show_warnings() -> None:
    """Print the warnings of this package to standard error; Hydra's logging settings switch loggers off."""
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "souping":
            logging.getLogger(name).disabled = False
    logger = logging.getLogger("souping")
    logger.setLevel(logging.WARNING)
    logger.handlers = [Warnings(logging.WARNING)]
    logger.propagate = False


@contextmanager
def logged(run_dir: Path, command: str, overrides: str = "") -> Iterator[None]:
    """Write run.log while the block runs: what runs where, what `say` and warnings say, and how it ended.

    `overrides` are those of one job of a multirun.
    """
    handler = RunLog(run_dir / LOG, "w", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.getLogger("souping").addHandler(handler)
    log.setLevel(logging.INFO)
    begun = time.monotonic()
    try:
        for line in _head(command, overrides):
            log.info("%s", line)
        yield
    except BaseException as error:
        log.info("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        log.info("%.1f s", time.monotonic() - begun)
        logging.getLogger("souping").removeHandler(handler)
        handler.close()


def _head(command: str, overrides: str) -> Iterator[str]:
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
