"""Whether an engine holds the soup that it was given, checked at sampled positions of its own tensors.

An engine fuses, splits and packs the tensors of a checkpoint, so they cannot be compared with a file. But a soup is an
average, element by element: where an element of every candidate went when it was loaded from its folder, the soup's
goes too. So the values of a soup at fixed positions of an engine's tensors are the averages of the candidates' values
there, to the last bit if the engine's dtype holds the candidates' values exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints.header import TORCH_NAMES
from souping.checkpoints.views import Float32
from souping.core.protocols import WeightSamples
from souping.core.text import listed
from souping.core.types import BoolArray, Recipe, UserError, frozen
from souping.merge.kernels import linear, torch_dtype

if TYPE_CHECKING:
    import torch

log = logging.getLogger("souping.run")
"""Its lines are in run.log."""
SAMPLED_VALUES = 256
"""Values of a tensor, at most: of a change to one element in twenty, they miss one in 500,000."""
SIGNIFICANT_BITS = {"F32": 24, "BF16": 8, "F16": 11}
LEAST_FLOAT16 = 2.0**-24
"""The smallest fp16 number: errors of numbers near zero are not relative."""
ADAPTER_SETTINGS = {"adapters", "base"}
"""Settings of a recipe of adapters whose soup is the average of its ingredients, if their weights sum to one."""


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

    Engines whose tensors have other names, dtypes or sizes do not share values.
    """

    def __init__(self) -> None:
        # {tensors of an engine: {candidate: sampled values}}
        self._candidates: dict[object, dict[str, LoadedCandidate]] = {}
        # What was logged as not checked.
        self._said = set[str]()

    def check(self, recipe: Recipe, samples: WeightSamples, stored: bool) -> None:
        """Compare what an engine holds with what its recipe says; keep the values of a candidate.

        `stored` if the candidate's own folder was loaded. A soup is compared if it is a plain average of candidates
        whose values are known.

        Raises:
            UserError: the engine holds other values in some tensor.
        """
        known = self._candidates.setdefault(samples.tensors, {})
        if len(recipe.ingredients) == 1 and recipe.ingredients[0] not in known:
            exact = stored and all(_holds(dtype, recipe.dtype) for _, dtype, _ in samples.tensors)
            known[recipe.ingredients[0]] = LoadedCandidate(values=samples.values, exact=exact)
        if samples.unchecked:
            self._not_checked(f"{listed(samples.unchecked)}, which the engine packs or quantises")
        if not is_average(recipe):
            self._not_checked("soups that are no plain average of candidates")
            return
        unknown = [name for name in recipe.ingredients if name not in known]
        if unknown:
            self._not_checked(f"soups of {listed(unknown)}, which the engine has not loaded alone")
            return
        _compare(recipe, samples, [known[name] for name in recipe.ingredients])

    def _not_checked(self, what: str) -> None:
        """Log, once, what the check leaves out."""
        if what not in self._said:
            self._said.add(what)
            log.info("weights in the engine that are not checked: %s", what)


def is_average(recipe: Recipe) -> bool:
    """Whether every element of the soup is the same average of its ingredients' elements."""
    if recipe.method != "linear":
        return False
    if not recipe.settings or len(recipe.ingredients) == 1:
        return True
    # A soup of adapters adds their products to the base, which is an average if the weights sum to one.
    return recipe.settings.keys() == ADAPTER_SETTINGS and abs(sum(recipe.weights) - 1) < 1e-6


def _holds(dtype: str, stored: str) -> bool:
    """Whether values of `stored` can be cast to `dtype` and back."""
    return dtype in (stored, "float32") and stored in TORCH_NAMES


def _compare(recipe: Recipe, samples: WeightSamples, candidates: Sequence[LoadedCandidate]) -> None:
    """Raises UserError with the tensors whose values are not the candidates' average."""
    wrong = ~_equal(recipe, samples, candidates)
    if not wrong.any():
        return
    faults = list[str]()
    # Values of all tensors follow each other.
    begin = 0
    for name, _, count in samples.tensors:
        differing = int(wrong[begin : begin + count].sum())
        if differing:
            faults.append(f"{name} ({differing} of {count} sampled values)")
        begin += count
    raise UserError(
        f"the engine did not load soup {recipe.id} as it was mixed: other weights in {listed(faults)}\n"
        "its answers would be another model's. Start again; if it happens twice, report it with the engine's version"
    )


def _equal(
    recipe: Recipe, samples: WeightSamples, candidates: Sequence[LoadedCandidate]
) -> BoolArray:
    """[N] whether a value is the candidates' average, as the engine holds it."""
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
    # Values that the engine makes by itself are the same in all models; rounding may move their average.
    equal: BoolArray = np.all([row == samples.values for row in values], axis=0)
    dtypes = [TORCH_NAMES[dtype] for _, dtype, _ in samples.tensors]
    for dtype in set(dtypes):
        of_dtype = np.repeat([tag == dtype for tag in dtypes], counts)
        soup_dtype = TORCH_NAMES.get(recipe.dtype, dtype)
        soup = _rounded(_rounded(average, soup_dtype), dtype)
        error = np.abs(samples.values - soup)
        # Candidates, soup and the engine's copy were each rounded by half a unit in the last place.
        bits = min(SIGNIFICANT_BITS[dtype], SIGNIFICANT_BITS[soup_dtype])
        allowed = 0.0 if exact else 4 * sizes * 2.0**-bits + LEAST_FLOAT16
        equal |= of_dtype & (error <= allowed)
    return equal


def _rounded(values: Float32, dtype: str) -> Float32:
    """fp32 values rounded to `dtype`, as fp32."""
    import torch

    rounded: Float32 = torch.from_numpy(values).to(torch_dtype(dtype)).float().numpy()
    return rounded
