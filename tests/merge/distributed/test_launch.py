"""Groups of `merge=accelerate` that die, hang or cannot start, and one plan by a command, on one machine or two."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.core.types import UserError
from souping.merge.distributed import backend
from souping.merge.distributed.backend import AccelerateMerge, Ranks, environment
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from tests.support.ranks import (
    Siblings,
    contents,
    gone,
    nothing_left,
    planned,
    siblings,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    return siblings(tmp_path_factory.mktemp("pool"), torch.bfloat16)


def pids(merge: AccelerateMerge) -> list[int]:
    return merge._ranks[-1].pids


def stopped_write(merge: AccelerateMerge, plan: MergePlan, out: Path, then: Callable[[], None]) -> str:
    """Stop rank 1, let the group begin a soup, do something; returns the error."""
    os.kill(pids(merge)[1], signal.SIGSTOP)
    said: list[str] = []

    def write() -> None:
        try:
            merge.write(plan, out)
        except UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    while not list(out.parent.glob(f".{out.name}.part-*/model.safetensors")):
        time.sleep(0.01)
    then()
    thread.join(600)
    return said[0]


@pytest.mark.slow
def test_a_rank_that_dies_or_hangs(pool: Siblings, tmp_path: Path) -> None:
    merge = AccelerateMerge(num_processes=2, start_timeout=600)
    plan = planned(pool)
    try:
        merge.write(plan, tmp_path / "first")
        ranks = list(pids(merge))
        said = stopped_write(merge, plan, tmp_path / "soup", lambda: os.kill(ranks[1], signal.SIGKILL))
        assert said == "merge=accelerate: rank 1 ended with signal 9 (out of memory?); nothing was written"
        assert nothing_left(tmp_path / "soup")
        assert gone(ranks)

        merge.write(plan, tmp_path / "again")  # by new ranks
        merge._ranks[-1]._timeout = 2.5
        ranks = list(pids(merge))
        said = stopped_write(merge, plan, tmp_path / "soup", lambda: None)
        assert "no sign of life within 2.5 s" in said
        assert "merge.timeout" in said
        assert nothing_left(tmp_path / "soup")
        assert gone(ranks)
    finally:
        merge.close()
    assert contents(tmp_path / "first") == contents(tmp_path / "again")


@pytest.mark.slow
def test_ranks_end_with_the_process_that_started_them() -> None:
    code = "from souping.merge.distributed.backend import Ranks\nprint(*Ranks(2, start=600).pids, flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=environment())
    assert parent.stdin is not None
    assert parent.stdout is not None
    ranks = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(ranks) == 2
    parent.kill()
    parent.communicate()
    assert gone(ranks)


@pytest.mark.slow
def test_fewer_ranks_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate launch --cpu starts one process, whatever number it is given."""

    def on_cpu(*arguments: Any) -> list[str]:
        return ["--cpu" if part == "--multi_gpu" else part for part in real(*arguments)]

    real = backend.command
    monkeypatch.setattr(backend, "command", on_cpu)
    with pytest.raises(UserError, match="2 ranks were asked for and accelerate started 1"):
        Ranks(2, start=600)


def test_ranks_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "command", lambda *_: [sys.executable, "-c", "import no_such_module"])
    with pytest.raises(UserError, match="the ranks ended: ModuleNotFoundError: No module named 'no_such_module'"):
        Ranks(2)
    monkeypatch.setattr(backend, "command", lambda *_: ["sleep", "60"])
    with pytest.raises(UserError, match=r"the ranks were not ready within 0\.2 s"):
        Ranks(2, start=0.2)


def test_a_launcher_that_is_killed_ends_the_wait_for_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child holds the pipe on which the ranks would say that they are ready."""
    monkeypatch.setattr(backend, "command", lambda *_: ["sh", "-c", "sleep 30 & kill -9 $$"])
    with pytest.raises(UserError, match="the ranks ended"):
        Ranks(2, start=3600)


def test_a_launcher_and_its_ranks_end_with_the_run_before_they_have_met(tmp_path: Path) -> None:
    """The launched module starts a rank that is still at its imports."""
    rank = "import os, time; from souping.core.child import *; end_with(int(os.environ[LAUNCHER]))"
    start = f"[sys.executable, '-c', {rank + '; time.sleep(3600)'!r}]"
    (tmp_path / "idle.py").write_text(f"import subprocess, sys\np = subprocess.Popen({start})\nprint(p.pid)\np.wait()")
    run = "import os, subprocess, sys; m = 'souping.core.child'\n"
    run += "p = subprocess.Popen([sys.executable, '-u', '-m', m, str(os.getpid()), 'idle']); print(p.pid); p.wait()"
    paths = f"{environment()['PYTHONPATH']}{os.pathsep}{tmp_path}"
    parent = subprocess.Popen(
        [sys.executable, "-u", "-c", run], stdout=subprocess.PIPE, text=True, env={**environment(), "PYTHONPATH": paths}
    )
    assert parent.stdout is not None
    both = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    assert gone(both)


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *arguments]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_a_plan_alone_by_a_command(pool: Siblings, tmp_path: Path) -> None:
    plan = planned(pool, max_shard_size="500KB")
    saved = str(plan.save(tmp_path / "plan.json"))
    one = launch(
        "--num_processes", "2", "--main_process_port", "0", "-m", "souping.merge", saved, str(tmp_path / "one")
    )
    out, err = one.communicate(timeout=600)
    assert one.returncode == 0, err
    assert f"{tmp_path / 'one'} written" in out
    assert contents(tmp_path / "one") == contents(LocalMerge().write(plan, tmp_path / "local"))


@pytest.mark.slow
def test_a_plan_across_machines(pool: Siblings, tmp_path: Path) -> None:
    """Two launchers that meet at an address: the form for several hosts, here twice the same."""
    plan, port = planned(pool), free_port()
    meet = ["--num_processes", "2", "--num_machines", "2", "--main_process_ip", "127.0.0.1"]
    meet += ["--main_process_port", port]
    saved = str(plan.save(tmp_path / "plan.json"))
    work = ["-m", "souping.merge", saved, str(tmp_path / "soup"), "--num-processes", "2"]
    both = [launch(*meet, "--machine_rank", rank, *work) for rank in "01"]
    texts = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert contents(tmp_path / "soup") == contents(LocalMerge().write(plan, tmp_path / "local"))


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
