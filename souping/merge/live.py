"""Live pouring: a soup straight into the parameters of a module, no disk.

A parameter gets the very numbers that writing the soup and loading it back would give: fp32 accumulation, one rounding
to the soup's dtype, then the cast to the parameter's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.core import Recipe
from souping.merge.blocks import mix, store
from souping.merge.checkpoint import Checkpoint
from souping.merge.kernels import Raw, linear
from souping.merge.larder import Larder
from souping.merge.layout import MergePlan, PlannedTensor
from souping.merge.methods import get_method
from souping.merge.plan import base_name, plan_opened
from souping.merge.reload import reload
from souping.merge.runs import Run, agree, blocks, check_finite, size_of, tensor_runs
from souping.merge.statistics import piece_gram
from souping.merge.targets import TORCH_DTYPES, Target, Targets

if TYPE_CHECKING:
    import torch

SMALL = 1 << 22  # bytes of a soup below which a second thread costs more than it brings
THREADS = 2
Job = Callable[[], None]


class Live:
    """Open ingredients and a live module: `pour` makes the module that recipe's soup, again and again.

    `checkpoints` is the pool by name, `base` the base model of the methods that have one. `resident`: `none` reads
    ingredients through memory maps, `cpu` keeps copies in memory, `device` keeps them where the module is.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        module: Any,
        *,
        base: Checkpoint | None = None,
        resident: str = "none",
        nonfinite: str = "error",
    ) -> None:
        self._checkpoints, self._base, self._nonfinite = dict(checkpoints), base, nonfinite
        pool = dict(checkpoints) if base is None else {**checkpoints, base_name(checkpoints): base}
        self._larder, self._targets = Larder(pool, resident), Targets(module)
        self._module, self._warned = module, set[str]()

    def pour(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Tied parameters are written once. Where the module's
        names are not the checkpoints' (experts that transformers stacks), the soup is loaded by transformers into a
        second module and copied: exact too, with three times the memory.

        Raises:
            UserError: the ingredients do not fit each other or the module, or NaN or infinity is found (the module
                then holds a part of the soup: pour again).
        """
        plan = plan_opened(recipe, self._checkpoints, base=self._base, nonfinite=self._nonfinite)
        places = self._targets.match(plan.tensors)
        if places is None:
            reload(self._module, {tensor.name: self._whole(plan, tensor) for tensor in plan.tensors})
            return
        jobs = [job for tensor in plan.tensors if tensor.name in places for job in self._jobs(plan, tensor, places)]
        if plan.nbytes < SMALL:
            for job in jobs:
                job()
            return
        with ThreadPoolExecutor(THREADS, thread_name_prefix="souping") as pool:
            for done in [pool.submit(job) for job in jobs]:
                done.result()

    def _jobs(self, plan: MergePlan, tensor: PlannedTensor, places: Mapping[str, Target]) -> Iterator[Job]:
        """The blocks of one tensor, each with the bytes of the parameter that it fills."""
        target = places[tensor.name]
        if target.flat is None:
            yield partial(self._elsewhere, plan, tensor, target)
            return
        for run in tensor_runs(plan, tensor):
            yield from self._cut(plan, tensor, run, target.flat, target.dtype)

    def _cut(self, plan: MergePlan, tensor: PlannedTensor, run: Run, flat: Raw, dtype: str) -> Iterator[Job]:
        method = get_method(plan.method)
        if run.solid:
            inner = piece_gram(run, method.base, partial(self._read, plan))
            run = replace(run, weights=method.weigh(inner, run.weights))
        for part in [run] if run.solid and method.whole else blocks(run):
            first = (part.offset - tensor.offset) // size_of(tensor.dtype)
            into = flat[first * size_of(dtype) : (first + part.count) * size_of(dtype)]
            yield partial(self._block, plan, part, into, dtype)

    def _block(self, plan: MergePlan, run: Run, out: Raw, dtype: str) -> None:
        names = [ingredient.name for ingredient in plan.ingredients]
        rows = [self._larder.row(names, source, run.count) for source in run.sources]
        if run.op == "same":
            agree(plan, run, rows)
            out[:] = rows[0]
        elif run.op == "copy":
            check_finite(plan, run, store(rows[0], run.dtype, out, dtype), rows, self._warned)
        else:
            function = get_method(plan.method).function if run.op == "mix" else linear
            tags = [source.dtype for source in run.sources]
            good = mix(function, rows, tags, run.weights, plan.divisor, run.dtype, out, dtype)
            check_finite(plan, run, good, rows, self._warned)

    def _read(self, plan: MergePlan, run: Run, number: int, into: Raw) -> None:
        names = [ingredient.name for ingredient in plan.ingredients]
        into[:] = self._larder.row(names, run.sources[number], run.count)

    def _elsewhere(self, plan: MergePlan, tensor: PlannedTensor, target: Target) -> None:
        """A parameter off the CPU, or not in one piece: mix beside it, then copy."""
        import torch

        with torch.no_grad():
            target.tensor.copy_(self._whole(plan, tensor))

    def _whole(self, plan: MergePlan, tensor: PlannedTensor) -> torch.Tensor:
        """A tensor of the soup in its own dtype, in memory."""
        import torch

        flat = np.empty(tensor.nbytes, np.uint8)
        for run in tensor_runs(plan, tensor):
            for job in self._cut(plan, tensor, run, flat, tensor.dtype):
                job()
        return torch.from_numpy(flat).view(getattr(torch, TORCH_DTYPES[tensor.dtype])).reshape(tensor.shape)
