"""Files of a soup of adapters: an adapter that PEFT loads, or the weights of a full model."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.header import header_bytes, size_of
from souping.checkpoints.hub import cached_name
from souping.checkpoints.lora import LORA_BIAS, PEFT_PREFIX, TOKENS, Adapter, AdapterSettings
from souping.checkpoints.views import Raw, widen
from souping.core.open_files import write_at
from souping.core.text import shown
from souping.core.types import Json, Recipe, UserError
from souping.merge import Nonfinite, OptionalProgress
from souping.merge.alignment import Alignment, lone_recipe
from souping.merge.changes import PARAMETERS, Change, Changes, Update
from souping.merge.factors import AdapterShare, AdapterShares, TensorReader, join
from souping.merge.mixing import chunks
from souping.merge.plan import MergePlan
from souping.merge.rounding import narrow
from souping.merge.sites import Site
from souping.merge.writer import fill_shards, make_shards

Values: TypeAlias = Iterator[tuple[str, Raw]]
"""(key of a tensor, some of its bytes), in the order of the file."""
StoredGroup: TypeAlias = tuple[Mapping[str, Sequence[int]], Values]
"""({key: shape} of tensors that are made together, their values)."""


def write_weights(
    path: Path,
    changes: Changes,
    reader: TensorReader,
    base: str,
    dtype: str,
    rank: int,
    progress: OptionalProgress = None,
) -> None:
    """Write adapter_model.safetensors: A and B of the soup, padded or truncated to `rank`, and its other tensors.

    `base` is the name of the base model in `reader`.

    Raises:
        UserError: a file ended early, or a value is not finite.
    """
    groups = list(_stored(changes, reader, base, dtype, rank))
    tensors: list[tuple[str, str, Sequence[int], int, int]] = []
    total = 0
    for shapes, _ in groups:
        for key, shape in shapes.items():
            nbytes = math.prod(shape) * size_of(dtype)
            tensors.append((key, dtype, shape, total, nbytes))
            total += nbytes
    with path.open("xb") as file:
        start = file.write(header_bytes(tensors))
        for _, values in groups:
            for key, raw in values:
                reader.check_soup(widen(raw, dtype), key)
                file.write(np.ascontiguousarray(raw).data)
                if progress is not None:
                    progress(file.tell() - start, total)


def _stored(
    changes: Changes, reader: TensorReader, base: str, dtype: str, rank: int
) -> Iterator[StoredGroup]:
    """All tensors of a kept adapter: pairs of factors, then tensors without factors, then the biases of zero."""
    shares = factor_shares(changes)
    for module in sorted(shares):
        # In one module, the adapters' factors differ only in rank: the first ones give the other sizes.
        _, pair, _ = shares[module][0]
        a, b = pair.keys
        size = rank * (pair.experts or 1)
        shapes = {a: (size, pair.a.shape[1]), b: (pair.b.shape[0], size)}
        yield shapes, _factors(shares[module], reader, dtype, rank)
    trained = trained_in(changes)
    biased = set[str]()
    for change in trained:
        update = Update(change, reader, base, dtype)
        key = _key(change, shares)
        yield {key: update.stored_shape}, _blocks(key, update, dtype)
        if change.kinds == ["lora_bias"]:
            biased.add(change.site.module)
    # PEFT gives all modules such a bias, or none.
    for module in sorted(shares.keys() - biased) if biased else ():
        rows = shares[module][0][1].b.shape[0]
        key = f"{PEFT_PREFIX}{module}.{LORA_BIAS}"
        yield {key: (rows,)}, iter([(key, narrow(np.zeros(rows, np.float32), dtype))])


def _factors(shares: Sequence[AdapterShare], reader: TensorReader, dtype: str, rank: int) -> Values:
    """The soup's A and B of one module, rounded to `dtype`."""
    a, b = join(reader, shares, rank)
    if b.ndim == 3:
        # PEFT has the experts last.
        b = np.moveaxis(b, 0, -1)
    for key, values in zip(shares[0][1].keys, (a, b), strict=True):
        yield key, narrow(values.reshape(-1), dtype)


def _blocks(key: str, update: Update, dtype: str) -> Values:
    for block in update.stored():
        yield key, narrow(block.reshape(-1), dtype)


def factor_shares(changes: Changes) -> AdapterShares:
    """{module as the factors' names have it: shares of the adapters with factors there}"""
    return {c.pairs[0][1].module: c.pairs for c in changes.values() if c.pairs}


def trained_in(changes: Changes) -> list[Change]:
    """Changes by tensors without factors, sorted by parameter."""
    return [change for _, change in sorted(changes.items()) if change.trained]


def _key(change: Change, shares: AdapterShares) -> str:
    """The key in a file of what a kept adapter stores for a parameter without factors."""
    name = change.site.parameter
    module = change.site.module
    # The only one: soups with several kinds in one parameter are full models (`adapters._not_kept`).
    kind = change.kinds[0]
    if kind == "lora_bias":
        name = f"{module}.{LORA_BIAS}"
    if kind == "trainable_token_indices":
        name = module + TOKENS
    # With factors, PEFT wraps the module, and the bias is in the one that it wraps.
    if kind == "bias" and module in shares:
        name = f"{module}.base_layer.bias"
    return PEFT_PREFIX + name


def _name_of_base(base: Path, adapter: AdapterSettings) -> tuple[str, str | None]:
    """(name, revision) of the base for PEFT: on the Hub if it is in the Hub's cache, else its absolute path and None.

    The revision in an adapter's settings is one of the base that they name.
    """
    folder = base.resolve()
    name = str(folder)
    revision = None
    cached = cached_name(folder)
    if cached:
        name, _, revision = cached.partition("@")
    return name, adapter.revision if name == adapter.base else revision


def adapter_config_text(
    changes: Changes, rank: int, adapters: Mapping[str, Adapter], base: Path
) -> str:
    """adapter_config.json of the soup: alpha = rank, so that PEFT scales by exactly 1.

    The base model is named so that it is found from every folder: as on the Hub, or by its absolute path.
    """
    settings = [adapter.settings for adapter in adapters.values()]
    name, revision = _name_of_base(base, settings[0])
    task_types = (setting.task_type for setting in settings)
    modules = list[Json]()
    parameters = list[Json]()
    for parameter, change in sorted(changes.items()):
        if PARAMETERS in change.kinds:
            parameters.append(parameter)
        elif change.pairs:
            modules.append(change.site.module)
    table: dict[str, Json] = {
        "auto_mapping": settings[0].auto_mapping,
        "base_model_name_or_path": name,
        "bias": "none",
        "fan_in_fan_out": any(setting.transposed for setting in settings),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "revision": revision,
        "target_modules": modules,
        "task_type": next((task for task in task_types if task is not None), None),
        "use_dora": False,
        "use_rslora": False,
    }
    # A plain LoRA has no other keys.
    saved = dict[str, None]()
    tokens = dict[str, Json]()
    for change in trained_in(changes):
        if change.kinds == ["modules_to_save"]:
            saved[change.site.module] = None
        if change.kinds == ["bias"]:
            table["bias"] = "all"
        if change.kinds == ["lora_bias"]:
            table["lora_bias"] = True
        if change.rows:
            tokens[change.site.module] = list[Json](change.rows)
    if parameters:
        table["target_parameters"] = parameters
    if saved:
        table["modules_to_save"] = list(saved)
    if tokens:
        table["trainable_token_indices"] = tokens
    return json.dumps(table, indent=2) + "\n"


def base_plan(
    recipe: Recipe, name: str, base: Checkpoint, shard_bytes: int, nonfinite: Nonfinite
) -> MergePlan:
    """The plan of a full model: the tensors of the base, called `name`, in the recipe's dtype, with the recipe itself.

    `write_model` replaces those that adapters change.
    """
    plan = Alignment({name: base}).plan(
        lone_recipe(name, recipe.dtype), shard_bytes=shard_bytes, nonfinite=nonfinite
    )
    return replace(plan, recipe=recipe)


def write_model(
    plan: MergePlan,
    stage: Path,
    changes: Changes,
    reader: TensorReader,
    progress: OptionalProgress = None,
) -> None:
    """Write all shards into the folder `stage`: tensors of the base copied, the changed ones computed in blocks.

    Raises:
        UserError: a tensor is shared with one that is not changed, a file ended early, or a value is not finite.
    """
    refuse_shared(change.site for change in changes.values())
    changed = {tensor.name for change in changes.values() for tensor in change.site.stored}
    planned = {tensor.name: tensor for tensor in plan.tensors}
    others = [tensor for tensor in plan.tensors if tensor.name not in changed]
    make_shards(plan, stage)
    copied = chunks(replace(plan, tensors=tuple(others)))
    if progress is None:
        fill_shards(plan, stage, work=copied)
    else:
        fill_shards(plan, stage, lambda count, _: progress(count, plan.nbytes), work=copied)
    done = sum(tensor.nbytes for tensor in others)
    data_starts = [len(plan.header(shard)) for shard in range(len(plan.shards))]
    # {tensor: bytes of it that are written}
    written = Counter[str]()
    for change in changes.values():
        # The plan's only ingredient is the base.
        update = Update(change, reader, plan.ingredients[0].name)
        for stored, block in update.stored_blocks():
            tensor = planned[stored.name]
            out = narrow(block.reshape(-1), tensor.dtype)
            reader.check_soup(widen(out, tensor.dtype), tensor.name)
            start = data_starts[tensor.shard] + tensor.offset + written[tensor.name]
            with (stage / plan.shards[tensor.shard]).open("r+b", buffering=0) as file:
                write_at(file.fileno(), out.data, start)
            written[tensor.name] += len(out)
            done += len(out)
            if progress is not None:
                progress(done, plan.nbytes)


def refuse_shared(sites: Iterable[Site], why_full: str = "") -> None:
    """Refuse changes that a full model cannot hold: of one of two tied weights, or of a bias that the base lacks.

    `why_full` says why the soup cannot stay an adapter, if it cannot.
    """
    advice = "keep the soup an adapter, merge.adapters=keep"
    if why_full:
        what = "no full model holds that, and soups of this pool have to be full models"
        advice = f"{what}: {why_full}"
    for site in sites:
        if site.shared:
            raise UserError(
                f"the adapters change {shown(site.module)}, whose weight the base ties to another module: {advice}"
            )
        if site.absent:
            raise UserError(
                f"the adapters add {shown(site.parameter)}, which the base does not have: {advice}"
            )
