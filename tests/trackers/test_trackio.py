"""The trackio tracker, proven by what it asks of trackio: names, config, a point a trial, the end, in silence."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from souping.core.types import Json
from souping.trackers import WandbTracker
from tests.trackers.test_conformance import trial


class Recorded:
    def __init__(self) -> None:
        self.points: list[dict[str, Json]] = []
        self.ended = False

    def log(self, point: dict[str, Json], step: int | None = None) -> None:
        print("a line of trackio's")
        self.points.append({**point, "step": step})

    def finish(self) -> None:
        self.ended = True


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Json], Recorded]:
    settings: dict[str, Json] = {}
    run, module = Recorded(), ModuleType("trackio")

    def init(**given: Json) -> Recorded:
        settings.update(given)
        return run

    module.init = init  # type: ignore[attr-defined]
    module.Table = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    return settings, run


def test_a_run_is_recorded(
    asked: tuple[dict[str, Json], Recorded], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, run = asked
    tracker = WandbTracker(module="trackio", group="sweep")
    tracker.start({"name": "mine", "seed": 1}, tmp_path / "r1")
    tracker.log(trial(1, 0.5))
    tracker.log(trial(2, 0.25))
    tracker.finish({"verdict": {"claim": "better", "p_value": 0.01}}, tmp_path)
    assert (settings["name"], settings["group"], settings["config"]) == (
        "mine-r1",
        "sweep",
        {"name": "mine", "seed": 1},
    )
    assert [point.get("best") for point in run.points] == [0.5, 0.5, None]
    assert run.points[0]["weight/b"] == 0.75
    assert [point["step"] for point in run.points] == [0, 1, None]
    assert run.points[2]["claim"] == "better"
    assert run.ended
    assert tracker.hint == "trackio show --project souping"
    assert capfd.readouterr() == ("", "")
