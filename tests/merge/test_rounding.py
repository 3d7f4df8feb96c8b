"""What storing a soup loses, held against numpy over all elements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.weight_similarity import Rounding
from souping.merge.weight_samples import WeightedSum, WeightSample
from tests.conftest import Cli
from tests.support.checkpoints import save

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def stored(values: torch.Tensor, dtype: str) -> torch.Tensor:
    return values.to(DTYPES[dtype]).double()


def updated(folder: Path, update: float, models: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    """A base in bf16, and models that small updates of its weights gave, in bf16 too."""
    generator = torch.Generator().manual_seed(models)
    base = dict[str, torch.Tensor]()
    for layer in range(16):
        weights = 0.02 * torch.randn(64 * (1 + layer % 3), 128, generator=generator)
        base[f"layers.{layer}.weight"] = weights.to(torch.bfloat16)
    pool = {"base": base}
    for model in range(models):
        pool[f"m{model}"] = {}
        for name, weights in base.items():
            step = update * torch.randn(weights.shape, generator=generator)
            pool[f"m{model}"][name] = (weights.float() + step).to(torch.bfloat16)
    for name, tensors in pool.items():
        save(folder / name, tensors)
    return pool


def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([tensor.double().numpy().ravel() for tensor in tensors.values()])


def sampled(folder: Path, weights: list[float], of_base: float, dtype: str | None) -> Rounding:
    """What sampled values say of a soup of these weights of m0, m1, ... and of the base, written as `dtype`."""
    models = {f"m{i}": Checkpoint.open(folder / f"m{i}") for i in range(len(weights))}
    sample = WeightSample.of(models, Checkpoint.open(folder / "base"))
    return sample.rounding(WeightedSum(np.array([*weights, of_base]), dtype))


@pytest.mark.parametrize("update", [1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sampled_shares_are_those_of_all_weights(tmp_path: Path, update: float, dtype: str) -> None:
    pool = updated(tmp_path, update)
    weights = [0.3, 0.2, 0.5]  # the nearest is not the first
    models = np.stack([flat(pool[f"m{i}"]) for i in range(3)])
    base = flat(pool["base"])
    soup = np.array(weights) @ models
    rounded = stored(torch.from_numpy(soup), dtype).numpy()
    kept = (rounded - base) @ (soup - base) / ((soup - base) @ (soup - base))
    nearest = np.linalg.norm(models - soup, axis=1).min()
    found = sampled(tmp_path, weights, of_base=0.0, dtype=dtype)
    assert found.kept == pytest.approx(kept, abs=0.02)
    assert found.error == pytest.approx(np.linalg.norm(rounded - soup) / nearest, abs=0.02)
    assert found.dtype == dtype
    assert (found.warning is None) == (kept >= 0.9)


def test_a_matrix_counts_by_its_elements(tmp_path: Path) -> None:
    """A small matrix with large updates beside a large one with small updates."""
    generator = torch.Generator().manual_seed(0)
    base = dict[str, torch.Tensor]()
    models = [dict[str, torch.Tensor](), dict[str, torch.Tensor]()]
    for name, rows, update in (("large", 256, 1e-5), ("small", 2, 1e-4)):
        weights = 0.02 * torch.randn(rows, 512, generator=generator)
        base[name] = weights.to(torch.bfloat16)
        for model in models:
            step = update * torch.randn(weights.shape, generator=generator)
            model[name] = (base[name].float() + step).to(torch.bfloat16)
    save(tmp_path / "base", base)
    save(tmp_path / "m0", models[0])
    save(tmp_path / "m1", models[1])
    soup = (flat(models[0]) + flat(models[1])) / 2
    rounded = stored(torch.from_numpy(soup), "bfloat16").numpy()
    nearest = min(np.linalg.norm(flat(model) - soup) for model in models)
    found = sampled(tmp_path, [0.5, 0.5], of_base=0.0, dtype=None)
    assert found.error == pytest.approx(np.linalg.norm(rounded - soup) / nearest, abs=0.03)


def test_float16_is_advised_only_if_no_weight_overflows() -> None:
    def warning(largest: float) -> str:
        lost = Rounding(dtype="bfloat16", error=0.5, kept=0.5, largest=largest)
        return lost.warning or ""

    assert "or float16" in warning(60_000.0)
    assert "merge.dtype=float32" in warning(70_000.0)
    assert "or float16" not in warning(70_000.0)


@pytest.mark.filterwarnings("error")
def test_a_soup_that_overflows_is_told_and_has_no_distances(tmp_path: Path) -> None:
    for name in ("base", "m0", "m1"):
        tensors = {"weight": torch.full((8, 256), 2e5), "small": torch.ones(8, 256)}
        save(tmp_path / name, tensors)
    found = sampled(tmp_path, [0.5, 0.5], of_base=0.0, dtype="float16")
    assert (found.error, found.kept, found.largest) == (None, None, 2e5)
    assert "merge.dtype" in (found.warning or "")
    assert sampled(tmp_path, [0.5, 0.5], of_base=0.0, dtype="bfloat16").warning is None


def test_three_small_updates_keep_six_tenths_of_their_mean(tmp_path: Path) -> None:
    """As simulated with updates of standard deviation 1e-5 on weights of 0.02: .61, and .44 of five."""
    updated(tmp_path / "three", 1e-5)
    updated(tmp_path / "five", 1e-5, models=5)
    assert sampled(tmp_path / "three", [1 / 3] * 3, of_base=0.0, dtype=None).kept == pytest.approx(
        0.61, abs=0.02
    )
    assert sampled(tmp_path / "five", [0.2] * 5, of_base=0.0, dtype=None).kept == pytest.approx(
        0.44, abs=0.02
    )


def test_a_scaled_sum_of_task_vectors_is_the_soup(tmp_path: Path) -> None:
    pool = updated(tmp_path, 1e-4)
    base = flat(pool["base"])
    change = 0.7 * (0.5 * (flat(pool["m0"]) - base) + 0.5 * (flat(pool["m1"]) - base))
    rounded = stored(torch.from_numpy(base + change), "bfloat16").numpy() - base
    found = sampled(tmp_path, [0.35, 0.35, 0.0], of_base=0.3, dtype=None)
    assert found.kept == pytest.approx(rounded @ change / (change @ change), abs=0.02)


def test_one_ingredient_is_stored_as_it_is(tmp_path: Path) -> None:
    updated(tmp_path, 1e-4)
    found = sampled(tmp_path, [1.0, 0.0, 0.0], of_base=0.0, dtype=None)
    assert (found.error, found.kept) == (None, 1.0)


def test_a_merge_warns_of_a_lost_change_and_its_plan_says_how_much(
    souping: Cli, tmp_path: Path
) -> None:
    updated(tmp_path, 1e-5)
    words = [
        "+experiment=merge",
        "pool.candidates=[m0,m1,m2]",
        "optimiser=uniform",
        "merge.base_model=base",
    ]
    done = souping(*words, "out=soup").ok()
    assert "merge.dtype=float32" in done.out + done.err
    wide = souping(*words, "out=wide", "merge.dtype=float32").ok()
    assert "merge.dtype" not in wide.out + wide.err
    scaled = ("merge.method=task_arithmetic", "merge.scale=4")
    souping("plan", *words, *scaled, "out=none").ok()
    table = json.loads(next(tmp_path.glob("outputs/*/plan_*.json")).read_text())["weights"][
        "rounding"
    ]
    assert table["dtype"] == "bfloat16"
    # Four times the change is nearer to what bf16 can hold.
    assert table["kept"] > 0.9
