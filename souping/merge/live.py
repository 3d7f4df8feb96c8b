"""Live pouring: a soup straight into the parameters of a module, no disk.

A parameter gets the very numbers that writing the soup and loading it back would give: fp32 accumulation, one rounding
to the soup's dtype, then the cast to the parameter's dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.core import Recipe
from souping.merge.blocks import mix, store
from souping.merge.checkpoint import Checkpoint
from souping.merge.device import FUSED, Device
from souping.merge.kernels import Raw, linear
from souping.merge.larder import Larder
from souping.merge.layout import MergePlan, PlannedTensor, Source
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
        self._module, self._resident, self._warned = module, resident, set[str]()
        self._devices: dict[torch.device, Device] = {}
        self._lock = threading.Lock()

    def pour(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Tied parameters are written once.

        Where the soup has another number of vocabulary rows, the module's embeddings are resized first. Where the
        module's names are not the checkpoints' (experts that transformers stacks), transformers loads the soup into a
        second module, which is copied: exact too, with three times the memory.

        Raises:
            UserError: the ingredients do not fit each other or the module, or NaN or infinity is found (the module
                then holds a part of the soup: pour again).
        """
        plan = plan_opened(recipe, self._checkpoints, base=self._base, nonfinite=self._nonfinite)
        self._targets.resize(plan.tensors)
        places = self._targets.match(plan.tensors)
        if places is None:
            reload(self._module, {tensor.name: self._whole(plan, tensor) for tensor in plan.tensors})
            return
        jobs = [job for tensor in plan.tensors if tensor.name in places for job in self._jobs(plan, tensor, places)]
        self._work(jobs, few=plan.nbytes < SMALL)
        for device in self._devices.values():
            for run in device.bad_runs():
                rows = [self._row(plan, source, run.count) for source in run.sources]
                check_finite(plan, run, False, rows, self._warned)

    def _work(self, jobs: Sequence[Job], few: bool) -> None:
        if few:
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

    def _settle(self, plan: MergePlan, run: Run) -> Run:
        """The run with its final weights, which may need statistics of the whole piece."""
        if not run.solid:
            return run
        method = get_method(plan.method)
        return replace(run, weights=method.weigh(piece_gram(run, method.base, partial(self._read, plan)), run.weights))

    def _cut(self, plan: MergePlan, tensor: PlannedTensor, run: Run, flat: Raw, dtype: str) -> Iterator[Job]:
        method, run = get_method(plan.method), self._settle(plan, run)
        for part in [run] if run.solid and method.whole else blocks(run):
            first = (part.offset - tensor.offset) // size_of(tensor.dtype)
            into = flat[first * size_of(dtype) : (first + part.count) * size_of(dtype)]
            yield partial(self._block, plan, part, into, dtype)

    def _block(self, plan: MergePlan, run: Run, out: Raw, dtype: str) -> None:
        rows = [self._row(plan, source, run.count) for source in run.sources]
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
        into[:] = self._row(plan, run.sources[number], run.count)

    def _row(self, plan: MergePlan, source: Source, count: int) -> Raw:
        return self._larder.row([ingredient.name for ingredient in plan.ingredients], source, count)

    def _elsewhere(self, plan: MergePlan, tensor: PlannedTensor, target: Target) -> None:
        """A parameter off the CPU is mixed where it is, one that is not in one piece beside it, and copied."""
        import torch

        function, where = get_method(plan.method).function, target.tensor.device
        work = tensor_runs(plan, tensor)
        fits = all(run.op == "copy" or (run.op in ("mix", "linear") and function in FUSED) for run in work)
        with torch.no_grad():
            if where.type == "cpu" or not fits or not target.tensor.is_contiguous():
                target.tensor.copy_(self._whole(plan, tensor))
                return
            flat, size = target.tensor.detach().view(-1), size_of(tensor.dtype)
            for run in work:
                first = (run.offset - tensor.offset) // size
                into = flat[first : first + run.count]
                combine = function if run.op == "mix" else linear
                self._device(where).mix(plan, self._settle(plan, run), combine, into)

    def _device(self, device: torch.device) -> Device:
        with self._lock:
            if device not in self._devices:
                self._devices[device] = Device(device, self._row, self._resident == "device")
            return self._devices[device]

    def _whole(self, plan: MergePlan, tensor: PlannedTensor) -> torch.Tensor:
        """A tensor of the soup in its own dtype, in memory."""
        import torch

        flat = np.empty(tensor.nbytes, np.uint8)
        for run in tensor_runs(plan, tensor):
            for job in self._cut(plan, tensor, run, flat, tensor.dtype):
                job()
        return torch.from_numpy(flat).view(getattr(torch, TORCH_DTYPES[tensor.dtype])).reshape(tensor.shape)
