"""Truth tables that benchmarks/search.py is given: read, or refused in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from souping.core.types import SearchSpace
from souping.search import points as simplex
from souping.search.adaptive import Adaptive
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from search_tables import Simulation, TruthTable

W = np.array([*np.eye(3), *simplex.grid(3, 0.2, 0.2, 0.6)])
OK = np.random.default_rng(0).integers(0, 2, (len(W), 90))
SOUND = {"ok": OK, "cat": np.arange(90) % 3, "group": np.arange(90), "w": W}
WORLDS = np.random.default_rng(1).integers(0, 2, (2, 90, len(W)))
PACKED = np.packbits(WORLDS.astype(bool), axis=2)


def tables(folder: Path, **arrays: np.ndarray | None) -> list[TruthTable]:
    path = folder / "t.npz"
    np.savez(path, **{key: array for key, array in {**SOUND, **arrays}.items() if array is not None})
    return list(TruthTable.read(path))


@pytest.mark.parametrize("kind", [bool, np.float32, np.uint8])
def test_a_table_is_read_whatever_its_numbers(kind: type, tmp_path: Path) -> None:
    (read,) = tables(tmp_path, ok=OK.astype(kind), cat=SOUND["cat"].astype(str), w=np.round(W.astype(np.float32), 2))
    assert read.ok.sum() == OK.sum()
    assert read.singles == [0, 1, 2]
    assert Adaptive().over(read.points, Simulation(read, 0, 30).space, 0).ask() is not None


def test_a_packed_table_is_one_table_a_world(tmp_path: Path) -> None:
    assert [world.ok.T.tolist() for world in tables(tmp_path, ok=None, bits=PACKED)] == WORLDS.tolist()


def test_points_that_come_twice_are_one() -> None:
    points = simplex.grid(2, 0.25, 0.25, 0.75)
    space = SearchSpace(ingredients=("a", "b"), categories=("x",) * 12, groups=tuple("abcdefghijkl"),
                        coefficients={"x": 1.0}, full_batch=4)  # fmt: skip
    twice, once = (Adaptive(stop="never", budget=60).over(some, space, 0) for some in ([*points, *points], points))
    assert [twice.ask() for _ in range(5)] == [once.ask() for _ in range(5)]


def test_a_pick_is_scored_on_groups_that_its_search_never_saw() -> None:
    of = TruthTable("t", OK.astype(float), SOUND["cat"], np.arange(90) // 4, W)
    sim = Simulation(of, 3, 30)
    assert not set(of.group[sim.fold]) & set(of.group[sim.outside])
    assert set(of.group[sim.fold]) | set(of.group[sim.outside]) == set(of.group)
    means = np.mean([OK[:, sim.outside[of.cat[sim.outside] == c]].mean(1) for c in range(3)], axis=0)
    assert sim.regret(int(means.argmax())) == 0
    assert sim.regret(4) == pytest.approx(100 * (means.max() - means[4]))


@pytest.mark.parametrize(("name", "size", "rises"), [("nets6", 6, True), ("nets8", 8, True), ("flat4", 4, False)])
def test_the_tables_have_many_ingredients_and_a_family_without_rise(name: str, size: int, rises: bool) -> None:
    worlds = TruthTable.read(ROOT / "benchmarks" / "tables" / f"{name}.npz")
    assert len(worlds) >= 20
    assert all(len(world.points[0]) == size == len(world.singles) for world in worlds)
    rise = np.mean([world.rise for world in worlds])
    assert rise > 3 if rises else rise < 1
