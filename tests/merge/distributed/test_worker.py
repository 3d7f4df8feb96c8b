"""What a rank of `merge=accelerate` does, with threads for ranks."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.core.types import UserError
from souping.merge import __main__
from souping.merge.__main__ import main
from souping.merge.distributed import worker
from souping.merge.distributed.messages import line
from souping.merge.distributed.worker import Inbox, Team, lead, serve
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import ShardWriter
from tests.support.ranks import (
    audible,
    contents,
    fill,
    nothing_left,
    pair,
    planned,
    running,
    siblings,
    spoil,
    staging,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No lingering; the logger and signals as they were (two ranks in one process share them)."""
    monkeypatch.setattr(__main__, "LINGER", 0.0)
    monkeypatch.setattr(worker, "LINGER", 0.0)
    monkeypatch.setattr(worker, "IDLE", 0.05)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    audible()
    yield
    audible()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Parent:
    """The process that asks: writes all orders at once, keeps what is said, and goes after the last answer."""

    def __init__(self, *plans: tuple[MergePlan, Path]) -> None:
        reader, self._writer = os.pipe()
        self.stream, self.said, self._open = os.fdopen(reader, "rb"), list[dict[str, Any]](), len(plans)
        orders = [line({"plan": plan.to_json(), "stage": str(stage)}) for plan, stage in plans]
        threading.Thread(target=os.write, args=(self._writer, b"".join(orders))).start()

    def hear(self, message: dict[str, Any]) -> None:
        self.said.append(message)
        self._open -= "done" in message or "failed" in message
        if not self._open:
            os.close(self._writer)


def test_a_leader_and_a_server_cook_what_comes(tmp_path: Path) -> None:
    good, bad = (siblings(tmp_path / name, torch.bfloat16) for name in ("good", "bad"))
    spoil(bad, float("nan"))
    warned = planned(bad, nonfinite="warn")
    todo = [(planned(good), "a"), (planned(bad), "b"), (warned, "c")]
    first, second = pair()
    parent = Parent(*((plan, staging(plan, tmp_path / name)) for plan, name in todo))
    with running(lambda: serve(second)):
        lead(first, Inbox(parent.stream), parent.hear, 60.0)
    said = parent.said
    assert said[0]["ready"] == 2
    assert said[0]["devices"] == ["cpu", "cpu"]
    assert {"warning": "n0"} in said
    ends = [m for m in said if "done" in m or "failed" in m]
    assert [list(m) for m in ends] == [["done"], ["failed"], ["done"]]
    assert "model.z.weight" in ends[1]["failed"]["text"]
    assert any("model.z.weight" in m.get("warning", "") for m in said)
    for plan, name in (todo[0], todo[2]):
        whole = staging(plan, tmp_path / f"{name}-alone")
        with ShardWriter(plan, whole) as writer:
            writer.fill()
        assert contents(tmp_path / name) == contents(whole)


def test_an_idle_leader_gives_signs_of_life() -> None:
    reader, writer = os.pipe()
    first, second = pair()
    waits: list[str] = []

    def listen() -> None:
        second.introduce()
        while (verb := second.hear()["verb"]) != "end":
            waits.append(verb)
            if len(waits) == 2:
                os.close(writer)

    with running(listen):
        lead(first, Inbox(os.fdopen(reader, "rb")), lambda _: None, 60.0)
    assert set(waits) == {"wait"}


def refused(kind: type[Exception], team: Team, plan: MergePlan, stage: Path) -> None:
    with pytest.raises(kind):
        fill(team, plan, stage)


def test_a_leader_whose_reader_is_gone_gives_up(tmp_path: Path) -> None:
    """The end of input during work, as when the process that asked is killed."""
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16))
    first, second = pair()
    stage = staging(plan, tmp_path / "stage")
    with pytest.raises(InterruptedError), running(lambda: refused(InterruptedError, second, plan, stage)):
        fill(first, plan, stage, leave=lambda: True)


def test_errors_name_the_machine_where_there_are_several(tmp_path: Path) -> None:
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16))
    first, second = pair(local=1)
    assert first.spread
    with running(lambda: refused(UserError, second, plan, tmp_path)), pytest.raises(UserError) as caught:
        fill(first, plan, tmp_path)  # nothing prepared there
    assert "stage" in str(caught.value) or str(tmp_path) in str(caught.value)
    assert "all machines must see the same folders" in str(caught.value)
    stage = staging(plan, tmp_path / "stage")
    with running(lambda: fill(second, plan, stage)):
        fill(first, plan, stage)


def run_command(monkeypatch: pytest.MonkeyPatch, team: Team | UserError, *arguments: str) -> int:
    """`accelerate launch -m souping.merge ...` as the rank of that team."""

    def join(*_: Any) -> Team:
        if isinstance(team, UserError):
            raise team
        return team

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(Team, "join", join)
    return main(arguments)


def test_a_launched_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = siblings(tmp_path / "pool", torch.bfloat16)
    good = str(planned(folders).save(tmp_path / "good.json"))
    first, second = pair()
    with running(lambda: serve(second)):
        assert run_command(monkeypatch, first, good, str(tmp_path / "soup")) == 0
    local = LocalMerge().write(planned(folders), tmp_path / "local")
    assert contents(tmp_path / "soup") == contents(local)

    first, second = pair()
    with running(lambda: serve(second)):
        assert run_command(monkeypatch, first, str(tmp_path / "none.json"), str(tmp_path / "x")) == 2
    assert "none.json" in capsys.readouterr().err
    assert run_command(monkeypatch, UserError("too few"), good, str(tmp_path / "x")) == 2
    assert "too few" in capsys.readouterr().err


def test_a_command_that_loses_a_rank_clears_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = str(planned(siblings(tmp_path / "pool", torch.bfloat16)).save(tmp_path / "plan.json"))
    first, second = pair()

    def die() -> None:
        second.introduce()
        second.hear()
        second.group.barrier.abort()

    with running(die):
        assert run_command(monkeypatch, first, saved, str(tmp_path / "soup")) == 2
    assert "the ranks lost each other: closed; nothing was written" in capsys.readouterr().err
    assert nothing_left(tmp_path / "soup")


def test_a_launcher_that_is_stopped_ends_its_command_through_the_clean_up() -> None:
    with pytest.raises(SystemExit) as caught:
        __main__._clear(signal.SIGTERM, None)
    assert caught.value.code == 143


def test_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(siblings(tmp_path / "pool", torch.bfloat16))
    alone = Team(rank=0, ranks=1, local=1, gpu=None, group=None)
    arguments = ["--ranks", "1", "--timeout", "60"]
    parent = Parent((plan, staging(plan, tmp_path / "stage")))
    monkeypatch.setattr(worker, "claim_stdout", lambda: parent.hear)
    monkeypatch.setattr(Team, "join", lambda *_: alone)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(parent.stream))
    assert worker.main(arguments) == 0
    assert parent.said[-1] == {"done": True}
    assert parent.said[-2] == {"progress": [plan.nbytes, plan.nbytes]}

    lost = pair()[1]
    lost.group.barrier.abort()
    monkeypatch.setattr(Team, "join", lambda *_: lost)
    assert worker.main(arguments) == 1

    def refuse(*_: Any) -> Team:
        raise UserError("too few")

    said: list[dict[str, Any]] = []
    monkeypatch.setattr(worker, "claim_stdout", lambda: said.append)
    monkeypatch.setattr(Team, "join", refuse)
    assert worker.main(arguments) == 0
    assert said[-1] == {"failed": {"kind": "user", "text": "too few"}}


def test_the_worker_keeps_chatter_out_of_its_answers(capfd: pytest.CaptureFixture[str]) -> None:
    keep = os.dup(1)
    try:
        send = worker.claim_stdout()
        os.write(1, b"a library says hello\n")
        send({"done": True})
    finally:
        os.dup2(keep, 1)
        os.close(keep)
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"done": True}
    assert "a library says hello" in captured.err
