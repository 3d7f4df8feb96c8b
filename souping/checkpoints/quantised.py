"""FP8 checkpoints: weights in E4M3 with scales, read as fp32, so that they are averaged before anything is rounded.

A weight is its 8-bit number times a scale: of the whole tensor, of its row, or of its block. Soups of them are bf16 and
have neither scales nor a `quantization_config`. Other kinds of quantisation are refused by name.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from souping.checkpoints.folder import has_weights
from souping.checkpoints.header import FLOATS, Tensor, broken, size_of
from souping.checkpoints.views import (
    Assembly,
    Fetch,
    Float32,
    Raw,
    StoredTensor,
    Tile,
    View,
    scratch_of,
    widen,
)
from souping.core.native import compiled
from souping.core.text import shown
from souping.core.types import UserError

QUANTISATION_KEYS = ("quantization_config", "compression_config")
"""Where a config says how its weights are quantised."""
WRITTEN = "BF16"
"""Dtype of what is written of an FP8 weight."""
ADVICE = {
    "mxfp4": "load it in transformers with Mxfp4Config(dequantize=True) and save that",
    "bitsandbytes": "load it in transformers, call model.dequantize() and save that",
    "gguf": "load it in transformers with gguf_file=FILE, which dequantises it, and save that",
}
FLOAT = "give the float model from which it was quantised"
UNUSED = re.compile(r".*[._](?:input_scale|output_scale|activation_scale|[qkv]_scale)")
"""Scales of activations and caches, which say nothing about weights."""

CALL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, *[ctypes.c_int64] * 6, ctypes.c_void_p, ctypes.c_void_p
)
"""The arguments of `ASSEMBLY`."""


@dataclass(frozen=True)
class Scheme:
    """Where FP8 weights have their scales: in a tensor of their name and `suffix`.

    `block` is (rows, columns) that share one; None: one for each tensor or row.
    """

    suffix: str
    block: tuple[int, int] | None


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what it says about quantisation."""
    return {key: value for key, value in config.items() if key not in QUANTISATION_KEYS}


def scheme_of(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """How the weights of a folder are quantised; None if they are not.

    Raises:
        UserError: they are quantised in a way that souping does not read.
    """
    table = next((config[key] for key in QUANTISATION_KEYS if config.get(key)), None)
    # ModelOpt may write a file of its own instead.
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
    """Refuse a folder whose only weights are in GGUF."""
    if not has_weights(folder) and any(folder.glob("*.gguf")):
        raise refused(folder, "gguf")


def refused(folder: Path, method: str) -> UserError:
    """The error for weights of a kind of quantisation that is not read."""
    return UserError(
        f"{folder} is quantised ({shown(method[:80])}), which is not read: {ADVICE.get(method, FLOAT)}"
    )


def _fp8(folder: Path, table: Mapping[str, Any]) -> Scheme:
    """The scheme of `quant_method: fp8`, as DeepSeek and others have it (UserError: scales or weights of other dtypes).

    `expert_dtype` is set if the experts' dtype differs from that of the other weights.
    """
    if "ue8m0" in (table.get("scale_fmt"), table.get("scale_dtype")):
        raise refused(folder, "fp8 with ue8m0 scales")
    if str(table.get("fmt") or "e4m3") != "e4m3" or table.get("expert_dtype") not in (None, "fp8"):
        raise refused(folder, f"fp8 as {table.get('expert_dtype') or table.get('fmt')}")
    return Scheme("_scale_inv", _block(folder, table.get("weight_block_size")))


def _compressed(folder: Path, table: Mapping[str, Any]) -> Scheme:
    """The scheme of compressed-tensors, if the weights of all groups are FP8 (UserError: they are not).

    The scheme does not say whether a scale is of a tensor or of a row (channel): the scale's shape does.
    """
    groups = table.get("config_groups")
    rules = list[Any]()
    for group in groups.values() if isinstance(groups, dict) else ():
        rules.append(group.get("weights") if isinstance(group, dict) else None)
    # (type, bits) of each group; None for a group that does not say it.
    kinds = set[Any]()
    for rule in rules:
        kinds.add((rule.get("type"), rule.get("num_bits")) if isinstance(rule, dict) else None)
    layout = table.get("format")
    sparsity = table.get("sparsity_config") or {}
    if layout not in ("float-quantized", "naive-quantized") or kinds != {("float", 8)}:
        raise refused(folder, f"compressed-tensors, {layout}")
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise refused(folder, "compressed-tensors, sparse")
    strategies = {rule.get("strategy") for rule in rules} - {"tensor", "channel", "block"}
    if strategies:
        raise refused(folder, f"compressed-tensors, scales by {strategies.pop()}")
    blocks = {_block(folder, rule.get("block_structure")) for rule in rules} - {None}
    if len(blocks) > 1:
        raise refused(folder, "compressed-tensors, blocks of several sizes")
    return Scheme("_scale", next(iter(blocks), None))


def _block(folder: Path, value: Any) -> tuple[int, int] | None:
    """(rows, columns) that share a scale, from a `value` of the config; None for null (UserError: no such pair)."""
    if value is None:
        return None
    # As compressed-tensors wrote it until 0.10: "128x128".
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", value):
        value = [int(number) for number in value.split("x")]
    pair = isinstance(value, list) and len(value) == 2
    if pair and all(type(n) is int and 0 < n < 1 << 31 for n in value):
        return value[0], value[1]
    what = f"the size of its blocks is {str(value)[:80]}, not two whole numbers"
    raise broken(folder / "config.json", what)


def dequantised(
    folder: Path, tensors: Mapping[str, Tensor], scheme: Scheme
) -> tuple[Assembly, dict[str, Tensor]]:
    """(assembly, {name: tensor}) of a folder whose FP8 weights are read as fp32, without scales.

    Raises:
        UserError: a scale is missing, of the wrong shape or dtype, or a tensor belongs to another kind of quantisation.
    """
    weights = {name: tensor for name, tensor in tensors.items() if tensor.dtype == "F8_E4M3"}
    scales = {f"{name}{scheme.suffix}" for name in weights}
    stored: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name in weights:
            scale = tensors.get(f"{name}{scheme.suffix}")
            stored[name] = ScaledTensor(folder, tensor, scale, scheme)
        elif name not in scales and not UNUSED.fullmatch(name):
            _check_plain(folder, tensor)
            stored[name] = StoredTensor.of(tensor)
    views = {name: View.of(name, tensor.shape) for name, tensor in stored.items()}
    assembly = Assembly.of(stored, views)
    # Soups have the weights in 16 bits.
    read_tensors = dict[str, Tensor]()
    for tensor in assembly.tensors:
        rounded = WRITTEN if tensor.name in weights else None
        read_tensors[tensor.name] = replace(tensor, rounded=rounded)
    return assembly, read_tensors


def _check_plain(folder: Path, tensor: Tensor) -> None:
    """Refuse a tensor that belongs to another kind of quantisation, by its name or dtype."""
    # Packed numbers, zero points and scales of compressed-tensors, of GPTQ and AWQ, and of MXFP4.
    leftover = re.search(
        r"\.weight_\w+$|\.(?:qweight|qzeros|scales|g_idx)$|_(?:blocks|scales|packed)$", tensor.name
    )
    # Dtypes of less than a byte have size 0.
    if leftover or size_of(tensor.dtype) == 0 or tensor.dtype.startswith(("F8", "F6", "F4")):
        what = (
            f"{tensor.dtype} {list(tensor.shape)} that belongs to no FP8 weight of this checkpoint"
        )
        raise UserError(
            f"{folder / tensor.file}, tensor {shown(tensor.name)}: {what}, so it is not read: {FLOAT}"
        )


class ScaledTensor(StoredTensor):
    """FP8 weight that is read as fp32: each element times the scale of its tensor, row or block."""

    def __init__(self, folder: Path, weight: Tensor, scale: Tensor | None, scheme: Scheme) -> None:
        """Raises UserError if the scale is missing (None), or has a wrong shape or dtype."""
        # For the shape and dtype alone: offsets of the parts are by fp32's 4 bytes then, and `read` uses none.
        super().__init__("F32", weight.shape, StoredTensor.of(weight).parts)
        if scale is None:
            missing = f"its scale {shown(weight.name + scheme.suffix)} is missing"
            raise broken(folder / weight.file, missing, weight.name)
        if scale.dtype not in FLOATS:
            raise refused(folder, f"fp8, {shown(scale.name)} is {scale.dtype}")
        self._weight = weight
        self._scale = scale
        self._folder = folder
        self._columns = weight.shape[-1] if weight.shape else 1
        # The scales, once read; kept until the last element is read.
        self._scales: Float32 | None = None
        self._block = self._block_of(scheme.block)

    def _block_of(self, block: tuple[int, int] | None) -> tuple[int, int]:
        """(rows, columns) of the weight as a matrix that share a scale, by the shape of the scales (UserError: no fit).

        `block` is what the config says, if it says anything.
        """
        shape = self._scale.shape
        rows = math.prod(self.shape[:-1])
        columns = self._columns
        # At least 1, for weights without elements: positions are divided by these sizes.
        if self._scale.count == 1:
            return max(rows, 1), max(columns, 1)
        if shape == (*self.shape[:-1], 1):
            return 1, max(columns, 1)
        size = "a scale for each tensor or row"
        if block is not None:
            height, width = block
            if len(self.shape) == 2 and shape == (-(-rows // height), -(-columns // width)):
                return block
            size = f"blocks of {height} x {width}"
        why = f"its shape {list(shape)} does not fit a weight {list(self.shape)} with {size}"
        raise broken(self._folder / self._scale.file, why, self._scale.name)

    def read(self, start: int, into: Raw, fetch: Fetch) -> list[Tile]:
        """Fill `into` with fp32 elements from `start` on. It has no tiles: a weight is in one piece."""
        # An FP8 number has one byte, and four in `into`.
        numbers = scratch_of("fp8", len(into) // 4)
        fetch(self._weight.file, numbers, self._weight.offset + start)
        # Several threads may read one tensor: each holds the scales itself, and at worst they are read twice.
        scales = self._scales
        if scales is None:
            scales = self._read_scales(fetch)
        at_end = start + len(numbers) >= self.count
        self._scales = None if at_end else scales
        dequantise(numbers, start, scales, self._columns, self._block, into.view(np.float32))
        return []

    def _read_scales(self, fetch: Fetch) -> Float32:
        """All scales [rows of blocks, blocks in a row]."""
        raw = np.empty(self._scale.nbytes, np.uint8)
        fetch(self._scale.file, raw, self._scale.offset)
        scales = widen(raw, self._scale.dtype).reshape(-1, -(-self._columns // self._block[1]))
        if not np.isfinite(scales).all():
            raise broken(
                self._folder / self._scale.file, "a scale is NaN or infinite", self._scale.name
            )
        return scales


def dequantise(
    numbers: Raw,
    start: int,
    scales: Float32,
    columns: int,
    block: tuple[int, int],
    out: Float32,
) -> None:
    """Fill `out` [I] with FP8 numbers [I], each times the scale of its block.

    The numbers are the elements from `start` on of a matrix with this number of `columns`, row by row. A `block` is
    (rows, columns), and `scales` are [rows of blocks, blocks in a row].
    """
    address = compiled(ASSEMBLY)
    # Where LLVM does not run.
    if address is None:
        import torch

        row, column = np.divmod(np.arange(start, start + len(numbers)), columns)
        values = torch.from_numpy(numbers).view(torch.float8_e4m3fn).float().numpy()
        np.multiply(values, scales[row // block[0], column // block[1]], out=out)
        return
    CALL(address)(
        numbers.ctypes.data,
        start,
        len(numbers),
        columns,
        *block,
        scales.shape[1],
        scales.ctypes.data,
        out.ctypes.data,
    )


ASSEMBLY = """
declare i64 @llvm.smin.i64(i64, i64)
define void @kernel(ptr noalias %numbers, i64 %start, i64 %count, i64 %columns, i64 %height, i64 %width, i64 %across,
                    ptr noalias %scales, ptr noalias %out) {
entry:
  br label %run
run:                                         ; elements in a row that share a scale
  %begin = phi i64 [ 0, %entry ], [ %end, %done ]
  %at = add i64 %begin, %start
  %row = udiv i64 %at, %columns
  %column = urem i64 %at, %columns
  %block = udiv i64 %column, %width
  %next.block = add i64 %block, 1
  %passed = mul i64 %next.block, %width
  %edge = call i64 @llvm.smin.i64(i64 %passed, i64 %columns)
  %left = sub i64 %edge, %column
  %reached = add i64 %begin, %left
  %end = call i64 @llvm.smin.i64(i64 %reached, i64 %count)
  %block.row = udiv i64 %row, %height
  %above = mul i64 %block.row, %across
  %place = add i64 %above, %block
  %scale.at = getelementptr float, ptr %scales, i64 %place
  %scale = load float, ptr %scale.at
  br label %element
element:
  %i = phi i64 [ %begin, %run ], [ %next, %element ]
  %from = getelementptr i8, ptr %numbers, i64 %i
  %number = load i8, ptr %from
  %wide = sext i8 %number to i16
  %up = shl i16 %wide, 7
  %bits = and i16 %up, -16385              ; sign, exponent and fraction at their places in fp16
  %size = and i16 %wide, 127
  %nan = icmp eq i16 %size, 127
  %half.bits = select i1 %nan, i16 32256, i16 %bits
  %half = bitcast i16 %half.bits to half
  %small = fpext half %half to float
  %value = fmul float %small, 256.0        ; fp16's bias is 8 more than that of E4M3
  %scaled = fmul float %value, %scale
  %to = getelementptr float, ptr %out, i64 %i
  store float %scaled, ptr %to
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %element, label %done
done:
  %rest = icmp slt i64 %end, %count
  br i1 %rest, label %run, label %exit
exit:
  ret void
}
"""
