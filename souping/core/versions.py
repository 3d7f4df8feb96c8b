"""Versions of souping, of the packages that decide results, and of the checkout that a run comes from."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"
MAIN = ("numpy", "torch", "transformers", "hydra-core", "safetensors", "scipy", "nevergrad", "huggingface-hub")
OPTIONAL = ("accelerate", "lm_eval", "mergekit", "peft", "trackio", "vllm", "wandb")


def versions() -> dict[str, str]:
    """{package: its installed version}, souping and Python first; absent packages are left out."""
    found = {"souping": __version__, "python": platform.python_version()}
    for name in (*MAIN, *OPTIONAL):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


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
