"""Live pouring: a soup straight into the parameters of a module, no disk, on the CPU or where the module is.

A parameter gets the very numbers that writing the soup and loading it back would give: fp32 accumulation, one rounding
to the soup's dtype, then the cast to the parameter's dtype. What recipes of the same ingredients share (tensors side by
side, places in files and module) is worked out at the first of them; the others bring weights.

A module that does not look like its checkpoints (experts that transformers stacks) is filled by a detour: transformers
loads the soup. A parameter on a GPU, or one that is not contiguous, is mixed in main memory and copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints import Checkpoint, WeightReader
from souping.checkpoints.header import TAGS, size_of
from souping.checkpoints.ranges import pointer_in
from souping.core.system import cores
from souping.core.text import first_line, listed
from souping.core.types import Recipe, UserError
from souping.merge import Pourable
from souping.merge.alignment import DEFAULT_SHARD, LAYOUTS, Alignment, Kind, Mix, WeightedLayout
from souping.merge.kernels import Gram, Method, Raw, get_method, torch_dtype
from souping.merge.plan import (
    Chunk,
    MergePlan,
    PlannedTensor,
    Source,
    Task,
    blocks,
    chunk_gram,
    chunk_of,
    mixed,
    run_tasks,
)
from souping.merge.writer import raise_file_limit

if TYPE_CHECKING:
    import torch

SMALL = 1 << 22  # bytes of a soup below which a second thread costs more than it brings
THREADS = min(cores(), 4)  # an eighth of a pour is Python, which one thread at a time runs
Snapshot = list[tuple["torch.Tensor", int]]
"""A module's parameters and buffers, with their addresses."""


class LiveModule(Pourable):
    """Open ingredients and a live module: `pour` makes the module that recipe's soup, again and again."""

    def __init__(self, alignment: Alignment, module: torch.nn.Module, *, nonfinite: str = "error") -> None:
        self._alignment = alignment
        self._nonfinite, self._files, self._targets = nonfinite, WeightFiles(), ModuleTargets(module)
        self._module, self._warned = module, set[str]()
        self._known: dict[tuple[str, ...], PourWork] = {}

    def pour(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Tied parameters are written once.

        If the soup has another number of vocabulary rows, the module's embeddings are resized first. If the module's
        names are not the checkpoints' (experts that transformers stacks), transformers loads the soup into a second
        module, which is copied: exact too, with three times the memory.

        Raises:
            UserError: the ingredients do not fit each other or the module, one has changed since it was opened, or NaN
                or infinity is found (the module then holds a part of the soup: pour again).
        """
        self._alignment.check_unchanged(recipe)
        weighted = self._alignment.weighted_layout(recipe)
        work = self._known.get(weighted.plan_key)
        if work is None or not work.fits(weighted) or not self._targets.unchanged(work.snapshot):
            work = self._prepare(weighted)
        if work is not None:  # else transformers has filled the module
            plan = replace(work.plan, recipe=recipe)
            run_tasks(self._tasks(plan, weighted, work), 1 if plan.nbytes < SMALL else THREADS)

    def _prepare(self, weighted: WeightedLayout) -> PourWork | None:
        """The work of recipes like this one; None where the module had to be filled by transformers, and was."""
        self._known = {key: work for key, work in self._known.items() if self._targets.unchanged(work.snapshot)}
        if len(self._known) >= LAYOUTS:
            del self._known[next(iter(self._known))]
        plan = weighted.plan(DEFAULT_SHARD, self._nonfinite, None)
        self._targets.resize(plan.tensors)
        places = self._targets.match(plan.tensors)
        if places is None:
            reload(self._module, {tensor.name: self._whole(plan, weighted, tensor) for tensor in plan.tensors})
            return None
        chunks: list[LiveChunk] = []
        elsewhere: list[tuple[PlannedTensor, torch.Tensor]] = []
        for tensor in (tensor for tensor in plan.tensors if tensor.name in places):
            target = places[tensor.name]
            if target.flat is None:
                elsewhere.append((tensor, target.tensor))
            else:
                chunks += self._live_chunks(plan, weighted, tensor, target.flat, target.dtype)
        mixes = {kind: weighted.mix(kind) for tensor in plan.tensors for kind in weighted.kinds(tensor.name)}
        work = PourWork(plan, mixes, tuple(chunks), tuple(elsewhere), self._targets.snapshot())
        self._known[weighted.plan_key] = work
        return work

    def _live_chunks(
        self, plan: MergePlan, weighted: WeightedLayout, tensor: PlannedTensor, flat: Raw, dtype: str
    ) -> Iterator[LiveChunk]:
        """One tensor's bands, each with the bytes that it is read from and those that it fills."""
        method, size = get_method(plan.method), size_of(dtype)
        kinds: tuple[Kind | None, ...] = weighted.kinds(tensor.name) or (None,)
        for kind, band in zip(kinds, tensor.bands, strict=True):
            if band.count:
                rows = tuple(self._files.row(plan.ingredients[s.ingredient].checkpoint, s) for s in band.sources)
                into = flat[band.start * size : (band.start + band.count) * size]
                yield LiveChunk(chunk_of(method, tensor, band), kind, method, rows, into, dtype)

    def _tasks(self, plan: MergePlan, weighted: WeightedLayout, work: PourWork) -> Iterator[Task]:
        for chunk in work.chunks:
            yield from chunk.tasks(plan, weighted, self._warned)
        for tensor, target in work.elsewhere:
            yield partial(self._copy, plan, weighted, tensor, target)

    def _copy(self, plan: MergePlan, weighted: WeightedLayout, tensor: PlannedTensor, target: torch.Tensor) -> None:
        import torch

        with torch.no_grad():
            target.copy_(self._whole(plan, weighted, tensor))

    def _whole(self, plan: MergePlan, weighted: WeightedLayout, tensor: PlannedTensor) -> torch.Tensor:
        """A tensor of the soup in its own dtype, in memory."""
        import torch

        flat = np.empty(tensor.nbytes, np.uint8)
        for chunk in self._live_chunks(plan, weighted, tensor, flat, tensor.dtype):
            for task in chunk.tasks(plan, weighted, self._warned):
                task()
        return torch.from_numpy(flat).view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


@dataclass(frozen=True)
class LiveChunk:
    """Chunk of one band: `rows` read its sources, `into` are the bytes of the parameter that it fills, of `dtype`."""

    chunk: Chunk
    kind: Kind | None
    method: Method
    rows: tuple[Row, ...]
    into: Raw
    dtype: str

    def tasks(self, plan: MergePlan, weighted: WeightedLayout, warned: set[str]) -> Iterator[Task]:
        """Calls that mix the blocks, with a recipe's final weights, which may need statistics of the whole band."""
        weights = self.chunk.weights if self.kind is None else weighted.mix(self.kind).weights
        if self.chunk.indivisible and self.method.coefficients is not None:
            weights = self.method.weigh(self._gram, weights)
        chunk = replace(self.chunk, weights=weights)
        for part in [chunk] if chunk.indivisible and self.method.whole else blocks(chunk):
            yield partial(self._block, plan, part, warned)

    @cached_property
    def _gram(self) -> Gram:
        """Inner products of the sources, which no weight changes."""
        return chunk_gram(self.chunk, self.method.base, self._read)

    def _read(self, chunk: Chunk, number: int, into: Raw) -> None:
        into[:] = self._row(chunk, number)

    def _row(self, chunk: Chunk, number: int) -> Raw:
        source = chunk.sources[number]
        return self.rows[number](source.offset, chunk.count * size_of(source.dtype))

    def _block(self, plan: MergePlan, chunk: Chunk, warned: set[str]) -> None:
        rows, into = [self._row(chunk, number) for number in range(len(self.rows))], self.into
        if chunk.count != self.chunk.count:
            first = (chunk.offset - self.chunk.offset) // size_of(chunk.dtype)
            into = into[first * size_of(self.dtype) : (first + chunk.count) * size_of(self.dtype)]
        soup = mixed(plan, chunk, rows, into, self.dtype, warned)
        if soup is not into:
            into[:] = soup


@dataclass(frozen=True)
class PourWork:
    """Pours of recipes that differ in weights alone: chunks on the CPU, and tensors that are filled elsewhere.

    `mixes` are those of the recipe that it was made for.
    """

    plan: MergePlan
    mixes: Mapping[Kind, Mix]
    chunks: tuple[LiveChunk, ...]
    elsewhere: tuple[tuple[PlannedTensor, torch.Tensor], ...]
    snapshot: Snapshot

    def fits(self, weighted: WeightedLayout) -> bool:
        """Whether another recipe needs the same operations on the same sources."""
        return all(mix.differs_in_weights_alone(weighted.mix(kind)) for kind, mix in self.mixes.items())


Row = Callable[[int, int], Raw]
"""row(byte offset in its file, number of bytes): fewer if the file ends early"""


class WeightFiles:
    """Weight files: mapped into memory, or read where tensors are assembled from pieces."""

    def __init__(self) -> None:
        self._files: dict[Path, Raw] = {}
        self._readers: dict[Path, WeightReader] = {}

    def row(self, checkpoint: Checkpoint, source: Source) -> Row:
        """Reader of a source's bytes."""
        path = checkpoint.folder / checkpoint.files[source.file]
        if checkpoint.assembly is not None or pointer_in(path) is not None:
            return partial(self._assembled, self._reader(checkpoint), source.file)
        mapped = self._mapped(path)
        return lambda offset, nbytes: mapped[offset : offset + nbytes]

    def _mapped(self, path: Path) -> Raw:
        if path not in self._files:
            raise_file_limit(len(self._files) + 1)
            with path.open("rb") as handle:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            self._files[path] = np.frombuffer(mapped, np.uint8)
        return self._files[path]

    def _reader(self, checkpoint: Checkpoint) -> WeightReader:
        if checkpoint.folder not in self._readers:
            raise_file_limit(len(checkpoint.files))
            self._readers[checkpoint.folder] = WeightReader(checkpoint)
        return self._readers[checkpoint.folder]

    def _assembled(self, reader: WeightReader, number: int, offset: int, nbytes: int) -> Raw:
        piece = np.empty(nbytes, np.uint8)
        try:
            reader.read(number, piece, offset)
        except EOFError as error:
            raise UserError(f"{error} ends early") from None
        return piece


@dataclass(frozen=True)
class ParameterTarget:
    """Parameter or buffer; `flat` are its bytes if it is contiguous in CPU memory, else None."""

    tensor: torch.Tensor
    dtype: str
    flat: Raw | None


class ModuleTargets:
    """Module's parameters and persistent buffers by the names that checkpoints use."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module

    def snapshot(self) -> Snapshot:
        """What the module is made of now."""
        return [(tensor, tensor.data_ptr()) for tensor in chain(self._module.parameters(), self._module.buffers())]

    def unchanged(self, snapshot: Snapshot) -> bool:
        """Whether the module is still made of the same tensors in the same places."""
        now = list(chain(self._module.parameters(), self._module.buffers()))
        return len(now) == len(snapshot) and all(
            tensor is known and tensor.data_ptr() == pointer
            for tensor, (known, pointer) in zip(now, snapshot, strict=True)
        )

    def match(self, tensors: Iterable[PlannedTensor]) -> dict[str, ParameterTarget] | None:
        """{tensor name: target}, each storage once (tied parameters share one).

        Tensors the module has no use for are left out, as loading does. None where names or shapes do not cover the
        module, as for mixtures of experts, whose experts transformers stacks when it loads them.
        """
        named = self._named()
        places: dict[str, ParameterTarget] = {}
        taken: set[int] = set()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is None:
                continue
            if tuple(place.shape) != tensor.shape:
                return None
            if place.data_ptr() not in taken or not tensor.nbytes:
                taken.add(place.data_ptr())
                tag = TAGS.get(str(place.dtype).removeprefix("torch."), "")
                places[tensor.name] = ParameterTarget(place, tag, _flat(place))
        return places if self._covered(named, taken) else None

    def resize(self, tensors: Iterable[PlannedTensor]) -> None:
        """Give the module's embeddings the soup's number of rows, where they differ."""
        embeddings = getattr(self._module, "get_input_embeddings", lambda: None)()  # transformers'
        weight = getattr(embeddings, "weight", None)  # torch's
        resize = getattr(self._module, "resize_token_embeddings", None)  # transformers'
        if weight is None or resize is None:
            return
        named = self._named()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is not None and place is weight:
                if tensor.shape[0] != place.shape[0]:
                    resize(tensor.shape[0], mean_resizing=False)
                return

    def _named(self) -> Mapping[str, torch.Tensor]:
        state: Mapping[str, torch.Tensor] = self._module.state_dict(keep_vars=True)
        return state

    def _lookup(self, name: str, named: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """By its own name; with the base model's prefix added, or taken off, as transformers does."""
        prefix = f"{getattr(self._module, 'base_model_prefix', '')}."  # transformers'
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in named:
                return named[key]
        return None

    def _covered(self, named: Mapping[str, torch.Tensor], taken: set[int]) -> bool:
        """Whether every parameter is filled."""
        own = [named[name] for name, _ in self._module.named_parameters() if name in named]
        return all(tensor.data_ptr() in taken for tensor in own)


def _flat(tensor: torch.Tensor) -> Raw | None:
    """The tensor's own bytes as numpy, or None off the CPU or if it is not contiguous."""
    import torch

    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.numel() == 0:
        return None
    view: Raw = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return np.asarray(view)


def reload(module: torch.nn.Module, soup: Mapping[str, torch.Tensor]) -> None:
    """Fill `module` with what transformers makes of the tensors `soup`, in place.

    Raises:
        UserError: transformers cannot load them, or its module has other parameters.
    """
    import torch
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise UserError(f"the soup does not fit the live module, and {type(module).__name__} is none of transformers'")
    try:
        loaded: Any = type(module).from_pretrained(
            None,
            config=module.config,
            state_dict=dict(soup),
            dtype=module.dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (RuntimeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the soup does not fit the live module: {first_line(error)[:150]}") from None
    source, report = loaded[0].state_dict(), loaded[1]
    state = module.state_dict(keep_vars=True)
    lost = {*report["missing_keys"], *(n for n, t in state.items() if n not in source or source[n].shape != t.shape)}
    if lost or report["mismatched_keys"]:
        raise UserError(
            f"the soup does not fit the live module: it has nothing for {listed(sorted(lost)) or 'a shape'}"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(source[name])
