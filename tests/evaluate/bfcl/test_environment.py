"""bfcl-eval's environment: where it is, what is said of it, and that a failed installation leaves nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from souping.core.types import UserError
from souping.evaluate.bfcl.__main__ import main
from souping.evaluate.bfcl.environment import (
    LEVELS,
    Environment,
    Level,
    find,
    folder_of,
    install,
    pinned,
    place_of,
    requirements,
)

FAKE = """#!/bin/sh
echo '3 13'
"""


class TestPlace:
    def test_the_flag_then_the_variable_then_the_cache(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOUPING_BFCL", "/somewhere")
        assert place_of("/else") == Path("/else")
        assert place_of() == Path("/somewhere")
        monkeypatch.delenv("SOUPING_BFCL")
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert place_of() == Path("/cache/souping/bfcl")

    def test_the_smallest_that_will_do(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"its own environment in .*: python -m souping.evaluate.bfcl install$"):
            find(tmp_path)
        folder_of("minimal", tmp_path).mkdir()
        assert find(tmp_path).level == "minimal"
        with pytest.raises(UserError, match=r"its full environment \(multi-turn.*: .* install --full$"):
            find(tmp_path, full=True)
        folder_of("full", tmp_path).mkdir()
        assert (find(tmp_path).level, find(tmp_path, full=True).level) == ("minimal", "full")

    def test_status(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder_of("full", tmp_path).mkdir()
        assert main(["status", "--dir", str(tmp_path)]) == 0
        minimal, full = capsys.readouterr().out.splitlines()
        assert minimal.endswith("not there: python -m souping.evaluate.bfcl install")
        assert full.endswith(str(folder_of("full", tmp_path)))


class TestRequirements:
    @pytest.mark.parametrize("level", LEVELS)
    def test_every_release_is_pinned(self, level: Level) -> None:
        lines = [line for line in requirements(level).read_text().splitlines() if not line.startswith("#")]
        assert len(lines) > 40
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
        assert lines == sorted(lines, key=str.lower)

    def test_the_two_agree(self) -> None:
        pins = [
            dict(line.lower().split("==") for line in requirements(level).read_text().splitlines() if "==" in line)
            for level in LEVELS
        ]
        both = [name for name in pins[0] if name in pins[1]]
        different = {name for name in both if pins[0][name] != pins[1][name]}
        assert pinned("minimal") == pinned("full")
        assert different <= {"python-dateutil", "tenacity"}  # another package holds these back in the full one

    def test_what_is_installed_is_what_is_pinned(self, bfcl: Environment) -> None:
        command = [str(bfcl.python), "-I", "-m", "pip", "freeze"]
        frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.lower()
        found = {re.sub(r"[-_.]+", "-", line.split("==")[0]): line.split("==")[1] for line in frozen.split()}
        wanted = [
            line.lower().split("==") for line in requirements(bfcl.level).read_text().splitlines() if "==" in line
        ]
        assert {name: found[re.sub(r"[-_.]+", "-", name)].split("+")[0] for name, _ in wanted} == dict(wanted)


class TestInstall:
    def test_what_is_there_is_left_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder_of("minimal", tmp_path).mkdir(parents=True)
        assert main(["--dir", str(tmp_path), "install", "--python", "/no/such/python"]) == 0
        assert capsys.readouterr().out == f"bfcl-eval {pinned('minimal')}, minimal: {folder_of('minimal', tmp_path)}\n"

    def test_another_python_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fake = tmp_path / "python"
        fake.write_text(FAKE)
        fake.chmod(0o755)
        assert main(["install", "--dir", str(tmp_path / "place"), "--python", str(fake)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "bfcl-eval needs Python 3.11 or 3.12" in error
        assert error.endswith("is 3.13: python -m souping.evaluate.bfcl install --python python3.12\n")
        assert main(["install", "--dir", str(tmp_path / "place"), "--python", "/no/such/python"]) == 2
        assert "/no/such/python: cannot be run" in capsys.readouterr().err
        assert not (tmp_path / "place").exists()

    @pytest.mark.skipif(sys.version_info[:2] > (3, 12), reason="bfcl-eval has no wheels for it")
    @pytest.mark.slow
    def test_when_pip_fails_nothing_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        (tmp_path / "empty").mkdir()
        left = tmp_path / "place" / f".minimal-0123456789.{2**22 + 1}"  # of an installation that was killed
        (left / "bin").mkdir(parents=True)
        assert main(["install", "--dir", str(tmp_path / "place")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "pip install failed: No matching distribution found for annotated-doc" in error
        assert str(tmp_path / "place" / "install.log") in error
        assert os.listdir(tmp_path / "place") == ["install.log"]

    @pytest.mark.slow
    def test_an_environment_that_does_not_start_is_not_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pip that does nothing: bfcl-eval is not there, which is found at once."""
        monkeypatch.setattr("souping.evaluate.bfcl.environment.requirements", lambda level: tmp_path / "none.txt")
        (tmp_path / "none.txt").write_text("")
        with pytest.raises(UserError, match="does not start in its minimal environment: ModuleNotFoundError"):
            install(tmp_path / "place", "minimal", say=lambda line: None)
        assert os.listdir(tmp_path / "place") == ["install.log"]
