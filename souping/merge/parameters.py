"""Adapters of parameters (PEFT's `target_parameters`): which parameter of the base each pair of factors is of.

PEFT wraps a module once for each of its parameters and names the factors by these wraps, not by parameters:
`experts.lora_A`, `experts.base_layer.lora_A`. Their shapes, and the base, show which one it is. PEFT 0.18 takes the
second dimension of fused experts for the inputs. Later versions take the last one, unless the module says otherwise.
So all experts of an adapter are taken one way, and one that is square goes with the others.

transformers fuses experts when it loads them, while many files have them one by one. It has one rule for all:
`torch.cat([gate, up], dim=1)` of the stacked experts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import product

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.header import FLOATS, Tensor
from souping.checkpoints.lora import Adapter, AdapterSettings, FactorPair, TargetedParameter
from souping.core.text import listed
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
Parts = dict[str, FactorPair]
"""{module or targeted parameter: factors}"""
Targets = dict[str, TargetedParameter]
"""{name: parameter}"""


def with_targets(base: Checkpoint, name: str, adapter: Adapter) -> Adapter:
    """The adapter `name` with the parameter of each pair of factors that has one.

    Raises:
        UserError: factors are missing, or fit the parameters in no way or in several.
    """
    if not adapter.settings.parameters:
        return adapter
    targets = {module: _parameters(base, module, adapter.settings) for module in adapter.parts}
    ways = list[Parts]()
    for transposed in (False, True):
        parts = _parts(adapter, targets, transposed)
        if parts and parts not in ways:
            ways.append(parts)
    if len(ways) != 1:
        raise UserError(
            f"adapter {name}: by their shapes, its factors fit the base's {listed(adapter.settings.parameters)} in "
            f"{len(ways)} ways: merge it with PEFT, and use that model as a candidate"
        )
    return replace(adapter, parts=ways[0])


def _parts(adapter: Adapter, targets: Mapping[str, Targets], transposed: bool) -> Parts:
    """All factors, with all experts `transposed` or none; empty if some do not fit so, or are missing.

    `targets` are {module: the parameters that its factors may be of}.
    """
    settings = adapter.settings
    parts = Parts()
    wanted = set[str]()
    for module, pair in adapter.parts.items():
        parameters = targets[module]
        wanted |= parameters.keys()
        # Factors of a whole module, which are of no targeted parameter, stay as they are.
        fitting = Parts() if parameters else {module: pair}
        for key, parameter in parameters.items():
            experts = parameter.experts or 1
            rank = pair.a.shape[0] // experts
            turned = transposed and parameter.experts is not None
            shape = parameter.tensor.shape[-2:]
            if turned:
                shape = shape[::-1]
            # B is [rows, experts * rank], A is [experts * rank, columns].
            sizes = (*shape, experts * rank)
            fits = sizes == (pair.b.shape[0], pair.a.shape[1], pair.a.shape[0])
            if fits and rank in settings.ranks:
                target = replace(parameter, transposed=turned)
                scaling = settings.scaling_of(key, rank)
                fitting[key] = replace(pair, target=target, scaling=scaling)
        if len(fitting) != 1 or fitting.keys() & parts.keys():
            return {}
        parts |= fitting
    return parts if wanted <= parts.keys() else {}


def _parameters(base: Checkpoint, module: str, settings: AdapterSettings) -> Targets:
    """The parameters in `target_parameters` that factors with the name of `module` may be of."""
    owner = re.sub(r"(\.base_layer)+$", "", module)
    found = Targets()
    for target in settings.parameters:
        name = f"{owner}.{target.rpartition('.')[2]}"
        parameter = _parameter(base, name) if f".{name}".endswith(f".{target}") else None
        if parameter is not None and parameter.tensor.dtype in FLOATS:
            found[name] = parameter
    return found


def _parameter(base: Checkpoint, name: str) -> TargetedParameter | None:
    """The base's parameter, whole or as the tensors of single experts; None if it has neither."""
    whole = named_tensor(base, name)
    if whole is not None:
        return TargetedParameter(name, whole)
    owner, _, last = name.rpartition(".")
    for module, names in product(EXPERTS_IN_FILES, EXPERT_TENSORS.get(last, ())):
        ending = f"0.{names[0]}.weight"
        first = named_tensor(base, f"{owner.replace('mlp.experts', module)}.{ending}")
        if first is None:
            continue
        stem = first.name.removesuffix(ending)
        pieces = list[Tensor]()
        # Experts are numbered from 0: there are as many as follow each other without a gap.
        for expert, part in product(range(len(base.tensors)), names):
            piece = base.tensors.get(f"{stem}{expert}.{part}.weight")
            if piece is None or (piece.shape, piece.dtype) != (first.shape, first.dtype):
                break
            pieces.append(piece)
        # A `rest` is an expert of which a tensor is missing.
        experts, rest = divmod(len(pieces), len(names))
        shape = (experts, len(names) * first.shape[0], *first.shape[1:])
        if not rest:
            return TargetedParameter(name, replace(first, shape=shape), tuple(pieces))
    return None
