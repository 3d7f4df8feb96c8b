"""Live pouring: a soup straight into the parameters of a module, no disk.

A parameter gets the very numbers that writing the soup and loading it back would give: fp32 accumulation, one rounding
to the soup's dtype, then the cast to the parameter's dtype.

Ingredients at hand between pours: mapped from their files, or kept in memory.

Where in a live module each tensor of a checkpoint goes.

The detour of a live pour for modules that do not look like their checkpoints: let transformers load the soup.

Live pouring on a GPU: blocks of the ingredients go through pinned buffers to the device and are mixed there.

The operations are torch's, in the order of `kernels`: `add_(x, alpha=w)` on fp32 is a fused multiply-add on CUDA as on
CPUs, the divisor is a tensor because torch multiplies by the reciprocal of a plain number. With `resident="device"` the
ingredients stay on the device between pours.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import listed
from souping.checkpoints.header import BITS
from souping.core.types import Recipe, UserError
from souping.merge.chunks import Chunk, agree, blocks, check_finite, piece_gram, size_of, tensor_chunks
from souping.merge.kernels import mix_block, store
from souping.merge.kernels.reference import Combine, Raw, delta, linear
from souping.merge.methods import get_method
from souping.merge.plan import MergePlan, PlannedTensor, Source
from souping.merge.planner import base_name, plan_opened

if TYPE_CHECKING:
    import torch

SMALL = 1 << 22  # bytes of a soup below which a second thread costs more than it brings
THREADS = 2
Job = Callable[[], None]


class LiveModule:
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
        self._larder, self._targets = WeightFiles(pool, resident), ModuleTargets(module)
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

    def _jobs(self, plan: MergePlan, tensor: PlannedTensor, places: Mapping[str, ParameterTarget]) -> Iterator[Job]:
        """The blocks of one tensor, each with the bytes of the parameter that it fills."""
        target = places[tensor.name]
        if target.flat is None:
            yield partial(self._elsewhere, plan, tensor, target)
            return
        for run in tensor_chunks(plan, tensor):
            yield from self._cut(plan, tensor, run, target.flat, target.dtype)

    def _settle(self, plan: MergePlan, run: Chunk) -> Chunk:
        """The run with its final weights, which may need statistics of the whole piece."""
        if not run.solid:
            return run
        method = get_method(plan.method)
        return replace(run, weights=method.weigh(piece_gram(run, method.base, partial(self._read, plan)), run.weights))

    def _cut(self, plan: MergePlan, tensor: PlannedTensor, run: Chunk, flat: Raw, dtype: str) -> Iterator[Job]:
        method, run = get_method(plan.method), self._settle(plan, run)
        for part in [run] if run.solid and method.whole else blocks(run):
            first = (part.offset - tensor.offset) // size_of(tensor.dtype)
            into = flat[first * size_of(dtype) : (first + part.count) * size_of(dtype)]
            yield partial(self._block, plan, part, into, dtype)

    def _block(self, plan: MergePlan, run: Chunk, out: Raw, dtype: str) -> None:
        rows = [self._row(plan, source, run.count) for source in run.sources]
        if run.op == "same":
            agree(plan, run, rows)
            out[:] = rows[0]
        elif run.op == "copy":
            check_finite(plan, run, store(rows[0], run.dtype, out, dtype), rows, self._warned)
        else:
            function = get_method(plan.method).function if run.op == "mix" else linear
            tags = [source.dtype for source in run.sources]
            good = mix_block(function, rows, tags, run.weights, plan.divisor, run.dtype, out, dtype)
            check_finite(plan, run, good, rows, self._warned)

    def _read(self, plan: MergePlan, run: Chunk, number: int, into: Raw) -> None:
        into[:] = self._row(plan, run.sources[number], run.count)

    def _row(self, plan: MergePlan, source: Source, count: int) -> Raw:
        return self._larder.row([ingredient.name for ingredient in plan.ingredients], source, count)

    def _elsewhere(self, plan: MergePlan, tensor: PlannedTensor, target: ParameterTarget) -> None:
        """A parameter off the CPU is mixed where it is, one that is not in one piece beside it, and copied."""
        import torch

        function, where = get_method(plan.method).function, target.tensor.device
        work = tensor_chunks(plan, tensor)
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
        for run in tensor_chunks(plan, tensor):
            for job in self._cut(plan, tensor, run, flat, tensor.dtype):
                job()
        return torch.from_numpy(flat).view(getattr(torch, TORCH_DTYPES[tensor.dtype])).reshape(tensor.shape)


class WeightFiles:
    """Bytes of the checkpoints' files: memory maps, or copies in memory (`cpu`)."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint], resident: str = "none") -> None:
        self._checkpoints, self._resident = dict(checkpoints), resident
        self._files: dict[tuple[str, str], Raw] = {}
        self._lock = threading.Lock()

    def row(self, names: Sequence[str], source: Source, count: int) -> Raw:
        """The bytes of `count` elements from a source of a plan whose ingredients are `names`. No copy.

        Raises:
            UserError: the file has become shorter.
        """
        name = names[source.ingredient]
        data = self._file(name, self._checkpoints[name].files[source.file])
        return data[source.offset : source.offset + count * BITS[source.dtype] // 8]

    def _file(self, name: str, file: str) -> Raw:
        key = (name, file)
        with self._lock:
            if key not in self._files:
                self._files[key] = self._open(self._checkpoints[name].folder / file)
            return self._files[key]

    def _open(self, path: Path) -> Raw:
        try:
            with path.open("rb") as handle:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be mapped: {error}") from None
        data: Raw = np.frombuffer(mapped, np.uint8)
        return data.copy() if self._resident == "cpu" else data


@dataclass(frozen=True)
class ParameterTarget:
    """A parameter or buffer; `flat` are its bytes where it lies in CPU memory in one piece, else None."""

    tensor: torch.Tensor
    pointer: int
    dtype: str
    flat: Raw | None


TAGS = {
    "float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


TORCH_DTYPES = {tag: name for name, tag in TAGS.items()}


class ModuleTargets:
    """A module's parameters and persistent buffers by the names that checkpoints use."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._found: dict[str, ParameterTarget] = {}

    def match(self, tensors: Iterable[PlannedTensor]) -> dict[str, ParameterTarget] | None:
        """{tensor name: target}, each storage once (tied parameters share one).

        Tensors the module has no use for are left out, as loading does. None where names or shapes do not cover the
        module, as for mixtures of experts, whose experts transformers stacks when it loads them.
        """
        named = self._named()
        found: dict[str, ParameterTarget] = {}
        taken: set[int] = set()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is None:
                continue
            if tuple(place.shape) != tensor.shape:
                return None
            target = self._target(tensor.name, place)
            if target.pointer not in taken or not tensor.nbytes:
                taken.add(target.pointer)
                found[tensor.name] = target
        return found if self._covered(named, taken) else None

    def resize(self, tensors: Iterable[PlannedTensor]) -> None:
        """Give the module's embeddings the soup's number of rows, where they differ."""
        embeddings = getattr(self._module, "get_input_embeddings", lambda: None)()
        weight: Any = getattr(embeddings, "weight", None)
        if weight is None:
            return
        named = self._named()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is not None and place is weight:
                if tensor.shape[0] != place.shape[0]:
                    self._module.resize_token_embeddings(tensor.shape[0], mean_resizing=False)
                return

    def _named(self) -> Mapping[str, torch.Tensor]:
        state: Mapping[str, torch.Tensor] = self._module.state_dict(keep_vars=True)
        return state

    def _lookup(self, name: str, named: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """By its own name; with the base model's prefix added, or taken off, as transformers does."""
        prefix = f"{getattr(self._module, 'base_model_prefix', '')}."
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in named:
                return named[key]
        return None

    def _target(self, name: str, tensor: torch.Tensor) -> ParameterTarget:
        """Remembered between pours, as long as the storage stays where it is."""
        pointer = tensor.data_ptr()
        known = self._found.get(name)
        if known is None or known.pointer != pointer or known.tensor is not tensor:
            known = ParameterTarget(
                tensor, pointer, TAGS.get(str(tensor.dtype).removeprefix("torch."), ""), _flat(tensor)
            )
            self._found[name] = known
        return known

    def _covered(self, named: Mapping[str, torch.Tensor], taken: set[int]) -> bool:
        """Whether every parameter is filled."""
        own = [named[name] for name, _ in self._module.named_parameters() if name in named]
        return all(tensor.data_ptr() in taken for tensor in own)


def _flat(tensor: torch.Tensor) -> Raw | None:
    """The tensor's own bytes as numpy, or None off the CPU or where it is not contiguous."""
    import torch

    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.numel() == 0:
        return None
    view: Raw = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return np.asarray(view)


def reload(module: Any, soup: Mapping[str, torch.Tensor]) -> None:
    """Fill `module` with what transformers makes of the tensors `soup`, in place.

    Raises:
        UserError: transformers cannot load them, or its module has other parameters.
    """
    import torch

    fresh = _load(module, soup)
    source = fresh.state_dict()
    with torch.no_grad():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if name not in source or source[name].shape != tensor.shape:
                raise UserError(f"the soup does not fit the live module: {name} is missing or of another shape")
            tensor.copy_(source[name])


def _load(module: Any, soup: Mapping[str, torch.Tensor]) -> Any:
    from transformers.utils import logging as untyped

    logging: Any = untyped
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        fresh, report = type(module).from_pretrained(
            None, config=module.config, state_dict=dict(soup), dtype=module.dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the soup does not fit the live module: {str(error).splitlines()[0][:150]}") from None
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    lost = sorted(str(name) for name in report["missing_keys"])
    if lost or report["mismatched_keys"]:
        raise UserError(f"the soup does not fit the live module: it has nothing for {listed(lost) or 'a shape of it'}")
    return fresh


STEP = 1 << 24  # elements: 64 MB of fp32 on the device at once, and launches that are long enough
FUSED = (linear, delta)
Row = Callable[[MergePlan, Source, int], Raw]
"""row(plan, source, count): an ingredient's bytes in host memory"""


class Device:
    """Mixes runs on one device. Blocks that are not finite are remembered, so that nothing waits for the device."""

    def __init__(self, device: torch.device, row: Row, keep: bool) -> None:
        self._device, self._row, self._keep = device, row, keep
        self._kept: dict[tuple[str, int, int], torch.Tensor] = {}
        self._finite: list[tuple[Chunk, torch.Tensor]] = []

    def mix(self, plan: MergePlan, run: Chunk, function: Combine, out: torch.Tensor) -> None:
        """The run's elements into `out`, which is flat, on the device, and of the parameter's dtype."""
        import torch

        for start in range(0, run.count, STEP):
            part = run.part(start, min(STEP, run.count - start))
            soup = self._soup(plan, part, function).to(getattr(torch, TORCH_DTYPES[run.dtype]))
            self._finite.append((part, torch.isfinite(soup).all()))
            out[start : start + part.count].copy_(soup)

    def bad_runs(self) -> list[Chunk]:
        """Blocks mixed since the last call that hold NaN or infinity. Waits for the device once."""
        import torch

        pending, self._finite = self._finite, []
        if not pending:
            return []
        flags = torch.stack([flag for _, flag in pending]).tolist()
        return [run for (run, _), good in zip(pending, flags, strict=True) if not good]

    def _soup(self, plan: MergePlan, run: Chunk, function: Combine) -> torch.Tensor:
        """fp32 values of a block."""
        import torch

        if run.op == "copy":
            return self._fetch(plan, run, 0)
        total = torch.zeros(run.count, dtype=torch.float32, device=self._device)
        first = int(function is delta)
        base = self._fetch(plan, run, 0).float() if first else None
        for number in range(first, len(run.sources)):
            row = self._fetch(plan, run, number).float()
            total.add_(row if base is None else row - base, alpha=run.weights[number])
        if base is not None:
            total = base + total
        if plan.divisor is not None:
            total.div_(torch.tensor(plan.divisor, dtype=torch.float32, device=self._device))
        return total

    def _fetch(self, plan: MergePlan, run: Chunk, number: int) -> torch.Tensor:
        """A source's elements on the device, in their own dtype."""
        source = run.sources[number]
        key = (plan.ingredients[source.ingredient].folder, source.file, source.offset)
        row = self._kept.get(key)
        if row is None or row.numel() != run.count:
            row = self._upload(self._row(plan, source, run.count), source)
            if self._keep:
                self._kept[key] = row
        return row

    def _upload(self, raw: Raw, source: Source) -> torch.Tensor:
        import torch

        pinned = self._device.type == "cuda"
        host = torch.empty(len(raw) // size_of(source.dtype), dtype=getattr(torch, TORCH_DTYPES[source.dtype]))
        if pinned:
            host = host.pin_memory()
        host.view(torch.uint8).numpy()[:] = raw
        return host.to(self._device, non_blocking=pinned)
