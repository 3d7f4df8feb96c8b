"""Pickles of torch's checkpoints read as plain data, and written again. Nothing is imported or called.

A pickle is a program for a small stack machine. The machine here knows the operations that torch's files need; where a
program makes an object, it notes what the object is made of (`Made`). Classes outside a list are refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from souping.checkpoints.header import TAGS, broken
from souping.core.text import shown
from souping.core.types import UserError

Data: TypeAlias = Any
"""What a pickle holds: numbers, texts, bytes, tuples, lists, dicts, `Named` and `Made`."""
MAX_PICKLE = 512_000_000
MAX_STACK = 1 << 20
"""Objects that wait to be put together, at most."""
TEXTS = {0x8C: 1, 0x58: 4, 0x8D: 8, 0x55: 1, 0x54: 4}
BYTES = {0x43: 1, 0x42: 4, 0x8E: 8}
NUMBERS = {0x4B: "<B", 0x4D: "<H", 0x4A: "<i", 0x47: ">d"}
LONGS = {0x8A: 1, 0x8B: 4}
CONSTANTS: dict[int, Callable[[], Data]] = {
    0x4E: lambda: None, 0x88: lambda: True, 0x89: lambda: False, 0x7D: dict, 0x5D: list, 0x29: tuple,
}  # fmt: skip
PUTS, GETS = {0x71: 1, 0x72: 4}, {0x68: 1, 0x6A: 4}
TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
SKIPPED = {0x80: 1, 0x95: 8}
KEYS = (str, int, float, bytes, type(None))

DCP, OLMO = "torch.distributed.checkpoint", "olmo_core.distributed.checkpoint.filesystem"
SHARDED = "torch.distributed._shard"
METADATA = {
    f"{DCP}.metadata.{name}"
    for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "MetadataIndex",
        "TensorProperties", "_MEM_FORMAT_ENCODING", "StorageMeta",
    )
} | {
    f"{SHARDED}.sharded_tensor.metadata.TensorProperties", f"{SHARDED}.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    f"{DCP}.filesystem._StorageInfo", f"{OLMO}._StorageInfo", "pathlib.PosixPath", "pathlib._local.PosixPath",
    f"{DCP}.planner.SavePlan", f"{DCP}.planner.WriteItem", f"{DCP}.planner.WriteItemType",
    f"{DCP}.planner.TensorWriteData", "megatron.core.dist_checkpointing.strategies.torch.MCoreMetadata",
    "megatron.core.dist_checkpointing.strategies.torch.MCoreSavePlan", "torch.Size",
    "torch.serialization._get_layout", "collections.OrderedDict",
}  # fmt: skip
"""Classes of a `.metadata`, of torch 2.2 and later, of Megatron-Core and of OLMo-core."""
TENSORS = {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict"}
"""Classes of a pickled tensor."""
RANK = TENSORS | {
    "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_wrapper_subclass", "torch.device", "torch.Size",
    "torch.serialization._get_layout", "torch.distributed.tensor.DTensor", "torch.distributed._tensor.api.DTensor",
    "torch.distributed.tensor._api.DTensor", "torch.distributed.device_mesh.DeviceMesh",
    "torch.distributed._mesh_layout._MeshLayout", "torch.distributed._mesh_layout._FlatLayout", "builtins.slice",
    f"{SHARDED}.sharded_tensor.api.ShardedTensor", f"{SHARDED}.sharded_tensor.api.ShardedTensor.ProcessGroupState",
    f"{SHARDED}.sharded_tensor.shard.Shard", f"{SHARDED}.metadata.ShardMetadata", "builtins.getattr",
    "__builtin__.getattr", f"{SHARDED}.sharded_tensor.metadata.ShardedTensorMetadata",
    f"{SHARDED}.sharded_tensor.metadata.TensorProperties", f"{SHARDED}.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    f"{SHARDED}.sharding_spec.chunk_sharding_spec.ChunkShardingSpec", "torch.distributed.remote_device._remote_device",
    f"{SHARDED}.sharding_spec.api.EnumerableShardingSpec", "torch.distributed.remote_device",
} | {
    f"torch.distributed.{home}.{name}"
    for home in ("_tensor.placement_types", "tensor._dtensor_spec", "tensor.placement_types")
    for name in ("DTensorSpec", "TensorMeta", "ShardOrderEntry", "Shard", "Replicate", "Partial", "_StridedShard")
}  # fmt: skip
"""Classes of a rank's own file: tensors that are sharded by DTensor or ShardedTensor."""


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


def unpickle(data: bytes, allowed: Collection[str], path: Path) -> Data:
    """What a pickle holds, with `Made` for each object.

    Raises:
        UserError: it is broken, or names a class that is not allowed.
    """
    try:
        return PickleMachine(data, allowed, path).run()
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, struct.error, OverflowError) as error:
        raise broken(path, f"its pickle is wrong ({type(error).__name__}: {shown(str(error))[:100]})") from None


@dataclass
class PickleMachine:
    """Stack machine with the state of one program."""

    data: bytes
    allowed: Collection[str]
    path: Path
    at: int = 0
    stack: list[Data] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Data] = field(default_factory=dict)

    def run(self) -> Data:
        data, push = self.data, self.stack.append
        while True:
            code = data[self.at]
            self.at += 1
            if code in PUTS:
                self.memo[self.number(PUTS[code])] = self.stack[-1]
            elif code in GETS:
                push(self.memo[self.number(GETS[code])])
            elif code in TEXTS:
                push(self.piece(self.number(TEXTS[code])).decode("utf-8", "surrogatepass"))
            elif code in CONSTANTS:
                push(CONSTANTS[code]())
            elif code in NUMBERS:
                form = NUMBERS[code]
                push(struct.unpack(form, self.piece(struct.calcsize(form)))[0])
            elif code in TUPLES:
                push(self.popped(len(self.stack) - TUPLES[code]))
            elif code == 0x2E:
                return self.stack.pop()
            else:
                self.step(code)
            if len(self.stack) > MAX_STACK:
                raise ValueError("too many loose objects")

    def step(self, code: int) -> None:
        """The operations that are not constants."""
        if code == 0x28:
            self.marks.append(len(self.stack))
        elif code == 0x94:
            self.memo[len(self.memo)] = self.stack[-1]
        elif code == 0x74:
            self.stack.append(self.popped(self.marks.pop()))
        elif code in BYTES:
            self.stack.append(self.piece(self.number(BYTES[code])))
        elif code in LONGS:
            self.stack.append(int.from_bytes(self.piece(self.number(LONGS[code])), "little", signed=True))
        elif code in SKIPPED:
            self.at += SKIPPED[code]
        elif code in (0x61, 0x65):  # one item for a list, or many
            items = self.popped(self.marks.pop() if code == 0x65 else len(self.stack) - 1)
            self.top(list).extend(items)
        elif code in (0x73, 0x75):  # one item for a dict, or many
            self.fill(self.popped(self.marks.pop() if code == 0x75 else len(self.stack) - 2))
        else:
            self.make(code)

    def make(self, code: int) -> None:
        """The operations that make objects."""
        if code == 0x63:
            self.stack.append(self.named(self.line(), self.line()))
        elif code == 0x93:
            self.stack.append(self.named(*self.popped(len(self.stack) - 2)))
        elif code in (0x52, 0x81):  # a call, or a bare object
            kind, args = self.popped(len(self.stack) - 2)
            self.stack.append(self.made(kind, args, code == 0x81))
        elif code == 0x62:
            state = self.stack.pop()
            if isinstance(self.stack[-1], dict):  # the attributes of an OrderedDict
                return
            if self.top(Made).state is not None:
                raise ValueError("an object gets a state twice")
            self.top(Made).state = state
        elif code == 0x51:
            self.stack.append(Made("storage", tuple(self.stack.pop())))
        else:
            raise ValueError(f"operation {code:#04x}, which no checkpoint needs")

    def piece(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise ValueError("it ends early")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.piece(size), "little")

    def line(self) -> str:
        end = self.data.index(b"\n", self.at)
        text = self.piece(end - self.at).decode("ascii")
        self.at += 1
        return text

    def popped(self, start: int) -> tuple[Data, ...]:
        """The objects of the stack from a place on, taken off."""
        if start < (self.marks[-1] if self.marks else 0):
            raise IndexError("nothing left on the stack")
        items = tuple(self.stack[start:])
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Data:
        if not isinstance(self.stack[-1], kind):
            raise TypeError(f"a {type(self.stack[-1]).__name__} is no {kind.__name__}")
        return self.stack[-1]

    def fill(self, items: tuple[Data, ...]) -> None:
        table = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (*KEYS, Made)):  # tuples of tuples take years to hash
                raise TypeError(f"a {type(key).__name__} is no key")
            table[key] = value

    def named(self, module: str, name: str) -> Named:
        full = f"{module}.{name}"
        known = full in self.allowed or (module == "torch" and (name in TAGS or name.endswith("Storage")))
        if not known:
            raise UserError(f"{self.path} names {shown(full)[:200]}, which no checkpoint needs: do not trust it")
        return Named(full)

    def made(self, kind: Named, args: tuple[Data, ...], bare: bool) -> Data:
        if not isinstance(kind, Named) or not isinstance(args, tuple):
            raise TypeError("a call of something that is no class")
        if kind.name == "collections.OrderedDict":
            return dict[Data, Data]()
        if kind.name.endswith(".getattr"):
            owner, member = args
            return self.named(owner.name, str(member))
        return Made(kind.name, args, bare)


def pickled(value: Data) -> bytes:
    """The pickle of plain data and of objects that `unpickle` made (protocol 2)."""
    return b"\x80\x02" + b"".join(_written(value)) + b"."


def _written(value: Data) -> Iterable[bytes]:
    if value is None or isinstance(value, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif isinstance(value, int):
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        yield b"\x8a" + bytes([len(raw)]) + raw
    elif isinstance(value, float):
        yield b"G" + struct.pack(">d", value)
    elif isinstance(value, str):
        raw = value.encode("utf-8", "surrogatepass")
        yield b"X" + struct.pack("<I", len(raw)) + raw
    elif isinstance(value, Named):
        module, _, name = value.name.rpartition(".")
        yield f"c{module}\n{name}\n".encode()
    elif isinstance(value, tuple | list):
        yield b"(" if isinstance(value, tuple) else b"]("
        for item in value:
            yield from _written(item)
        yield b"t" if isinstance(value, tuple) else b"e"
    elif isinstance(value, dict):
        yield b"}("
        for key, item in value.items():
            yield from _written(key)
            yield from _written(item)
        yield b"u"
    elif isinstance(value, Made):
        yield from _written(Named(value.kind))
        yield from _written(value.args)
        yield b"\x81" if value.bare else b"R"
        if value.state is not None:
            yield from _written(value.state)
            yield b"b"
    else:
        raise TypeError(f"a {type(value).__name__} cannot be pickled")
