"""sweeps/slurm_search.sh against stand-ins of srun and scontrol on one machine, with Ray itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import ROOT, pool_of
from tests.pipeline.test_run import report_of

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")

SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
while [[ "$1" == -* ]]; do if [ "$1" = -w ]; then shift; fi; shift; done
if [ "$1" = hostname ]; then echo 127.0.0.1; else exec "$@"; fi
"""
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> "$LOG"\necho node1\n'


def stand_ins(folder: Path) -> Path:
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_a_search_runs_on_the_nodes_of_a_job(family: Path, tmp_path: Path) -> None:
    log, folder = tmp_path / "log", Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{stand_ins(tmp_path / 'bin')}:{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "LOG": str(log),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
        "RAY_PORT": str(free_port()),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    call = [*pool_of(family), "selector=topk", "selector.k=2", "executor.actors=1", "optimiser=uniform"]
    done = subprocess.run(
        ["bash", str(ROOT / "sweeps/slurm_search.sh"), *call, "hydra.run.dir=out"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert report_of(tmp_path / "out")["rows"]
    told = log.read_text().splitlines()
    assert told[0] == "scontrol show hostnames node1"
    assert "--min-nodes 1 -- python -m souping executor=ray executor.address=auto" in told[-1]
