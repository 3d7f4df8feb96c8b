"""Soups that somebody else evaluates, as files in the folder of a run: in `open/ID` until there is a result, then in
`told/ID`.

`ask` writes them, `tell` takes their results; both may be killed at any point and run on any machine that sees the
folder. A soup appears with all of its files. Its answers appear at once, and from then on count as its result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from souping.core.files import write_atomically
from souping.core.open_files import lock
from souping.core.parsing import read_json
from souping.core.reading import read
from souping.core.text import listed
from souping.core.types import Item, Names, Recipe, Record, UserError, frozen
from souping.evaluate.command import ITEMS_FILE
from souping.evaluate.logged import item_line, records_by_item
from souping.logs.sources import read as read_logs
from souping.merge.soup_files import RECIPE

ANSWERS = "answers.jsonl"
FAILED = "failed"
"""File of an open soup whose job failed, and what is typed in place of its log."""
MODEL = "model"
OUT = "out"
"""Empty folder for the log of an evaluation."""


@frozen
class OpenRequest:
    """What `request.json` says of an open soup: the digest of what is requested, and which direction scores have."""

    key: str
    items: Names
    higher_is_better: bool


class OpenSoups:
    """The soups of a run that were ever open, by number."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._open = run_dir / "open"
        self._told = run_dir / "told"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes that move these soups waiting until the end of the block."""
        # A network file system locks files, but not folders.
        with (self.run_dir / ".open.lock").open("a") as file:
            lock(file.fileno())
            yield

    def numbers(self, folder: str = "*") -> list[int]:
        paths = self.run_dir.glob(f"{folder}/[0-9]*/request.json")
        return sorted(int(path.parent.name) for path in paths)

    def folder(self, number: int) -> Path:
        told = self._told / str(number)
        return told if told.exists() else self._open / str(number)

    def request(self, number: int) -> OpenRequest:
        return read(OpenRequest, read_json((self.folder(number) / "request.json").read_bytes()))

    def answers(self, number: int) -> list[Record] | None:
        """The records that were told, None if there are none yet."""
        path = self.folder(number) / ANSWERS
        if not path.exists():
            return None
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Record(**json.loads(line)) for line in lines]

    @contextmanager
    def new(
        self, number: int, recipe: Recipe, items: Sequence[Item], request: OpenRequest
    ) -> Iterator[Path]:
        """The files of a soup; it is open once the block, which may add to them, has ended well."""
        stage = self._open / f".{number}"
        stage.mkdir(parents=True)
        try:
            (stage / OUT).mkdir()
            (stage / RECIPE).write_text(json.dumps(recipe.as_dict(), indent=1))
            lines = "".join(item_line(item) + "\n" for item in items)
            (stage / ITEMS_FILE).write_text(lines, encoding="utf-8")
            (stage / "request.json").write_text(json.dumps(asdict(request)))
            yield stage
            stage.rename(self._open / str(number))
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what a killed `ask` was about to write, and end what a killed `tell` began."""
        for stage in self._open.glob(".*"):
            shutil.rmtree(stage)
        for number in self.numbers("open"):
            if self.answers(number) is not None:
                self.close(number)

    def close(self, number: int) -> None:
        """Free the disk of a soup that needs no evaluation any more."""
        free(self.folder(number))
        self._told.mkdir(exist_ok=True)
        self.folder(number).rename(self._told / str(number))

    def reopened(self, number: int) -> Path:
        """The folder of a soup without a result, open again if it was closed."""
        place = self._open / str(number)
        if not place.exists():
            self.folder(number).rename(place)
        return place

    # ------------------------------------------------------------ results

    def tell(self, name: str, source: str) -> str:
        """Take the log of an open soup, or that its job failed; a line about what came of it.

        Without a `source`, the log is in the soup's `out`. The first result stays.

        Raises:
            UserError: there is no such soup, no log of all its items, or another result.
        """
        with self.alone():
            number = self._number(name)
            folder = self.folder(number)
            before = self.answers(number)
            if before is None and folder.parent == self._told:
                return "no longer needed: its answers are in the store"
            if source == FAILED:
                if before is not None:
                    return "its result is known and stays"
                (folder / FAILED).touch()
                free(folder)
                return "failed; the next ask opens it again"
            records = self._records(number, Path(source) if source else folder / OUT)
            if before not in (None, records):
                raise UserError(f"another result is in {folder / ANSWERS}, and stays")
            if before is None:
                lines = "".join(_line(record) + "\n" for record in records)
                write_atomically(folder / ANSWERS, lines.encode())
            if folder.parent == self._open:
                self.close(number)
        if before is not None:
            return "told before: nothing changes"
        return f"{len(records)} answers"

    def _number(self, name: str) -> int:
        numbers = self.numbers()
        if name.isdecimal() and int(name) in numbers:
            return int(name)
        known = listed(map(str, self.numbers("open"))) or "none"
        raise UserError(f"{self.run_dir} has no soup of this ID; open are: {known}")

    def _records(self, number: int, source: Path) -> list[Record]:
        """The records of all items of a soup from a log (UserError if it is not one of all of them)."""
        request = self.request(number)
        logs = read_logs(_inner(source), lower=None)
        if len(logs) > 1:
            raise UserError(f"{source} has {len(logs)} runs: give each soup a log of its own")
        logged = records_by_item(
            logs[0],
            request.higher_is_better,
            where="",
            direction="start another run with",
            again="correct that file, and tell it again",
        )
        missing = [item for item in request.items if item not in logged]
        if missing:
            count = f"{len(missing)} of {len(request.items)} items"
            raise UserError(
                f"{source} has no score for {count} ({listed(missing, 3)})\n"
                f"tell a log of all items in {self.folder(number) / ITEMS_FILE}, or {number}={FAILED}"
            )
        return [logged[item] for item in request.items]


def free(folder: Path) -> None:
    """Remove the model of a soup; a candidate's is a link."""
    model = folder / MODEL
    if model.is_symlink():
        model.unlink()
    elif model.exists():
        shutil.rmtree(model, ignore_errors=True)


def _inner(source: Path) -> Path:
    """The log in a folder that holds nothing else."""
    if not source.is_dir():
        return source
    logs = list(source.iterdir())
    if not logs:
        raise UserError(f"{source} has no log yet")
    return logs[0] if len(logs) == 1 else source


def _line(record: Record) -> str:
    names = ("item", "score", "output", "prompt_key", "outcome", "reason")
    return json.dumps({name: vars(record)[name] for name in names})
