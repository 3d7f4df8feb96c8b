"""`merge=accelerate`: the bytes of `merge=local`, one clear error whatever goes wrong, and no process left behind."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from souping.core.system import package_environment
from souping.core.types import UserError
from souping.merge import ERROR, accelerate
from souping.merge.accelerate import AccelerateMerge, Rank, cause, rank_count
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import prepare
from tests.support.checkpoints import aligned, opened, random_tensors, save
from tests.support.processes import wait_for

Siblings = dict[str, Path]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def siblings(folder: Path, *dtypes: torch.dtype, rows: tuple[int, ...] = (12, 12, 12), shards: int = 1) -> Siblings:
    """Models a, b, c: small tensors, and a large one at the end that two ranks share."""
    folders = {}
    for seed, (name, size) in enumerate(zip("abc", rows, strict=True)):
        dtype = dtypes[seed % len(dtypes)]
        large = torch.randn((1003, 601), generator=torch.Generator().manual_seed(seed)).to(dtype)
        config = {"vocab_size": size, "torch_dtype": str(dtype).removeprefix("torch.")}
        tensors = {**random_tensors(seed, dtype, rows=size), "model.z.weight": large}
        folders[name] = save(folder / name, tensors, config, shards)
    return folders


def planned(folders: Siblings, weights: tuple[float, ...] = (0.2, 0.5, 0.3), **fields: Any) -> MergePlan:
    if fields.get("method") == "task_arithmetic":
        fields["base"] = str(folders["a"])
    merge = LocalMerge(**fields)
    return merge.plan(merge.recipe(tuple(folders), weights, *opened(folders)), aligned(merge, folders))


def staging(plan: MergePlan, folder: Path) -> Path:
    folder.mkdir()
    prepare(plan, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing_left(out: Path) -> bool:
    return not out.exists() and not list(out.parent.glob(f".{out.name}*"))


def spoil(folders: Siblings, value: float) -> None:
    """Put a value near the end of the large tensor of b: the last rank's share."""
    with (folders["b"] / "model.safetensors").open("r+b") as file:
        file.seek(-2 * 1000, os.SEEK_END)
        file.write(torch.tensor([value], dtype=BF16).view(torch.int16).numpy().tobytes())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    return siblings(tmp_path_factory.mktemp("pool"), BF16)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp16 in shards to shards": ({"dtypes": (F16,), "shards": 3}, {"max_shard_size": "300KB"}),
    "mixed dtypes": ({"dtypes": (BF16, F16, F32)}, {}),
    "overrides": ({"dtypes": (BF16,)}, {"overrides": {"*.mlp.*": [0.1, 0.1, 0.8]}}),
    "vocabulary union": ({"dtypes": (BF16,), "rows": (12, 15, 13)}, {"vocab": "union"}),
    "zero weight": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75)}),
    "slerp": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75), "method": "slerp"}),
    "task arithmetic": ({"dtypes": (BF16,)}, {"method": "task_arithmetic", "scale": 0.7}),
}


@pytest.mark.parametrize("case", CASES)
def test_shares_of_two_ranks_are_the_bytes_of_local(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank by rank in this process; one of the ranks that really run is a test below."""
    monkeypatch.setattr("accelerate.PartialState.wait_for_everyone", lambda self: None)
    files, fields = CASES[case]
    plan = planned(siblings(tmp_path, *files["dtypes"], **{k: v for k, v in files.items() if k != "dtypes"}), **fields)
    stage = staging(plan, tmp_path / "stage")
    for number in (1, 0):
        Rank(number=number, count=2, local=2).fill(plan, stage)
    local = contents(LocalMerge().write(plan, tmp_path / "local"))
    assert contents(stage) == {name: local[name] for name in plan.shards}


def test_two_ranks_that_run_write_the_bytes_of_local(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One soup by `accelerate launch`: its files, the warning of a rank, its progress, and the end of its processes."""
    folders = siblings(tmp_path / "pool", BF16)
    spoil(folders, float("inf"))
    plan, done = planned(folders, nonfinite="warn", max_shard_size="500KB"), list[int]()
    logging.getLogger("souping.merge").disabled = False  # Hydra leaves loggers mute
    with caplog.at_level(logging.WARNING, "souping.merge"):
        out = AccelerateMerge(num_processes=2).write(
            plan, tmp_path / "ranks", lambda now, total: done.append(now), {"README.md": "card"}
        )
    assert sum("NaN or infinity in tensor model.z.weight" in record.message for record in caplog.records) == 1
    assert done == [plan.nbytes]
    assert contents(out) == contents(LocalMerge().write(plan, tmp_path / "local", extra_files={"README.md": "card"}))
    assert not working(tmp_path)


def working(folder: Path) -> list[int]:
    """Launchers and ranks that write below a folder."""
    lines = [(one.pid, one.info["cmdline"] or []) for one in psutil.process_iter(["cmdline"])]
    return [pid for pid, line in lines if pid != os.getpid() and any(str(folder) in part for part in line)]


HOLD = """
import os, sys, time
sys.argv = ["souping.merge", *sys.argv[1:]]
from souping.merge import ERROR, __main__, accelerate
fill = accelerate.Rank.fill
def held(rank, *rest):
    if rank.number == 1:
        with open(os.environ["MEET"] + ".part", "w") as file:
            file.write(f"{os.getpid()}\\n")
        os.rename(os.environ["MEET"] + ".part", os.environ["MEET"])
        while os.path.exists(os.environ["MEET"]):
            time.sleep(0.02)
    fill(rank, *rest)
accelerate.Rank.fill = held
raise SystemExit(__main__.main())
"""
"""`souping.merge` whose rank 1, once the ranks have met, writes its number to a file and waits until that is gone."""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which rank 1 says that it waits."""
    (tmp_path / "held.py").write_text(HOLD)
    monkeypatch.setenv("MEET", str(tmp_path / "meet"))
    start = accelerate.launcher
    monkeypatch.setattr(accelerate, "launcher", lambda *a: [*start(*a)[:-2], str(tmp_path / "held.py")])
    return tmp_path / "meet"


@contextmanager
def writing(merge: AccelerateMerge, plan: MergePlan, out: Path) -> Iterator[list[str]]:
    """A soup that is written in a thread; its error afterwards."""
    errors: list[str] = []

    def write() -> None:
        try:
            merge.write(plan, out)
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    yield errors
    thread.join(600)


@pytest.mark.slow
def test_a_rank_that_dies_ends_all(pool: Siblings, tmp_path: Path, held: Path) -> None:
    with writing(AccelerateMerge(num_processes=2), planned(pool), tmp_path / "soup") as errors:
        os.kill(int(wait_for(held)), signal.SIGKILL)
    assert errors == ["merge=accelerate: rank 1 ended with signal 9 (out of memory?); nothing was written"]
    assert nothing_left(tmp_path / "soup")
    assert not working(tmp_path)


@pytest.mark.slow
def test_a_silent_rank_ends_all(pool: Siblings, tmp_path: Path, held: Path) -> None:
    """Rank 0 gives up waiting; the other one never ends by itself."""
    with writing(AccelerateMerge(num_processes=2, timeout=20.0), planned(pool), tmp_path / "soup") as errors:
        until(lambda: held.exists() or bool(errors))  # a busy machine may take too long to let them meet
    assert len(errors) == 1
    assert "another rank died or did not answer in time" in errors[0]
    assert nothing_left(tmp_path / "soup")
    assert not working(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["run", "launcher"])
@pytest.mark.parametrize("early", [True, False], ids=["while ranks start", "while they work"])
def test_nothing_outlives_a_killed_run_or_launcher(
    pool: Siblings, tmp_path: Path, held: Path, victim: str, early: bool
) -> None:
    saved = planned(pool).save(tmp_path / "plan.json")
    code = (
        "import sys; from pathlib import Path; from souping.merge import accelerate, alignment\n"
        "start, (saved, held, out) = accelerate.launcher, sys.argv[1:]\n"
        "accelerate.launcher = lambda *a: [*start(*a)[:-2], held]\n"
        "accelerate.AccelerateMerge(num_processes=2).write(alignment.load_plan(Path(saved)), Path(out))\n"
    )
    command = [sys.executable, "-c", code, str(saved), str(tmp_path / "held.py"), str(tmp_path / "soup")]
    run = subprocess.Popen(command, env=package_environment(), stderr=subprocess.PIPE, text=True)
    until(lambda: len(psutil.Process(run.pid).children(recursive=True)) >= 3)
    if not early:
        wait_for(held)
    everyone = psutil.Process(run.pid).children(recursive=True)
    (everyone[0] if victim == "launcher" else run).kill()
    _, err = run.communicate(timeout=600)
    until(lambda: not working(tmp_path))
    assert victim == "run" or "UserError: " in err


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupt_ends_the_ranks(pool: Siblings, tmp_path: Path, held: Path) -> None:
    def interrupt() -> None:
        wait_for(held)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        AccelerateMerge(num_processes=2).write(planned(pool), tmp_path / "soup")
    assert nothing_left(tmp_path / "soup")
    until(lambda: not working(tmp_path))


@pytest.mark.slow
def test_fewer_ranks_than_asked(pool: Siblings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu` starts one process, whatever number it is given."""
    start = accelerate.launcher
    on_cpu = {"--multi_gpu": "--cpu"}
    monkeypatch.setattr(accelerate, "launcher", lambda *a: [on_cpu.get(part, part) for part in start(*a)])
    with pytest.raises(UserError, match="2 ranks were asked for and accelerate started 1"):
        AccelerateMerge(num_processes=2).write(planned(pool), tmp_path / "soup")
    assert nothing_left(tmp_path / "soup")


LAUNCHER = """{line}
[rank1]: RuntimeError: Connection closed by peer
worker FAILED
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 25786)
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 25783)
============================================================
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUNCHER.format(code=-9, line=f"{ERROR}lost"), "rank 1 ended with signal 9 (out of memory?)"),
        ("ImportError: no torch\n", "the ranks ended: ImportError: no torch"),
    ],
)
def test_why_ranks_ended(text: str, reason: str) -> None:
    assert cause(text) == f"merge=accelerate: {reason}; nothing was written"


def test_how_many_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (rank_count(None), rank_count(3)) == (2, 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (rank_count(None), rank_count(3)) == (4, 3)
    with pytest.raises(UserError, match=r"merge\.num_processes=5 is more than the number of GPUs, 4"):
        rank_count(5)


@pytest.mark.parametrize(
    "fields", [{"num_processes": 0}, {"main_process_port": 70000}, {"timeout": 0.0}, {"method": "liner"}]
)
def test_settings_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(fields))):
        AccelerateMerge(**fields)


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=package_environment(), text=True, start_new_session=True, **pipes)


@pytest.mark.slow
def test_a_plan_by_a_command(pool: Siblings, tmp_path: Path) -> None:
    plan = planned(pool, max_shard_size="500KB")
    saved, out = str(plan.save(tmp_path / "plan.json")), tmp_path / "soup"
    two = ("--num_processes", "2", "--main_process_port", "0", "-m", "souping.merge", saved, str(out))
    process = launch(*two)
    text, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"{out} written" in text
    assert contents(out) == contents(LocalMerge().write(plan, tmp_path / "local"))
    process = launch(*two)
    err = process.communicate(timeout=600)[1]
    assert process.returncode
    assert len(re.findall(f"^{ERROR}.*soup exists and is not an empty folder", err, re.MULTILINE)) == 1


@pytest.mark.slow
def test_a_plan_across_machines(pool: Siblings, tmp_path: Path) -> None:
    """Two launchers that meet at an address: the form for several hosts, here twice the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    plan = planned(pool)
    saved = str(plan.save(tmp_path / "plan.json"))
    meet = ["--num_processes", "2", "--num_machines", "2", "--main_process_ip", "127.0.0.1"]
    meet += ["--main_process_port", port]
    work = ["-m", "souping.merge", saved, str(tmp_path / "soup"), "--num-processes", "2"]
    both = [launch(*meet, "--machine_rank", rank, *work) for rank in "01"]
    texts = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert contents(tmp_path / "soup") == contents(LocalMerge().write(plan, tmp_path / "local"))


def test_errors_name_the_machine_if_there_are_several(pool: Siblings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all machines must see the same folders"):
        Rank(number=1, count=2, local=1).fill(planned(pool), tmp_path)  # nothing is prepared there
