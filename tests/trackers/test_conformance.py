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
from souping.testing import check_tracker
from souping.trackers import GuardedTracker, NoTracker, WandbTracker
from tests.support.choices import differing, each

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="souping-trackio-"))  # read when it is imported
ROWS: dict[str, list[Tracker]] = {
    "none": [NoTracker()],
    "trackio": [WandbTracker(module="trackio")],
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

    def test_it_conforms_and_prints_nothing(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        check_tracker(make(), tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_it_is_frozen_keyword_only_settings(self, make: Callable[[], Tracker]) -> None:
        tracker = make()
        assert dataclasses.is_dataclass(tracker)
        assert tracker == make()
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
            tracker.anything = 1  # type: ignore[attr-defined]

    def test_a_directory_that_cannot_be_written_does_not_raise(
        self, make: Callable[[], Tracker], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        tracker = GuardedTracker(make())
        tracker.start({}, tmp_path / "file")
        tracker.log(trial(1))
        tracker.finish({}, tmp_path / "file")
