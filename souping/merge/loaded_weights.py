"""Whether an engine holds the soup that it was given, checked at sampled positions of its own tensors.

An engine fuses, splits and packs the tensors of a checkpoint, so they cannot be compared with a file. But a soup is an
average, element by element: where an element of every candidate went when it was loaded from its folder, the soup's
goes too. So the values of a soup at fixed positions of an engine's tensors are the averages of the candidates' values
there, to the last bit if the engine's dtype holds the candidates' values exactly.

An average of what was never loaded is an average too. So after half of a candidate no value may be what it was, and
candidates whose files differ in a tensor have to differ in the engine's tensor.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.header import TORCH_NAMES
from souping.checkpoints.views import Float32
from souping.core.protocols import WeightSamples
from souping.core.text import listed
from souping.core.types import BoolArray, Names, Recipe, UserError, frozen
from souping.merge.methods import linear, torch_dtype

if TYPE_CHECKING:
    import torch

log = logging.getLogger("souping.run")
"""Its lines are in run.log."""
SAMPLED_VALUES = 256
"""Values of a tensor, at most: of a change to one element in twenty, they miss one in 500,000."""
SIGNIFICANT_BITS = {"float32": 24, "bfloat16": 8, "float16": 11}
ROUNDINGS = 4
"""Roundings, each by at most half a unit in the last place, between what an engine holds of a soup and the average of
what it held of the candidates. Three are to the coarsest dtype: of the candidates, the engine's soup and this average.
One more stands for all finer ones, of the fp32 sums and to a second dtype."""
LEAST_FLOAT16 = 2.0**-24
"""The smallest fp16 number: a rounding near zero is not relative. It is allowed in all dtypes, as the soup or the
engine may have fp16; in fp32, it covers the sums of many candidates, whose values are mostly below 1."""
DIFFERING = 0.25
"""Share of a tensor's values in the files that differ, from which on the engine's tensors have to differ too."""
ADAPTER_SETTINGS = {"adapters", "base"}
"""Settings of a recipe of adapters whose soup is the average of its ingredients, if their weights sum to one."""
StoredValues = Callable[[str, bool], Mapping[str, Float32]]
"""stored(candidate, whether an adapter's update alone is meant): {tensor: some of its values in the files}"""


def sample_weights(named: Iterable[tuple[str, torch.Tensor]]) -> WeightSamples:
    """Values at equal distances in each named tensor of floats, as fp32; other tensors are named as unchecked."""
    import torch

    tensors = list[tuple[str, str, int]]()
    values = list[torch.Tensor]()
    unchecked = list[str]()
    for name, tensor in named:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in TORCH_NAMES or not tensor.numel():
            unchecked.append(name)
            continue
        positions = _positions(tensor.numel(), str(tensor.device))
        tensors.append((name, dtype, len(positions)))
        values.append(tensor.detach().take(positions).float())
    # One copy from the device.
    flat = torch.cat(values).cpu().numpy() if values else np.empty(0, np.float32)
    return WeightSamples(tensors=tuple(tensors), values=flat, unchecked=tuple(unchecked))


@lru_cache(maxsize=1024)
def _positions(count: int, device: str) -> torch.Tensor:
    """Indexes of the sampled values of a tensor with `count` elements, from the first to the last, on its device."""
    import torch

    samples = min(count, SAMPLED_VALUES)
    positions = torch.arange(samples) * (count - 1) // max(1, samples - 1)
    return positions.to(device)


@frozen
class LoadedCandidate:
    """A candidate's sampled values [N]; `exact` if the engine holds them as they are stored."""

    values: Float32
    exact: bool


class LoadedWeights:
    """Sampled values of a pool's candidates, as engines hold them, to compare the values of soups with.

    Engines whose tensors have other names, dtypes or sizes do not share values. `stored` reads values of the files.
    """

    def __init__(self, stored: StoredValues = lambda candidate, update: {}) -> None:
        self._in_files = lru_cache(maxsize=None)(stored)
        # {tensors of an engine: {candidate: sampled values}}
        self._candidates: dict[object, dict[str, LoadedCandidate]] = {}
        self.not_checked = list[str]()
        """What the check left out, each once."""

    def check(self, recipe: Recipe, samples: WeightSamples, stored: bool) -> None:
        """Compare what an engine holds with what its recipe says; keep the values of a candidate.

        `stored` if a candidate was loaded from its own folder, not as a written soup. A soup is compared if it is a
        plain average of candidates whose values are known.

        Raises:
            UserError: the engine holds other values in some tensor, or those of another candidate.
        """
        known = self._candidates.setdefault(samples.tensors, {})
        first = recipe.ingredients[0]
        if len(recipe.ingredients) == 1:
            self._check_apart(recipe, samples, known)
        if recipe.weights == (1.0,) and first not in known:
            exact = stored and all(_holds(dtype, recipe.dtype) for _, dtype, _ in samples.tensors)
            known[first] = LoadedCandidate(values=samples.values, exact=exact)
        if samples.unchecked:
            self._not_checked(f"{listed(samples.unchecked)}, which the engine packs or quantises")
        if not is_average(recipe):
            self._not_checked("soups that are no plain average of candidates")
            return
        unknown = [name for name in recipe.ingredients if name not in known]
        if unknown:
            self._not_checked(f"soups of {listed(unknown)}, which the engine has not loaded alone")
            return
        in_files = self._in_files(first, samples.adapters)
        if not in_files:
            self._not_checked("tensors that are equal in all models, as the files' are not known")
        _compare(recipe, samples, [known[name] for name in recipe.ingredients], in_files.keys())

    def _check_apart(
        self, recipe: Recipe, samples: WeightSamples, known: Mapping[str, LoadedCandidate]
    ) -> None:
        """Refuse an engine that was given a candidate, or a multiple of one, and holds in some tensor what it held of
        a known candidate, although the two differ there in their files (UserError)."""
        (name,) = recipe.ingredients
        (weight,) = recipe.weights
        in_files = self._in_files(name, samples.adapters)
        places = _places(samples)
        dtypes = {tensor: dtype for tensor, dtype, _ in samples.tensors}
        faults = list[str]()
        for held, keys in _holders(in_files, list(places)).items():
            to_engine = partial(_cast, soup=recipe.dtype, engine=dtypes[held[0]])
            for other, candidate in known.items():
                # The candidate itself has the values of the first time.
                if (other, 1.0) == (name, weight):
                    continue
                same_in_engine = all(
                    np.array_equal(samples.values[places[tensor]], candidate.values[places[tensor]])
                    for tensor in held
                )
                # Values in the files of this model and of the other one.
                others = self._in_files(other, samples.adapters)
                pairs = [(weight * in_files[key], others[key]) for key in keys if key in others]
                if same_in_engine and _differ(pairs, to_engine):
                    faults.append(f"{listed(held)} (still that of {other})")
        if faults:
            raise _wrong(recipe, faults)

    def _not_checked(self, what: str) -> None:
        """Log, once, what the check leaves out."""
        if what not in self.not_checked:
            self.not_checked.append(what)
            log.info("weights in the engine that are not checked: %s", what)


def _places(samples: WeightSamples) -> dict[str, slice]:
    """{tensor of the engine: where its values are}: values of all tensors follow each other."""
    places = dict[str, slice]()
    begin = 0
    for name, _, count in samples.tensors:
        places[name] = slice(begin, begin + count)
        begin += count
    return places


def _plain(held: str) -> str:
    """The name that a checkpoint gives an engine's tensor, which may be a rank's part or the product of an adapter."""
    name, _, part = held.partition(" ")
    return f"{name}.weight" if part.startswith("adapter") else name


def _shorter(name: str) -> str:
    """A tensor's name without its first part, which may be a prefix such as `model.`."""
    rest = name.partition(".")[2]
    return rest if "." in rest else name


def _holders(stored: Collection[str], held: Iterable[str]) -> dict[Names, list[str]]:
    """{tensors of the engine: the tensors of the files that they hold}, of the names `held` there and `stored` here.

    A tensor of the files is in the engine's tensor of the same name, whose first part may differ. If there is none, it
    was fused or stacked: `attn.q_proj.weight` into `attn.qkv_proj.weight`, which has the same parent module and last
    part, and `mlp.experts.0.up_proj.weight` into `mlp.experts.w13_weight`, whose module is around it.
    """
    in_files = {*stored, *map(_shorter, stored)}
    # {name of a tensor, `PARENT/LAST PART`, or `MODULE/`: tensors of the engine that are found by it}
    held_at = defaultdict[str, list[str]](list)
    for name in held:
        plain = _plain(name)
        keys = {plain, _shorter(plain)}
        if not keys & in_files:
            module, _, last = plain.rpartition(".")
            keys = {f"{_parent(module)}/{last}", f"{module}/"}
        for key in keys:
            held_at[key].append(name)
    holders = defaultdict[Names, list[str]](list)
    for name in stored:
        module, _, last = name.rpartition(".")
        parent = _parent(module)
        fused = (f"{parent}/{last}", f"{parent}/", f"{_parent(parent)}/")
        for key in (name, _shorter(name), *fused):
            if key in held_at:
                holders[tuple(held_at[key])].append(name)
                break
    return holders


def _parent(module: str) -> str:
    """The name of the module around a module."""
    return module.rpartition(".")[0]


def _differ(
    pairs: Iterable[tuple[Float32, Float32]], to_engine: Callable[[Float32], Float32]
) -> bool:
    """Whether two models differ in the engine's dtype: in a share of at least DIFFERING of the values.

    A pair has both models' values of one tensor. Every pair counts alike, and those of different shapes do not.
    """
    shares = list[float]()
    for first, second in pairs:
        if first.shape == second.shape:
            shares.append(float((to_engine(first) != to_engine(second)).mean()))
    return bool(shares) and sum(shares) / len(shares) >= DIFFERING


def is_average(recipe: Recipe) -> bool:
    """Whether every element of the soup is the same average of its ingredients' elements."""
    if recipe.method != "linear":
        return False
    if not recipe.settings or recipe.weights == (1.0,):
        return True
    # A soup of adapters adds their products to the base, which is an average if the weights sum to one.
    return recipe.settings.keys() == ADAPTER_SETTINGS and abs(sum(recipe.weights) - 1) < 1e-6


def _holds(engine: str, stored: str) -> bool:
    """Whether values of the dtype `stored` keep all their bits in the dtype `engine`."""
    return engine in (stored, "float32") and stored in TORCH_NAMES


def _compare(
    recipe: Recipe,
    samples: WeightSamples,
    candidates: Sequence[LoadedCandidate],
    in_files: Collection[str],
) -> None:
    """Raises UserError with the tensors whose values are not the candidates' average; `in_files` are names there."""
    equal = _equal(recipe, samples, candidates)
    # The engine makes a tensor by itself if no file names it and it is the same in all models.
    same = np.all([candidate.values == samples.values for candidate in candidates], axis=0)
    if len(candidates) == 1 and recipe.weights != (1.0,):
        # A multiple of a candidate is there to find values that stay as they were. Those that change pass: they may be
        # functions of the stored values, and no multiples.
        equal |= ~same
    faults = list[str]()
    for name, place in _places(samples).items():
        differing = int((~equal[place]).sum())
        if differing and (_plain(name) in in_files or not same[place].all()):
            count = place.stop - place.start
            faults.append(f"{name} ({differing} of {count} sampled values)")
    if faults:
        raise _wrong(recipe, faults)


def _wrong(recipe: Recipe, faults: Sequence[str]) -> UserError:
    return UserError(
        f"the engine did not load soup {recipe.id} as it was mixed: other weights in {listed(faults)}\n"
        "its answers would be another model's. Start again; if it happens twice, report it with the engine's version"
    )


def _equal(
    recipe: Recipe, samples: WeightSamples, candidates: Sequence[LoadedCandidate]
) -> BoolArray:
    """[N] whether each sampled value is the candidates' average, but for rounding.

    The bits must be the same if the engine holds all candidates exactly and no adapter's product was added.
    """
    values = [candidate.values for candidate in candidates]
    exact = not recipe.settings and all(candidate.exact for candidate in candidates)
    average = linear(values, recipe.weights)
    # sum_k |w_k x_k|, to which rounding errors are relative.
    sizes = linear([np.abs(row) for row in values], np.abs(recipe.weights).tolist())
    counts = [count for _, _, count in samples.tensors]
    if recipe.settings:
        # Adapters: errors of an element of B A are relative to the largest of them.
        starts = np.cumsum([0, *counts[:-1]])
        sizes = np.repeat(np.maximum.reduceat(sizes, starts), counts)
    equal = np.zeros(len(samples.values), bool)
    dtypes = [dtype for _, dtype, _ in samples.tensors]
    for dtype in set(dtypes):
        of_dtype = np.repeat([other == dtype for other in dtypes], counts)
        error = np.abs(samples.values - _cast(average, recipe.dtype, dtype))
        # Which tensor of a soup of several dtypes has which is not known here.
        bits = min(SIGNIFICANT_BITS[name] for name in (dtype, *recipe.dtype.split("+")))
        allowed = 0.0 if exact else ROUNDINGS * sizes * 2.0**-bits + LEAST_FLOAT16
        equal |= of_dtype & (error <= allowed)
    return equal


def _cast(values: Float32, soup: str, engine: str) -> Float32:
    """fp32 values rounded to the soup's dtype and then to the engine's, by torch's names, as fp32."""
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(values))
    # In a soup of several dtypes each tensor has its ingredients' dtype, which is not known here.
    for dtype in (soup if soup in TORCH_NAMES else engine, engine):
        tensor = tensor.to(torch_dtype(TORCH_NAMES[dtype])).float()
    rounded: Float32 = tensor.numpy()
    return rounded
