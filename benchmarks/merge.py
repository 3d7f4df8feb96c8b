"""The merge engine against the limits of the machine, mergekit, and naive averaging; inputs are generated.

    python -m benchmarks.merge --folder /tmp/merge-bench --mergekit /path/to/mergekit-yaml --rounds 5

Every ratio comes from interleaved rounds of one run, after one that is thrown away, with `sync` before each. Needs
about 12 GB of disk in --folder, which is emptied at the end, and memory enough for 10 GB of page cache.

    python -m benchmarks.merge --folder /tmp/merge-bench --size 12 --rounds 3

merges two models of 12 GB from a cold disk, beside the same reads and writes alone. It needs 36 GB of disk.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.merge_inputs import generate, in_fp8, sparse_70b
from benchmarks.merge_phases import averaging, cold, forget, loading, recipe_of, timed
from souping.checkpoints.checkpoint import Checkpoint
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan

HERE = Path(__file__).resolve().parent
LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""  # a small parent of its own: a child's peak memory starts at its parent's
UNLIKE = ("olmo", "raw")
"""Contenders whose tensors are not compared: OLMo-core writes another layout, `raw` does not mix."""
WEIGHTS = {2: (0.4, 0.6), 4: (0.1, 0.2, 0.3, 0.4), 8: (0.125,) * 8}


class Bench:
    """Runs processes in turn and keeps what they cost."""

    def __init__(self, folder: Path, mergekit: str | None, olmo: list[str] | None) -> None:
        self.folder = folder
        self.mergekit = mergekit
        self.olmo = olmo
        self.lines: list[str] = []
        self.written: dict[str, dict[str, str]] = {}

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def inputs(self, size: str, count: int, distinct: int) -> dict[str, Path]:
        """`count` checkpoints of `size` GB; beyond `distinct` they are the first ones again under other names."""
        made = []
        for seed in range(min(count, distinct)):
            path = self.folder / "inputs" / size / f"m{seed}"
            made.append(path if path.exists() else generate(path, size, seed))
        for number in range(len(made), count):
            path = self.folder / "inputs" / size / f"m{number}"
            if not path.exists():
                shutil.copytree(made[number % distinct], path, copy_function=os.link)
            made.append(path)
        return {f"m{i}": path for i, path in enumerate(made)}

    def shards(self, folder: Path, cut: str) -> Path:
        """A checkpoint as two ranks write it with torch."""
        out = folder.with_name(f"{folder.name}-{cut}")
        if not out.exists():
            script = [
                sys.executable,
                "-P",
                str(HERE / "merge_shards.py"),
                str(folder),
                str(out),
                cut,
            ]
            subprocess.run(script, check=True, capture_output=True)
        return out

    def trained(self, sharded: Path) -> Path:
        """A sharded checkpoint as a step of OLMo-core's trainer has it."""
        out = sharded.with_name(f"{sharded.name}-step")
        out.mkdir(exist_ok=True)
        if not (out / "model_and_optim").exists():
            (out / "model_and_optim").symlink_to(sharded)
        return out

    def command(self, what: str, folders: dict[str, Path]) -> list[str]:
        """The command of a contender: mergekit, `convert` (DCP to folders, then mergekit), OLMo-core's script, ours (of
        sharded checkpoints `ours_like_SIZE_..`, with the model of that size they are like), or a script beside this."""
        out = str(self.folder / "out")
        paths = [str(path) for path in folders.values()]
        weights = WEIGHTS[len(paths)]
        if what == "mergekit":
            models = [
                {"model": p, "parameters": {"weight": w}}
                for p, w in zip(paths, weights, strict=True)
            ]
            table = {"merge_method": "linear", "models": models, "parameters": {"normalize": False}}
            config = self.folder / "mergekit.yml"
            config.write_text(json.dumps({**table, "dtype": "bfloat16"}))  # JSON is YAML
            flags = [
                "--no-copy-tokenizer",
                "--no-write-model-card",
                "--quiet",
                "--lazy-unpickle",
                "--async-write",
            ]
            return [str(self.mergekit), str(config), out, *flags]
        if what == "convert":
            like = str(self.folder / "inputs" / folders["m0"].parent.name / "m0")
            script = [sys.executable, "-P", str(HERE / "merge_convert.py"), str(self.mergekit)]
            return [*script, out, _text(weights), like, *paths]
        if what == "olmo":
            assert self.olmo
            return [
                *self.olmo,
                *(f"--model={path}" for path in paths),
                f"--output={out}",
                "--skip-optimizer-state",
            ]
        if what.startswith("ours"):
            pool = ",".join(paths)
            shares = ",".join(map(str, weights))
            words = [f"pool.candidates=[{pool}]", f"optimiser.weights=[{shares}]", f"out={out}"]
            if "_like_" in what:
                size = what.split("_")[2]
                words.append(f"pool.reference_model={self.folder / 'inputs' / size / 'm0'}")
            return [sys.executable, "-m", "souping", "+experiment=merge", *words]
        return [sys.executable, "-P", str(HERE / f"merge_{what}.py"), out, _text(weights), *paths]

    def cost(
        self, what: str, folders: dict[str, Path], cold: bool = False
    ) -> tuple[float, float, float]:
        """(wall s, cpu s, peak RSS in MB) of one process, started with a clean target and a quiet disk.

        If `cold`, the inputs are dropped from the page cache before.

        All write to one folder: the place of a folder on the disk can make it a third slower.
        """
        command = self.command(what, folders)
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        place = self.folder / ("empty" if what.endswith("_empty") else "warm")
        if place.name == "empty":
            shutil.rmtree(place, ignore_errors=True)
        place.mkdir(exist_ok=True)
        os.sync()
        if cold:
            forget(path for folder in folders.values() for path in folder.iterdir())
        own = {"PYTHONPATH": str(HERE.parent)} if what.startswith("ours") or what == "naive" else {}
        environment = {**os.environ, **own, "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody types that
        log = self.folder / "log"
        with log.open("wb") as file:
            launch = [sys.executable, "-S", "-c", LAUNCHER, *command]
            done = subprocess.run(
                launch, stdout=subprocess.PIPE, stderr=file, env=environment, check=False, cwd=place
            )
        if done.returncode:
            raise SystemExit(f"{what} failed:\n{log.read_text()[-2000:]}")
        if what not in self.written and what not in UNLIKE:
            self.written[what] = digests(self.folder / "out")
        wall, cpu, rss = map(float, done.stdout.split())
        return wall, cpu, rss

    def contest(
        self, pools: Mapping[str, dict[str, Path]], rounds: int, cold: bool = False
    ) -> dict[str, tuple[float, ...]]:
        """Medians of the costs of each contender, which has its own folders.

        Each round begins with another contender: the first one of a round may find the machine's memory in a better
        state than the others.
        """
        costs: dict[str, list[tuple[float, ...]]] = {name: [] for name in pools}
        for first in range(rounds + 1):
            names = list(pools)
            for name in names[first % len(names) :] + names[: first % len(names)]:
                costs[name].append(self.cost(name, pools[name], cold))
        medians = {}
        for name, rows in costs.items():
            medians[name] = tuple(map(statistics.median, zip(*rows[1:], strict=True)))
        return medians


def _text(weights: Sequence[float]) -> str:
    return ",".join(map(str, weights))


def processes(bench: Bench, rounds: int, naive: int) -> None:
    """Whole processes on 4 x 1.2 GB, warm cache, each with its own flush or none: the commands that people type.

    `ours` runs where the store knows the models, `ours_empty` in a folder where nothing is known of them.
    """
    folders = bench.inputs("1.2", 4, 4)
    names = ["ours", "ours_empty", *(["mergekit"] if bench.mergekit else [])]
    found = bench.contest(dict.fromkeys(names, folders), rounds)
    if naive:
        found |= bench.contest({"naive": folders}, naive)
    bench.say("\n## Whole process, 4 x 1.19 GB, warm cache\n")
    bench.say(
        "| what | wall s | cpu s | peak RSS MB | wall, ours / it | cpu, ours / it |\n|---|---|---|---|---|---|"
    )
    for name, (wall, cpu, rss) in found.items():
        ratios = f"{found['ours'][0] / wall:.3f} | {found['ours'][1] / cpu:.3f}"
        bench.say(f"| {name} | {wall:.2f} | {cpu:.2f} | {rss:.0f} | {ratios} |")
    if bench.mergekit:
        warm = found["ours"][0] / found["mergekit"][0]
        empty = found["ours_empty"][0] / found["mergekit"][0]
        bench.say(
            f"\nOf mergekit's wall time: {warm:.3f} where the store knows the models, {empty:.3f} in an empty folder."
        )
        same = bench.written["ours"] == bench.written["mergekit"]
        bench.say(f"\nBytes of ours and mergekit's tensors: {'equal' if same else 'DIFFERENT'}.")


def shards(bench: Bench, rounds: int, size: str) -> None:
    """The same merge from safetensors and from checkpoints that two ranks wrote, in interleaved rounds, then what
    others do with the latter: convert and merge, and OLMo-core's own script."""
    plain = bench.inputs(size, 4, 4)
    pools = {"ours": plain, "ours_empty": plain}
    for cut in ("rows", "columns"):
        pools[f"ours_like_{size}_{cut}"] = {
            name: bench.shards(folder, cut) for name, folder in plain.items()
        }
    rows = pools[f"ours_like_{size}_rows"]
    pools[f"ours_like_{size}_empty"] = rows
    bench.say(f"\n## Sharded checkpoints in, 4 x {size} GB, warm cache\n")
    twins = {name: "ours_empty" if name.endswith("empty") else "ours" for name in pools}
    beside(bench, rounds, pools, twins, "safetensors in")
    written = [name for name in pools if name != "ours"]
    others = {}
    if bench.mergekit:
        others["convert"] = rows
        written.append("convert")
    if bench.olmo:
        others["olmo"] = {name: bench.trained(folder) for name, folder in rows.items()}
    if others:
        contenders = {**others, f"ours_like_{size}_empty": rows}
        first = next(iter(others))
        bench.say("")
        beside(bench, 1, contenders, dict.fromkeys(contenders, first), first)
    same = all(bench.written["ours"] == bench.written[name] for name in written)
    bench.say(f"\nBytes of {', '.join(['ours', *written])}: {'equal' if same else 'DIFFERENT'}.")


def fp8(bench: Bench, rounds: int, size: str) -> None:
    """The same merge from bf16 and from FP8 of the same sizes, in interleaved rounds; both write as many bytes."""
    plain = bench.inputs(size, 4, 4)
    packed = {name: folder.with_name(f"{folder.name}-fp8") for name, folder in plain.items()}
    for name, out in packed.items():
        if not out.exists():
            in_fp8(plain[name], out)
    pools = {"ours": plain, "ours_fp8": packed, "ours_empty": plain, "ours_fp8_empty": packed}
    bench.say(f"\n## FP8 in, 4 models that are {size} GB in bf16, warm cache\n")
    beside(bench, rounds, pools, {name: name.replace("_fp8", "") for name in pools}, "bf16 in")


def large(bench: Bench, rounds: int, size: str) -> None:
    """Two large models from a cold disk to the disk, beside the same reads and writes alone."""
    folders = bench.inputs(size, 2, 2)
    names = ["raw", "ours", "ours_empty", *(["mergekit"] if bench.mergekit else [])]
    bench.say(f"\n## From a cold disk, 2 x {size} GB\n")
    beside(
        bench, rounds, dict.fromkeys(names, folders), dict.fromkeys(names, "raw"), "raw", cold=True
    )


def beside(
    bench: Bench,
    rounds: int,
    pools: Mapping[str, dict[str, Path]],
    twins: Mapping[str, str],
    what: str,
    cold: bool = False,
) -> None:
    """A row for each pool, with its wall time over that of its twin, which reads `what`."""
    found = bench.contest(pools, rounds, cold)
    bench.say(f"| what | wall s | cpu s | peak RSS MB | wall / {what} |\n|---|---|---|---|---|")
    for name, (wall, cpu, rss) in found.items():
        bench.say(
            f"| {name} | {wall:.2f} | {cpu:.2f} | {rss:.0f} | {wall / found[twins[name]][0]:.2f} |"
        )


def digests(folder: Path) -> dict[str, str]:
    """{tensor: digest of its bytes} of a model folder."""
    checkpoint = Checkpoint.open(folder)
    found = dict[str, str]()
    for name, tensor in checkpoint.tensors.items():
        data = np.memmap(
            checkpoint.folder / tensor.file, np.uint8, "r", tensor.offset, (tensor.nbytes,)
        )
        found[name] = hashlib.sha256(data.data).hexdigest()
    return found


def memory(bench: Bench) -> None:
    """Peak RSS of our process for other numbers and sizes of models."""
    bench.say("\n## Peak RSS of our process\n\n| models | MB | wall s |\n|---|---|---|")
    for size, count, distinct in (
        ("1.2", 2, 4),
        ("1.2", 4, 4),
        ("1.2", 8, 4),
        ("0.3", 4, 4),
        ("2.4", 4, 2),
    ):
        wall, _, rss = bench.cost("ours", bench.inputs(size, count, distinct))
        bench.say(f"| {count} x {size} GB | {rss:.0f} | {wall:.2f} |")
    shutil.rmtree(bench.folder / "inputs" / "2.4", ignore_errors=True)


def phases(bench: Bench, rounds: int) -> None:
    """Inside one process: arithmetic against no arithmetic, warm and cold, and loading."""
    folders = bench.inputs("1.2", 4, 4)
    stage = bench.folder / "stage"
    made = LocalMerge().open(folders).plan(recipe_of(folders, WEIGHTS[4]))
    assert isinstance(made, MergePlan)
    bench.say(
        "\n## Inside one process, 4 x 1.19 GB\n\n| what | s | limit | s | ratio |\n|---|---|---|---|---|"
    )
    warm = averaging(made, stage, rounds)
    _line(
        bench,
        "averaging, warm, no fsync",
        warm["averaging"],
        "same reads and writes, no arithmetic",
        warm["raw"],
    )
    disk = cold(made, stage, rounds)
    _line(
        bench, "cold inputs, fsync", disk["averaging"], "same reads, writes and fsync", disk["raw"]
    )
    shutil.rmtree(stage, ignore_errors=True)
    live = loading(folders, WEIGHTS[4], rounds)
    _line(
        bench,
        "load into a live fp32 module",
        live["load"],
        "plain copy of as many bytes",
        live["copy"],
    )
    _line(bench, "whole-tensor fp32 arithmetic", live["whole tensors"], "load", live["load"])


def _line(bench: Bench, what: str, seconds: float, limit: str, floor: float) -> None:
    bench.say(f"| {what} | {seconds:.3f} | {limit} | {floor:.3f} | {seconds / floor:.2f} |")


def planning(bench: Bench) -> None:
    """Four checkpoints of 70B parameters: headers over files that are holes."""
    folders = {name: sparse_70b(bench.folder / "70b" / name) for name in "abcd"}
    seconds = timed(lambda: LocalMerge().open(folders).plan(recipe_of(folders, WEIGHTS[4])))
    bench.say(f"\nPlan of 4 x 70B from headers: {seconds:.3f} s.")
    shutil.rmtree(bench.folder / "70b")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="an absent or empty folder with 12 GB of room"
    )
    parser.add_argument(
        "--mergekit", help="mergekit-yaml of an environment that has mergekit 0.1.5"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--naive", type=int, default=1, help="rounds of naive averaging (0: leave it out)"
    )
    parser.add_argument(
        "--olmo",
        nargs="+",
        metavar="WORD",
        help="with --shards: python and OLMo-core's merge_core_checkpoints.py",
    )
    parser.add_argument(
        "--shards", metavar="GB", help="only sharded checkpoints of this size: 0.3, 1.2 or 2.4"
    )
    parser.add_argument(
        "--fp8", metavar="GB", help="only FP8 checkpoints, of this size in bf16: 0.3, 1.2 or 2.4"
    )
    parser.add_argument(
        "--size", metavar="GB", help="only two models of this size from a cold disk: 1.2, 6 or 12"
    )
    parser.add_argument(
        "--save", action="store_true", help="keep the tables under benchmarks/results/"
    )
    options = parser.parse_args()
    # benchmarks/ must not hide packages of the same names from later imports
    sys.path.append(sys.path.pop(0))
    if options.folder.exists() and any(options.folder.iterdir()):
        raise SystemExit(f"{options.folder} is not empty")
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.folder.resolve(), options.mergekit, options.olmo)
    today = datetime.date.today().isoformat()
    load = os.getloadavg()[0]
    bench.say(f"# Merge benchmark, {today}\n")
    bench.say(
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, load {load:.1f} before."
    )
    try:
        parts = ((options.shards, shards), (options.fp8, fp8), (options.size, large))
        for only, part in parts:
            if only:
                part(bench, options.rounds, only)
        if options.shards or options.fp8 or options.size:
            return
        planning(bench)
        processes(bench, options.rounds, options.naive)
        phases(bench, options.rounds)
        memory(bench)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    bench.say(
        f"\nLoad {os.getloadavg()[0]:.1f} after (shared machine: ratios hold, seconds do not)."
    )
    if options.save:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"merge-{today}.md").write_text("\n".join(bench.lines) + "\n")


if __name__ == "__main__":
    main()
