"""A soup appears whole or not at all, from one process or several ranks: full disks, kills, digests, equal bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.header import Tensor
from souping.checkpoints.views import Raw
from souping.core import direct_io
from souping.core.system import package_environment
from souping.core.types import UserError
from souping.merge import ERROR_PREFIX, accelerate, mixing, writer
from souping.merge.accelerate import AccelerateMerge, Rank, rank_count
from souping.merge.digests import PassingDigest
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import write_hashed
from tests.conftest import ROOT, Cli
from tests.support.checkpoints import (
    family,
    load,
    plan,
    random_tensors,
    save,
    simple,
)
from tests.support.merges import Siblings, contents, planned, siblings, staging
from tests.support.processes import wait_for


@pytest.fixture
def made(tmp_path: Path) -> MergePlan:
    folders = family(tmp_path / "pool", 2)
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "secrets.txt"):
        (folders["m0"] / name).write_text("{}")
    return plan(simple(folders, (0.5, 0.5)), folders)


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir() if path.name != "pool")


def test_the_files_of_the_first_model_are_carried_into_the_soup(
    made: MergePlan, tmp_path: Path
) -> None:
    out = LocalMerge().write(
        made, tmp_path / "deep" / "er" / "soup", extra_files={"README.md": "# card"}
    )
    carried = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"}
    assert {path.name for path in out.iterdir()} == {
        *carried,
        "README.md",
        "model.safetensors",
        "recipe.json",
    }
    assert json.loads((out / "recipe.json").read_text())["weights"] == [0.5, 0.5]
    assert (out / "config.json").read_bytes() == Path(
        made.ingredients[0].folder, "config.json"
    ).read_bytes()
    with pytest.raises(UserError, match=r"config\.json would replace"):
        LocalMerge().write(made, tmp_path / "other", extra_files={"config.json": "{}"})
    assert left(tmp_path) == ["deep"]


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    tensors = {f"model.layers.{i}.w": random_tensors(i)["model.norm.weight"] for i in range(40)}
    folders = {name: save(tmp_path / "pool" / name, tensors, shards=40) for name in ("m0", "m1")}
    made = plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=66)
    assert len(made.shards) == 40
    free = LocalMerge().write(made, tmp_path / "free")
    made.save(tmp_path / "plan.json")
    tight = f"ulimit -Sn 64; exec {sys.executable} -m souping.merge {tmp_path}/plan.json {tmp_path}/tight"
    done = subprocess.run(
        ["bash", "-c", tight], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in free.iterdir():
        assert path.read_bytes() == (tmp_path / "tight" / path.name).read_bytes()


@pytest.mark.parametrize("hashes", [False, True])
def test_models_that_the_memory_cannot_hold_pass_the_page_cache(
    hashes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = family(tmp_path / "pool", 2, rows=9000)
    made = plan(simple(folders, (0.25, 0.75)), folders)

    def write(name: str) -> tuple[dict[str, bytes], dict[str, str]]:
        known = dict[str, str]()
        out = tmp_path / name
        if hashes:
            write_hashed(made, out, lambda _: {}, known=known)
        else:
            LocalMerge().write(made, out)
        return {path.name: path.read_bytes() for path in out.iterdir()}, known

    written = list[int]()

    def write_direct(direct: int, cached: int, data: Raw, offset: int) -> None:
        written.append(len(data))
        direct_io.write_direct(direct, cached, data, offset)

    monkeypatch.setattr(writer, "write_direct", write_direct)
    cached = write("cached")
    assert not written
    monkeypatch.setattr(writer, "memory_bytes", lambda: made.read_bytes + made.nbytes - 1)
    assert write("direct") == cached
    assert sum(written) in (0, made.nbytes), "0 where the file system cannot"


def test_a_target_that_is_there_is_kept(made: MergePlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    for kind in ("file", "folder", "link"):
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            LocalMerge().write(made, tmp_path / kind)
    assert left(tmp_path) == ["file", "folder", "link"]


@pytest.mark.parametrize("where", ["reserve", "write"])
def test_a_full_disk_leaves_nothing_behind(
    made: MergePlan, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate" if where == "reserve" else "pwrite", full)
    with pytest.raises(OSError, match="No space left on device"):
        LocalMerge().write(made, tmp_path / "new" / "soup")
    assert left(tmp_path) == []


def test_file_systems_that_cannot_reserve(
    made: MergePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    (tmp_path / "soup").mkdir()  # an empty target is filled
    seen: list[tuple[int, int]] = []
    LocalMerge().write(made, tmp_path / "soup", lambda done, total: seen.append((done, total)))
    assert len(load(tmp_path / "soup")) == 7
    assert seen[-1] == (made.nbytes, made.nbytes)


def test_an_interrupt_leaves_nothing(made: MergePlan, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalMerge().write(made, tmp_path / "soup", stop)
    assert left(tmp_path) == []


def test_a_killed_run_leaves_the_target_absent_and_the_next_cleans_up(
    made: MergePlan, tmp_path: Path
) -> None:
    made.save(tmp_path / "pool" / "plan.json")
    script = f"""
        import os, pathlib, signal
        from souping.merge.local import LocalMerge
        from souping.merge.stored import load_plan
        plan = load_plan(pathlib.Path({str(tmp_path / "pool" / "plan.json")!r}))
        out = pathlib.Path({str(tmp_path / "soup")!r})
        LocalMerge().write(plan, out, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [name.split("-")[0] for name in left(tmp_path)] == [".soup.lock", ".soup.part"]
    LocalMerge().write(made, tmp_path / "soup")
    assert left(tmp_path) == ["soup"]


def test_a_plain_merge_imports_neither_torch_nor_transformers(
    made: MergePlan, tmp_path: Path
) -> None:
    path = made.save(tmp_path / "pool" / "plan.json")
    script = (
        "import sys; from souping.merge.__main__ import merge_plan as main; "
        f"assert main([{str(path)!r}, {str(tmp_path / 'soup')!r}]) == 0; "
        "print(sorted({'torch', 'transformers', 'hydra', 'numba', 'safetensors'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("count", [2, 8, 40])
def test_buffers_do_not_grow_with_the_number_of_models(count: int, tmp_path: Path) -> None:
    tensors = {"w": random_tensors(0)["model.norm.weight"]}
    folders = {str(i): save(tmp_path / str(i), tensors) for i in range(count)}
    chunk = mixing.chunks(plan(simple(folders, (1 / count,) * count), folders))[0]
    block = next(mixing.blocks(replace(chunk, count=1 << 30)))
    assert block.count * count <= mixing.THREAD_ELEMENTS


CONTENT = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)


SIZES = (0, 900, 4000, 0, 3, 4997, 0)


def passing(path: Path, *, gap: int = 0) -> tuple[PassingDigest, list[str]]:
    """A digest of tensors in a file, which begin at byte 100, and what it has to be."""
    path.write_bytes(CONTENT.tobytes())
    starts = itertools.accumulate(SIZES, initial=100)
    tensors = [
        Tensor(f"t{i}", "U8", (size,), path.name, start, size)
        for i, (size, start) in enumerate(zip(SIZES, starts, strict=False))
    ]
    # Bytes that belong to no tensor, before the sixth.
    sixth = tensors[5]
    tensors[5] = replace(sixth, offset=sixth.offset + gap, nbytes=sixth.nbytes - gap)

    checkpoint = Checkpoint.of(path.parent, {tensor.name: tensor for tensor in tensors}, {}, (), {})
    digests = []
    for tensor in tensors:
        content = CONTENT[tensor.offset : tensor.offset + tensor.nbytes]
        digests.append(hashlib.sha256(content.tobytes()).hexdigest())
    return PassingDigest(checkpoint, tensors), digests


def kept(digest: PassingDigest) -> list[str]:
    known = dict[str, str]()
    digest.finish()
    digest.keep(known)
    return next(iter(known.values())).split()


ORDERS: dict[str, list[tuple[int, int]]] = {
    "twice": [(100, 5000), (100, 5000), (5000, 10_000)],
    "with gaps": [(2000, 5000)],
    "none": [],
    "backwards": [(a, a + 100) for a in range(9900, 0, -100)],
    "in many pieces": [(a, a + 100) for a in range(100, 10_000, 100)],
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [1, 4])
def test_a_digest_of_parts_is_the_digest_of_every_tensor(
    tmp_path: Path, order: str, threads: int
) -> None:
    digest, values = passing(tmp_path / "file")
    with ThreadPoolExecutor(threads) as pool:
        promised = [(a, b) for a, b in ORDERS[order] if digest.promise(a, b - a)]
        for job in [pool.submit(digest.feed, a, CONTENT[a:b]) for a, b in promised]:
            job.result()
    assert kept(digest) == values


def test_bytes_between_tensors_do_not_count(tmp_path: Path) -> None:
    digest, values = passing(tmp_path / "file", gap=64)
    for start, end in ((100, 5003), (5067, 6000)):
        assert digest.promise(start, end - start)
        digest.feed(start, CONTENT[start:end])
    assert kept(digest) == values


def test_nobody_waits_for_a_thread_that_failed(tmp_path: Path) -> None:
    digest, values = passing(tmp_path / "file")
    # Promised are bytes that follow those before; the last leave a gap.
    assert digest.promise(offset=100, size=900)
    assert digest.promise(offset=1000, size=500)
    assert not digest.promise(offset=2000, size=500)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(digest.feed, 1000, CONTENT[1000:1500])
        digest.abandon()
        waits.result(timeout=600)
    assert kept(digest) == values


def test_a_file_that_changes_meanwhile_gets_no_digest(tmp_path: Path) -> None:
    digest = passing(tmp_path / "file")[0]
    known = dict[str, str]()
    (tmp_path / "file").write_bytes(CONTENT[::-1].tobytes())
    digest.finish()
    with pytest.raises(UserError, match="has changed"):
        digest.keep(known)
    assert known == {}


def test_a_first_merge_names_its_ingredients_by_content(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    shutil.copytree(family / "ant", tmp_path / "twin")
    pool = [f"pool.candidates=[{family / 'ant'},{family / 'bee'},{tmp_path / 'twin'}]"]
    words = ["+experiment=merge", *pool, "optimiser.weights=[0.5,0.3,0.2]"]
    first, second = (souping(*words, f"out=soup_{number}").ok() for number in (1, 2))
    recipe = json.loads((tmp_path / "soup_1/recipe.json").read_text())
    assert recipe["fingerprints"] == [fingerprint(family / name) for name in ("ant", "bee", "ant")]
    for path in (tmp_path / "soup_1").iterdir():
        own = path.read_bytes().replace(b"soup_1", b"soup_2")
        assert own == (tmp_path / "soup_2" / path.name).read_bytes()
    assert all(
        "ant and twin hold the same bytes" in done.out + done.err for done in (first, second)
    )
    souping("rebuild", "soup_1/recipe.json", "out=third").ok()


BF16 = torch.bfloat16
F16 = torch.float16
F32 = torch.float32


def spoil(folders: Siblings, value: float) -> None:
    with (folders["b"] / "model.safetensors").open("r+b") as file:
        file.seek(-2 * 1000, os.SEEK_END)
        file.write(torch.tensor([value], dtype=BF16).view(torch.int16).numpy().tobytes())


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Siblings:
    return siblings(tmp_path_factory.mktemp("pool"), BF16)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fp16 in shards to shards": ({"dtypes": (F16,), "shards": 3}, {"max_shard_size": "300KB"}),
    "mixed dtypes": ({"dtypes": (BF16, F16, F32)}, {}),
    "tensor_weights": ({"dtypes": (BF16,)}, {"tensor_weights": {"*.mlp.*": [0.1, 0.1, 0.8]}}),
    "vocabulary union": ({"dtypes": (BF16,), "rows": (12, 15, 13)}, {"vocab": "union"}),
    "zero weight": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75)}),
    "slerp": ({"dtypes": (BF16,)}, {"weights": (0.25, 0.0, 0.75), "method": "slerp"}),
    "task arithmetic": ({"dtypes": (BF16,)}, {"method": "task_arithmetic", "scale": 0.7}),
}


@pytest.mark.parametrize("case", CASES)
def test_shares_of_two_ranks_are_the_bytes_of_local(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.PartialState.wait_for_everyone", lambda self: None)
    files, fields = CASES[case]
    others = {key: value for key, value in files.items() if key != "dtypes"}
    plan = planned(siblings(tmp_path, *files["dtypes"], **others), **fields)
    stage = staging(plan, tmp_path / "stage")
    for number in (1, 0):
        Rank(number=number, count=2, local=2).fill(plan, stage)
    local = contents(LocalMerge().write(plan, tmp_path / "local"))
    assert contents(stage) == {name: local[name] for name in plan.shards}


@pytest.mark.slow
def test_two_ranks_that_run_write_the_bytes_of_local(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = siblings(tmp_path / "pool", BF16)
    spoil(folders, float("inf"))
    plan = planned(folders, nonfinite="warn", max_shard_size="500KB")
    done = list[int]()
    logging.getLogger("souping.merge").disabled = False  # Hydra leaves loggers mute
    with caplog.at_level(logging.WARNING, "souping.merge"):
        out = AccelerateMerge(num_processes=2).write(
            plan, tmp_path / "ranks", lambda now, total: done.append(now), {"README.md": "card"}
        )
    assert (
        sum(
            "NaN or infinity in tensor model.z.weight" in record.message
            for record in caplog.records
        )
        == 1
    )
    assert done == [plan.nbytes]
    assert "2 ranks, " in capsys.readouterr().out
    assert contents(out) == contents(
        LocalMerge().write(plan, tmp_path / "local", extra_files={"README.md": "card"})
    )
    assert not working(tmp_path)


def working(folder: Path) -> list[int]:
    pids = []
    for process in psutil.process_iter(["cmdline"]):
        names_folder = any(str(folder) in word for word in process.info["cmdline"] or [])
        if names_folder and process.pid != os.getpid():
            pids.append(process.pid)
    return pids


HOLD = """
import os, sys, time
sys.argv = ["souping.merge", *sys.argv[1:]]
from souping.merge import ERROR_PREFIX, __main__, accelerate
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
raise SystemExit(__main__.merge_plan())
"""
"""`souping.merge` whose rank 1, once the ranks have met, writes its number to a file and waits until that is gone."""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which rank 1 says that it waits."""
    (tmp_path / "held.py").write_text(HOLD)
    monkeypatch.setenv("MEET", str(tmp_path / "meet"))
    start = accelerate.launcher
    monkeypatch.setattr(
        accelerate, "launcher", lambda *a: [*start(*a)[:-2], str(tmp_path / "held.py")]
    )
    return tmp_path / "meet"


def check_nothing_left(folder: Path) -> None:
    assert not list(folder.glob("*soup*"))
    until(lambda: not working(folder))


def in_thread(merge: AccelerateMerge, plan: MergePlan, out: Path) -> Future[Path]:
    return ThreadPoolExecutor(1).submit(merge.write, plan, out)


@pytest.mark.slow
def test_a_rank_that_dies_ends_all(pool: Siblings, tmp_path: Path, held: Path) -> None:
    done = in_thread(AccelerateMerge(num_processes=2), planned(pool), tmp_path / "soup")
    os.kill(int(wait_for(held)), signal.SIGKILL)
    reason = "rank 1 ended with signal 9 (out of memory?); nothing was written"
    assert str(done.exception(600)) == f"merge=accelerate: {reason}"
    check_nothing_left(tmp_path)


@pytest.mark.slow
def test_a_silent_rank_ends_all(pool: Siblings, tmp_path: Path, held: Path) -> None:
    """Rank 0 gives up waiting; the other one never ends by itself."""
    done = in_thread(
        AccelerateMerge(num_processes=2, timeout=20.0), planned(pool), tmp_path / "soup"
    )
    assert "another rank died or did not answer in time" in str(done.exception(600))
    check_nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["run", "launcher"])
@pytest.mark.parametrize("early", [True, False], ids=["while ranks start", "while they work"])
def test_nothing_outlives_a_killed(
    victim: str, early: bool, pool: Siblings, tmp_path: Path, held: Path
) -> None:
    saved = planned(pool).save(tmp_path / "plan.json")
    code = (
        "import sys; from pathlib import Path; from souping.merge import accelerate, stored\n"
        "start, (saved, held, out) = accelerate.launcher, sys.argv[1:]\n"
        "accelerate.launcher = lambda *a: [*start(*a)[:-2], held]\n"
        "accelerate.AccelerateMerge(num_processes=2).write(stored.load_plan(Path(saved)), Path(out))\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(saved),
        str(tmp_path / "held.py"),
        str(tmp_path / "soup"),
    ]
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
    check_nothing_left(tmp_path)


@pytest.mark.slow
def test_fewer_ranks_than_asked(
    pool: Siblings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch --cpu` starts one process, whatever number it is given."""
    start = accelerate.launcher
    on_cpu = {"--multi_gpu": "--cpu"}
    monkeypatch.setattr(
        accelerate, "launcher", lambda *a: [on_cpu.get(part, part) for part in start(*a)]
    )
    with pytest.raises(UserError, match="2 ranks were asked for and accelerate started 1"):
        AccelerateMerge(num_processes=2).write(planned(pool), tmp_path / "soup")
    check_nothing_left(tmp_path)


def test_a_rank_in_the_run_says_where_it_worked(
    pool: Siblings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AccelerateMerge(num_processes=1).write(planned(pool), tmp_path / "soup")
    assert "1 rank, on " in capsys.readouterr().out
    assert Rank(gpu=torch.device("cuda", 3)).device == "cuda:3"


def test_there_are_as_many_ranks_as_gpus_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, ranks in {0: 2, 4: 4}.items():
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert (rank_count(None), rank_count(3)) == (ranks, 3)
    with pytest.raises(
        UserError, match=r"merge\.num_processes=5 is more than the number of GPUs, 4"
    ):
        rank_count(5)


def launch(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *arguments]
    settings: Any = {"env": package_environment(), "text": True, "start_new_session": True}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings)


@pytest.mark.slow
def test_a_plan_by_a_command(pool: Siblings, tmp_path: Path) -> None:
    plan = planned(pool, max_shard_size="500KB")
    saved = str(plan.save(tmp_path / "plan.json"))
    out = tmp_path / "soup"
    two = (
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "souping.merge",
        saved,
        str(out),
    )
    process = launch(*two)
    text, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert f"{out} written" in text
    assert contents(out) == contents(LocalMerge().write(plan, tmp_path / "local"))
    process = launch(*two)
    err = process.communicate(timeout=600)[1]
    assert process.returncode
    assert (
        len(
            re.findall(
                f"^{ERROR_PREFIX}.*soup exists and is not an empty folder", err, re.MULTILINE
            )
        )
        == 1
    )


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
