"""The W&B tracker, proven by reading the offline log back; the failures it must survive."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import UserError
from souping.report.files import write_report, write_selection, write_trials
from souping.trackers import WandbTracker
from tests.support.report import sample
from tests.support.wandb import log_of, made, of_type, tables_of


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this file may wait for a network or use anybody's account."""
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
