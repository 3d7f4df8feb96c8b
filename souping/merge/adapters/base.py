"""Base model under a pool of adapters: its folder, the tensors that adapters change and how they are read, and checks
of merge settings, tokenizers and targets."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import TIED, compare_tokenizers, read_tokenizer, tied
from souping.checkpoints.dtypes import FLOATS, size_of
from souping.checkpoints.header import Tensor
from souping.checkpoints.lora import Adapter, FactorPair
from souping.core.files import expanded, folder_at
from souping.core.text import shown
from souping.core.types import UserError
from souping.merge import MergeBackend
from souping.merge.kernels import Float32, Raw, widen

log = logging.getLogger(__name__)
ELEMENTS = 1 << 20  # of a weight that are worked on at once: memory does not grow with the model
CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
"""Model types whose linear layers are stored [in, out] (transformers' Conv1D)."""


@dataclass(frozen=True)
class Site:
    """Weight that an adapted module's product is added to: `tensor` of the base, [rows, columns].

    `transposed` where the weight is stored [in, out] (embeddings, Conv1D). `shared` where the base stores one tensor
    for the input embedding and the output head, and only one of them is adapted by this module's adapters.
    """

    module: str
    tensor: Tensor
    transposed: bool
    shared: bool = False


class TensorReader:
    """fp32 values of open checkpoints' tensors. NaN and infinity are refused, or reported once (`nonfinite=warn`).

    With `keep`, tensors that were read stay in memory.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], nonfinite: str = "warn", keep: bool = False) -> None:
        self._checkpoints, self._nonfinite, self._keep = checkpoints, nonfinite, keep
        self._kept: dict[tuple[Path, int], Raw] = {}
        self._reported: set[str] = set()

    def rows(self, name: str, tensor: Tensor, start: int = 0, count: int | None = None) -> Float32:
        """`count` rows from row `start` (default: all) of a tensor of the checkpoint called `name`.

        Raises:
            UserError: the file ends early, or a value is not finite.
        """
        width = math.prod(tensor.shape[1:])
        path = self._checkpoints[name].folder / tensor.file
        raw = self._read(path, tensor, start * width, (tensor.shape[0] if count is None else count) * width)
        values = widen(raw, tensor.dtype).reshape(-1, *tensor.shape[1:])
        self._check(values, f"NaN or infinity in tensor {shown(tensor.name)} in {path}")
        return values

    def check_soup(self, values: Float32, tensor: str) -> None:
        """Check values of the soup whose parts were finite."""
        self._check(values, f"overflow to infinity in tensor {shown(tensor)} of the soup")

    def _read(self, path: Path, tensor: Tensor, start: int, count: int) -> Raw:
        size, key = size_of(tensor.dtype), (path, tensor.offset)
        if key not in self._kept:
            first, length = (0, tensor.count * size) if self._keep else (start * size, count * size)
            with path.open("rb", buffering=0) as file:
                raw = np.frombuffer(os.pread(file.fileno(), length, tensor.offset + first), np.uint8)
            if len(raw) != length:
                raise UserError(
                    f"{path}, tensor {shown(tensor.name)}: the file ends early: it has changed, start again"
                )
            if not self._keep:
                return raw
            self._kept[key] = raw
        return self._kept[key][start * size : (start + count) * size]

    def _check(self, values: Float32, what: str) -> None:
        if what in self._reported or np.isfinite(values).all():
            return
        if self._nonfinite == "error":
            raise UserError(f"{what}. Set merge.nonfinite=warn to let it through.")
        self._reported.add(what)
        log.warning("%s", what)


def blocks_of(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first row, number of rows) pieces of a weight."""
    step = max(1, ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(step, shape[0] - start)


def find_base(adapters: Mapping[str, Adapter], folder: str | None, allow_pickle: bool = False) -> Checkpoint:
    """Open the one base of all adapters; `folder` (merge.base) is its place if their configs do not name one.

    Raises:
        UserError: adapters name different bases or revisions, or the base is not a folder here.
    """
    first = next(iter(adapters))
    for name, adapter in adapters.items():
        _same_base(first, adapters[first], name, adapter)
    named = adapters[first].settings.base
    if folder is None and named is None:
        raise UserError(f"adapter {first} does not name its base model: set merge.base=FOLDER")
    path = expanded(folder, "merge.base") if folder else folder_at(named)
    if path is None or not path.is_dir():
        if folder is not None:
            raise UserError(f"merge.base={folder} is not a folder: give the base model of the adapters")
        raise UserError(f"the adapters' base model {shown(str(named))} is not a folder here: set merge.base=FOLDER")
    return Checkpoint.open(path, allow_pickle)


def _same_base(a: str, left: Adapter, b: str, right: Adapter) -> None:
    one, other = left.settings, right.settings
    if one.base != other.base and (folder_at(one.base) is None or folder_at(one.base) != folder_at(other.base)):
        raise UserError(
            f"adapters {a} and {b} are over different base models ({shown(str(one.base))} and "
            f"{shown(str(other.base))}): only adapters of one base soup"
        )
    if (one.revision or "main") != (other.revision or "main"):
        raise UserError(f"adapters {a} and {b} are over different revisions of {shown(str(one.base))}")


def sites(base: Checkpoint, adapters: Mapping[str, Adapter]) -> dict[str, Site]:
    """{module: site} of every module that an adapter changes, sorted by name.

    Raises:
        UserError: the base has no such module, a shape does not fit, the base's weight is quantised, or full weights
            saved with the factors are not the base's.
    """
    modules = sorted({module for adapter in adapters.values() for module in adapter.parts})
    flagged = any(adapter.settings.transposed for adapter in adapters.values())
    square = flagged or base.config.get("model_type") in CONV1D
    every = {module: _site(base, module, adapters, square) for module in modules}
    _one_name_each(every.values())
    for name, adapter in adapters.items():
        _whole_is_base(base, name, adapter)
    return every


def _one_name_each(every: Iterable[Site]) -> None:
    """Two names of one weight (adapters of a whole model and of its inner one) would count it twice."""
    owners: dict[str, str] = {}
    for site in every:
        other = owners.setdefault(site.tensor.name, site.module)
        if other != site.module and not site.shared:
            raise UserError(
                f"adapters call {site.tensor.name} of the base by two names, {shown(other)} and {shown(site.module)}: "
                "save them from the same model class"
            )


def _site(base: Checkpoint, module: str, adapters: Mapping[str, Adapter], square: bool) -> Site:
    owners = {name: adapter.parts[module] for name, adapter in adapters.items() if module in adapter.parts}
    first, part = next(iter(owners.items()))
    tensor = weight_of(base, module) or _tied_embedding(base, module)
    if tensor is None:
        raise UserError(f"adapter {first} adapts {shown(module)}, which the base {base.folder} does not have")
    if tensor.dtype not in FLOATS:
        raise UserError(f"{tensor.name} of the base is {tensor.dtype}, not a float: use the base's float original")
    for name, other in owners.items():
        if other.embedding != part.embedding or not _fits(other, tensor):
            raise UserError(
                f"adapter {name}, {shown(module)}: A {list(other.a.shape)} and B {list(other.b.shape)} do not fit the "
                f"base's weight {list(tensor.shape)}"
            )
    rows = part.b.shape[0], part.a.shape[1]
    transposed = part.embedding or tensor.shape != rows or (square and rows[0] == rows[1])
    return Site(module, tensor, transposed, _shared(base, module, tensor, part.embedding))


def _fits(part: FactorPair, tensor: Tensor) -> bool:
    rows, columns = part.b.shape[0], part.a.shape[1]
    shapes = [(columns, rows)] if part.embedding else [(rows, columns), (columns, rows)]
    return tensor.shape in shapes


def weight_of(base: Checkpoint, module: str) -> Tensor | None:
    """The module's weight in the base: by its name, or by the one name that differs in leading parts alone."""
    name = f"{module}.weight"
    if name in base.tensors:
        return base.tensors[name]
    longer = [tensor for key, tensor in base.tensors.items() if key.endswith(f".{name}")]
    _, _, rest = name.partition(".")
    shorter = [base.tensors[rest]] if rest in base.tensors and rest != "weight" else []
    matching = longer + shorter
    return matching[0] if len(matching) == 1 else None


def _tied_embedding(base: Checkpoint, module: str) -> Tensor | None:
    """The embedding that a head without a weight of its own shares."""
    if f"{module.rpartition('.')[2]}.weight" not in TIED:
        return None
    vocab = base.config.get("vocab_size")
    embeddings = [t for t in base.tensors.values() if len(t.shape) == 2 and t.shape[0] == vocab and "embed" in t.name]
    embeddings = embeddings or [t for t in base.tensors.values() if t.name.endswith("wte.weight")]
    return embeddings[0] if len(embeddings) == 1 else None


def _shared(base: Checkpoint, module: str, tensor: Tensor, embedding: bool) -> bool:
    """Whether the module's weight is also another module's: a tied head, or the embedding under one."""
    if weight_of(base, module) is None:
        return True
    twins = [t for t in base.tensors.values() if t.shape == tensor.shape and t.name != tensor.name]
    vocabulary = tensor.shape[0] == base.config.get("vocab_size")
    head = f"{module.rpartition('.')[2]}.weight" in TIED
    return (embedding and vocabulary and (tied(base) or not twins)) or (head and tied(base))


def _whole_is_base(base: Checkpoint, name: str, adapter: Adapter) -> None:
    """PEFT may save whole embeddings too; resized or trained ones are refused."""
    for module, tensor in adapter.whole.items():
        own = weight_of(base, module) or _tied_embedding(base, module)
        if own is None or not _equal(adapter.checkpoint, tensor, base, own):
            raise UserError(
                f"adapter {name} carries the whole weight of {shown(module)}, which is not the base's own (resized or "
                "trained embeddings): it cannot be souped in adapter space"
            )


def _equal(a: Checkpoint, left: Tensor, b: Checkpoint, right: Tensor) -> bool:
    """The same numbers, in whatever float types they are stored."""
    if {left.dtype, right.dtype} - set(FLOATS) or left.shape != right.shape or not left.shape:
        return False
    reader = TensorReader({"a": a, "b": b})
    return all(
        np.array_equal(reader.rows("a", left, *rows), reader.rows("b", right, *rows)) for rows in blocks_of(left.shape)
    )


def check_settings(merge: MergeBackend) -> None:
    """Refuse settings that have no meaning for adapters.

    Raises:
        UserError: the first of them, by name.
    """
    if merge.adapters is None:
        raise UserError("this merge backend does not soup adapters: use merge=local")
    if merge.method != "linear":
        raise UserError(f"merge.method={merge.method} is for full models: adapters are souped with merge.method=linear")
    if merge.overrides:
        raise UserError("merge.overrides is for full models: a soup of adapters has one weight an adapter")


def compare_with_base(adapters: Mapping[str, Adapter], base: Checkpoint) -> list[str]:
    """Warnings about tokenizers that adapters bring.

    Raises:
        UserError: one gives other ids than the base's.
    """
    own = read_tokenizer(base)
    warnings = []
    for name, adapter in adapters.items():
        if adapter.has_tokenizer:
            warnings += compare_tokenizers("base", name, own, read_tokenizer(adapter.checkpoint), "error")
    return warnings


def note_base(adapters: Mapping[str, Adapter], base: Checkpoint) -> list[str]:
    """A note if the adapters name a folder that exists, and another one is used."""
    named = next(iter(adapters.values())).settings.base
    path = folder_at(named)
    if named is None or path is None or path == base.folder.resolve():
        return []
    return [f"the adapters name the base {shown(named)}, but merge.base={base.folder} is used"]


def note_targets(adapters: Mapping[str, Adapter]) -> list[str]:
    """A note if adapters change different modules: a module gets the parts of those that have one."""
    everything = {module for adapter in adapters.values() for module in adapter.parts}
    lacking = {name: everything - set(adapter.parts) for name, adapter in adapters.items()}
    if not any(lacking.values()):
        return []
    counts = ", ".join(f"{name} {len(everything) - len(gone)}" for name, gone in lacking.items())
    return [f"adapters change different modules ({counts} of {len(everything)}): each is used where it has one"]
