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

from souping.core.files import nearby, write_atomically
from souping.core.types import UserError

ORDER_FILE = "order.jsonl"
Event = tuple[Literal["ask", "tell"], int]


class SearchOrder:
    """The events of the file; `next` is what the current search did next, None if that is not decided yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._searches: dict[int, deque[Event]] = {}
        self._number = 0
        data = path.read_bytes() if path.exists() else b""
        # A killed process may leave half a line.
        complete = data[: data.rfind(b"\n") + 1]
        if not complete:
            complete = json.dumps(os.path.relpath(os.getcwd(), path.parent)).encode() + b"\n"
        if complete != data:
            write_atomically(path, complete)
        for line in complete.splitlines()[1:]:
            search, verb, request = json.loads(line)
            self._searches.setdefault(search, deque()).append((verb, request))

    @property
    def next(self) -> Event | None:
        events = self._searches.get(self._number)
        return events[0] if events else None

    def begin_search(self) -> None:
        self._number += 1

    def take(self, event: Event) -> None:
        """Follow the file, or write what happens for the first time (UserError if the file has something else)."""
        if self.next is None:
            with self._path.open("a") as file:
                file.write(json.dumps([self._number, *event]) + "\n")
                file.flush()
                os.fsync(file.fileno())
            return
        if self.next != event:
            raise UserError(
                f"{nearby(self._path)}: this search asks for other soups than before: its items, models or settings "
                "have changed\nrestore them, or start another run: the answers are in the store"
            )
        self._searches[self._number].popleft()


def home_of(run_dir: Path) -> Path:
    """The folder where a run was started."""
    with (run_dir / ORDER_FILE).open(encoding="utf-8") as lines:
        return run_dir / json.loads(lines.readline())
