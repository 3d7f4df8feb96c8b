"""Trackers follow a run elsewhere: nowhere (the default), W&B or trackio. A tracker that fails warns once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from souping.core.fields import component
from souping.core.protocols import Tracker
from souping.core.text import first_line, named
from souping.core.types import Json, Trial


@component
class NoTracker(Tracker):
    """Tracker of nothing: all that a run leaves lies in its directory."""

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None: ...


@dataclass
class GuardedTracker(Tracker):
    """Another tracker, whose first failure is one warning; after it nothing is logged. A run never ends by it.

    One that could start is asked to finish, once, whatever failed between: it may hold a file or a session.
    """

    inner: Tracker
    _started: bool = field(default=False, init=False)
    _failed: bool = field(default=False, init=False)

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None:
        self._try(lambda: self.inner.start(config, run_dir))
        self._started = not self._failed

    def log(self, trial: Trial) -> None:
        if not self._failed:
            self._try(lambda: self.inner.log(trial))

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None:
        if self._started:
            self._started = False
            self._try(lambda: self.inner.finish(report, run_dir, soup))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # any failure of a tracker is a warning, by contract
            if not self._failed:
                what = f"{named(self.inner)}: {type(error).__name__}: {first_line(error)}"
                print(f"warning: tracker {what}; the run goes on without it", file=sys.stderr)
            self._failed = True


@dataclass
class TrackerState:
    """State of a tracker called `of` between its calls. After a first failure nothing more is recorded, and that is
    said once."""

    of: str
    failed: bool = False
    warned: bool = False
    best: float | None = None

    def attempt(self, action: Callable[[], None]) -> None:
        """Do it; after a first failure, do nothing."""
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # any failure of a tracker is a warning, by contract
            self.failed = True
            self.warn(f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}")

    def warn(self, message: str) -> None:
        """One line on stderr, once a session."""
        if not self.warned:
            self.warned = True
            print(f"warning: {self.of}: {message}; the run goes on", file=sys.stderr)

    def point(self, trial: Trial) -> dict[str, Json]:
        """A trial as numbers, the best objective so far among them."""
        if trial.whole:
            self.best = max(trial.result.objective, self.best if self.best is not None else trial.result.objective)
        return point_of(trial, self.best)


def point_of(trial: Trial, best: float | None) -> dict[str, Json]:
    """A trial as numbers: objective, best so far, categories, weights.

    A soup that was dropped early has no score: the means of a few items are not to be compared.
    """
    result = trial.result
    point: dict[str, Json] = {"trial": trial.number}
    if trial.whole:
        point |= {"objective": result.objective, "best": best}
        point |= {f"category/{name}": value for name, value in result.categories.items()}
    weights = dict(zip(trial.recipe.ingredients, trial.recipe.weights, strict=True))
    point |= {f"weight/{name}": weight for name, weight in weights.items()}
    return point | {"items": result.items, "reused": trial.reused}
