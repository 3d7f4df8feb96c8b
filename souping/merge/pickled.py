"""Pickled weights (`pytorch_model.bin`), only with `merge.allow_pickle=true`: their table, without running their code.

`torch.load(weights_only=True)` refuses everything but plain tensors. Under a fake mode it reads no weight either and
tells where in the zip file each storage lies (`UntypedStorage._checkpoint_offset`), so that a pickled file streams
like a safetensors file afterwards.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.merge.header import Tensor, broken

TAGS = {
    "float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def read_pickled(path: Path, label: str) -> dict[str, Tensor]:
    """The tensors of a pickled file and where their bytes are.

    Raises:
        UserError: it is not a zip of plain, contiguous tensors, or it is truncated.
    """
    _check_zip(path)
    state = _load(path)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise broken(path, "not a table of tensors")
    size = path.stat().st_size
    return {name: _tensor(path, label, name, value, size) for name, value in state.items()}


def _check_zip(path: Path) -> None:
    """Stored, not compressed: otherwise an offset in the file would not be a tensor's bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        raise broken(path, "not a zip as torch.save writes it since 2020, or truncated") from None
    if packed:
        raise broken(path, "its entries are compressed")


def _load(path: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return torch.load(path, weights_only=True)
    except Exception as error:  # whatever a hostile pickle makes of the loader is the file's fault
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"{path} holds more than plain tensors, or is broken ({reason}). Do not trust it.") from None


def _tensor(path: Path, label: str, name: str, value: Any, size: int) -> Tensor:
    import torch

    if not isinstance(value, torch.Tensor) or value.is_sparse or not value.is_contiguous():
        raise broken(path, "not a contiguous tensor", name)
    tag = TAGS.get(str(value.dtype).removeprefix("torch."))
    start = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if tag is None or start is None:
        raise broken(path, f"a tensor of {value.dtype} cannot be read", name)
    offset, nbytes = start + value.storage_offset() * value.element_size(), value.numel() * value.element_size()
    if not 0 <= offset <= offset + nbytes <= size:
        raise broken(path, "truncated: its bytes lie behind the end", name)
    return Tensor(name, tag, tuple(value.shape), label, int(offset), int(nbytes))
