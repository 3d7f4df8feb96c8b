"""FP8 checkpoints: weights in E4M3 with scales, read as fp32, so that they are averaged before anything is rounded.

A weight is its 8-bit number times a scale: of the whole tensor, of its row, or of its block. Soups of them are bf16 and
have neither scales nor a `quantization_config`. Other kinds of quantisation are refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from souping.checkpoints.folder import has_weights
from souping.checkpoints.header import FLOATS, Tensor, broken, size_of
from souping.checkpoints.views import Assembly, Fetch, Part, Raw, StoredTensor, View, boxes, widen
from souping.core.text import shown
from souping.core.types import UserError

KEYS = ("quantization_config", "compression_config")
"""Where a config says how its weights are quantised."""
WRITTEN = "BF16"
"""Dtype of what is written of an FP8 weight."""
ADVICE = {
    "mxfp4": "load it in transformers with Mxfp4Config(dequantize=True) and save that",
    "bitsandbytes": "load it in transformers, call model.dequantize() and save that",
    "gguf": "load it in transformers with gguf_file=FILE, which dequantises it, and save that",
}
FLOAT = "give the float model that it was made from"
UNUSED = re.compile(r".*[._](?:input_scale|output_scale|activation_scale|[qkv]_scale)")
"""Scales of activations and caches, which say nothing about weights."""
SHIFT = np.float32(2.0**120)
PIECE = 1 << 16
"""Elements that are converted at once: they stay in the second-level cache."""


@dataclass(frozen=True)
class Scheme:
    """Where FP8 weights have their scales: `suffix` follows their name, `block` is (rows, columns) that share one."""

    suffix: str
    block: tuple[int, int] | None


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a model's config says that its weights are quantised."""
    return any(config.get(key) for key in KEYS)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the model in a float dtype."""
    return {key: value for key, value in config.items() if key not in KEYS}


def scheme_of(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """How the weights of a folder are quantised; None if they are not.

    Raises:
        UserError: in a way that is not read.
    """
    table = next((config[key] for key in KEYS if config.get(key)), None)
    if table is None and (folder / "hf_quant_config.json").is_file():
        table = {"quant_method": "modelopt"}
    if table is None:
        return None
    if not isinstance(table, dict):
        raise broken(folder / "config.json", "its quantization_config is not a table")
    unnamed = "compressed-tensors" if "config_groups" in table else "of an unknown kind"
    method = str(table.get("quant_method") or unnamed)
    if method == "fp8":
        return _fp8(folder, table)
    if method == "compressed-tensors":
        return _compressed(folder, table)
    raise refused(folder, method)


def refuse_gguf(folder: Path) -> None:
    if not has_weights(folder) and any(folder.glob("*.gguf")):
        raise refused(folder, "gguf")


def refused(folder: Path, method: str) -> UserError:
    return UserError(f"{folder} is quantised ({shown(method[:80])}), which is not read: {ADVICE.get(method, FLOAT)}")


def _fp8(folder: Path, table: Mapping[str, Any]) -> Scheme:
    """`quant_method: fp8` of DeepSeek and others."""
    if "ue8m0" in (table.get("scale_fmt"), table.get("scale_dtype")):
        raise refused(folder, "fp8 with ue8m0 scales")
    if str(table.get("fmt") or "e4m3") != "e4m3" or table.get("expert_dtype") not in (None, "fp8"):
        raise refused(folder, f"fp8 as {table.get('expert_dtype') or table.get('fmt')}")
    return Scheme("_scale_inv", _block(folder, table.get("weight_block_size")))


def _compressed(folder: Path, table: Mapping[str, Any]) -> Scheme:
    """compressed-tensors, where all groups are FP8; the shape of a scale tells whether it is of a tensor or a row."""
    groups = table.get("config_groups")
    found = groups.values() if isinstance(groups, dict) else ()
    rules: list[Any] = [group.get("weights") if isinstance(group, dict) else None for group in found]
    kinds = {(r.get("type"), r.get("num_bits")) if isinstance(r, dict) else None for r in rules}
    layout, sparsity = table.get("format"), table.get("sparsity_config") or {}
    if layout not in ("float-quantized", "naive-quantized") or kinds != {("float", 8)}:
        raise refused(folder, f"compressed-tensors, {layout}")
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise refused(folder, "compressed-tensors, sparse")
    if odd := {r.get("strategy") for r in rules} - {"tensor", "channel", "block"}:
        raise refused(folder, f"compressed-tensors, scales by {odd.pop()}")
    blocks = {_block(folder, r.get("block_structure")) for r in rules} - {None}
    if len(blocks) > 1:
        raise refused(folder, "compressed-tensors, blocks of several sizes")
    return Scheme("_scale", next(iter(blocks), None))


def _block(folder: Path, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", value):  # compressed-tensors until 0.10
        value = [int(number) for number in value.split("x")]
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and 0 < n < 1 << 31 for n in value):
        raise broken(folder / "config.json", f"the size of its blocks is {str(value)[:80]}, not two whole numbers")
    return value[0], value[1]


def dequantised(folder: Path, tensors: Mapping[str, Tensor], scheme: Scheme) -> tuple[Assembly, dict[str, Tensor]]:
    """The tensors of a folder with FP8 weights as fp32, without scales.

    Raises:
        UserError: a scale is missing, of the wrong shape or dtype, or a tensor belongs to another kind of quantisation.
    """
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dtype == "F8_E4M3"}
    scales = {f"{name}{scheme.suffix}" for name in weights}
    stored: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name in weights:
            stored[name] = ScaledTensor(folder, tensor, tensors.get(f"{name}{scheme.suffix}"), scheme)
        elif name not in scales and not UNUSED.fullmatch(name):
            _check_plain(folder, tensor)
            stored[name] = StoredTensor.of(tensor)
    assembly = Assembly.of(stored, {name: View.of(name, one.shape) for name, one in stored.items()})
    return assembly, {t.name: replace(t, rounded=WRITTEN if t.name in weights else None) for t in assembly.tensors}


def _check_plain(folder: Path, tensor: Tensor) -> None:
    """Refuse what is neither an FP8 weight nor stored as it is."""
    leftover = re.search(r"\.weight_\w+$|\.(?:qweight|qzeros|scales|g_idx)$|_(?:blocks|scales|packed)$", tensor.name)
    if leftover or size_of(tensor.dtype) == 0 or tensor.dtype.startswith(("F8", "F6", "F4")):
        what = f"{tensor.dtype} {list(tensor.shape)} that belongs to no FP8 weight of this checkpoint"
        raise UserError(f"{folder / tensor.file}, tensor {shown(tensor.name)}: {what}, so it is not read: {FLOAT}")


class ScaledTensor(StoredTensor):
    """FP8 weight that is read as fp32: each element times the scale of its tensor, row or block."""

    def __init__(self, folder: Path, weight: Tensor, scale: Tensor | None, scheme: Scheme) -> None:
        """Raises UserError where the scale is missing, or its shape or dtype is wrong."""
        super().__init__(
            "F32", weight.shape, [Part(weight.file, weight.offset, (0,) * len(weight.shape), weight.shape)]
        )
        if scale is None:
            raise broken(
                folder / weight.file, f"its scale {shown(weight.name + scheme.suffix)} is missing", weight.name
            )
        if scale.dtype not in FLOATS:
            raise refused(folder, f"fp8, {shown(scale.name)} is {scale.dtype}")
        columns = weight.shape[-1] if weight.shape else 1
        self._weight, self._scale, self._folder = weight, scale, folder
        self._matrix = (math.prod(weight.shape[:-1]), columns)
        self._grid, self._block = self._layout(scheme.block)

    def _layout(self, block: tuple[int, int] | None) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows and columns of scales, rows and columns of elements that share one)."""
        rows, columns = self._matrix
        shape = self._scale.shape
        if self._scale.count == 1:
            return (1, 1), (max(rows, 1), max(columns, 1))
        if shape == (*self.shape[:-1], 1):
            return (rows, 1), (1, max(columns, 1))
        if block is not None and len(self.shape) == 2:
            grid = (-(-rows // block[0]), -(-columns // block[1]))
            if shape == grid:
                return grid, block
        size = f"blocks of {block[0]} x {block[1]}" if block else "a scale for each tensor or row"
        why = f"its shape {list(shape)} does not fit a weight {list(self.shape)} with {size}"
        raise broken(self._folder / self._scale.file, why, self._scale.name)

    def read(self, start: int, into: Raw, fetch: Fetch) -> None:
        """Fill `into` with fp32 elements from `start` on."""
        out: NDArray[np.float32] = into.view(np.float32)
        for low, high in boxes(self._matrix, start, len(out)):
            taken = (high[0] - low[0]) * (high[1] - low[1])
            first = low[0] * self._matrix[1] + low[1]
            self._read_rows((low[0], high[0]), (low[1], high[1]), first, out[:taken], fetch)
            out = out[taken:]

    def _read_rows(
        self, rows: tuple[int, int], columns: tuple[int, int], first: int, out: NDArray[np.float32], fetch: Fetch
    ) -> None:
        numbers = np.empty(len(out), np.uint8)
        fetch(self._weight.file, numbers, self._weight.offset + first)
        width, height = columns[1] - columns[0], self._block[0]
        top = rows[0] // height
        scales = self._scales(top, -(-rows[1] // height), fetch)
        if self._grid[1] > 1:
            scales = scales[:, np.arange(*columns) // self._block[1]]
        fits = bool((np.abs(scales) < 128).all())  # else the scale is multiplied apart, so that it cannot overflow
        scales = scales * SHIFT if fits else scales
        row, step = rows[0], max(1, PIECE // width)
        while row < rows[1]:
            end = min(row + step, rows[1], row + step if height == 1 else (row // height + 1) * height)
            place = slice((row - rows[0]) * width, (end - rows[0]) * width)
            part = out[place].reshape(-1, width)
            shifted(numbers[place], out[place])
            if not fits:
                np.multiply(part, SHIFT, out=part)
            np.multiply(part, scales[row // height - top : -(-end // height) - top], out=part)
            row = end
        if numbers.max() == 0xFF or numbers.view(np.int8).max() == 0x7F:
            out[(numbers & 0x7F) == 0x7F] = np.nan

    def _scales(self, top: int, bottom: int, fetch: Fetch) -> NDArray[np.float32]:
        """The scales [rows, columns of the grid] of some rows of the grid."""
        wide = self._grid[1]
        raw = np.empty((bottom - top) * wide * size_of(self._scale.dtype), np.uint8)
        fetch(self._scale.file, raw, self._scale.offset + top * wide * size_of(self._scale.dtype))
        scales = widen(raw, self._scale.dtype).reshape(-1, wide)
        if not np.isfinite(scales).all():
            raise broken(self._folder / self._scale.file, "a scale is NaN or infinite", self._scale.name)
        return scales


def shifted(numbers: Raw, out: NDArray[np.float32]) -> None:
    """E4M3 numbers over 2^120, exactly: their bits at their places in fp32 (subnormals too, but for NaN)."""
    bits = out.view(np.int32)
    np.copyto(bits, numbers.view(np.int8))
    np.left_shift(bits, 20, out=bits)
    np.bitwise_and(bits, np.int32(-0x78100000), out=bits)
