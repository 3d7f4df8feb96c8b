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
    parameters = dict[str, TargetedParameter]()
    options = dict[str, list[TargetedParameter]]()
    # Whether all experts are transposed.
    ways = {False, True}
    for module, pair in adapter.parts.items():
        owner = re.sub(r"(\.base_layer)+$", "", module)
        own = _parameters(base, owner, settings)
        if own or (settings.parameters and not named_tensor(base, f"{owner}.weight")):
            parameters |= own
            options[module] = _fitting(name, pair, own, settings)
            ways &= {option.transposed for option in options[module] if option.experts} or ways
    parts = dict(adapter.parts)
    for module, fitting in options.items():
        chosen = [option for option in fitting if not option.experts or {option.transposed} == ways]
        if len(chosen) != 1:
            raise UserError(
                f"adapter {name}: the shapes of {shown(module)} do not show how PEFT packed it: merge it with PEFT, "
                "and use that model as a candidate"
            )
        pair = replace(parts[module], target=chosen[0])
        scaling = settings.scaling_of(pair.parameter, pair.rank)
        parts[module] = replace(pair, scaling=scaling)
        parameters.pop(pair.parameter, None)
    if parameters:
        raise UserError(
            f"adapter {name} has no factors of {listed(parameters)}, which its target_parameters name: save it again"
        )
    return replace(adapter, parts=parts)


def _parameters(base: Checkpoint, owner: str, settings: AdapterSettings) -> Parameters:
    """The parameters of a module that `target_parameters` names."""
    found = dict[str, TargetedParameter]()
    for target in settings.parameters:
        module, _, last = target.rpartition(".")
        if not f".{owner}".endswith(f".{module}" if module else ""):
            continue
        name = f"{owner}.{last}"
        tensor = named_tensor(base, name)
        pieces: tuple[Tensor, ...] = ()
        if tensor is None:
            tensor, pieces = _fused(base, owner, last)
        if tensor is not None and tensor.dtype in FLOATS:
            found[name] = TargetedParameter(name, tensor, pieces, transposed=False)
    return found


def _fused(base: Checkpoint, owner: str, last: str) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """(the parameter `last` of a module, the tensors of its experts in the files); None if there are none."""
    for module, names in product(EXPERTS_IN_FILES, EXPERT_TENSORS.get(last, ())):
        ending = f"0.{names[0]}.weight"
        first = named_tensor(base, f"{owner.replace('mlp.experts', module)}.{ending}")
        if first is None:
            continue
        pieces = list[Tensor]()
        piece: Tensor | None = first
        while piece is not None and (piece.shape, piece.dtype) == (first.shape, first.dtype):
            pieces.append(piece)
            expert, number = divmod(len(pieces), len(names))
            key = f"{first.name.removesuffix(ending)}{expert}.{names[number]}.weight"
            piece = base.tensors.get(key)
        shape = (len(pieces) // len(names), len(names) * first.shape[0], *first.shape[1:])
        return replace(first, shape=shape), tuple(pieces)
    return None, ()


def _fitting(
    name: str, pair: FactorPair, parameters: Parameters, settings: AdapterSettings
) -> list[TargetedParameter]:
    """The parameters that factors fit, one way or the other (UserError: none)."""
    sizes = (pair.b.shape[0], pair.a.shape[1])
    fitting = list[TargetedParameter]()
    for parameter in parameters.values():
        rank, rest = divmod(pair.a.shape[0], parameter.experts or 1)
        if rest or rank not in settings.ranks:
            continue
        if parameter.tensor.shape[-2:] == sizes:
            fitting.append(parameter)
        if parameter.experts and parameter.tensor.shape[-2:] == sizes[::-1]:
            fitting.append(replace(parameter, transposed=True))
    if not fitting:
        shapes = [f"{shown(key)} {list(it.tensor.shape)}" for key, it in parameters.items()]
        raise UserError(
            f"adapter {name}, {shown(pair.module)}: A {list(pair.a.shape)} and B {list(pair.b.shape)} with r="
            f"{shown(str(settings.ranks[0]))} fit no parameter that target_parameters names (the base has "
            f"{listed(shapes) or 'none'} as floats)"
        )
    return fitting
