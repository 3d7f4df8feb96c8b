"""Pantry: a tiny family of models and their items, so that any machine can make a soup. BFCL-shaped, not BFCL."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from souping.core.types import UserError
from souping.evaluate.benchmark import Benchmark

HERE = Path(__file__).resolve().parent
NOTE = "pantry, BFCL-shaped, not BFCL"
BASE = "base_cook"
CANDIDATES: tuple[str, ...] = (
    "python_cook",
    "java_cook",
    "banquet_cook",
    "script_cook",
    "street_cook",
    "line_cook",
)


def path(name: str) -> Path:
    """Where something of the pantry lies: a model's folder by its name, or the file `items`.

    Raises:
        UserError: the pantry has no such thing; the nearest name is offered.
    """
    if name == "items":
        return HERE / "items.jsonl"
    known = (BASE, *CANDIDATES)
    if name not in known:
        near = difflib.get_close_matches(name, (*known, "items"), n=1, cutoff=0.0)[0]
        raise UserError(f"the pantry has no {name!r}; did you mean {near!r}? It holds {', '.join(known)} and items")
    return HERE / "models" / name


@dataclass(frozen=True, kw_only=True)
class PantryBenchmark(Benchmark):
    """Items of the pantry, which say everywhere what they are not; with another `path`, items like any others."""

    @property
    def _own(self) -> bool:
        return Path(self.path or "").resolve().parent == HERE

    @property
    def label(self) -> str:
        return "pantry" if self._own else self.title

    @property
    def note(self) -> str:
        return NOTE if self._own else ""

    @property
    def opening(self) -> str:
        if self._own:
            return "this is the pantry, an embedded family of tiny models with items of its own: BFCL-shaped, not BFCL"
        return (
            "note: these are not the pantry's items: leave +experiment=demo or bfcl out, whose batch size, threads and "
            "48 new tokens are for the pantry's tiny models"
        )
