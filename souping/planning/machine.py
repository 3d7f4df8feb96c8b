"""What this machine has: cores, memory, GPUs, room on its disks. No torch is asked."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU that this process may use, with its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Memory in bytes: what there is for this process, and what of it is free or can be freed."""

    cores: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look() -> Machine:
    """This machine as it is now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in CGROUPS if (text := _text(path)).isdigit()]
    memory = min([total, *limits])
    return Machine(cores=_cores(), memory=memory, available=min(memory, _available(total)), gpus=gpus())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _available(total: int) -> int:
    """Linux' own estimate of what can be had without swapping; elsewhere all of it."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs as its driver lists them, those of CUDA_VISIBLE_DEVICES only where it is set to numbers."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(listed(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def listed(text: str) -> tuple[Gpu, ...]:
    """GPUs from lines `name, total MiB, free MiB`."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == 3]
    return tuple(
        Gpu(name=name, total=int(total) * 2**20, free=int(free) * 2**20)
        for name, total, free in rows
        if total.isdigit() and free.isdigit()
    )


def visible(found: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, where it holds numbers."""
    if setting is None:
        return found
    parts = [part.strip() for part in setting.split(",") if part.strip()]
    if not all(part.lstrip("-").isdigit() for part in parts):
        return found
    chosen: list[Gpu] = []
    for part in parts:
        if not 0 <= int(part) < len(found):
            break  # as CUDA: what follows a number that is not there is not seen
        chosen.append(found[int(part)])
    return tuple(chosen)


def room(path: Path) -> tuple[int, int]:
    """(bytes free where `path` is or will be, the number of that file system)."""
    there = path.expanduser().absolute()
    there = next(p for p in (there, *there.parents) if p.exists())
    return shutil.disk_usage(there).free, there.stat().st_dev
