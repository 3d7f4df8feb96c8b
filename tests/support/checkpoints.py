"""Small checkpoint folders written byte by byte, so that tests can also write wrong ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.core.text import parse_size
from souping.core.types import Recipe
from souping.merge.alignment import Alignment
from souping.merge.backend import MergeBackend
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan


def plan(
    recipe: Recipe, folders: Mapping[str, Path], max_shard_size: int | str = "5GB"
) -> MergePlan:
    """The plan of a recipe of plain folders."""
    opened = Alignment({name: Checkpoint.open(folders[name]) for name in recipe.ingredients})
    return opened.plan(recipe, shard_bytes=parse_size(max_shard_size, "merge.max_shard_size"))


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 12,
    "torch_dtype": "bfloat16",
}


def save(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = None,
    shards: int = 1,
) -> Path:
    """A checkpoint of these tensors in one file, or dealt to shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
        return folder
    names = list(tensors)
    places = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        places.update(dict.fromkeys(part, file))
        save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def random_tensors(
    seed: int, dtype: torch.dtype = torch.bfloat16, rows: int = 12
) -> dict[str, torch.Tensor]:
    """Odd sizes on purpose: rows of blocks and vectors do not divide them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (rows, 7),
        "model.layers.0.mlp.up_proj.weight": (5, 7),
        "model.layers.0.self_attn.q_proj.weight": (7, 7),
        "model.layers.1.mlp.up_proj.weight": (5, 7),
        "model.layers.1.self_attn.q_proj.weight": (7, 7),
        "model.norm.weight": (33,),
        "lm_head.weight": (rows, 7),
    }
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


def family(folder: Path, count: int, **settings: Any) -> dict[str, Path]:
    """`count` siblings named m0, m1, ..."""
    return {f"m{i}": save(folder / f"m{i}", random_tensors(i, **settings)) for i in range(count)}


def opened(folders: Mapping[str, Path]) -> tuple[dict[str, Checkpoint], dict[str, str]]:
    """(checkpoints, fingerprints) by name."""
    return {n: Checkpoint.open(p) for n, p in folders.items()}, {
        n: fingerprint(p) for n, p in folders.items()
    }


def aligned(merge: MergeBackend, folders: Mapping[str, Path]) -> Alignment:
    return merge.align(
        {name: Checkpoint.open(path, merge.allow_pickle) for name, path in folders.items()}
    )


def simple(folders: Mapping[str, Path], weights: tuple[float, ...], **settings: Any) -> Recipe:
    """A linear recipe without looking at the files."""
    names = tuple(folders)
    return Recipe(
        ingredients=names, fingerprints=names, weights=weights, dtype="", settings=settings
    )


def expected(
    parts: list[torch.Tensor], weights: tuple[float, ...], dtype: torch.dtype
) -> torch.Tensor:
    """The specification: fp32 multiply-adds in order, rounded once."""
    total = torch.zeros(parts[0].shape)
    for part, weight in zip(parts, weights, strict=True):
        total.add_(part.float(), alpha=weight)
    return total.to(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kinds = {4: torch.int32, 2: torch.int16}
    kind = kinds[a.element_size()]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(kind), b.view(kind))


def raw_file(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    """A safetensors file whose header may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def soup_of(
    folders: dict[str, Path], out: Path, weights: tuple[float, ...], **fields: Any
) -> dict[str, torch.Tensor]:
    merge = LocalMerge(**fields)
    recipe = merge.recipe(tuple(folders), weights, *opened(folders))
    return load(merge.write(merge.plan(recipe, aligned(merge, folders)), out))
