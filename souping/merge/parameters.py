"""Adapters of parameters (PEFT's `target_parameters`): which parameter of the base each pair of factors is of.

PEFT wraps a module once for each of its parameters and names the factors by these wraps, not by parameters:
`experts.lora_A`, `experts.base_layer.lora_A`. Their shapes, and the base, show which one it is. PEFT 0.18 takes the
second dimension of fused experts for the inputs, and later ones the last, unless the module says otherwise. A square
parameter is taken as the adapter's others are.

transformers fuses experts when it loads them, while many files have them one by one: [gate; up] of each expert, and
experts one after the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.header import FLOATS
from souping.checkpoints.lora import Adapter, AdapterSettings, FactorPair, TargetedParameter
from souping.core.text import listed, shown
from souping.core.types import UserError
from souping.merge.sites import named_tensor

EXPERT_TENSORS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "up_proj": (("up_proj",),),
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
}
"""{fused parameter: names of an expert's tensors in files, in the order in which transformers joins them}"""
EXPERTS_IN_FILES = ("mlp.experts", "block_sparse_moe.experts")
"""What files call the module `mlp.experts`."""
Parameters = Mapping[str, TargetedParameter]
"""{name: parameter}"""


def with_targets(base: Checkpoint, name: str, adapter: Adapter) -> Adapter:
    """The adapter `name` with the parameter of each pair of factors that has one.

    Raises:
        UserError: the base lacks one, or factors are missing, do not fit, or fit several.
    """
    settings = adapter.settings
    if not settings.parameters:
        return adapter
    parts = dict(adapter.parts)
    by_owner = defaultdict[str, list[FactorPair]](list)
    for module, pair in adapter.parts.items():
        by_owner[re.sub(r"(\.base_layer)+$", "", module)].append(pair)
    for owner, pairs in by_owner.items():
        parameters = _parameters(base, owner, settings)
        if not parameters and named_tensor(base, f"{owner}.weight"):
            continue
        wraps = {owner + ".base_layer" * number for number in range(len(parameters))}
        if {pair.module for pair in pairs} != wraps:
            raise UserError(
                f"adapter {name} has {len(pairs)} pairs of factors in {shown(owner)}, but of the parameters in its "
                f"target_parameters the base has {len(parameters)} there as floats ({listed(parameters)})"
            )
        for pair in pairs:
            parts[pair.module] = _with_target(name, pair, parameters, settings)
        if len({parts[pair.module].parameter for pair in pairs}) < len(pairs):
            raise _unclear(name, owner)
    return replace(adapter, parts=_turned(name, parts))


def _parameters(base: Checkpoint, owner: str, settings: AdapterSettings) -> Parameters:
    """The parameters of a module that `target_parameters` names."""
    found = dict[str, TargetedParameter]()
    for target in settings.parameters:
        module, _, last = target.rpartition(".")
        if not f".{owner}".endswith(f".{module}" if module else ""):
            continue
        name = f"{owner}.{last}"
        whole = named_tensor(base, name)
        fused = _fused(base, owner, last)
        if whole is not None and whole.dtype in FLOATS and len(whole.shape) in (2, 3):
            found[name] = TargetedParameter(name, whole, (), transposed=False)
        elif fused is not None:
            found[name] = fused
    return found


def _fused(base: Checkpoint, owner: str, last: str) -> TargetedParameter | None:
    """The parameter `last` of the module `owner`, put together from the experts in the files; None if they do not fit.

    transformers has one rule for them all: `torch.cat([gate, up], dim=1)` of the stacked experts.
    """
    options = product(EXPERTS_IN_FILES, EXPERT_TENSORS.get(last, ()))
    for module, names in options:
        ending = f"0.{names[0]}.weight"
        first = named_tensor(base, f"{owner.replace('mlp.experts', module)}.{ending}")
        if first is None:
            continue
        stem = first.name.removesuffix(ending)
        experts = 0
        while f"{stem}{experts}.{names[0]}.weight" in base.tensors:
            experts += 1
        keys = [f"{stem}{number}.{part}.weight" for number, part in product(range(experts), names)]
        pieces = tuple(base.tensors[key] for key in keys if key in base.tensors)
        alike = {(piece.shape, piece.dtype) for piece in pieces}
        if len(pieces) == len(keys) and len(alike) == 1 and len(first.shape) == 2:
            shape = (experts, len(names) * first.shape[0], first.shape[1])
            name = f"{owner}.{last}"
            return TargetedParameter(name, replace(first, name=name, shape=shape), pieces, False)
    return None


def _with_target(
    name: str, pair: FactorPair, parameters: Parameters, settings: AdapterSettings
) -> FactorPair:
    """The pair with the only parameter that it fits (UserError: none, or several)."""
    rows = pair.b.shape[0]
    columns = pair.a.shape[1]
    fitting = list[FactorPair]()
    for parameter in parameters.values():
        experts = parameter.experts or 1
        sizes = parameter.tensor.shape[-2:]
        turned = parameter.experts is not None and sizes == (columns, rows)
        rank = pair.a.shape[0] // experts
        if (turned or sizes == (rows, columns)) and rank * experts == pair.a.shape[0]:
            scaling = settings.scaling_of(parameter.name, rank)
            target = replace(parameter, transposed=turned)
            fitting.append(replace(pair, target=target, scaling=scaling))
    if len(fitting) > 1:
        raise _unclear(name, pair.module)
    if not fitting or fitting[0].rank not in settings.ranks:
        shapes = [f"{shown(key)} {list(it.tensor.shape)}" for key, it in parameters.items()]
        raise UserError(
            f"adapter {name}, {shown(pair.module)}: A {list(pair.a.shape)} and B {list(pair.b.shape)} of rank "
            f"{settings.ranks[0]} do not fit {listed(shapes)}"
        )
    return fitting[0]


def _turned(name: str, parts: Mapping[str, FactorPair]) -> dict[str, FactorPair]:
    """The parts, those of square experts turned as the other experts are (UserError: nothing shows how)."""
    ways = set[bool]()
    squares = dict[str, TargetedParameter]()
    for module, pair in parts.items():
        if pair.target is None or pair.target.experts is None:
            continue
        if pair.a.shape[1] == pair.b.shape[0]:
            squares[module] = pair.target
        else:
            ways.add(pair.target.transposed)
    if squares and len(ways) != 1:
        raise _unclear(name, next(iter(squares)))
    turned = dict(parts)
    for module, target in squares.items():
        turned[module] = replace(parts[module], target=replace(target, transposed=ways == {True}))
    return turned


def _unclear(name: str, module: str) -> UserError:
    return UserError(
        f"adapter {name}: the shapes of {shown(module)} do not show how PEFT packed it: merge it with PEFT, and use "
        "that model as a candidate"
    )
