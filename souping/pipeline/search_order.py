"""Order in which the searches of a run requested answers and took them, as a file: a repeated run takes the same path.

With several open soups an optimiser's proposals depend on which results it has seen. The first line of the file is the
folder where the run was started, as seen from its own. Each other line is an event of a search, `[search, "ask" or
"tell", request]`.
"""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path
from typing import Literal

from souping.core.files import nearby
from souping.core.open_files import lock
from souping.core.types import UserError

ORDER_FILE = "order.jsonl"
Event = tuple[Literal["ask", "tell"], int]


class SearchOrder:
    """The events of the file, which one process at a time has. `next` is what the current search did next, None if
    that is not decided yet."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / ORDER_FILE
        self._file = self._path.open("a+b")
        lock(self._file.fileno())
        self._file.seek(0)
        data = self._file.read()
        # A killed process may have left half a line.
        self._file.truncate(data.rfind(b"\n") + 1)
        lines = data[: data.rfind(b"\n") + 1].splitlines()
        self.is_new = not lines
        if self.is_new:
            self._write(os.path.relpath(os.getcwd(), run_dir.resolve()))
        self._searches: dict[int, deque[Event]] = {}
        self._number = 0
        for line in lines[1:]:
            search, verb, request = json.loads(line)
            self._searches.setdefault(search, deque()).append((verb, request))

    def _write(self, line: str | list[str | int]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def next(self) -> Event | None:
        events = self._searches.get(self._number)
        return events[0] if events else None

    def begin_search(self) -> None:
        self._number += 1

    def take(self, event: Event) -> None:
        """Follow the file, or write what happens for the first time (UserError if the file has something else)."""
        if self.next is None:
            self._write([self._number, *event])
        elif self.next == event:
            self._searches[self._number].popleft()
        else:
            raise UserError(
                f"{nearby(self._path)}: this search asks for other soups than before: its items, models or settings "
                "have changed\nrestore them, or start another run: the answers are in the store"
            )

    def close(self) -> None:
        self._file.close()


def home_of(run_dir: Path) -> Path:
    """The folder where a run was started."""
    with (run_dir / ORDER_FILE).open(encoding="utf-8") as lines:
        return run_dir.resolve() / str(json.loads(lines.readline()))
