"""Soup of adapters: its factors A and B, the weights that they make, and both as folders.

A soup of adapters i with weights w_i is sum_i w_i s_i B_i A_i. It is kept as one pair of factors of rank sum_i r_i:
A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2, ...], so the product of the pair is that sum. Averaging A and B
themselves would add products of different adapters, B_i A_j, which were never trained.

With `merge.adapters=keep` the pair is written as an adapter that PEFT loads, with `merge` as a full model:
base + sum_i w_i s_i B_i A_i, rounded once to the output dtype.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.dtypes import size_of
from souping.checkpoints.header import header_bytes
from souping.checkpoints.lora import Adapter, FactorPair, first_match
from souping.core.protocols import Progress
from souping.core.system import write_at
from souping.core.text import shown
from souping.core.types import Recipe, UserError
from souping.merge.adapters.base import Site, TensorReader, blocks_of
from souping.merge.kernels import Float32, Raw, narrow, widen
from souping.merge.plan import MergePlan, PlannedTensor
from souping.merge.planner import Alignment
from souping.merge.writer import ShardWriter, prepare

if TYPE_CHECKING:
    import torch

FULL = "F32"
"""Dtype of the factors whose product a full model gets."""
Share = tuple[str, FactorPair, float]
"""An adapter's name, its part of a module, and its weight."""
Shares = Mapping[str, Sequence[Share]]
"""{module: its adapters' parts and weights}, in the recipe's order."""


def join(reader: TensorReader, shares: Sequence[Share], dtype: str) -> list[Raw]:
    """The soup's A [sum of ranks, in] and B [out, sum of ranks] as bytes of `dtype`, each element rounded once."""
    left: list[Float32] = []
    right: list[Float32] = []
    for name, part, weight in shares:
        left.append(reader.rows(name, part.a))
        with np.errstate(over="ignore", invalid="ignore"):
            b = reader.rows(name, part.b).astype(np.float64) * (weight * part.scaling)
            right.append(b.astype(np.float32))
    return [narrow(np.concatenate(left, 0).reshape(-1), dtype), narrow(np.concatenate(right, 1).reshape(-1), dtype)]


class Product:
    """Soup's product at one site, as rows of the weight it is added to.

    `a` [rank, in] and `b` [out, rank] are fp32. A weight stored [in, out] gets the product transposed.
    """

    def __init__(self, a: Float32, b: Float32, transposed: bool) -> None:
        self.left: Float32 = a.T if transposed else b
        self.right: NDArray[np.float64] = (b.T if transposed else a).astype(np.float64)

    def added(self, base: Float32, start: int) -> Float32:
        """`base` [n, columns] (rows from `start` of the weight) plus the product, summed in fp64, rounded to fp32.

        fp64 keeps the sum independent of how a matrix library splits the work, so that pouring and writing agree.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            total = self.left[start : start + len(base)].astype(np.float64) @ self.right
            total += base
            return total.astype(np.float32)


class DeviceProduct:
    """Product whose sums run on a torch device. Tests give it CPU tensors: there the numbers equal `Product`'s."""

    def __init__(self, product: Product, device: torch.device) -> None:
        import torch

        self._left = torch.tensor(product.left, dtype=torch.float64, device=device)
        self._right = torch.tensor(product.right, dtype=torch.float64, device=device)

    def added(self, base: Float32, start: int) -> torch.Tensor:
        """As `Product.added`, on the device."""
        import torch

        rows = torch.tensor(base, device=self._left.device).double()
        return rows.addmm_(self._left[start : start + len(base)], self._right).float()


def product(reader: TensorReader, shares: Sequence[Share], dtype: str, transposed: bool) -> Product:
    """The product of shares whose soup is stored in `dtype`."""
    a, b = join(reader, shares, dtype)
    rank = rank_of(shares)
    return Product(widen(a, dtype).reshape(rank, -1), widen(b, dtype).reshape(-1, rank), transposed)


def rank_of(shares: Sequence[Share]) -> int:
    return sum(part.rank for _, part, _ in shares)


def write_weights(
    path: Path, shares: Shares, dtype: str, reader: TensorReader, progress: Progress | None = None
) -> None:
    """adapter_model.safetensors: one module at a time, A and B of the summed rank.

    Raises:
        UserError: a file ended early, or a value is not finite.
    """
    header, total = _header(shares, dtype)
    with path.open("xb") as file:
        file.write(header)
        for module in sorted(shares):
            keys = shares[module][0][1].keys
            for key, raw in zip(keys, join(reader, shares[module], dtype), strict=True):
                reader.check_soup(widen(raw, dtype), key)
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


def config_text(shares: Shares, adapters: Mapping[str, Adapter], base: Checkpoint) -> str:
    """adapter_config.json of the soup: alpha = rank everywhere, so that PEFT scales by exactly 1.

    `r` is the largest rank; the modules of another rank stand in rank_pattern and alpha_pattern.
    """
    settings = [adapter.settings for adapter in adapters.values()]
    ranks = {module: rank_of(part) for module, part in sorted(shares.items())}
    top = max(ranks.values())
    pattern = rank_pattern(ranks, top)
    table = {
        "alpha_pattern": pattern,
        "auto_mapping": settings[0].auto_mapping,
        "base_model_name_or_path": settings[0].base,
        "bias": "none",
        "fan_in_fan_out": any(each.transposed for each in settings),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": top,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": top,
        "rank_pattern": pattern,
        "revision": settings[0].revision,
        "target_modules": _targets(ranks, base),
        "task_type": next((each.task_type for each in settings if each.task_type is not None), None),
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(table, indent=2) + "\n"


def rank_pattern(ranks: Mapping[str, int], top: int) -> dict[str, int]:
    """{module: rank} from which PEFT finds the rank of every module, `top` being the default.

    PEFT takes the first key that matches, and a key also matches names that end in it or have a letter in place
    of a dot. So keys are whole names, longer ones first, then those with fewer dots.
    """
    chosen = {module for module, rank in ranks.items() if rank != top}
    for _ in ranks:
        ordered = sorted(chosen, key=lambda name: (-len(name), name.count("."), name))
        pattern = {module: ranks[module] for module in ordered}
        wrong = {m for m, rank in ranks.items() if pattern.get(first_match(pattern, m), top) != rank}
        if not wrong:
            return pattern
        if wrong <= chosen:
            break
        chosen |= wrong
    raise UserError(f"module names of the adapters cannot be told apart by PEFT: {sorted(wrong)[0]}")


def _targets(ranks: Mapping[str, int], base: Checkpoint) -> list[str]:
    """Last parts of names if all such weights of the base are adapted, else whole names."""
    names = [name.split(".") for name, tensor in base.tensors.items() if len(tensor.shape) == 2]
    matrices = Counter(name[-2] for name in names if len(name) > 1 and name[-1] == "weight")
    adapted = Counter(module.rpartition(".")[2] for module in ranks)
    short = {last for last, count in adapted.items() if matrices[last] == count}
    whole = [module for module in ranks if module.rpartition(".")[2] not in short]
    return sorted(short) + whole


def base_plan(recipe: Recipe, name: str, base: Checkpoint, max_shard_size: int | str, nonfinite: str) -> MergePlan:
    """The plan of the output's tensors: the base's, in the recipe's dtype, under the recipe's name."""
    alone = Recipe(ingredients=(name,), fingerprints=("",), weights=(1.0,), dtype=recipe.dtype)
    plan = Alignment({name: base}).plan(alone, max_shard_size=max_shard_size, nonfinite=nonfinite)
    return replace(plan, recipe=recipe)


def write_model(
    plan: MergePlan,
    stage: Path,
    sites: Mapping[str, Site],
    shares: Shares,
    reader: TensorReader,
    progress: Progress | None = None,
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
        _write_tensor(plan, tensor, stage, sites[module], shares[module], reader)
        done += tensor.nbytes
        if progress is not None:
            progress(done, plan.nbytes)


def refuse_shared(sites: Mapping[str, Site], modules: Shares | Mapping[str, Site]) -> None:
    """A full model cannot hold an embedding and the head tied to it with different values."""
    bad = [module for module in modules if sites[module].shared]
    if bad:
        raise UserError(
            f"the adapters change {shown(bad[0])}, whose weight the base ties to another module: a merged model cannot "
            "hold both. Keep the soup an adapter (merge.adapters=keep)."
        )


def _write_tensor(
    plan: MergePlan, tensor: PlannedTensor, stage: Path, site: Site, shares: Sequence[Share], reader: TensorReader
) -> None:
    made = product(reader, shares, FULL, site.transposed)
    start = len(plan.header(tensor.shard)) + tensor.offset
    with (stage / plan.shards[tensor.shard]).open("r+b", buffering=0) as file:
        for first, count in blocks_of(tensor.shape):
            base = reader.rows(plan.ingredients[0].name, site.tensor, first, count)
            out = narrow(made.added(base, first).reshape(-1), tensor.dtype)
            reader.check_soup(widen(out, tensor.dtype), tensor.name)
            write_at(file.fileno(), out.data, start)
            start += len(out)
