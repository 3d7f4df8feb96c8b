"""Pantry: a tiny family of models and their items, so that any machine can make a soup. BFCL-shaped, not BFCL."""

from __future__ import annotations

from pathlib import Path

from souping.core.text import nearest
from souping.core.types import Names, UserError, frozen
from souping.evaluate.benchmark import Benchmark

PANTRY_FOLDER = Path(__file__).resolve().parent
NOTE = "pantry, BFCL-shaped, not BFCL"
BASE = "base_cook"
CANDIDATES: Names = (
    "python_cook",
    "java_cook",
    "banquet_cook",
    "script_cook",
    "street_cook",
    "line_cook",
)


def path(name: str) -> Path:
    """Path of a model's folder by its name, or of the file `items`.

    Raises:
        UserError: the pantry has neither a model nor a file of this name.
    """
    if name == "items":
        return PANTRY_FOLDER / "items.jsonl"
    models = (BASE, *CANDIDATES)
    if name not in models:
        hint = nearest(name, [*models, "items"])
        raise UserError(
            f"the pantry has no {name!r}{hint} (models: {', '.join(models)}; file: items)"
        )
    return PANTRY_FOLDER / "models" / name


@frozen
class PantryBenchmark(Benchmark):
    """Items of the pantry, which reports label as such. With another `path` it is a plain `Benchmark`."""

    @property
    def bundled(self) -> bool:
        """Whether the items are the pantry's own."""
        return Path(self.path or "").resolve().parent == PANTRY_FOLDER

    @property
    def label(self) -> str:
        if not self.bundled:
            return self.title
        return "pantry"

    @property
    def note(self) -> str:
        if not self.bundled:
            return ""
        return NOTE

    @property
    def banner(self) -> str:
        if self.bundled:
            return "bundled tiny models with BFCL-style questions (not BFCL)"
        return (
            "note: these are not the pantry's items: leave +experiment=bfcl out, whose batch size, threads and "
            "48 new tokens are for the pantry's tiny models"
        )
