"""Files of a run whose soups somebody else evaluates.

Each soup is a folder `asked/ID`. `ask` writes them and `tell` takes their results. Both may be killed at any point, and
run on any machine that sees the folder: a soup appears with all of its files, and its answers appear at once.

`order.jsonl` has the order in which searches requested answers and took them, so that a repeated run takes the same
path: with several open soups an optimiser's proposals depend on which results it has seen. The first line has the
folder where the run was started, as seen from its own, and a digest of its settings, items and models. Each other line
is an event, `[search, "ask" or "tell", request, key]`; a search has the name of its first key.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from souping.core.fields import Bounds, load_json, load_lines
from souping.core.files import expanded, nearby, write_atomically
from souping.core.open_files import lock
from souping.core.text import listed
from souping.core.types import Outcome, Record, Request, UserError, digest
from souping.core.unit import SCORE_ROUNDING
from souping.evaluate.command import ITEMS_FILE
from souping.evaluate.logged import item_line, log_in, records_by_item
from souping.logs import sources
from souping.merge.soup_files import RECIPE

REQUEST = "request.json"
ANSWERS = "answers.jsonl"
FAILED_JOB = "failed"
"""File of a soup whose job failed, and what is typed in place of its log."""
MODEL_FOLDER = "model"
OUT = "out"
"""Empty folder for the log of an evaluation."""
ORDER_FILE = "order.jsonl"
ID = re.compile("[1-9][0-9]{0,8}")
"""Name of a soup's folder; others in `asked` are somebody's copies."""
MOVABLE_KEYS = (
    *("candidates", "path", "reference_model", "base_model", "tokenizer_from", "name_rules"),
    *("out", "scratch", "store", "max_open", "write_models"),
)
"""Settings that may differ between one `ask` and the next: names of files and folders, and how soups are handed out.
What they lead to may not."""
Verb = Literal["ask", "tell"]
Event = tuple[Verb, int, str]
"""(verb, number of the request in its search, key of the request)"""


class AskedSoup(TypedDict):
    """What `request.json` says: the key of what is requested, the items with their categories, and the direction of
    scores."""

    key: str
    items: list[str]
    categories: list[str]
    higher_is_better: bool


class ToldAnswer(TypedDict):
    """Line of `answers.jsonl`: what a log decides of a record."""

    item: str
    score: Annotated[float, Bounds(ge=-SCORE_ROUNDING, le=1 + SCORE_ROUNDING)]
    output: str
    prompt_key: str
    outcome: Outcome
    reason: str


def asked_soups(run_dir: Path) -> dict[int, Path]:
    """{ID: folder} of the soups that a run ever asked for."""
    folders = {}
    for path in run_dir.glob(f"asked/*/{REQUEST}"):
        if ID.fullmatch(path.parent.name):
            folders[int(path.parent.name)] = path.parent
    return dict(sorted(folders.items()))


def asked_soup(folder: Path) -> Any:
    """The `AskedSoup` of a folder."""
    return load_json(folder / REQUEST, AskedSoup)


def request_key(request: Request) -> str:
    """Digest of what is requested."""
    items = [item.fingerprint for item in request.items]
    return digest([request.recipe.fingerprint, request.benchmark, items])


def answers(folder: Path, items: Sequence[str]) -> tuple[Record, ...]:
    """The records that `tell` stored for a soup, in the order of `items` (ids); empty before that.

    Raises:
        UserError: the file is not of these items.
    """
    path = folder / ANSWERS
    if not path.exists():
        return ()
    lines = load_lines(path, ToldAnswer)
    keys = ToldAnswer.__annotations__.keys()
    in_file = [line["item"] for line in lines]
    if in_file != list(items) or any(line.keys() != keys for line in lines):
        raise UserError(f"{path}: not what `tell` wrote: remove it, and tell the log again")
    return tuple(Record(**line) for line in lines)


@contextmanager
def new_soup(folder: Path, request: Request, content: AskedSoup) -> Iterator[Path]:
    """Write the files of a soup into a hidden folder, which is renamed to `folder` if the `with` block ends well.

    The block gets the hidden folder and may add files.
    """
    stage = folder.with_name(f".{folder.name}")
    # A killed process may have left it.
    shutil.rmtree(stage, ignore_errors=True)
    try:
        (stage / OUT).mkdir(parents=True)
        (stage / RECIPE).write_text(json.dumps(request.recipe.as_dict(), indent=1))
        lines = "".join(item_line(item) + "\n" for item in request.items)
        (stage / ITEMS_FILE).write_text(lines, encoding="utf-8")
        (stage / REQUEST).write_text(json.dumps(content))
        yield stage
        stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        # Empty if this would have been the first soup.
        with suppress(OSError):
            folder.parent.rmdir()


def free(folder: Path) -> None:
    """Remove the model of a soup that needs no evaluation now."""
    shutil.rmtree(folder / MODEL_FOLDER, ignore_errors=True)


def tell(folder: Path, source: str) -> str:
    """Store the answers in the log of a soup, or that its job failed; returns what was done, in words.

    `source` is the path of the log, FAILED_JOB, or empty for the soup's folder `out`. The first result stays.

    Raises:
        UserError: the log lacks items of the soup, or another result was told before.
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
    """The lines of ANSWERS for a soup's folder, from the log at `source`.

    Raises:
        UserError: it is not one log of all items of the soup.
    """
    soup = asked_soup(folder)
    logs = sources.read_logs(log_in(source), lower=None)
    if len(logs) > 1:
        raise UserError(f"{source} has {len(logs)} runs: give each soup a log of its own")
    items = soup["items"]
    # Somebody may have edited request.json.
    categories = dict(zip(items, soup["categories"], strict=False))
    fix = "correct that file, and tell it again"
    logged = records_by_item(logs[0], categories, soup["higher_is_better"], fix)
    missing = [item for item in items if item not in logged]
    if missing:
        raise UserError(
            f"{source} has no score for {len(missing)} of {len(items)} items ({listed(missing, 3)})\n"
            f"tell a log of all items in {folder / ITEMS_FILE}, or {folder.name}={FAILED_JOB}"
        )
    lines = ""
    for item in items:
        record = vars(logged[item])
        lines += json.dumps({name: record[name] for name in ToldAnswer.__annotations__}) + "\n"
    return lines.encode()


# ------------------------------------------------------------ the order of searches


class SearchOrder:
    """The order in which searches requested and took answers, in a file that one process at a time has open.

    `next` is the next event of the current search in the file, None at the end of its events.
    """

    def __init__(self, run_dir: Path, content: str) -> None:
        """`content` is the digest of settings, items and models (UserError if the run began with others)."""
        self._path = run_dir / ORDER_FILE
        self._file = self._path.open("a+b")
        lock(self._file.fileno())
        lines = read_order(run_dir)
        self.is_new = not lines
        self._file.seek(0)
        # A killed process may have left half a line.
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        if self.is_new:
            self._write([os.path.relpath(os.getcwd(), run_dir.resolve()), content])
        # The first line is (home, content). Analyses of a finished run may take other settings.
        elif lines[0][1] != content and not (run_dir / "report.json").exists():
            raise self._error()
        # {search: its events that this run has not repeated yet}
        self._searches: dict[str, deque[Event]] = {}
        self._search = ""
        for search, *event in lines[1:]:
            self._searches.setdefault(search, deque()).append(tuple(event))

    def _error(self) -> UserError:
        """The error of a run whose searches differ from those in the file."""
        what = (
            "this run asks for other soups than before: its items, models or settings have changed"
        )
        fix = "restore them, or start another run: the answers are in the store"
        return UserError(f"{nearby(self._path)}: {what}\n{fix}")

    def _write(self, line: list[str | int]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    @property
    def next(self) -> Event | None:
        events = self._searches.get(self._search)
        return events[0] if events else None

    def take(self, event: Event) -> None:
        """Follow the file, or write what happens for the first time (UserError if the file has something else).

        Request 1 begins a search, which has the name of its key.
        """
        verb, request, key = event
        if verb == "ask" and request == 1:
            self._search = key
        if self.next is None:
            self._write([self._search, *event])
        elif self.next == event:
            self._searches[self._search].popleft()
        else:
            raise self._error()

    def close(self) -> None:
        self._file.close()


def read_order(run_dir: Path) -> list[Any]:
    """The lines of a run's order: (home, content), then (search, *event) of each event.

    Empty if the run was killed before it wrote the first line.
    """
    return load_lines(run_dir / ORDER_FILE, tuple[str, str], tuple[str, Verb, int, str])


def home_of(run_dir: Path) -> Path:
    """The folder where a run was started; the working directory if the run's order has no line yet."""
    lines = read_order(run_dir)
    if not lines:
        return Path.cwd()
    home, _ = lines[0]
    return expanded(run_dir.resolve() / home, "folder")
