"""Alignment: the weights, bands and shards of a plan against the arithmetic written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import family, random_tensors, same_bits, soup_of


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_scale_multiplies_the_differences_to_the_base(tmp_path: Path, scale: float) -> None:
    """base + scale * sum of w_i (m_i - base)."""
    folders = family(tmp_path, 3, dtype=torch.float32)
    settings = {"method": "task_arithmetic", "base": str(folders.pop("m2")), "scale": scale}
    soup = soup_of(folders, tmp_path / "soup", (0.3, 0.7), **settings)
    first = random_tensors(0, torch.float32)
    second = random_tensors(1, torch.float32)
    base = random_tensors(2, torch.float32)
    for name, tensor in soup.items():
        difference = 0.3 * (first[name] - base[name]) + 0.7 * (second[name] - base[name])
        torch.testing.assert_close(tensor, base[name] + scale * difference, rtol=1e-5, atol=1e-5)


def test_a_soup_of_one_model_is_that_model_whatever_the_scale(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    settings = {"method": "task_arithmetic", "base": str(folders.pop("m1")), "scale": 0.5}
    soup = soup_of(folders, tmp_path / "soup", (1.0,), **settings)
    for name, tensor in random_tensors(0).items():
        assert same_bits(soup[name], tensor), name
