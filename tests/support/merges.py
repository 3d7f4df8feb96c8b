"""Merges of three siblings, planned and written to a staging folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import make_shards
from tests.support.checkpoints import aligned, opened, random_tensors, save

Siblings = dict[str, Path]


def siblings(
    folder: Path, *dtypes: torch.dtype, rows: tuple[int, ...] = (12, 12, 12), shards: int = 1
) -> Siblings:
    """Folders of the models a, b and c, which take the `dtypes` in turn; `rows` are their vocabularies' sizes.

    Each has a tensor that is cut into several blocks.
    """
    folders = {}
    for seed, (name, size) in enumerate(zip("abc", rows, strict=True)):
        dtype = dtypes[seed % len(dtypes)]
        generator = torch.Generator().manual_seed(seed)
        large = torch.randn((1003, 601), generator=generator).to(dtype)
        config = {"vocab_size": size, "torch_dtype": str(dtype).removeprefix("torch.")}
        tensors = {**random_tensors(seed, dtype, rows=size), "model.z.weight": large}
        folders[name] = save(folder / name, tensors, config, shards)
    return folders


def planned(
    folders: Siblings, weights: tuple[float, ...] = (0.2, 0.5, 0.3), **fields: Any
) -> MergePlan:
    """A plan of the siblings; task arithmetic has the first as its base."""
    if fields.get("method") == "task_arithmetic":
        fields["base_model"] = str(folders["a"])
    merge = LocalMerge(**fields)
    return merge.plan(
        merge.recipe(tuple(folders), weights, *opened(folders)), aligned(merge, folders)
    )


def staging(plan: MergePlan, folder: Path) -> Path:
    folder.mkdir()
    make_shards(plan, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
