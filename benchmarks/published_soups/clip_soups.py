"""72 CLIP ViT-B/32 models fine-tuned on ImageNet, and soups of them, on seven test sets.

Of github.com/mlfoundations/model-soups (commit d5398f1, MIT): `individual_model_results.jsonl`,
`greedy_soup_results.jsonl` and `uniform_soup_results.jsonl`. Of its fork github.com/sbdzdz/model-soups (commit a85f694,
MIT): `results/random_merge.jsonl` and `results/mean_vs_random.json`.

Models were chosen on ImageNet2p, a held-out part of ImageNet's training set. The other six sets are tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from souping.core.types import FloatArray, UserError

CHOSEN_ON = "ImageNet2p"
# Images of each test set.
TESTS = {
    "ImageNet": 50_000,
    "ImageNetV2": 10_000,
    "ImageNetSketch": 50_889,
    "ImageNetR": 30_000,
    "ObjectNet": 18_574,
    "ImageNetA": 7_500,
}
# Multiples of the distance from model_0, where training began, that were published.
SCALES = (0.4, 0.6, 0.8, 1.2)
# {what a weight of a soup is: its word in the file}
KINDS = {
    "mean of the models": "mean",
    "each weight from a random model": "random",
    "the same, with the sign of the mean": "random_elect_sign",
}

Accuracies = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Soups of the k best models by ImageNet2p, in points on ImageNet."""

    count: int
    uniform: float
    random: float  # each weight is that of one of the models, drawn at random


@dataclass(frozen=True, kw_only=True)
class ClipSoups:
    """Accuracies of the models [M, T] and of soups [T] on TESTS, in points."""

    models: FloatArray
    choice: FloatArray  # [M] on ImageNet2p
    soups: Mapping[str, FloatArray]
    top_k: tuple[TopK, ...]

    def scaled(self, scale: float, kind: str) -> FloatArray:
        """A soup with its distance from model_0 multiplied [T]."""
        return self.soups[kind if scale == 1 else scaled_name(scale, kind)]

    @property
    def best(self) -> FloatArray:
        """The model with the best ImageNet2p [T]."""
        return np.asarray(self.models[np.argmax(self.choice)])

    @property
    def best_on_tests(self) -> FloatArray:
        """The model with the best mean over the test sets, chosen on them [T]."""
        return np.asarray(self.models[np.argmax(self.models.mean(axis=1))])

    @property
    def router(self) -> FloatArray:
        """The best model of each test set, chosen on it [T]."""
        return np.asarray(self.models.max(axis=0))

    def minus_best(self, accuracies: FloatArray) -> float:
        """Mean over the test sets minus that of the best model."""
        return float(accuracies.mean() - self.best.mean())


def read_clip(folder: Path) -> ClipSoups:
    """The five files, in one folder.

    Raises:
        UserError: a file lacks a test set or a soup.
    """
    individual = folder / "individual_model_results.jsonl"
    rows = _rows(individual)
    soups = {
        "greedy": _accuracies(_rows(folder / "greedy_soup_results.jsonl")[0], folder),
        "uniform": _accuracies(_rows(folder / "uniform_soup_results.jsonl")[0], folder),
    }
    for row in _rows(folder / "random_merge.jsonl"):
        soups[str(row["model_name"])] = _accuracies(row, folder)
    for kind in KINDS.values():
        for name in (kind, *(scaled_name(scale, kind) for scale in SCALES)):
            if name not in soups:
                raise UserError(f"{folder / 'random_merge.jsonl'} has no soup {name}")
    table = json.loads((folder / "mean_vs_random.json").read_text(encoding="utf-8"))
    columns = (table["num_models"], table["uniform_accuracy"], table["random_accuracy"])
    return ClipSoups(
        models=np.array([_accuracies(row, individual) for row in rows]),
        choice=np.array([float(row[CHOSEN_ON]) for row in rows]),
        soups=soups,
        top_k=tuple(
            TopK(count=count, uniform=100 * uniform, random=100 * random)
            for count, uniform, random in zip(*columns, strict=True)
        ),
    )


def scaled_name(scale: float, kind: str) -> str:
    """Name of such a soup in the file."""
    return f"{kind}_use_base_alpha_{scale}"


def sampling_error() -> float:
    """Largest standard error of the mean over the test sets, in points, from the images of one model.

    Two models share the images, so their difference has a smaller one than independent models would.
    """
    variances = [0.25 / images for images in TESTS.values()]
    return float(100 * np.sqrt(np.sum(variances)) / len(TESTS))


def _rows(path: Path) -> list[dict[str, float]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _accuracies(row: Accuracies, path: Path) -> FloatArray:
    missing = [name for name in TESTS if name not in row]
    if missing:
        raise UserError(f"{path}: {row.get('model_name')} has no accuracy on {missing[0]}")
    return np.array([100 * float(row[name]) for name in TESTS])
