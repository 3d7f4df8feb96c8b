"""Soups that somebody else evaluates, each a folder `asked/ID` of a run.

`ask` writes them and `tell` takes their results. Both may be killed at any point, and run on any machine that sees the
folder: a soup appears with all of its files, and its answers appear at once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from souping.core.files import expanded, write_atomically
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
    records = [vars(logged[item]) for item in soup.items]
    lines = [json.dumps({name: record[name] for name in RECORD}) + "\n" for record in records]
    return "".join(lines).encode()


def _log_in(source: Path) -> Path:
    """What a folder holds if that is one file or folder, else the folder itself."""
    logs = list(source.iterdir()) if source.is_dir() else [source]
    if not logs:
        raise UserError(f"{source} has no log yet")
    return logs[0] if len(logs) == 1 else source
