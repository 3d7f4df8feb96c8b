"""What every tracker promises; the W&B tracker by the offline log that it leaves; failures that a run survives."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from souping.core.protocols import Tracker
from souping.core.types import Json, JsonObject, Recipe, Result, Trial
from souping.core.unit import POINTS
from souping.report.analysis_results import read_content
from souping.report.progress import show_warnings
from souping.report.run_files import write_report, write_selection, write_trials
from souping.testing import check_tracker
from souping.trackers import GuardedTracker, NoTracker, TrackioTracker, WandbTracker
from tests.support.choices import differing, each
from tests.support.report import sample
from tests.support.wandb import log_of, of_type, tables_of, trial_of

# read when it is imported
os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp(prefix="souping-trackio-"))
ROWS: dict[str, list[Tracker]] = {
    "none": [NoTracker()],
    "trackio": [TrackioTracker()],
    "wandb": [WandbTracker(mode="offline"), WandbTracker(mode="disabled")],
}
RECIPE = Recipe(
    ingredients=("a", "b"), fingerprints=("1", "2"), weights=(0.25, 0.75), dtype="float32"
)


def trial(number: int, objective: float = 0.5, best: float = 0.5) -> Trial:
    result = Result(objective=objective, categories={"x": objective, "y z/ü": 0.0}, items=4)
    return Trial(number=number, recipe=RECIPE, weights=RECIPE.weights, result=result, best=best)


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

    def test_a_tracker_conforms_and_prints_nothing(
        self, make: Callable[[], Tracker], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        check_tracker(make(), tmp_path)
        assert capfd.readouterr() == ("", "")

    def test_an_unwritable_directory_does_not_raise(
        self, make: Callable[[], Tracker], tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        tracker = GuardedTracker(make())
        tracker.start({}, tmp_path / "file")
        tracker.log(trial(1))
        tracker.finish({}, tmp_path / "file")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """No test of this file may wait for a network or use anybody's account; warnings are shown as in a run."""
    show_warnings()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in (
        "WANDB_API_KEY",
        "WANDB_RUN_ID",
        "WANDB_SWEEP_ID",
        "WANDB_DATA_DIR",
        "WANDB_CACHE_DIR",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """(run directory, log records, report) of one tracked run with 12 trials."""
    run_dir = tmp_path_factory.mktemp("tracked")
    report, trials = sample(columns=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HOME", str(run_dir / "home"))
        soup = run_dir / "elsewhere"
        soup.mkdir()
        (soup / "recipe.json").write_text("{}")
        tracker = WandbTracker(group="sweep-1", args={"tags": ["fast"], "job_type": "job"})
        tracker.start({"selector": {"threshold": 0.2}, "name": "mine"}, run_dir)
        for number, entry in enumerate(trials[:12], start=1):
            objectives = [trial.objective for trial in trials[:number]]
            best = max(objective for objective in objectives if objective is not None)
            tracker.log(trial_of(entry, best))
        content = read_content(report)
        write_report(content, trials[:12], run_dir)
        write_trials(trials[:12], content, run_dir / "trials.csv")
        assert content.selection is not None
        write_selection(POINTS, content.selection, None, run_dir / "selection.json")
        tracker.finish(report, run_dir, soup)
        records = log_of(run_dir)
    assert tracker.hint.startswith("wandb sync ")
    return run_dir, records, report


def summary_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        key: value for one in of_type(records, "summary") for key, value in one["update"].items()
    }


def test_config_group_and_tags_are_recorded_in_the_run_directory(recorded: Any) -> None:
    run_dir, records, _ = recorded
    (run,) = of_type(records, "run")
    assert run["config"]["update"]["selector"] == {"threshold": 0.2}
    assert (run["project"], run["run_group"], run["job_type"], run["tags"]) == (
        "souping",
        "sweep-1",
        "job",
        ["fast"],
    )
    assert run["display_name"] == f"mine-{run_dir.name}"
    strays = [
        p
        for p in (run_dir / "home").rglob("*")
        if p.is_file() and "wandb" in str(p.relative_to(run_dir))
    ]
    assert [p for p in strays if "core-debug" not in p.name] == []
    assert not list(run_dir.rglob("output.log"))  # no console is captured


def test_there_is_exactly_one_point_a_trial(recorded: Any) -> None:
    _, trials = sample(columns=3)
    points = [one["item"] for one in of_type(recorded[1], "history")]
    assert [p["trial"] for p in points] == list(range(1, 13))
    objectives = [trial.objective for trial in trials[:12] if trial.objective is not None]
    assert [p["objective"] for p in points] == pytest.approx(objectives)
    best = list(accumulate(objectives, max))
    assert [p["best"] for p in points] == pytest.approx(best)
    assert points[0]["category/simple_java"] == pytest.approx(trials[0].categories["simple_java"])
    assert sum(v for k, v in points[0].items() if k.startswith("weight/")) == pytest.approx(1)


def test_the_end_has_tables_plots_files_and_the_verdict(recorded: Any) -> None:
    run_dir, records, report = recorded
    tables = tables_of(run_dir)
    last = of_type(records, "history")[-1]["item"]
    sizes = {"rows": len(report["rows"]), "comparisons": len(report["comparisons"]), "trials": 12}
    assert {name: len(one["data"]) for name, one in tables.items()} == sizes
    scores = ["name", "kind", "objective", "low", "high", "n"]
    assert tables["rows"]["columns"] == [*scores, *report["rows"][0]["scores"]]
    pair = ["a", "b", "difference", "low", "high", "level", "p_value", "test", "n", "groups"]
    corrected = ["discordant", "kind", "p_look", "p_holm"]
    assert tables["comparisons"]["columns"] == [*pair, *corrected]
    assert tables["rows"]["data"][0][2] == pytest.approx(report["rows"][0]["objective"]["mean"])
    for name in (
        *tables,
        *(f"plots/{plot}" for plot in ("forest", "categories", "heatmap", "landscape")),
    ):
        assert name in " ".join(last)
    assert len(list((run_dir / "wandb").glob("offline-run-*/files/media/images/**/*.png"))) == 4
    (artifact,) = [one for one in of_type(records, "artifact") if one["type"] == "report"]
    contents = {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}
    files = {
        "report.json",
        "report.md",
        "report.html",
        "selection.json",
        "trials.csv",
        "plots/forest.png",
    }
    assert {*files, "soup/recipe.json"} <= set(contents)
    assert contents["report.json"] == str(run_dir / "report.json")
    flat = summary_of(records)
    assert (flat["verdict"], flat["recipe_id"]) == (report["verdict"]["sentence"], "3f9c01ab77de")
    (end,) = of_type(records, "exit")
    assert end["exit_code"] == 0


@pytest.mark.parametrize(
    "trouble",
    [
        "no key",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("http://127.0.0.1:9", "https://host.invalid")
        ),
    ],
)
def test_an_online_run_that_cannot_be_is_an_offline_one_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], trouble: str
) -> None:
    if trouble == "no key":
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    else:
        monkeypatch.setenv("WANDB_BASE_URL", trouble)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    tracker = WandbTracker(mode="online")
    tracker.start({}, tmp_path)
    tracker.finish({}, tmp_path)
    assert "offline" in capfd.readouterr().err
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]


def test_a_multirun_is_summarised_by_one_run_of_its_group(tmp_path: Path) -> None:
    rows: list[Mapping[str, Json]] = [
        {
            "job": 0,
            "overrides": ["optimiser=grid", "seed=1"],
            "objective": 0.71,
            "run_dir": str(tmp_path / "0"),
        },
        {
            "job": 1,
            "overrides": ["optimiser=nevergrad"],
            "objective": 0.78,
            "run_dir": str(tmp_path / "1"),
        },
        {
            "job": 2,
            "overrides": ["x"],
            "objective": None,
            "run_dir": str(tmp_path / "2"),
            "refused": "\x1b[31mno",
        },
    ]
    WandbTracker(group="sweep-1").summarise(rows, tmp_path)
    records = log_of(tmp_path)
    jobs = tables_of(tmp_path)["jobs"]
    (run,) = of_type(records, "run")
    assert (run["run_group"], run["job_type"]) == ("sweep-1", "summary")
    assert jobs["columns"] == ["job", "objective", "overrides", "run_dir", "refused"]
    assert jobs["data"][0][:3] == ["0", 0.71, "optimiser=grid seed=1"]
    assert [line[-1] for line in jobs["data"]] == ["", "", "\\x1b[31mno"]
    flat = summary_of(records)
    assert (flat["best_objective"], flat["best_job"]) == (0.78, "1")


@pytest.mark.parametrize("failed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_that_an_error_ended_is_marked_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failed: bool
) -> None:
    import wandb

    tracker = GuardedTracker(WandbTracker())
    tracker.start({}, tmp_path)
    monkeypatch.setattr(
        type(wandb.run), "log", lambda *_, **__: (_ for _ in ()).throw(OSError("disk is full"))
    )
    with suppress(KeyError):
        try:
            tracker.log(trial(1))
            tracker.log(trial(2))
            if failed:
                raise KeyError("the pipeline broke")
        finally:
            tracker.finish(None, tmp_path)
    assert capfd.readouterr().err.count("\n") == 1
    assert wandb.run is None
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [int(failed)]


@dataclass
class Calls(Tracker):
    """Keeps the names of its calls."""

    names: list[str] = field(default_factory=list)

    def start(self, config: JsonObject, run_dir: Path) -> None:
        self.names.append("start")

    def log(self, trial: Trial) -> None:
        self.names.append(f"trial {trial.number}")

    def finish(self, report: JsonObject | None, run_dir: Path, soup: Path | None = None) -> None:
        self.names.append("finish")


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_held_tracker_gets_all_at_the_end_of_the_run(goes_on: bool, tmp_path: Path) -> None:
    inner = Calls()
    tracker = GuardedTracker(inner, held=True)
    tracker.start({}, tmp_path)
    tracker.log(trial(1))
    assert inner.names == []
    if goes_on:
        # Another process will end the run.
        tracker.forget()
    tracker.finish({}, tmp_path)
    assert inner.names == ([] if goes_on else ["start", "trial 1", "finish"])


class Recorded:
    """A run of trackio's."""

    def __init__(self) -> None:
        self.points: list[dict[str, Json]] = []
        self.ended = False

    def log(self, point: dict[str, Json], step: int | None = None) -> None:
        print("a line of trackio's")
        self.points.append({**point, "step": step})

    def finish(self) -> None:
        self.ended = True


def test_trackio_gets_settings_points_and_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Json] = {}
    run = Recorded()
    module = ModuleType("trackio")
    module.init = lambda **given: settings.update(given) or run  # type: ignore[attr-defined]
    module.Table = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", module)
    tracker = TrackioTracker(group="sweep")
    tracker.start({"name": "mine", "seed": 1}, tmp_path / "r1")
    tracker.log(trial(1, 0.5))
    tracker.log(trial(2, 0.25))
    tracker.finish({"verdict": {"claim": "better", "p_value": 0.01}}, tmp_path)
    assert (settings["name"], settings["group"]) == ("mine-r1", "sweep")
    assert settings["config"] == {"name": "mine", "seed": 1}
    assert [(point.get("best"), point["step"]) for point in run.points] == [
        (0.5, 0),
        (0.5, 1),
        (None, None),
    ]
    assert (run.points[0]["weight/b"], run.points[2]["claim"], run.ended) == (0.75, "better", True)
    assert capfd.readouterr() == ("", "")
