"""A run with `executor=files` in the folder of a test, and the lab that answers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from souping.core.types import Record
from souping.runs import open_soups
from tests.conftest import Cli, Outcome, pool_of, report_of
from tests.support.lab import write_log

COMMAND = "evaluator.command='no-such-program {model} {items} {out}'"
OWN = {"cost", "provenance", "rebuild"}
"""Parts of a report that say how and where it was made."""


def told(folder: Path) -> tuple[Record, ...]:
    """The records of a soup, as the next `ask` reads them."""
    return open_soups.answers(folder, open_soups.asked_soup(folder)["items"])


class Lab:
    """A run in the folder of the test, and what its jobs do."""

    def __init__(self, souping: Cli, family: Path, place: Path, run: str = "run") -> None:
        self.souping = souping
        self.place = place
        self.run = place / run
        words = [word for word in pool_of(family) if not word.startswith("evaluator.")]
        more = ["evaluator=command", COMMAND, "selector=topk", "selector.k=2", "seed=1"]
        self.words = [*words, *more, f"store={run}.sqlite"]

    def start(self, *more: str, min_items: int = 1) -> Outcome:
        files = ["executor=files", f"executor.min_items={min_items}"]
        return self.souping(*self.words, *files, f"hydra.run.dir={self.run.name}", *more)

    def ask(self, number: int = 1, *more: str) -> Outcome:
        return self.souping("ask", self.run.name, "-n", str(number), *more)

    def tell(self, *results: str) -> Outcome:
        return self.souping("tell", self.run.name, *results)

    def soup(self, number: int) -> Path:
        return self.run / "asked" / str(number)

    @property
    def open(self) -> list[int]:
        soups = open_soups.asked_soups(self.run)
        return [number for number, folder in soups.items() if not told(folder)]

    @property
    def done(self) -> bool:
        return (self.run / "report.json").exists()

    def log(self, number: int, name: str = "log.csv") -> Path:
        soup = self.soup(number)
        return write_log(soup / "recipe.json", soup / "items.jsonl", soup / "out" / name)

    def answer(self, *numbers: int) -> Outcome:
        for number in numbers:
            self.log(number)
        return self.tell(*map(str, numbers)).ok()

    def finish(self, number: int = 8) -> dict[str, Any]:
        """Ask and tell until there is a report; the report without what says how it was made."""
        while not self.done:
            if self.open:
                self.answer(*self.open)
            self.ask(number).ok()
        return {key: value for key, value in report_of(self.run).items() if key not in OWN}
