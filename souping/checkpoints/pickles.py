"""Pickles of torch's checkpoints read as plain data, and written again. Nothing is imported or called.

Python's own unpickler reads the operations that torch's files need. For a class or a function it gets its name
(`Named`), and for an object what it is made of (`Made`). Names outside the list in `rules/common.json` are refused.
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
from souping.checkpoints.layouts import common
from souping.core.text import shown
from souping.core.types import UserError

Data: TypeAlias = Any
"""What a pickle holds: numbers, texts, bytes, tuples, lists, dicts, `Named` and `Made`."""
MAX_PICKLE = 512_000_000
OPERATIONS = (
    b"()]}.BCGJKMNQRTUXabcehjqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x95"
)
"""Those that allocate, hash or call by themselves are left out."""
LARGEST_KEY = 2**31
"""Whole numbers below this, as keys of a dict, take no time to find; larger ones can all have one hash."""
LONGEST_CLASS = 200
"""Characters of a class's name at most."""
READ_FAILURES = (TypeError, ValueError, LookupError, AttributeError, OverflowError, struct.error)
"""What reading wrong data raises."""


@dataclass(frozen=True)
class Named:
    """Class or function that a pickle names."""

    name: str


@dataclass(eq=False)
class Made:
    """Object that a pickle makes: `kind` called with `args`, or with `bare` made by its `__new__`; and its state."""

    kind: str
    args: tuple[Data, ...]
    bare: bool = False
    state: Data = None

    def __getitem__(self, key: str) -> Data:
        """A field of its state."""
        fields = self.state
        # (__dict__, slots) of a class with slots.
        if isinstance(fields, tuple) and len(fields) == 2:
            fields = fields[1]
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
    except (*READ_FAILURES, pickle.UnpicklingError, EOFError) as error:
        raise broken(
            path, f"its pickle is wrong ({type(error).__name__}: {shown(str(error))[:100]})"
        ) from None


class DataUnpickler(pickle._Unpickler):
    """Python's unpickler with the operations that torch's files need; those that call or import make data."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: pickle._Unpickler.dispatch[code] for code in OPERATIONS
    }
    stack: list[Data]
    pop_mark: Callable[[], list[Data]]

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Named:
        """The name of a class in place of the class. Raises UserError for one that no checkpoint needs."""
        if len(module) + len(name) > LONGEST_CLASS:
            raise ValueError("a class has a name without end")
        full = f"{module}.{name}"
        if name in common()["classes"].get(module, "").split():
            return Named(full)
        if module == "torch" and (name in TAGS or name.endswith("Storage")):
            return Named(full)
        raise UserError(
            f"{self._path} names {shown(full)}, which no checkpoint needs: do not trust it"
        )

    def persistent_load(self, pid: Data) -> Made:
        """A storage, from torch's tuple ("storage", class, key, device, elements)."""
        if not isinstance(pid, tuple):
            raise TypeError("a storage is not a tuple")
        return Made("storage", pid)

    def load_call(self, bare: bool = False) -> None:
        """Push a `Made` for the call of a class (REDUCE, or with `bare` NEWOBJ), except in the two cases below."""
        args = self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, Named) or not isinstance(args, tuple):
            raise TypeError("a call of something that is not a class")
        # A state dict is a plain dict; `getattr` names a member of a class.
        if kind.name == "collections.OrderedDict" and not args:
            self.stack.append({})
        elif kind.name.endswith(".getattr"):
            owner, member = args
            if not isinstance(member, str):
                raise TypeError("a member has no name")
            self.stack.append(self.find_class(owner.name, member))
        else:
            self.stack.append(Made(kind.name, args, bare))

    def load_state(self) -> None:
        """Give the object on top of the stack its state (BUILD)."""
        state = self.stack.pop()
        instance = self.stack[-1]
        # The attributes of an OrderedDict, such as `_metadata`, are left out.
        if isinstance(instance, dict):
            return
        if not isinstance(instance, Made) or instance.state is not None:
            raise TypeError("a state that belongs to no object")
        instance.state = state

    def load_items(self, items: Iterable[Data]) -> None:
        """Put alternating keys and values into the dict on top of the stack (SETITEM, SETITEMS)."""
        table = self.stack[-1]
        keys_and_values = iter(items)
        for key, value in zip(keys_and_values, keys_and_values, strict=True):
            # Tuples of tuples take years to hash.
            is_key = isinstance(key, (str, Made)) or (type(key) is int and abs(key) < LARGEST_KEY)
            if not isinstance(table, dict) or not is_key:
                raise TypeError(f"a {type(key).__name__} is not a key")
            table[key] = value

    dispatch |= {
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: lambda self: self.load_call(bare=True),
        pickle.BUILD[0]: load_state,
        pickle.SETITEM[0]: lambda self: self.load_items((self.stack.pop(-2), self.stack.pop())),
        pickle.SETITEMS[0]: lambda self: self.load_items(self.pop_mark()),
    }


def pickled(value: Data) -> bytes:
    """The pickle of plain data and of objects that `unpickle` made. Raises UserError if it is nested without end."""
    file = io.BytesIO()
    try:
        DataPickler(file, protocol=2).dump(value)
    except RecursionError:
        raise UserError(
            "a pickle is nested too deeply to be written again: use merge.format=hf"
        ) from None
    return file.getvalue()


class DataPickler(pickle._Pickler):
    """Python's pickler, which writes `Named` and `Made` as the classes and calls that they stand for."""

    save: Callable[[Data], None]
    write: Callable[[bytes], None]
    memoize: Callable[[Data], None]

    def save_name(self, name: Named) -> None:
        module, _, member = name.name.rpartition(".")
        self.write(pickle.GLOBAL + f"{module}\n{member}\n".encode())

    def save_made(self, instance: Made) -> None:
        self.save(Named(instance.kind))
        self.save(instance.args)
        self.write(pickle.NEWOBJ if instance.bare else pickle.REDUCE)
        self.memoize(instance)
        if instance.state is not None:
            self.save(instance.state)
            self.write(pickle.BUILD)

    dispatch: ClassVar[dict[type, Any]] = pickle._Pickler.dispatch | {
        Named: save_name,
        Made: save_made,
    }
