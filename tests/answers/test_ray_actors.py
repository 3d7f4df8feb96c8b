"""executor=ray with real actors on this machine: spread, lost and ended; drivers that are killed; a job of SLURM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from souping.answers import ray_actors
from souping.answers.ray_actors import RayExecutor, RayWorkers
from souping.core.types import Request, Response, UserError
from tests.conftest import ROOT, Cli, pool_of, report_of
from tests.support.actors import Busy, requests
from tests.support.processes import killed_at, timeless

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture
def two(tmp_path: Path) -> Iterator[RayWorkers]:
    """Two actors whose answers wait for `go`."""
    elsewhere = partial(Busy, tmp_path, tmp_path / "go")
    workers = RayExecutor(actors=2, cpus=0.5).start(Busy(tmp_path), elsewhere)
    assert isinstance(workers, RayWorkers)
    yield workers
    workers.close()


def taken(workers: RayWorkers, number: int) -> dict[int, tuple[Request, Response]]:
    answered = {}
    for _ in range(number):
        request, response = workers.take()
        answered[request.number] = (request, response)
    return answered


def pids(folder: Path) -> list[int]:
    return sorted({int(path.name.split("-")[0]) for path in folder.glob("*-*")})


@pytest.mark.slow
def test_a_killed_actor_is_restarted(
    two: RayWorkers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert two.slots == 2
    for request in requests(6):
        two.put(request)
    while len(pids(tmp_path)) < 2:
        time.sleep(0.02)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    (tmp_path / "go").touch()
    done = taken(two, 6)
    assert sorted(done) == list(range(6))
    for request, response in done.values():
        assert [record.score for record in response.records] == [request.recipe.weights[0]] * 2
        assert [record.item for record in response.records] == [item.id for item in request.items]
    assert len(pids(tmp_path)) == 3  # the one that took its place
    assert (two.slots, two.lost) == (2, 1)
    assert "executor=ray" in caplog.text


@pytest.mark.slow
def test_a_cluster_that_keeps_losing_actors_ends_the_run_and_errors_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = partial(Busy, tmp_path, tmp_path / "never")
    monkeypatch.setattr(ray_actors, "RESTARTS", 0)
    workers = RayExecutor(actors=1).start(Busy(tmp_path), elsewhere)
    workers.put(requests(1)[0])
    while not pids(tmp_path):
        time.sleep(0.02)
    os.kill(pids(tmp_path)[0], signal.SIGKILL)
    with pytest.raises(UserError, match=r"an actor is gone.*\n.*the same command"):
        workers.take()
    workers.close()
    refusing = RayExecutor(actors=1).start(
        Busy(tmp_path), partial(Busy, tmp_path, refuses="item x has no prompt")
    )
    refusing.put(requests(1)[0])
    with pytest.raises(UserError, match=r"^item x has no prompt$"):
        refusing.take()
    refusing.close()


def test_without_an_address_no_other_cluster_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray by itself joins the cluster that was started last on the machine, even a dead one."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked: list[str | None] = []

    def init(address: str | None, **_: object) -> None:
        asked.append(address)
        raise ConnectionError("nobody there\nmore")

    monkeypatch.setattr("ray.init", init)
    workers = RayExecutor(actors=1).start(Busy(tmp_path), partial(Busy, tmp_path))
    with pytest.raises(UserError, match=r"^executor=ray: .*nobody there$"):
        workers.put(requests(1)[0])
    assert asked == ["local"]


def ray_run(family: Path, *more: str) -> list[str]:
    return [
        *pool_of(family),
        "selector=topk",
        "selector.k=2",
        "executor=ray",
        "executor.actors=2",
        *more,
    ]


@pytest.mark.slow
def test_ray_gives_what_this_process_gives_and_a_killed_driver_resumes(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    call = ray_run(
        family,
        "executor.cpus=0.5",
        "evaluator.batch_size=16",
        "optimiser=grid",
        "optimiser.max_trials=4",
    )
    kept = killed_at(200, call, tmp_path)
    souping(*call, "hydra.run.dir=outputs/fam/resumed").ok()
    here = [word for word in call if not word.startswith("executor")]
    souping(*here, "store=fresh.sqlite", "hydra.run.dir=outputs/fam/fresh").ok()
    resumed = report_of(tmp_path / "outputs/fam/resumed")
    fresh = report_of(tmp_path / "outputs/fam/fresh")
    assert fresh["rows"] == resumed["rows"]
    assert fresh["recipe"] == resumed["recipe"]
    assert fresh["cost"]["evaluated_items"] - resumed["cost"]["evaluated_items"] == kept
    assert timeless(fresh)["verdict"] == timeless(resumed)["verdict"]


SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
while [[ "$1" == -* ]]; do if [ "$1" = -w ]; then shift; fi; shift; done
if [ "$1" = hostname ]; then echo 127.0.0.1; else exec "$@"; fi
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> "$LOG"\necho node1\n'


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_a_search_runs_on_the_nodes_of_a_job(family: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stand_ins / name).write_text(program)
        (stand_ins / name).chmod(0o755)
    path = f"{stand_ins}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "LOG": str(log),
        "RAY_PORT": str(free_port()),
    }
    environment |= {
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    call = [
        *pool_of(family),
        "selector=topk",
        "selector.k=2",
        "executor.actors=1",
        "optimiser=uniform",
    ]
    line = ["bash", str(ROOT / "sweeps/slurm_search.sh"), *call, "hydra.run.dir=out"]
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert report_of(tmp_path / "out")["rows"]
    told = log.read_text().splitlines()
    assert told[0] == "scontrol show hostnames node1"
    assert "--min-nodes 1 -- python -m souping executor=ray executor.address=auto" in told[-1]
