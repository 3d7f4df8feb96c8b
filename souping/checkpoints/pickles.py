"""Pickles of torch's checkpoints read as plain data, and written again. Nothing is imported or called.

Python's own unpickler reads the operations that torch's files need. For a class or a function it gets its name
(`Named`), and for an object what it is made of (`Made`). Names outside a list are refused.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from souping.checkpoints.header import TAGS, broken
from souping.core.text import shown
from souping.core.types import UserError

Data: TypeAlias = Any
"""What a pickle holds: numbers, texts, bytes, tuples, lists, dicts, `Named` and `Made`."""
MAX_PICKLE = 512_000_000
OPERATIONS = b"()]}.BCGJKMNQRTUXabcehjqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x95"
"""Those that allocate, hash or call by themselves are left out."""
KEYS = (str, int, float, bytes, type(None))
ERRORS = (
    pickle.UnpicklingError, EOFError, IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error,
    OverflowError,
)  # fmt: skip
DCP, SHARDED = "torch.distributed.checkpoint", "torch.distributed._shard"
CLASSES = {
    f"{DCP}.metadata": "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata MetadataIndex "
    "TensorProperties _MEM_FORMAT_ENCODING StorageMeta",
    f"{DCP}.filesystem": "_StorageInfo",
    f"{DCP}.planner": "SavePlan WriteItem WriteItemType TensorWriteData",
    "olmo_core.distributed.checkpoint.filesystem": "_StorageInfo",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
    "pathlib": "PosixPath",
    "pathlib._local": "PosixPath",
    "collections": "OrderedDict",
    "builtins": "getattr slice",
    "__builtin__": "getattr",
    "torch": "Size device",
    "torch.serialization": "_get_layout",
    "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter _rebuild_wrapper_subclass",
    "torch._tensor": "_rebuild_from_type_v2",
    "torch.distributed": "remote_device",
    "torch.distributed.remote_device": "_remote_device",
    "torch.distributed.device_mesh": "DeviceMesh",
    "torch.distributed._mesh_layout": "_MeshLayout _FlatLayout",
    "torch.distributed.tensor": "DTensor",
    "torch.distributed.tensor._api": "DTensor",
    "torch.distributed._tensor.api": "DTensor",
    "torch.distributed._tensor.placement_types": "DTensorSpec TensorMeta Shard Replicate Partial _StridedShard",
    "torch.distributed.tensor.placement_types": "Shard Replicate Partial _StridedShard",
    "torch.distributed.tensor._dtensor_spec": "DTensorSpec TensorMeta ShardOrderEntry",
    f"{SHARDED}.metadata": "ShardMetadata",
    f"{SHARDED}.sharded_tensor.api": "ShardedTensor ShardedTensor.ProcessGroupState",
    f"{SHARDED}.sharded_tensor.shard": "Shard",
    f"{SHARDED}.sharded_tensor.metadata": "ShardedTensorMetadata TensorProperties MEM_FORMAT_ENCODING",
    f"{SHARDED}.sharding_spec.api": "EnumerableShardingSpec",
    f"{SHARDED}.sharding_spec.chunk_sharding_spec": "ChunkShardingSpec",
}
"""{module: what a checkpoint may name of it}: metadata of torch 2.2 and later, Megatron-Core and OLMo-core, and tensors
that are plain, DTensor or ShardedTensor."""
KNOWN = {f"{module}.{name}" for module, names in CLASSES.items() for name in names.split()}


@dataclass(frozen=True)
class Named:
    """Class or function that a pickle names."""

    name: str


@dataclass(eq=False)
class Made:
    """Object that a pickle makes: `kind` called with `args`, or made `bare` as `__new__` does, with its state."""

    kind: str
    args: tuple[Data, ...]
    bare: bool = False
    state: Data = None

    def __getitem__(self, key: str) -> Data:
        """A field of its state."""
        fields = self.state[1] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state  # of slots
        if not isinstance(fields, dict):
            raise TypeError(f"{self.kind} has no fields")
        return fields[key]


def unpickle(data: bytes, path: Path) -> Data:
    """What a pickle holds.

    Raises:
        UserError: it is broken, or names a class that no checkpoint needs.
    """
    try:
        return DataUnpickler(data, path).load()
    except ERRORS as error:
        raise broken(path, f"its pickle is wrong ({type(error).__name__}: {shown(str(error))[:100]})") from None


class DataUnpickler(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = {code: pickle._Unpickler.dispatch[code] for code in OPERATIONS}
    stack: list[Data]
    pop_mark: Callable[[], list[Data]]

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Named:
        full = f"{module}.{name}"
        if full not in KNOWN and not (module == "torch" and (name in TAGS or name.endswith("Storage"))):
            raise UserError(f"{self._path} names {shown(full)[:200]}, which no checkpoint needs: do not trust it")
        return Named(full)

    def persistent_load(self, pid: Data) -> Made:
        return Made("storage", tuple(pid))

    def load_call(self, bare: bool = False) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Named) or not isinstance(args, tuple):
            raise TypeError("a call of something that is no class")
        if kind.name == "collections.OrderedDict":
            self.stack.append({})
        elif kind.name.endswith(".getattr"):
            self.stack.append(self.find_class(args[0].name, str(args[1])))
        else:
            self.stack.append(Made(kind.name, args, bare))

    def load_state(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, dict):  # the attributes of an OrderedDict
            return
        if not isinstance(made, Made) or made.state is not None:
            raise TypeError("a state that belongs to no object")
        made.state = state

    def load_items(self, items: Iterable[Data]) -> None:
        table, each = self.stack[-1], iter(items)
        for key, value in zip(each, each, strict=True):
            if not isinstance(table, dict) or not isinstance(key, (*KEYS, Made)):  # tuples of tuples take years to hash
                raise TypeError(f"a {type(key).__name__} is no key")
            table[key] = value

    def load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.load_items((key, value))

    dispatch |= {
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: lambda self: self.load_call(bare=True),
        pickle.BUILD[0]: load_state,
        pickle.SETITEM[0]: load_item,
        pickle.SETITEMS[0]: lambda self: self.load_items(self.pop_mark()),
    }


def pickled(value: Data) -> bytes:
    """The pickle of plain data and of objects that `unpickle` made."""
    file = io.BytesIO()
    DataPickler(file, protocol=2).dump(value)
    return file.getvalue()


class DataPickler(pickle._Pickler):
    save: Callable[[Data], None]
    write: Callable[[bytes], None]
    memoize: Callable[[Data], None]

    def save_name(self, name: Named) -> None:
        module, _, member = name.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{member}\n".encode())

    def save_made(self, made: Made) -> None:
        self.save(Named(made.kind))
        self.save(made.args)
        self.write(pickle.NEWOBJ if made.bare else pickle.REDUCE)
        self.memoize(made)
        if made.state is not None:
            self.save(made.state)
            self.write(pickle.BUILD)

    dispatch: ClassVar[dict[type, Any]] = pickle._Pickler.dispatch | {Named: save_name, Made: save_made}
