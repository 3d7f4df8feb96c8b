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
