"""Answers of a family's models as one small file.

The bits are stored item by item and compressed with LZMA, which makes them about a fifth. Which model a row is follows
from the ingredients and from the points of the searches, which are stored as well; items, categories and mixtures
follow from the seed.
"""

from __future__ import annotations

import io
import json
import lzma
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.soup_families.design import Levels
from benchmarks.soup_families.merging import OTHERS, SUBSETS, Subset
from souping.core.types import BoolArray, FloatArray

FOLDER = Path(__file__).parents[1] / "results" / "soup_families"
SUFFIX = ".npz.xz"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a family besides its answers."""

    name: str
    seed: int
    levels: Levels
    categories: tuple[str, ...]
    experts: Subset
    """SoCE's ingredients"""
    best: Subset
    """as many of the best tunes"""
    train_seconds: float
    score_seconds: float
    """CPU seconds"""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Right or wrong answers [rows, 4000] of a family.

    `points` are {ingredients: weights [S, K]} of the searches, in the order of their rows.
    """

    facts: Facts
    points: Mapping[Subset, FloatArray]
    answers: BoolArray

    @property
    def base(self) -> BoolArray:
        return np.asarray(self.answers[0])

    @property
    def uniform(self) -> BoolArray:
        """Uniform soups of all subsets [255, I]; the first eight are the tunes."""
        return self.answers[1 : 1 + len(SUBSETS)]

    def searched(self, subset: Subset) -> BoolArray:
        """Soups at the points of a search [S, I]."""
        start = 1 + len(SUBSETS)
        for known, weights in self.points.items():
            if known == subset:
                return self.answers[start : start + len(weights)]
            start += len(weights)
        raise KeyError(subset)

    @property
    def others(self) -> BoolArray:
        """Scaled soups, then TIES, then weights by block [17, I]."""
        return self.answers[-OTHERS:]


def path_of(name: str, folder: Path = FOLDER) -> Path:
    return folder / f"{name}{SUFFIX}"


def save(matrix: Matrix, folder: Path = FOLDER) -> Path:
    """Write a family's file; it is complete or not there."""
    arrays: dict[str, np.ndarray] = {
        "facts": np.frombuffer(json.dumps(asdict(matrix.facts)).encode(), dtype=np.uint8),
        "bits": np.packbits(matrix.answers.T, axis=1),
        "rows": np.array(len(matrix.answers)),
    }
    for number, (subset, weights) in enumerate(matrix.points.items()):
        arrays[f"subset {number}"] = np.array(subset, dtype=np.uint8)
        arrays[f"points {number}"] = weights.astype(np.float32)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stubs name one keyword
    path = path_of(matrix.facts.name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    os.replace(part, path)
    return path


def load(path: Path) -> Matrix:
    """Read a family's file."""
    arrays = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    facts = json.loads(arrays["facts"].tobytes())
    for key in ("levels", "categories", "experts", "best"):
        facts[key] = tuple(facts[key])
    points = {}
    number = 0
    while f"subset {number}" in arrays:
        weights = arrays[f"points {number}"].astype(np.float64).round(7)
        points[tuple(arrays[f"subset {number}"].tolist())] = weights
        number += 1
    bits = np.unpackbits(arrays["bits"], axis=1, count=int(arrays["rows"]))
    return Matrix(facts=Facts(**facts), points=points, answers=bits.T.astype(bool))
