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
    return TruthTable.read(path)[0]


WORLDS = np.random.default_rng(1).integers(0, 2, (2, 90, len(W)))
PACKED = np.packbits(WORLDS.astype(bool), axis=2)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ok": None}, "no array 'ok'"),
        ({"ok": OK[0]}, "must be \\[S, I\\]"),
        ({"ok": OK[:1]}, "two soups or more"),
        ({"ok": 100 * OK}, "from 0 to 1"),
        ({"ok": OK.astype(str)}, "where numbers are wanted"),
        ({"ok": OK.astype(object)}, "no .npz file of plain arrays"),
        ({"group": np.arange(10)}, "must agree"),
        ({"cat": np.full(90, np.nan)}, "needs a category"),
        ({"w": W * np.nan}, "sum to 1"),
        ({"w": np.eye(3), "ok": OK[:3]}, "single models alone"),
        ({"ok": None, "bits": PACKED[0]}, "bits"),
        ({"ok": None, "bits": PACKED.astype(int)}, "bits"),
    ],
)
def test_what_cannot_be_searched_is_refused(arrays: dict[str, np.ndarray | None], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        table(tmp_path, **arrays)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(b"hello")
    with pytest.raises(UserError, match="file of plain arrays"):
        TruthTable.read(tmp_path / "t.npz")


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


def test_a_packed_table_is_one_table_a_world(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", bits=PACKED, cat=SOUND["cat"], group=SOUND["group"], w=W)
    read = TruthTable.read(tmp_path / "t.npz")
    assert [world.ok.T.tolist() for world in read] == WORLDS.tolist()


def test_a_pick_is_scored_on_groups_that_its_search_never_saw() -> None:
    of = TruthTable("t", OK.astype(float), SOUND["cat"], np.arange(90) // 4, W)
    sim = Simulation(of, 3, 30)
    assert not set(of.group[sim.fold]) & set(of.group[sim.outside])
    assert set(of.group[sim.fold]) | set(of.group[sim.outside]) == set(of.group)
    means = np.mean([OK[:, sim.outside[of.cat[sim.outside] == c]].mean(1) for c in range(3)], axis=0)
    assert sim.regret(int(means.argmax())) == 0
    assert sim.regret(4) == pytest.approx(100 * (means.max() - means[4]))


def test_any_search_that_asks_and_tells_can_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from souping.core.types import Cell\n\n\nclass Third:\n"
        "    def __init__(self, points, space, seed, auto, budget):\n        self.cells = [Cell(weights=points[2])]\n\n"
        "    def ask(self):\n        return self.cells.pop() if self.cells else None\n\n"
        "    def tell(self, cell, result):\n        self.pick = cell.weights\n\n"
        "    def best(self):\n        return self.pick\n\n"
        "    def summary(self):\n        return {}\n"
    )
    sim = Simulation(TruthTable("t", OK.astype(float), SOUND["cat"], SOUND["group"], W), 0, 30)
    assert ways.from_file(f"{file}:Third")(sim, 0).pick == 2
    with pytest.raises(UserError, match="Fourth"):
        ways.from_file(f"{file}:Fourth")


@pytest.mark.parametrize(("name", "size", "rises"), [("nets6", 6, True), ("nets8", 8, True), ("flat4", 4, False)])
def test_the_tables_have_many_ingredients_and_a_family_without_rise(name: str, size: int, rises: bool) -> None:
    worlds = TruthTable.read(ROOT / "benchmarks" / "tables" / f"{name}.npz")
    assert len(worlds) >= 20
    assert all(len(world.points[0]) == size == len(world.singles) for world in worlds)
    rise = np.mean([world.rise for world in worlds])
    assert rise > 3 if rises else rise < 1
