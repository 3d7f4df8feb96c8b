"""The W&B tracker, by the offline log that it leaves; trackio, by what it is asked for; failures that both survive."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from souping.core.types import Json, UserError
from souping.report.files import write_report, write_selection, write_trials
from souping.report.progress import show_warnings
from souping.trackers import GuardedTracker, NoTracker, WandbTracker
from tests.support.report import sample
from tests.support.wandb import log_of, made, of_type, tables_of
from tests.trackers.test_conformance import trial


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No test of this file may wait for a network or use anybody's account; warnings are shown as in a run."""
    show_warnings()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """(run directory, log records, report) of one tracked run with 12 trials."""
    run_dir = tmp_path_factory.mktemp("tracked")
    report, trials = sample(columns=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("HOME", str(run_dir / "home"))
        tracker = WandbTracker(group="sweep-1", tags=["fast"], job_type="job")
        tracker.start({"selector": {"threshold": 0.2}, "seed": 0}, run_dir)
        for entry in trials[:12]:
            tracker.log(made(entry))
        write_report(report, trials[:12], run_dir)
        write_trials(trials[:12], report, run_dir / "trials.csv")
        write_selection(report["selection"], run_dir / "selection.json")
        tracker.finish(report, run_dir)
        records = log_of(run_dir)
    return run_dir, records, report


def test_the_config_group_tags_and_job_type_are_recorded(recorded: Any) -> None:
    (run,) = of_type(recorded[1], "run")
    assert run["config"]["update"]["selector"] == {"threshold": 0.2}
    assert run["config"]["update"]["seed"] == 0
    assert (run["project"], run["run_group"], run["job_type"], run["tags"]) == ("souping", "sweep-1", "job", ["fast"])


def test_there_is_exactly_one_point_a_trial(recorded: Any) -> None:
    _, trials = sample(columns=3)
    points = [one["item"] for one in of_type(recorded[1], "history")]
    assert [p["trial"] for p in points] == list(range(1, 13))
    assert [p["objective"] for p in points] == pytest.approx([t["objective"] for t in trials[:12]])
    best = [max(t["objective"] for t in trials[: i + 1]) for i in range(12)]
    assert [p["best"] for p in points] == pytest.approx(best)
    assert points[0]["category/simple_java"] == pytest.approx(trials[0]["categories"]["simple_java"])
    assert sum(v for k, v in points[0].items() if k.startswith("weight/")) == pytest.approx(1)


def test_the_end_has_tables_plots_files_and_the_verdict(recorded: Any) -> None:
    run_dir, records, report = recorded
    tables, last = tables_of(run_dir), of_type(records, "history")[-1]["item"]
    sizes = {"rows": len(report["rows"]), "comparisons": len(report["comparisons"]), "trials": 12}
    assert {name: len(one["data"]) for name, one in tables.items()} == sizes
    assert tables["rows"]["columns"][:3] == ["name", "kind", "objective"]
    assert tables["rows"]["data"][0][2] == pytest.approx(report["rows"][0]["objective"]["mean"])
    for name in (*tables, *(f"plots/{plot}" for plot in ("forest", "categories", "heatmap", "landscape"))):
        assert name in " ".join(last)
    assert len(list((run_dir / "wandb").glob("offline-run-*/files/media/images/**/*.png"))) == 4
    (artifact,) = [one for one in of_type(records, "artifact") if one["type"] == "report"]
    contents = {entry["path"]: entry["local_path"] for entry in artifact["manifest"]["contents"]}
    files = {"report.json", "report.md", "report.html", "selection.json", "trials.csv", "plots/forest.png"}
    assert files <= set(contents)
    assert contents["report.json"] == str(run_dir / "report.json")
    flat: dict[str, Any] = {}
    for one in of_type(records, "summary"):
        flat |= one["update"]
    assert (flat["verdict"], flat["recipe_id"]) == (report["verdict"]["sentence"], "3f9c01ab77de")
    (end,) = of_type(records, "exit")
    assert end["exit_code"] == 0


def test_wandb_writes_into_the_run_directory_and_captures_no_console(recorded: Any) -> None:
    run_dir, _, _ = recorded
    strays = [p for p in (run_dir / "home").rglob("*") if p.is_file() and "wandb" in str(p.relative_to(run_dir))]
    assert [p for p in strays if "core-debug" not in p.name] == []
    assert not list(run_dir.rglob("output.log"))


def test_the_environment_is_given_back(tmp_path: Path) -> None:
    before = dict(os.environ)
    tracker = WandbTracker(mode="disabled")
    tracker.start({}, tmp_path)
    assert os.environ["WANDB_SILENT"] == "true"
    tracker.finish(None, tmp_path)
    assert {k: v for k, v in os.environ.items() if k.startswith("WANDB")} == {
        k: v for k, v in before.items() if k.startswith("WANDB")
    }


@pytest.mark.parametrize("failed", [True, False])
def test_a_run_that_an_error_ended_is_marked_as_failed(tmp_path: Path, failed: bool) -> None:
    tracker = WandbTracker()
    tracker.start({}, tmp_path)
    with suppress(KeyError):
        try:
            if failed:
                raise KeyError("the pipeline broke")
        finally:
            tracker.finish(None, tmp_path)
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [int(failed)]


def test_a_multirun_is_summarised_by_one_run_of_its_group(tmp_path: Path) -> None:
    rows = [
        {"job": 0, "overrides": ["optimiser=grid", "seed=1"], "objective": 0.71, "run_dir": tmp_path / "0"},
        {"job": 1, "overrides": ["optimiser=nevergrad"], "objective": 0.78, "run_dir": tmp_path / "1"},
        {
            "job": 2,
            "overrides": ["optimiser=nosuch"],
            "objective": None,
            "run_dir": tmp_path / "2",
            "refused": "\x1b[31mno",
        },
    ]
    WandbTracker(group="sweep-1").summarise(rows, tmp_path)
    records = log_of(tmp_path)
    (run,) = of_type(records, "run")
    assert (run["run_group"], run["job_type"]) == ("sweep-1", "summary")
    jobs = tables_of(tmp_path)["jobs"]
    assert jobs["columns"] == ["job", "objective", "overrides", "run_dir", "refused"]
    assert [line[-1] for line in jobs["data"]] == ["", "", "\\x1b[31mno"]
    assert [line[:3] for line in jobs["data"]][:2] == [
        ["0", 0.71, "optimiser=grid seed=1"],
        ["1", 0.78, "optimiser=nevergrad"],
    ]
    flat: dict[str, Any] = {}
    for one in of_type(records, "summary"):
        flat |= one["update"]
    assert (flat["best_objective"], flat["best_job"]) == (0.78, "1")


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"timeout": float("nan")}, {"project": ""}])
def test_settings_out_of_range_are_the_users_error(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"\({next(iter(settings))}="):
        WandbTracker(**settings)


def test_an_offline_run_has_a_name_and_says_how_to_send_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tracker = WandbTracker()
    tracker.start({"name": "mine"}, tmp_path / "r1")
    tracker.finish({"rows": [], "comparisons": []}, tmp_path / "r1")
    (run,) = of_type(log_of(tmp_path / "r1"), "run")
    assert run["display_name"] == "mine-r1"
    words = tracker.hint.split()
    assert words[:2] == ["wandb", "sync"]
    assert Path(words[2]).is_dir()


def test_the_artifact_holds_recipe_and_card_wherever_the_soup_lies(tmp_path: Path) -> None:
    tracker, soup = WandbTracker(mode="offline"), tmp_path / "elsewhere/mine"
    soup.mkdir(parents=True)
    for name in ("recipe.json", "README.md"):
        (soup / name).write_text("{}")
    tracker.start({}, tmp_path / "r1")
    (tmp_path / "r1/report.md").write_text("words")
    tracker.finish({"rows": [], "comparisons": []}, tmp_path / "r1", soup)
    (artifact,) = of_type(log_of(tmp_path / "r1"), "artifact")
    for name in ("soup/recipe.json", "soup/README.md", "report.md"):
        assert f"'{name}'" in str(artifact), artifact


@pytest.mark.parametrize(
    ("falls", "asked"),
    [
        ("start", ["start"]),
        ("log", ["start", "log", "finish"]),
        ("finish", ["start", "log", "log", "finish"]),
        ("log finish", ["start", "log", "finish"]),
    ],
)
def test_a_guarded_tracker_that_started_is_closed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], falls: str, asked: list[str]
) -> None:
    called: list[str] = []

    class Falling(NoTracker):
        def _call(self, name: str) -> None:
            called.append(name)
            if name in falls.split():
                raise OSError(f"no {name}")

        def start(self, *_: object) -> None:
            self._call("start")

        def log(self, *_: object) -> None:
            self._call("log")

        def finish(self, *_: object) -> None:
            self._call("finish")

    report, trials = sample(columns=2)
    tracker = GuardedTracker(Falling())
    tracker.start({}, tmp_path)
    for entry in trials[:2]:
        tracker.log(made(entry))
    tracker.finish(report, tmp_path)
    tracker.finish(report, tmp_path)
    assert called == asked
    first = falls.split()[0]
    (said,) = capsys.readouterr().err.splitlines()
    assert "Falling (" in said
    assert said.endswith(f"): OSError: no {first}; the run goes on without it")


def test_a_failure_in_the_middle_warns_once_and_still_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    report, trials = sample(columns=2)
    tracker = GuardedTracker(WandbTracker())
    tracker.start({}, tmp_path)

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr(type(wandb.run), "log", broken)
    for entry in trials[:3]:
        tracker.log(made(entry))
    tracker.finish(report, tmp_path)
    assert capsys.readouterr().err.count("\n") == 1
    assert wandb.run is None
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]


@pytest.mark.parametrize(
    "trouble",
    [
        "no key",
        "refused",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("http://127.0.0.1:9", "https://host.invalid")),
    ],
)
def test_an_online_run_that_cannot_be_is_an_offline_one_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    import wandb

    real = wandb.init

    def refused(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("permission denied")
        return real(**settings)

    if trouble == "no key":
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    elif trouble == "refused":
        monkeypatch.setattr(wandb, "login", lambda prompt=True: True)
        monkeypatch.setattr(wandb, "init", refused)
    else:
        monkeypatch.setenv("WANDB_BASE_URL", trouble)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    tracker = WandbTracker(mode="online")
    tracker.start({}, tmp_path)
    tracker.finish({}, tmp_path)
    assert "offline" in capsys.readouterr().err
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]


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
    asked: tuple[dict[str, Json], Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert capsys.readouterr() == ("", "")
