"""Models of real size on your machine, from check to upload: one page of figures that you can send back.

    python benchmarks/real.py --models ORG/A ORG/B ORG/C [--items items.jsonl] [--hours 1] [--out real] [KEY=VALUE ..]

It downloads the models, checks one, plans, runs for at most so many hours (the same command goes on where it stopped),
merges, loads soups into a module on the first GPU, and plans an upload, which sends nothing. What follows are overrides
of the check, the plan and the run, such as engine=vllm. A step that fails is a row with its last line, and the next one
starts. The page is OUT/page.md. It has the machine, versions, times, memory, and the names of the models as you give
them, but no answers and no paths.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from souping import demo
from souping.core.protocols import ModuleSettings
from souping.evaluate.engines.transformers import load_module
from souping.merge.local import LocalMerge
from souping.soups.card import public_name
from souping.soups.models import folder_of

LIBRARIES = ("souping", "torch", "transformers", "accelerate", "safetensors", "vllm", "lm_eval")
LOADS = 10
POLL_S = 0.5
TO_END_S = 120
"""Time that a run has to save its state after an interrupt."""


@dataclass(frozen=True)
class Row:
    """A step of the page."""

    step: str
    seconds: float
    memory: float  # most bytes of the process
    gpus: float  # most bytes on all GPUs together
    outcome: str


def main() -> int:
    given = arguments().parse_args()
    out = given.out.absolute()
    out.mkdir(parents=True)
    pool = f"pool.candidates=[{','.join(given.models)}]"
    words = [pool, f"benchmark.path={given.items.absolute()}", *given.overrides]
    merged = ["+experiment=merge", pool, "optimiser=uniform", f"out={out / 'soup'}"]
    own = [sys.executable, __file__]
    steps: dict[str, Callable[[], Row]] = {
        "download": lambda: child("download", [*own, "--download", *given.models], out),
        "check": lambda: souping("check", ["check", *words], out),
        "plan": lambda: souping("plan", ["plan", *words], out),
        "run": lambda: souping("run", words, out, 3600 * given.hours),
        "merge": lambda: souping("merge", merged, out),
        "load": lambda: child("load", [*own, "--load", *given.models], out),
        "upload": lambda: souping(
            "upload", ["plan", *merged[:-1], f"out={out / 'sent'}", "upload=ORG/soup"], out
        ),
    }
    rows = list[Row]()
    for step, make in steps.items():
        rows.append(make())
        print(f"{step}: {rows[-1].outcome}, {rows[-1].seconds:.0f} s", flush=True)
        (out / "page.md").write_text(page(given.models, given.overrides, rows))
    print(f"open {out / 'page.md'}")
    return int(any(row.outcome.startswith("failed") for row in rows))


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, help="names on the Hub, or folders")
    parser.add_argument("--items", type=Path, default=demo.path("items"))
    parser.add_argument("--hours", type=float, default=1.0, help="time of the run at most")
    parser.add_argument("--out", type=Path, default=Path("real"), help="a new folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE")
    return parser


# ---------------------------------------------------------------- one step


def souping(step: str, words: Sequence[str], out: Path, limit: float | None = None) -> Row:
    """A command of souping, in a folder of its own; interrupted after `limit` seconds."""
    places = [f"hydra.run.dir={out / step}", f"store={out / 'store.sqlite'}"]
    return child(step, [sys.executable, "-m", "souping", *words, *places], out, limit)


def child(step: str, command: Sequence[str], out: Path, limit: float | None = None) -> Row:
    """A process with its time, its memory and what it took of the GPUs. Its output is in OUT/STEP.log."""
    log = out / f"{step}.log"
    begin = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        stopped = False
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(TO_END_S)
            process.kill()
            process.wait()
    seconds = time.perf_counter() - begin
    watch.end()
    outcome = "done"
    if stopped:
        outcome = f"stopped by the limit: {last_line(log)}"
    elif process.returncode:
        outcome = f"failed ({process.returncode}): {last_line(log)}"
    elif step == "load":
        outcome = last_line(log)
    return Row(step, seconds, watch.memory, watch.gpus, outcome)


def last_line(log: Path) -> str:
    """Of a log, without its folders."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return re.sub(r"(?:~|\.{0,2})?/[^\s:,']*/", "", lines[-1])[:200] if lines else "no output"


class Watch:
    """Most memory of a process, and most bytes that all GPUs together held meanwhile (0 without nvidia-smi)."""

    def __init__(self, pid: int) -> None:
        self.memory = 0.0
        self.gpus = 0.0
        self._status = Path(f"/proc/{pid}/status")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            with suppress(OSError):
                peak = re.search(r"VmHWM:\s+(\d+) kB", self._status.read_text())
                self.memory = max(self.memory, 1024.0 * int(peak[1]) if peak else 0.0)
            self.gpus = max(self.gpus, 2.0**20 * sum(map(float, smi("memory.used"))))


def smi(field: str) -> list[str]:
    """A field of every GPU."""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.splitlines()


def download(models: Sequence[str]) -> None:
    """Fetch what is not here yet."""
    for model in models:
        folder_of(model)


def load_soup(models: Sequence[str]) -> None:
    """Load soups of different weights into a module, and print the median."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folders = {model: folder_of(model) for model in models}
    pool = LocalMerge().open(folders)
    module = load_module(pool.architecture_folder, ModuleSettings(device=device, dtype="auto"))
    live = pool.live(module)
    seconds = list[float]()
    for number in range(1 + LOADS):
        shares = [1.0 + number * (place == 0) / LOADS for place in range(len(folders))]
        weights = {name: share / sum(shares) for name, share in zip(folders, shares, strict=True)}
        recipe = pool.recipe(weights)
        begin = time.perf_counter()
        live.load_soup(recipe)
        seconds.append(time.perf_counter() - begin)
    print(f"load on {device}: first {seconds[0]:.2f} s, then {median(seconds[1:]):.3f} s")


# ---------------------------------------------------------------- the page


def page(models: Sequence[str], overrides: Sequence[str], rows: Sequence[Row]) -> str:
    """The figures as Markdown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    names = smi("name")
    versions = list[str]()
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{library} {importlib.metadata.version(library)}")
    lines = [
        "# souping at real scale",
        "",
        f"- models: {', '.join(map(public_name, models))}",
        f"- overrides: {' '.join(overrides) or 'none'}",
        f"- machine: {platform.system()} {platform.release()}, {os.cpu_count()} cores, {memory / 1e9:.0f} GB",
        f"- GPUs: {', '.join(names) or 'none'}",
        f"- Python {platform.python_version()}, {', '.join(versions)}",
        "",
        "| step | seconds | memory, GB | GPUs, GB | outcome |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.step} | {row.seconds:.1f} | {row.memory / 1e9:.1f} | {row.gpus / 1e9:.1f} | {row.outcome} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    own_steps = {"--download": download, "--load": load_soup}
    if sys.argv[1:] and sys.argv[1] in own_steps:
        own_steps[sys.argv[1]](sys.argv[2:])
        sys.exit()
    sys.exit(main())
