"""Progress of a run: one live display on a terminal, plain lines anywhere else.

It goes beside the results on a terminal and among them in a log, so that errors stand alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from souping.core.text import fitted, safe
from souping.report import format

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.table import Table


PAUSE = 20.0
"""Seconds between two lines of a transfer, or of a stage of which nobody knows how long it is."""


class Progress:
    """Context manager that `cook` tells what happens; clocks stay in here and reach no file.

    `total_trials` and `total_items` are what the search may use (None where unknown); `stage` may set other totals
    for what follows. `console` is a rich Console, standard error by default.
    """

    def __init__(
        self, total_trials: int | None = None, total_items: int | None = None, console: Console | None = None
    ) -> None:
        self.console = console or side_console()
        self.total_trials = self._given = total_trials
        self.total_items = total_items
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal
        self.best: float | None = None
        self.trials = 0
        self._name, self._ended = "", False
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._begin(total_items)

    def __enter__(self) -> Progress:
        if self.live:
            self._bar = _bar(self.console)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self.end_stage()

    def stage(self, name: str, items: int | None = None, trials: int | None = None) -> None:
        """Begin a stage of `items` item evaluations (the constructor's totals where nothing is given)."""
        self.end_stage()
        self._name, self.trials, self.best = format.clean(name), 0, None
        self.total_trials = trials if trials is not None else self._given
        self._begin(items if items is not None else self.total_items)
        if self._bar is None:
            expected = f": {format.count(self._total)} items" if self._total else ""
            self.say(f"{self._name}{expected}")
            return
        if self._task is not None:
            self._bar.update(self._task, visible=False)
        self._task = self._bar.add_task(self._name, total=self._total, state="")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the terminal while another display stands there."""
        if self._bar is not None:
            self._bar.stop()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.start()

    def advance(self, items: int, reused: int = 0) -> None:
        """`items` more are done, `reused` of them from the store: those count as done, but not as speed."""
        self._done += items
        self._fresh += items - reused
        self._show()

    def trial(self, number: int, objective: float, best: float) -> None:
        """Trial `number` gave `objective`, and the best so far is `best` (fractions of 1)."""
        self.trials += 1
        self.best = best
        self._show()

    def end_stage(self) -> None:
        """The last line of a stage that had something to count, once; a live display keeps its own."""
        if self._bar is None and self._name and (self._done or self.trials) and not self._ended:
            self.say(self._state())
            self._ended = True

    def _whole(self) -> bool:
        """Nothing of the stage is left."""
        all_trials = not self.total_trials or self.trials >= self.total_trials
        return bool(self._total) and self._done >= (self._total or 0) and all_trials

    def _begin(self, total: int | None) -> None:
        self._total, self._done, self._fresh, self._told = total, 0, 0, 0
        self._started = self._said = time.monotonic()
        self._ended = False

    def _show(self) -> None:
        """Redraw the display; without a terminal, a line each tenth of the way and no more than one each advance; where
        nobody knows how long the way is, a line each `PAUSE`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, state=self._state(short=True))
            return
        if self._bar is None and self._whole():
            self.end_stage()
            return
        tenth, open_end = self._tenth(), not self._total and not self.total_trials
        if self._bar is not None or tenth >= 10:
            return
        if tenth > self._told or (open_end and time.monotonic() - self._said > PAUSE):
            self._told, self._said = tenth, time.monotonic()
            self.say(self._state())

    def _tenth(self) -> int:
        """Tenths of the stage that are done, by items, else by trials."""
        if self._total:
            return 10 * self._done // self._total
        return 10 * self.trials // self.total_trials if self.total_trials else 0

    def _state(self, short: bool = False) -> str:
        parts = [] if short else [self._name]
        if not short and (self._total or self._done):
            parts.append(_of(self._done, self._total, "items"))
        if self.trials:
            parts.append(_of(self.trials, self.total_trials, "trials"))
        if self.best is not None:
            parts.append(f"best {format.percent(self.best, digits=2)} %")
        seconds = time.monotonic() - self._started
        rate = self._fresh / seconds if seconds > 0.2 else 0.0
        if rate:
            parts.append(f"{rate:,.0f} items/s" if rate >= 10 else f"{rate:.2g} items/s")
        left = (self._total or 0) - self._done
        if rate and left > 0:
            parts.append(f"{format.seconds(left / rate)} left")
        return ", ".join(part for part in parts if part)

    def show(self, table: Table) -> None:
        """A table among the lines."""
        from souping.report.terminal import print_table

        print_table(self.console, table)

    def say(self, line: str) -> None:
        text = safe(line)
        if self.console.is_terminal:
            text = fitted(text, self.console.width)
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _of(done: int, total: int | None, unit: str) -> str:
    return f"{format.count(done)}{f' of {format.count(total)}' if total else ''} {unit}"


def _bar(console: Console) -> Bar:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
    )
    return Bar(*columns, console=console, transient=True, refresh_per_second=4)


class Throughput:
    """Context manager to be called with (bytes done, bytes in all), reads and writes together.

    Nothing is shown where it is never called. Without a terminal a line comes at a tenth, each `PAUSE` seconds at most.
    Calls may come from several threads. `console` is a rich Console, standard error by default.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        self._console = console
        self._name, self._done, self._started = name, 0, time.monotonic()
        self._told, self._tenth = self._started, 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Throughput:
        return self

    def __call__(self, done: int, total: int) -> None:
        self._done = max(self._done, done)
        if self._bar is None and self._live():
            self._bar = _rate_bar(self._console or side_console())
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, total=total)
        elif total and 10 * self._done // total > self._tenth and time.monotonic() - self._told > PAUSE:
            self._told, self._tenth = time.monotonic(), 10 * self._done // total
            self._say(f"{self._done / 1e9:.2f} of {total / 1e9:.2f} GB")

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._done:
            self._say(f"{self._done / 1e9:.2f} GB")

    def _say(self, amount: str) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        line = f"{self._name}: {amount} in {seconds:.1f} s, {self._done / 1e9 / seconds:.2f} GB/s"
        if self._console is None:
            say(line)
        else:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _live(self) -> bool:
        return sys.stderr.isatty() if self._console is None else self._console.is_terminal


def _rate_bar(console: Console) -> Bar:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=console, refresh_per_second=8)


def say(line: str) -> None:
    """A line beside the results: on standard error where that is a terminal, else on standard output."""
    print(safe(line), file=sys.stderr if sys.stderr.isatty() else sys.stdout)


def side_console() -> Console:
    """Standard error where it is a terminal (a live display may be drawn there), else standard output."""
    from rich.console import Console

    return Console(stderr=sys.stderr.isatty(), highlight=False)
