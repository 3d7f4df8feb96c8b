"""Soups in memory, no disk: loaded into the parameters of a live module, or packed into chunks for an engine.

A parameter gets the very numbers that writing the soup and loading it back would give: fp32 accumulation, one rounding
to the soup's dtype, then the cast to the parameter's dtype.

A module that does not look like its checkpoints (experts that transformers stacks) is filled by a detour: transformers
loads the soup. A parameter on a GPU, or one that is not contiguous, is mixed in main memory and copied.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.header import TAGS, TORCH_DTYPES, size_of
from souping.checkpoints.ranges import pointer_in
from souping.checkpoints.reader import WeightReader
from souping.checkpoints.views import Raw
from souping.core.protocols import WeightChunk, WeightStream
from souping.core.system import cores
from souping.core.text import first_line, listed
from souping.core.types import FloatArray, Recipe, UserError
from souping.merge import LoadableModel, Nonfinite
from souping.merge.alignment import Alignment
from souping.merge.methods import torch_dtype
from souping.merge.mixing import (
    Chunk,
    ThreadTask,
    blocks,
    chunk_gram,
    final_weights,
    mixed,
    run_tasks,
    tensor_chunks,
)
from souping.merge.plan import MergePlan, PlannedTensor, check_ingredients
from souping.merge.soup_files import companion_files
from souping.merge.writer import raise_file_limit

if TYPE_CHECKING:
    import torch

SMALL_SOUP_BYTES = 1 << 22  # bytes of a soup below which a second thread costs more than it brings
LOAD_THREADS = min(cores(), 4)  # an eighth of a load holds the GIL
ReadRow = Callable[[int, int], Raw]
"""read(byte offset in its file, number of bytes) -> row: fewer bytes if the file ends early"""


class SoupMixer:
    """Open weight files: mixes tensors of plans into memory, again and again."""

    def __init__(self) -> None:
        self._files = WeightFiles()
        self._warned = set[str]()
        # {places of a band in the ingredients' files: inner products}
        self._grams: dict[tuple[object, ...], FloatArray] = {}

    def tasks(
        self, plan: MergePlan, tensor: PlannedTensor, flat: Raw, dtype: str
    ) -> Iterator[ThreadTask]:
        """Calls that mix a tensor, block by block, into its bytes `flat`, which are of `dtype`."""
        size = size_of(dtype)
        for chunk in tensor_chunks(plan, tensor):
            readers = list[ReadRow]()
            for source in chunk.sources:
                checkpoint = plan.ingredients[source.ingredient].checkpoint
                readers.append(self._files.reader(checkpoint, source.file))
            weighted = final_weights(plan, chunk, partial(self._gram, plan, readers))
            for block in blocks(weighted):
                first = (block.offset - tensor.offset) // size_of(tensor.dtype)
                into = flat[first * size : (first + block.count) * size]
                yield partial(self._mix, plan, block, readers, into, dtype)

    def _gram(
        self, plan: MergePlan, readers: Sequence[ReadRow], chunk: Chunk, base: bool
    ) -> FloatArray:
        """`chunk_gram` of a chunk that is a whole band; with `base`, the first source is the base. It is kept.

        All recipes of a pool have one method, so `base` is no part of the key. There is a reader for each source.
        """
        places = [(plan.ingredients[s.ingredient].name, s.file, s.offset) for s in chunk.sources]
        key = (*places, chunk.count)
        if key not in self._grams:
            self._grams[key] = chunk_gram(chunk, base, partial(_read, readers))
        return self._grams[key]

    def _mix(
        self, plan: MergePlan, chunk: Chunk, readers: Sequence[ReadRow], into: Raw, dtype: str
    ) -> None:
        """Mix a block into the bytes `into` of `dtype`."""
        rows = [_row(readers, chunk, number) for number in range(len(readers))]
        soup = mixed(plan, chunk, rows, into, dtype, self._warned)
        # The soup of a copy is the source's row, and not in `into`.
        if soup is not into:
            into[:] = soup

    def stream(self, plan: MergePlan) -> WeightStream:
        """The weights of a soup in chunks, one for each shard."""
        return WeightStream(
            config=companion_files(plan)["config.json"].decode(),
            chunks=partial(self._chunks, plan),
        )

    def _chunks(self, plan: MergePlan) -> Iterator[WeightChunk]:
        """A chunk for each shard of a plan, whose tensors are mixed when it is filled."""
        check_ingredients(plan.ingredients)
        for _, shard in groupby(plan.tensors, key=attrgetter("shard")):
            tensors = list(shard)
            yield WeightChunk(
                tensors=[(t.name, TORCH_DTYPES[t.dtype], t.shape, t.offset) for t in tensors],
                nbytes=sum(t.nbytes for t in tensors),
                fill=partial(self._fill, plan, tensors),
            )

    def _fill(self, plan: MergePlan, tensors: Sequence[PlannedTensor], memory: memoryview) -> None:
        """Mix the tensors of a shard into `memory`, at their places in the shard."""
        flat = np.frombuffer(memory, np.uint8)
        tasks = list[ThreadTask]()
        for tensor in tensors:
            end = tensor.offset + tensor.nbytes
            tasks += self.tasks(plan, tensor, flat[tensor.offset : end], tensor.dtype)
        run_tasks(tasks, LOAD_THREADS)


class LiveModule(LoadableModel):
    """Open ingredients and a live module: `load_soup` makes the module that recipe's soup, again and again."""

    def __init__(
        self, alignment: Alignment, module: torch.nn.Module, *, nonfinite: Nonfinite = "error"
    ) -> None:
        self._alignment = alignment
        self._module = module
        self._nonfinite = nonfinite
        self._mixer = SoupMixer()
        self._targets = ModuleTargets(module)

    def load_soup(self, recipe: Recipe) -> None:
        """Put the recipe's soup into the module, in place. Tied parameters are written once.

        If the soup has another number of vocabulary rows, the module's embeddings are resized first. If the module's
        names are not the checkpoints' (experts that transformers stacks), transformers loads the soup into a second
        module, which is copied: exact too, with three times the memory.

        Raises:
            UserError: the ingredients do not fit each other or the module, one has changed since it was opened, or NaN
                or infinity is found (the module then holds a part of the soup: load again).
        """
        self._alignment.check_unchanged(recipe)
        plan = self._alignment.plan(recipe, nonfinite=self._nonfinite)
        self._targets.resize(plan.tensors)
        places = self._targets.match(plan.tensors)
        # The module does not have the checkpoints' names.
        if places is None:
            soup = {tensor.name: self._soup_tensor(plan, tensor) for tensor in plan.tensors}
            reload(self._module, soup)
            return
        threads = 1 if plan.nbytes < SMALL_SOUP_BYTES else LOAD_THREADS
        run_tasks(self._tasks(plan, places), threads)

    def _tasks(
        self, plan: MergePlan, places: Mapping[str, ParameterTarget]
    ) -> Iterator[ThreadTask]:
        """Calls that mix the plan's tensors into the parameters in `places`, {tensor name: target}."""
        for tensor in plan.tensors:
            target = places.get(tensor.name)
            if target is None:
                continue
            if target.flat is None:
                yield partial(self._copy, plan, tensor, target.tensor)
            else:
                yield from self._mixer.tasks(plan, tensor, target.flat, target.dtype)

    def _copy(self, plan: MergePlan, tensor: PlannedTensor, target: torch.Tensor) -> None:
        """Mix a tensor in main memory and copy it into a parameter."""
        import torch

        with torch.no_grad():
            target.copy_(self._soup_tensor(plan, tensor))

    def _soup_tensor(self, plan: MergePlan, tensor: PlannedTensor) -> torch.Tensor:
        """A tensor of the soup in its own dtype, in memory."""
        import torch

        flat = np.empty(tensor.nbytes, np.uint8)
        for task in self._mixer.tasks(plan, tensor, flat, tensor.dtype):
            task()
        return torch.from_numpy(flat).view(torch_dtype(tensor.dtype)).reshape(tensor.shape)


def _row(readers: Sequence[ReadRow], chunk: Chunk, number: int) -> Raw:
    """The bytes of a chunk's source `number`; there is a reader for each source."""
    source = chunk.sources[number]
    return readers[number](source.offset, chunk.count * size_of(source.dtype))


def _read(readers: Sequence[ReadRow], chunk: Chunk, number: int, into: Raw) -> None:
    into[:] = _row(readers, chunk, number)


class WeightFiles:
    """Weight files: mapped into memory, or read if they are in a bucket or tensors are assembled from pieces."""

    def __init__(self) -> None:
        self._readers: dict[tuple[Path, int], ReadRow] = {}
        self._assembling: dict[Path, WeightReader] = {}

    def reader(self, checkpoint: Checkpoint, number: int) -> ReadRow:
        """The reader of file `number` of a checkpoint, which stays open."""
        key = checkpoint.source, number
        if key not in self._readers:
            self._readers[key] = self._opened(checkpoint, number)
        return self._readers[key]

    def _opened(self, checkpoint: Checkpoint, number: int) -> ReadRow:
        """A reader of file `number`: by a memory map, or if it is assembled or in a bucket by `WeightReader`."""
        path = checkpoint.folder / checkpoint.files[number]
        raise_file_limit(len(self._readers) + len(checkpoint.files))
        if checkpoint.assembly is None and pointer_in(path) is None:
            with path.open("rb") as handle:
                mapped = np.frombuffer(
                    mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ), np.uint8
                )
            return lambda offset, nbytes: mapped[offset : offset + nbytes]
        if checkpoint.source not in self._assembling:
            self._assembling[checkpoint.source] = WeightReader(checkpoint)
        return partial(self._assembled, self._assembling[checkpoint.source], number)

    def _assembled(self, reader: WeightReader, number: int, offset: int, nbytes: int) -> Raw:
        """Bytes from `offset` on of file `number` of a reader (UserError: it ends early)."""
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

    def match(self, tensors: Iterable[PlannedTensor]) -> dict[str, ParameterTarget] | None:
        """{tensor name: target}, each storage once (tied parameters share one).

        Tensors that the module does not have are left out, as loading does. None if names or shapes do not cover the
        module, as for mixtures of experts, whose experts transformers stacks when it loads them.
        """
        named = self._named()
        places = {}
        taken = set()
        for tensor in tensors:
            place = self._lookup(tensor.name, named)
            if place is None:
                continue
            if tuple(place.shape) != tensor.shape:
                return None
            # Tied parameters have one address. Empty tensors have no storage, and so all the same one.
            if place.data_ptr() not in taken or not tensor.nbytes:
                taken.add(place.data_ptr())
                tag = TAGS.get(str(place.dtype).removeprefix("torch."), "")
                places[tensor.name] = ParameterTarget(place, tag, _flat(place))
        # A parameter that no tensor fills.
        for name, _ in self._module.named_parameters():
            if name in named and named[name].data_ptr() not in taken:
                return None
        return places

    def resize(self, tensors: Iterable[PlannedTensor]) -> None:
        """Give the module's embeddings, if it has any, the soup's number of rows."""
        embeddings = getattr(self._module, "get_input_embeddings", lambda: None)()
        weight = getattr(embeddings, "weight", None)
        resize = getattr(self._module, "resize_token_embeddings", None)
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
        """The parameter of a checkpoint's name, also with the base model's prefix added or taken off; or None."""
        prefix = f"{getattr(self._module, 'base_model_prefix', '')}."
        for key in (name, prefix + name, name.removeprefix(prefix)):
            if key in named:
                return named[key]
        return None


def _flat(tensor: torch.Tensor) -> Raw | None:
    """The tensor's own bytes, to write into; None if it is not on the CPU, not contiguous, or empty."""
    import torch

    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.numel() == 0:
        return None
    view: Raw = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return view


def reload(module: torch.nn.Module, soup: Mapping[str, torch.Tensor]) -> None:
    """Fill `module` with what transformers makes of the tensors `soup`, in place.

    Raises:
        UserError: transformers cannot load them, or its module has other parameters.
    """
    import torch
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        raise UserError(
            f"the soup does not fit the live module, and {type(module).__name__} is not one of transformers'"
        )
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
        raise UserError(
            f"the soup does not fit the live module: {first_line(error)[:150]}"
        ) from None
    source = loaded[0].state_dict()
    report = loaded[1]
    state = module.state_dict(keep_vars=True)
    missing = set(report["missing_keys"])
    for name, tensor in state.items():
        if name not in source or source[name].shape != tensor.shape:
            missing.add(name)
    if missing or report["mismatched_keys"]:
        raise UserError(
            f"the soup does not fit the live module: nothing for {listed(sorted(missing)) or 'a shape'}"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(source[name])
