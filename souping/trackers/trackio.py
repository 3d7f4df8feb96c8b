"""trackio tracker: config, a point a trial, the verdict, on this machine or in a Space of the Hub (extra `trackio`)."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.fields import Name, component
from souping.core.protocols import Tracker
from souping.core.text import install
from souping.core.types import Json, Missing, Trial, part
from souping.trackers import TrackerState

if TYPE_CHECKING:
    from trackio.run import Run


@dataclass
class TrackioState(TrackerState):
    """State of a tracker between its calls; what trackio prints is kept back."""

    of: str = "trackio"
    run: Run | None = None
    points: int = 0

    def attempt(self, action: Callable[[], None]) -> None:
        def silently() -> None:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                action()

        super().attempt(silently)


@component
class TrackioTracker(Tracker):
    """Settings of a trackio run; without `space_id` it stays on this machine (`trackio show`).

    `group` gathers the jobs of a multirun, `name` is by default the run's name and directory.
    """

    project: Name = "souping"
    group: str | None = None
    name: str | None = None
    space_id: str | None = None
    _state: TrackioState = field(default_factory=TrackioState, init=False, repr=False, compare=False)

    def needs(self) -> list[Missing]:
        return [] if find_spec("trackio") else [Missing(what="trackio", mends=install("trackio"))]

    @property
    def hint(self) -> str:
        return f"trackio show --project {shlex.quote(self.project)}" if self._state.points and not self.space_id else ""

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None:
        state = self._state
        self._end()
        state.failed, state.warned, state.best, state.points = False, False, None, 0
        name = self.name or f"{config.get('name', 'souping')}-{run_dir.name}"

        def action() -> None:
            import trackio

            state.run = trackio.init(
                project=self.project,
                name=name,
                group=self.group,
                space_id=self.space_id,
                config=dict(config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

        state.attempt(action)

    def log(self, trial: Trial) -> None:
        state = self._state
        self._record(state.point(trial), state.points)
        state.points += 1

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None:
        verdict = part(report, "verdict") if report and isinstance(report.get("verdict"), Mapping) else {}
        if verdict:
            self._record({"p_value": verdict.get("p_value"), "claim": verdict.get("claim")}, self._state.points)
        self._end()

    def _record(self, point: Mapping[str, Json], step: int) -> None:
        run = self._state.run
        if run is not None:
            self._state.attempt(lambda: run.log(dict(point), step=step))

    def _end(self) -> None:
        run, self._state.run = self._state.run, None
        if run is not None:
            self._state.attempt(run.finish)
