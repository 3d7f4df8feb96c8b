"""What every tracker promises: add an implementation to the list, and it is held to all of it."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from souping.core.protocols import Tracker
from souping.core.types import Recipe, Result, Trial
from souping.trackers import NoTracker
from souping.trackers.trackio import TrackioTracker
from souping.trackers.wandb import WandbTracker
from tests.support.choices import differing, each

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="souping-trackio-"))  # read when it is imported
ROWS: dict[str, list[Tracker]] = {
    "none": [NoTracker()],
    "trackio": [TrackioTracker()],
    "wandb": [WandbTracker(mode="offline"), WandbTracker(mode="disabled")],
}
RECIPE = Recipe(ingredients=("a", "b"), fingerprints=("1", "2"), weights=(0.25, 0.75), dtype="float32")


def trial(number: int, objective: float = 0.5) -> Trial:
    result = Result(objective=objective, categories={"x": objective, "y z/ü": 0.0}, items=4)
    return Trial(number=number, recipe=RECIPE, weights=RECIPE.weights, result=result)


def test_every_choice_has_a_row() -> None:
    assert differing("tracker", ROWS) == {}


@pytest.mark.parametrize("row", each(ROWS))
class TestTracker:
    @pytest.fixture
    def make(self, row: Tracker) -> Callable[[], Tracker]:
        """A new tracker of the row's settings, without what an earlier run left in it."""
        if row.needs():
            pytest.skip(f"needs {row.needs()[0].what}")
        return lambda: dataclasses.replace(row)  # type: ignore[type-var]

    def test_it_is_a_tracker_that_needs_nothing_more(self, make: Callable[[], Tracker]) -> None:
        tracker = make()
        assert Tracker in type(tracker).__mro__
        assert tracker.needs() == []
        tracker.close()

    def test_the_end_of_a_multirun_is_followed_in_silence(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make().summarise([{"job": 0, "overrides": ["seed=1"], "objective": 0.5, "run_dir": "0"}], tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_it_is_frozen_keyword_only_settings(self, make: Callable[[], Tracker]) -> None:
        tracker = make()
        assert dataclasses.is_dataclass(tracker)
        assert tracker == make()
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            tracker.anything = 1  # type: ignore[attr-defined]

    def test_it_follows_a_run_and_prints_nothing(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tracker = make()
        tracker.start({"a": {"b": [1, None, "x"]}}, tmp_path)
        tracker.log(trial(2, 0.5))
        tracker.log(trial(1, 0.25))
        tracker.finish({"rows": [], "comparisons": [], "verdict": None}, tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_a_run_that_failed_can_be_finished(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tracker = make()
        tracker.start({}, tmp_path)
        tracker.finish(None, tmp_path)
        tracker.finish(None, tmp_path)
        assert capfd.readouterr().err == ""

    def test_one_tracker_follows_two_runs_in_turn(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tracker = make()
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            tracker.start({}, tmp_path / name)
            tracker.log(trial(1))
            tracker.finish({}, tmp_path / name)
        assert capfd.readouterr().err == ""

    def test_calls_out_of_order_do_not_raise(self, make: Callable[[], Tracker], tmp_path: Path) -> None:
        tracker = make()
        tracker.log(trial(1))
        tracker.finish({}, tmp_path)

    def test_a_directory_that_cannot_be_written_does_not_raise(
        self, make: Callable[[], Tracker], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        tracker = make()
        tracker.start({}, tmp_path / "file")
        tracker.log(trial(1))
        tracker.finish({}, tmp_path / "file")
