"""Versions of what is installed are those that the standard library reads, found without reading them."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from souping.core import versions


def test_they_are_those_of_the_standard_library() -> None:
    found = versions.versions()
    assert {"numpy", "torch", "hydra-core"} <= set(found)
    assert all(number == version(name) for name, number in found.items() if name != "python")


def test_names_are_taken_as_installers_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Hydra_Core-9.1.dist-info", "lm.eval-0.4.13.dist-info", "wandb-1.0-py3.11.egg-info", "torch-2.dist"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "absent")])
    found = versions.versions()
    assert {name: found.get(name) for name in ("hydra-core", "lm_eval", "wandb", "torch")} == {
        "hydra-core": "9.1",
        "lm_eval": "0.4.13",
        "wandb": "1.0",
        "torch": None,
    }


def test_a_commit_says_whether_files_were_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        done = subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    module = tmp_path / "souping" / "core" / "versions.py"
    monkeypatch.setattr(versions, "__file__", str(module))
    assert versions.commit() == ""
    module.parent.mkdir(parents=True)
    module.write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    git("tag", "v1")
    assert versions.commit() == git("rev-parse", "--short=12", "HEAD")
    module.write_text("2\n")
    assert versions.commit() == git("rev-parse", "--short=12", "HEAD") + "+"
