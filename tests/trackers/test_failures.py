"""What the W&B tracker must survive: no service, no key, no network, a full disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from souping.report.progress import show_warnings
from souping.trackers import GuardedTracker, NoTracker, WandbTracker
from tests.support.report import sample
from tests.support.wandb import log_of, made, of_type


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No test of this file may wait for a network or use anybody's account; warnings are shown as in a run."""
    show_warnings()
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)


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


def test_a_failing_wandb_warns_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", broken)
    report, trials = sample(columns=2)
    tracker = GuardedTracker(WandbTracker())
    tracker.start({}, tmp_path)
    for entry in trials[:3]:
        tracker.log(made(entry))
    tracker.finish(report, tmp_path)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: tracker WandbTracker: RuntimeError: no service")


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


def test_online_without_a_key_records_offline_and_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    tracker = WandbTracker(mode="online")
    tracker.start({}, tmp_path)
    tracker.finish({}, tmp_path)
    assert "no API key" in capsys.readouterr().err
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "https://host.invalid"])
def test_online_with_a_dead_server_records_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", address)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    tracker = WandbTracker(mode="online")
    tracker.start({}, tmp_path)
    tracker.finish({}, tmp_path)
    assert "offline" in capsys.readouterr().err
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]


def test_a_server_that_refuses_the_run_leaves_an_offline_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    real = wandb.init

    def refused(**settings: Any) -> Any:
        if settings["mode"] == "online":
            raise wandb.errors.CommError("permission denied")
        return real(**settings)

    monkeypatch.setattr(wandb, "login", lambda prompt=True: True)
    monkeypatch.setattr(wandb, "init", refused)
    tracker = WandbTracker(mode="online")
    tracker.start({}, tmp_path)
    tracker.finish({}, tmp_path)
    assert "CommError" in capsys.readouterr().err
    assert [end["exit_code"] for end in of_type(log_of(tmp_path), "exit")] == [0]
