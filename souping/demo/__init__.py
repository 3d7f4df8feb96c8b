"""Demo: tiny models with BFCL-style questions (not BFCL), so that any machine can make a soup."""

from __future__ import annotations

from pathlib import Path

from souping.core.text import nearest
from souping.core.types import Names, UserError, frozen
from souping.evaluate.benchmark import Benchmark

DEMO_FOLDER = Path(__file__).resolve().parent
NOTE = "demo: BFCL-style questions, not BFCL"
BASE = "base"
CANDIDATES: Names = (
    "tuned_python",
    "tuned_java",
    "tuned_parallel",
    "tuned_javascript",
    "tuned_live",
    "tuned_mixed",
)


def path(name: str) -> Path:
    """Path of a model's folder by its name, or of the file `items`.

    Raises:
        UserError: the demo has neither a model nor a file of this name.
    """
    if name == "items":
        return DEMO_FOLDER / "items.jsonl"
    models = (BASE, *CANDIDATES)
    if name not in models:
        hint = nearest(name, [*models, "items"])
        raise UserError(
            f"the demo has no {name!r}{hint} (models: {', '.join(models)}; file: items)"
        )
    return DEMO_FOLDER / "models" / name


@frozen
class DemoBenchmark(Benchmark):
    """Items of the demo, which reports label as such; with another `path`, a plain `Benchmark`."""

    @property
    def bundled(self) -> bool:
        """Whether the items are the demo's own."""
        return Path(self.path or "").resolve().parent == DEMO_FOLDER

    @property
    def label(self) -> str:
        if not self.bundled:
            return self.title
        return "demo"

    @property
    def note(self) -> str:
        return NOTE if self.bundled else super().note

    @property
    def banner(self) -> str:
        if self.bundled:
            return "bundled tiny models with BFCL-style questions (not BFCL)"
        return (
            "note: these are not the demo's items: leave +experiment=bfcl out, whose batch size, threads and "
            "48 new tokens are for the demo's tiny models"
        )
