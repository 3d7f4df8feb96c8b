"""bfcl-eval's environment: where it is, what is missing there, and the pinned lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from souping.core.types import UserError
from souping.evaluate.bfcl import HERE, VERSION, Environment, find, place_of
from tests.support.evaluators import bfcl_place

LEVELS = ("minimal", "full")


def requirements(level: str) -> list[str]:
    lines = (HERE / "requirements" / f"{level}.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_flag_then_the_variable_then_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOUPING_BFCL", "/somewhere")
    assert (place_of("/else"), place_of()) == (Path("/else"), Path("/somewhere"))
    monkeypatch.delenv("SOUPING_BFCL")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert place_of() == Path("/cache/souping/bfcl")


def test_what_is_missing_is_named_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"minimal\.txt$"):
        find(tmp_path)
    bfcl_place(tmp_path)
    assert find(tmp_path).level == "minimal"
    with pytest.raises(UserError, match=r"full\.txt$"):
        find(tmp_path, full=True)
    package = find(tmp_path).package
    (package.parent / "qwen_agent").mkdir()
    assert find(tmp_path, full=True).level == "full"
    info = package.with_name(f"bfcl_eval-{VERSION}.dist-info")
    info.rename(info.with_name("bfcl_eval-2025.1.1.dist-info"))
    with pytest.raises(UserError, match=VERSION):
        find(tmp_path)


def test_every_release_is_pinned_and_the_lists_agree() -> None:
    pins = []
    for level in LEVELS:
        lines = requirements(level)
        assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
        assert lines == sorted(lines, key=str.lower)
        pins.append(dict(line.lower().split("==") for line in lines))
    different = {name for name in pins[0].keys() & pins[1].keys() if pins[0][name] != pins[1][name]}
    assert pins[0]["bfcl-eval"] == pins[1]["bfcl-eval"] == VERSION
    assert different <= {"python-dateutil", "tenacity"}  # another package holds these back in the full one


def test_what_is_installed_is_what_is_pinned(bfcl: Environment) -> None:
    command = [str(bfcl.python), "-I", "-m", "pip", "freeze"]
    frozen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.lower()
    found = {re.sub(r"[-_.]+", "-", line.split("==")[0]): line.split("==")[1] for line in frozen.split()}
    wanted = [line.lower().split("==") for line in requirements(bfcl.level)]
    assert {name: found[re.sub(r"[-_.]+", "-", name)].split("+")[0] for name, _ in wanted} == dict(wanted)
