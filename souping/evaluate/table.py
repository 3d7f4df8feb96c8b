"""Where the scores come from that selection sees: measured here, or published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from souping.core import UserError
from souping.scores import ScoreMatrix, read_table


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate the candidates on the select fold."""

    published = False

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        return measure()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published score table: all of its rows inform the correlations, the candidates' rows give the experts."""

    path: str

    published = True

    def matrix(self, candidates: Sequence[str], measure: Callable[[], ScoreMatrix]) -> ScoreMatrix:
        """The table with its candidates marked.

        Raises:
            UserError: the table cannot be read, or a candidate has no row (the nearest is named).
        """
        path = Path(self.path).expanduser()
        scores = read_table(path)
        for name in candidates:
            if name not in scores.models:
                near = get_close_matches(name, scores.models, n=1, cutoff=0.3)
                hint = f"; the nearest row is {near[0]}" if near else ""
                raise UserError(f"candidate {name!r} has no row in {path}{hint}")
        return replace(scores, candidates=tuple(candidates))
