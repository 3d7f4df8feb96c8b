"""Files of a run whose soups somebody else evaluates.

Each soup is a folder `asked/ID`. `ask` writes them and `tell` takes their results. Both may be killed at any point, and
run on any machine that sees the folder: a soup appears with all of its files, and its answers appear at once.

`order.jsonl` has the order in which searches requested answers and took them, so that a repeated run takes the same
path: with several open soups an optimiser's proposals depend on which results it has seen. The first line is the folder
where the run was started, as seen from its own. Each other line is an event, `[search, "ask" or "tell", request]`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from souping.core.files import expanded, nearby, write_atomically
from souping.core.open_files import lock
from souping.core.reading import read
from souping.core.text import listed
from souping.core.types import Names, Record, Request, UserError, frozen
from souping.evaluate.command import ITEMS_FILE
from souping.evaluate.logged import item_line, records_by_item
from souping.logs import sources
from souping.logs.records import read_object
from souping.merge.soup_files import RECIPE

REQUEST = "request.json"
ANSWERS = "answers.jsonl"
FAILED_JOB = "failed"
"""File of a soup whose job failed, and what is typed in place of its log."""
MODEL_FOLDER = "model"
OUT = "out"
"""Empty folder for the log of an evaluation."""
ORDER_FILE = "order.jsonl"
Event = tuple[Literal["ask", "tell"], int]
RECORD = ("item", "score", "output", "prompt_key", "outcome", "reason")
"""Fields of a record that a log decides."""


@frozen
class AskedSoup:
    """What `request.json` says: the digest of what is requested, the items, and the direction of scores."""

    key: str
    items: Names
    higher_is_better: bool


def asked_soups(run_dir: Path) -> dict[int, Path]:
    """{ID: folder} of the soups that a run ever asked for."""
    folders = {
        int(path.parent.name): path.parent for path in run_dir.glob(f"asked/[0-9]*/{REQUEST}")
    }
    return dict(sorted(folders.items()))


def asked_soup(folder: Path) -> AskedSoup:
    return read(AskedSoup, read_object(folder / REQUEST))


def answers(folder: Path) -> tuple[Record, ...]:
    """The records that were told; none if there are none yet."""
    path = folder / ANSWERS
    if not path.exists():
        return ()
    return tuple(Record(**json.loads(line)) for line in path.read_text().splitlines())


@contextmanager
def new_soup(folder: Path, request: Request, content: AskedSoup) -> Iterator[Path]:
    """Write the files of a soup; it is there once the block, which may add some, has ended well."""
    stage = folder.with_name(f".{folder.name}")
    # A killed process may have left it.
    shutil.rmtree(stage, ignore_errors=True)
    try:
        (stage / OUT).mkdir(parents=True)
        (stage / RECIPE).write_text(json.dumps(request.recipe.as_dict(), indent=1))
        lines = "".join(item_line(item) + "\n" for item in request.items)
        (stage / ITEMS_FILE).write_text(lines, encoding="utf-8")
        (stage / REQUEST).write_text(json.dumps(asdict(content)))
        yield stage
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def free(folder: Path) -> None:
    """Remove the model of a soup that needs no evaluation now."""
    shutil.rmtree(folder / MODEL_FOLDER, ignore_errors=True)


def tell(folder: Path, source: str) -> str:
    """Take the log of a soup, or that its job failed; what came of it, in words. The first result stays.

    Without a `source`, the log is in the soup's `out`.

    Raises:
        UserError: it is not a log of all of its items, or another result.
    """
    # Network file systems lock open files, but no folders.
    with (folder / REQUEST).open("a") as file:
        lock(file.fileno())
        path = folder / ANSWERS
        was_told = path.exists()
        if source == FAILED_JOB:
            if was_told:
                return "has a result, which stays"
            (folder / FAILED_JOB).touch()
            free(folder)
            return "failed: the next ask lists it again"
        content = _content(folder, expanded(source or folder / OUT))
        if not was_told:
            write_atomically(path, content)
        elif path.read_bytes() != content:
            raise UserError(f"another result was told, and stays: {path}")
        free(folder)
    return "told before: nothing changes" if was_told else "told"


def _content(folder: Path, source: Path) -> bytes:
    """The answers in a log (UserError if it is not one of all items of the soup)."""
    soup = asked_soup(folder)
    logs = sources.read(_log_in(source), lower=None)
    if len(logs) > 1:
        raise UserError(f"{source} has {len(logs)} runs: give each soup a log of its own")
    logged = records_by_item(logs[0], soup.higher_is_better, "correct that file, and tell it again")
    missing = [item for item in soup.items if item not in logged]
    if missing:
        raise UserError(
            f"{source} has no score for {len(missing)} of {len(soup.items)} items ({listed(missing, 3)})\n"
            f"tell a log of all items in {folder / ITEMS_FILE}, or {folder.name}={FAILED_JOB}"
        )
    lines = ""
    for item in soup.items:
        record = vars(logged[item])
        lines += json.dumps({name: record[name] for name in RECORD}) + "\n"
    return lines.encode()


def _log_in(source: Path) -> Path:
    """What a folder holds if that is one file or folder, else the folder itself."""
    logs = list(source.iterdir()) if source.is_dir() else [source]
    if not logs:
        raise UserError(f"{source} has no log yet")
    return logs[0] if len(logs) == 1 else source


# ------------------------------------------------------------ the order of searches


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
