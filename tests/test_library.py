"""The library's own names: each is there, lazily, and nothing else is promised."""

from __future__ import annotations

import subprocess
import sys

import pytest

import souping
from tests.conftest import ROOT


@pytest.mark.parametrize("name", souping.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(souping, name)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'soup_of_the_day'"):
        _ = souping.soup_of_the_day


def test_importing_the_package_loads_no_room() -> None:
    code = "import souping, sys; print([name for name in sys.modules if name.startswith('souping.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
