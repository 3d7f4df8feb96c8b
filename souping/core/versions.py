"""Versions: of souping, of the packages that decide what a run does, and of the checkout that it ran from."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"
MAIN = ("numpy", "torch", "transformers", "hydra-core", "safetensors", "scipy", "nevergrad", "huggingface-hub")
OPTIONAL = ("accelerate", "lm_eval", "mergekit", "peft", "trackio", "vllm", "wandb")


def versions() -> dict[str, str]:
    """{package: its installed version}, souping and Python first; those that are absent are left out."""
    known = {"souping": __version__, "python": platform.python_version()}
    for name in (*MAIN, *OPTIONAL):
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known


def commit() -> str:
    """The commit of the checkout that this package runs from, with `+` where files were changed; "" outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    found = _git(root, "rev-parse", "--short=12", "HEAD")
    return found + ("+" if found and _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
