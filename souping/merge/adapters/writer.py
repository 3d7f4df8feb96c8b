"""Soup of adapters as a folder: an adapter that PEFT loads (`merge.adapters=keep`), or a full model (`merge`).

The full model is base + sum_i w_i s_i B_i A_i, rounded once to the output dtype.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.dtypes import size_of
from souping.checkpoints.header import header_bytes
from souping.checkpoints.lora import Adapter, first_match
from souping.core.protocols import Progress
from souping.core.system import write_at
from souping.core.text import shown
from souping.core.types import Recipe, UserError
from souping.merge.adapters.base import Site
from souping.merge.adapters.factors import Guard, Read, Share, blocks_of, join, product
from souping.merge.kernels.reference import narrow, widen
from souping.merge.plan import MergePlan, PlannedTensor
from souping.merge.planner import plan_opened
from souping.merge.writer import ShardWriter, prepare

Shares = Mapping[str, Sequence[Share]]
"""{module: its adapters' parts and weights}, in the recipe's order."""


def write_weights(path: Path, shares: Shares, dtype: str, read: Read, guard: Guard, progress: Progress | None) -> None:
    """adapter_model.safetensors: one module at a time, A and B of the summed rank.

    Raises:
        UserError: a file ended early, or a value is not finite.
    """
    header, total = _header(shares, dtype)
    with path.open("xb") as file:
        file.write(header)
        for module in sorted(shares):
            keys = shares[module][0][1].keys
            for key, raw in zip(keys, join(read, shares[module], dtype, guard), strict=True):
                guard.soup(widen(raw, dtype), key)
                file.write(np.ascontiguousarray(raw).data)
                if progress is not None:
                    progress(file.tell() - len(header), total)


def _header(shares: Shares, dtype: str) -> tuple[bytes, int]:
    """The file's header, and the number of bytes that follow."""
    tensors: list[tuple[str, str, Sequence[int], int, int]] = []
    offset = 0
    for module in sorted(shares):
        part, rank = shares[module][0][1], rank_of(shares[module])
        for key, shape in zip(part.keys, ([rank, part.a.shape[1]], [part.b.shape[0], rank]), strict=True):
            nbytes = shape[0] * shape[1] * size_of(dtype)
            tensors.append((key, dtype, shape, offset, nbytes))
            offset += nbytes
    return header_bytes(tensors), offset


def rank_of(shares: Sequence[Share]) -> int:
    return sum(part.rank for _, part, _ in shares)


def config_text(shares: Shares, adapters: Mapping[str, Adapter], base: Checkpoint) -> str:
    """adapter_config.json of the soup: alpha = rank everywhere, so that PEFT scales by exactly 1.

    `r` is the largest rank; the modules of another rank stand in rank_pattern and alpha_pattern.
    """
    first = next(iter(adapters.values())).settings
    ranks = {module: rank_of(part) for module, part in sorted(shares.items())}
    top = max(ranks.values())
    pattern = _pattern(ranks, top)
    table = {
        "alpha_pattern": pattern,
        "auto_mapping": first.auto_mapping,
        "base_model_name_or_path": first.base,
        "bias": "none",
        "fan_in_fan_out": any(adapter.settings.transposed for adapter in adapters.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": top,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": top,
        "rank_pattern": pattern,
        "revision": first.revision,
        "target_modules": _targets(ranks, base),
        "task_type": _task(adapters.values()),
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(table, indent=2) + "\n"


def _task(adapters: Iterable[Adapter]) -> str | None:
    kinds = (adapter.settings.task_type for adapter in adapters)
    return next((kind for kind in kinds if kind is not None), None)


def _pattern(ranks: Mapping[str, int], top: int) -> dict[str, int]:
    """{module: rank} for PEFT to resolve every module's rank rightly.

    Whole names. The first match wins, and a key also matches names that end in it or have a letter where it has a
    dot: so longer names come first, then those with fewer dots.
    """
    chosen = {module for module, rank in ranks.items() if rank != top}
    for _ in ranks:
        pattern = {module: ranks[module] for module in sorted(chosen, key=_precise)}
        wrong = {m for m, rank in ranks.items() if pattern.get(first_match(pattern, m), top) != rank}
        if not wrong:
            return pattern
        if wrong <= chosen:
            break
        chosen |= wrong
    raise UserError(f"module names of the adapters cannot be told apart by PEFT: {sorted(wrong)[0]}")


def _precise(name: str) -> tuple[int, int, str]:
    return -len(name), name.count("."), name


def _targets(ranks: Mapping[str, int], base: Checkpoint) -> list[str]:
    """Last parts of names where all such weights of the base are adapted, else whole names."""
    names = [name.split(".") for name, tensor in base.tensors.items() if len(tensor.shape) == 2]
    matrices = Counter(name[-2] for name in names if len(name) > 1 and name[-1] == "weight")
    adapted = Counter(module.rpartition(".")[2] for module in ranks)
    short = {last for last, count in adapted.items() if matrices[last] == count}
    whole = [module for module in ranks if module.rpartition(".")[2] not in short]
    return sorted(short) + whole


FULL = "F32"
"""The products of a merged soup are made of factors in fp32."""


def base_plan(recipe: Recipe, name: str, base: Checkpoint, max_shard_size: int | str, nonfinite: str) -> MergePlan:
    """The plan of the output's tensors: the base's, in the recipe's dtype, under the recipe's name."""
    alone = Recipe(ingredients=(name,), fingerprints=("",), weights=(1.0,), dtype=recipe.dtype)
    plan = plan_opened(alone, {name: base}, max_shard_size=max_shard_size, nonfinite=nonfinite)
    return replace(plan, recipe=recipe)


def write_model(
    plan: MergePlan,
    stage: Path,
    sites: Mapping[str, Site],
    shares: Shares,
    read: Read,
    guard: Guard,
    progress: Progress | None,
) -> None:
    """All shards into a staging folder: the base's tensors streamed, the adapted ones block by block.

    Raises:
        UserError: a tensor is shared with one that is not adapted, a file ended early, or a value is not finite.
    """
    refuse_shared(sites, shares)
    adapted = {sites[module].tensor.name: module for module in shares}
    done = plan.nbytes - sum(t.nbytes for t in plan.tensors if t.name in adapted)
    prepare(plan, stage)
    with ShardWriter(plan, stage) as writer:
        writer.plan = replace(plan, tensors=tuple(t for t in plan.tensors if t.name not in adapted))
        writer.fill(progress=None if progress is None else lambda count, _: progress(count, plan.nbytes))
    for tensor in (t for t in plan.tensors if t.name in adapted):
        module = adapted[tensor.name]
        _write_tensor(plan, tensor, stage, sites[module], shares[module], read, guard)
        done += tensor.nbytes
        if progress is not None:
            progress(done, plan.nbytes)


def refuse_shared(sites: Mapping[str, Site], shares: Shares) -> None:
    """A full model cannot hold an embedding and the head tied to it with different values."""
    bad = [module for module in shares if sites[module].shared]
    if bad:
        raise UserError(
            f"the adapters change {shown(bad[0])}, whose weight the base ties to another module: a merged model cannot "
            "hold both. Keep the soup an adapter (merge.adapters=keep)."
        )


def _write_tensor(
    plan: MergePlan, tensor: PlannedTensor, stage: Path, site: Site, shares: Sequence[Share], read: Read, guard: Guard
) -> None:
    made = product(read, shares, FULL, site.transposed, guard)
    rows, columns = tensor.shape
    start = len(plan.header(tensor.shard)) + tensor.offset
    owner = plan.ingredients[0].name
    descriptor = os.open(stage / plan.shards[tensor.shard], os.O_RDWR)
    try:
        for first, count in blocks_of(rows, columns):
            raw = read(owner, site.tensor, first * columns, count * columns)
            base = widen(raw, site.tensor.dtype).reshape(count, columns)
            guard(base, owner, site.tensor)
            out = narrow(made.added(base, first).reshape(-1), tensor.dtype)
            guard.soup(widen(out, tensor.dtype), tensor.name)
            write_at(descriptor, out.data, start + first * columns * size_of(tensor.dtype))
    finally:
        os.close(descriptor)
