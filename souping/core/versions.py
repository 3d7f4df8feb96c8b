"""Versions of souping, of the packages that decide results, and of the checkout that a run comes from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

__version__ = "0.1.0"
MAIN = ("numpy", "torch", "transformers", "hydra-core", "safetensors", "scipy", "nevergrad", "huggingface-hub")
OPTIONAL = ("accelerate", "lm_eval", "mergekit", "peft", "trackio", "vllm", "wandb")


def versions() -> dict[str, str]:
    """{package: its installed version}, souping and Python first; absent packages are left out.

    Names of folders are enough. Parsing what is in them, as importlib.metadata does, costs every run 0.1 s.
    """
    found: dict[str, str] = {}
    for place in (entry for entry in map(Path, sys.path) if entry.is_dir()):
        with suppress(OSError):
            names = (re.fullmatch(r"(.+?)-([^-]+)(?:-py.*)?\.(?:dist|egg)-info", name) for name in os.listdir(place))
            for name, number in (match.groups() for match in names if match):
                found.setdefault(_normal(name), number)
    named = {name: found.get(_normal(name)) for name in (*MAIN, *OPTIONAL)}
    installed = {name: number for name, number in named.items() if number is not None}
    return {"souping": __version__, "python": platform.python_version(), **installed}


def _normal(name: str) -> str:
    """A package's name as installers compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def commit() -> str:
    """The commit of the checkout that this package runs from, with `+` if files were changed; "" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    words = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
