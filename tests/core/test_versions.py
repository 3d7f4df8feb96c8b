"""The commit of the checkout that a run comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from souping.core import versions


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
