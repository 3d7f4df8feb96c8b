"""Truth tables that benchmarks/search.py is given: read, or refused in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from souping.core import simplex
from souping.core.types import SearchSpace, UserError
from souping.search.adaptive import Adaptive
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import search_methods as ways
from search_tables import Simulation, TruthTable

W = np.array([*np.eye(3), *simplex.grid(3, 0.2, 0.2, 0.6)])
OK = np.random.default_rng(0).integers(0, 2, (len(W), 90))
SOUND = {"ok": OK, "cat": np.arange(90) % 3, "group": np.arange(90), "w": W}


def table(folder: Path, **arrays: np.ndarray | None) -> TruthTable:
    path = folder / "t.npz"
    np.savez(path, **{key: array for key, array in {**SOUND, **arrays}.items() if array is not None})
    return TruthTable.read(path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ok": None}, "no array 'ok'"),
        ({"ok": OK[0]}, "must be \\[S, I\\]"),
        ({"ok": OK[:1]}, "two soups or more"),
        ({"ok": OK[:0]}, "two soups or more"),
        ({"w": None}, "no array 'w'"),
        ({"ok": np.where(OK, np.nan, 1)}, "from 0 to 1"),
        ({"ok": 100 * OK}, "from 0 to 1"),
        ({"ok": OK - 1}, "from 0 to 1"),
        ({"ok": OK.astype(str)}, "where numbers are wanted"),
        ({"ok": OK.astype(object)}, "no .npz file of plain arrays"),
        ({"cat": np.arange(10)}, "must agree"),
        ({"group": np.arange(10)}, "must agree"),
        ({"cat": np.full(90, np.nan)}, "needs a category"),
        ({"w": W[:5]}, "must agree"),
        ({"w": W[:, 0]}, "must agree"),
        ({"w": 2 * W}, "sum to 1"),
        ({"w": W - 0.1}, "sum to 1"),
        ({"w": W * np.nan}, "sum to 1"),
        ({"w": np.eye(3), "ok": OK[:3]}, "single models alone"),
    ],
)
def test_what_cannot_be_searched_is_refused(arrays: dict[str, np.ndarray | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        table(tmp_path, **arrays)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(UserError, match="file of plain arrays"):
        TruthTable.read(tmp_path / "t.npz")
    np.save(tmp_path / "t.npy", OK)
    with pytest.raises(UserError, match="file of plain arrays"):
        TruthTable.read(tmp_path / "t.npy")


def test_a_budget_below_one_soup_is_said() -> None:
    soups = TruthTable("soups", OK[3:].astype(float), SOUND["cat"], SOUND["group"], W[3:])
    with pytest.raises(UserError, match="below one soup"):
        ways.random_soups(Simulation(soups, 0, 30), 5)


@pytest.mark.parametrize("kind", [bool, float, np.float32, np.uint8])
def test_a_table_is_read_whatever_its_numbers(kind: type, tmp_path: Path) -> None:
    read = table(tmp_path, ok=OK.astype(kind), cat=SOUND["cat"].astype(str), w=np.round(W.astype(np.float32), 2))
    assert read.ok.sum() == OK.sum()
    assert read.singles == [0, 1, 2]
    assert Adaptive().over(read.points, Simulation(read, 0, 30).space, 0).ask() is not None


def test_points_that_come_twice_are_one() -> None:
    points = simplex.grid(2, 0.25, 0.25, 0.75)
    space = SearchSpace(ingredients=("a", "b"), categories=("x",) * 12, groups=tuple("abcdefghijkl"),
                        coefficients={"x": 1.0}, block=4)  # fmt: skip
    twice = Adaptive(stop="never", budget=60).over([*points, *points], space, 0)
    once = Adaptive(stop="never", budget=60).over(points, space, 0)
    assert [twice.ask() for _ in range(5)] == [once.ask() for _ in range(5)]
