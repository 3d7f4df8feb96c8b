"""Bytes and GB/s of a merge or a download: a bar on a terminal; anywhere else a line at times, and one at the end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from souping.report.consoles import side_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

PAUSE = 20.0  # seconds


class Throughput:
    """A context manager to be called with (bytes done, bytes in all), reads and writes together.

    Nothing is shown where it is never called. Without a terminal a line comes at a tenth, each `PAUSE` seconds at most.
    Calls may come from several threads. `console` is a rich Console, standard error by default.
    """

    def __init__(self, name: str, console: Console | None = None) -> None:
        self.console = console or side_console()
        self._name, self._done, self._started = name, 0, time.monotonic()
        self._told, self._tenth = self._started, 0
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Throughput:
        return self

    def __call__(self, done: int, total: int) -> None:
        self._done = max(self._done, done)
        if self._bar is None and self.console.is_terminal:
            self._bar = _bar(self.console)
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, total=total)
        elif total and 10 * self._done // total > self._tenth and time.monotonic() - self._told > PAUSE:
            self._told, self._tenth = time.monotonic(), 10 * self._done // total
            self._say(f"{self._done / 1e9:.2f} of {total / 1e9:.2f} GB")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None and self._done:
            self._say(f"{self._done / 1e9:.2f} GB")

    def _say(self, amount: str) -> None:
        seconds = max(time.monotonic() - self._started, 1e-9)
        line = f"{self._name}: {amount} in {seconds:.1f} s, {self._done / 1e9 / seconds:.2f} GB/s"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Bar:
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
