"""Preflight of a pool: what can be known to go wrong from headers, configs and tokenizers, before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from souping.core import UserError
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import Tensor
from souping.merge.slots import FLOATS, VOCAB_RULES, Slot, listed, redundant, slots
from souping.merge.tokenizers import compare_tokenizers, read_tokenizer

CHUNK = 1 << 22
IGNORED = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "vocab_size", "architectures", "model_type", "auto_map",
    "output_attentions", "output_hidden_states", "return_dict", "_commit_hash", "gradient_checkpointing",
}  # fmt: skip
STRUCTURE = {
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "hidden_size", "n_head", "n_layer",
    "num_experts_per_tok", "num_local_experts", "num_experts", "hidden_act", "hidden_activation", "activation_function",
    "layer_types", "tie_word_embeddings", "quantization_config", "is_encoder_decoder", "d_kv", "num_heads",
}  # fmt: skip


def preflight(checkpoints: Mapping[str, Checkpoint], vocab: str = "error") -> list[str]:
    """Check that a pool can be souped; returns warnings for the report.

    Reads no float weight: only headers, configs, tokenizers, and the bytes of tensors that have to be equal (those
    that are not floats, and tied heads that some store twice).

    Raises:
        UserError: tensors are missing or extra (at most ten named, then a count), shapes or architectures differ, a
            float type cannot be souped, tensors that are not floats differ, tokenizers give other ids.
    """
    if vocab not in VOCAB_RULES:
        raise UserError(f"merge.vocab={vocab} must be one of {', '.join(VOCAB_RULES)}")
    names = list(checkpoints)
    if not names:
        raise UserError("the pool is empty")
    for name in names[1:]:
        _same_architecture(names[0], name, checkpoints)
    found = slots(checkpoints, vocab)
    warnings = _dtypes(checkpoints, found) + _ties(checkpoints)
    _equal_where_not_float(checkpoints, found)
    tokenizers = {name: read_tokenizer(checkpoint) for name, checkpoint in checkpoints.items()}
    for name in names[1:]:
        warnings += _config_drift(names[0], name, checkpoints[names[0]].config, checkpoints[name].config)
        warnings += compare_tokenizers(names[0], name, tokenizers[names[0]], tokenizers[name], vocab)
    return warnings + _rows(checkpoints, found, vocab)


def _same_architecture(a: str, b: str, pool: Mapping[str, Checkpoint]) -> None:
    for key in ("model_type", "architectures"):
        left, right = pool[a].config.get(key), pool[b].config.get(key)
        if left != right and left is not None and right is not None:
            raise UserError(f"candidates {a} and {b} differ in {key}: {_short(left)} and {_short(right)}")


def _dtypes(pool: Mapping[str, Checkpoint], found: list[Slot]) -> list[str]:
    mixed = [slot for slot in found if len({part.dtype for part in slot.parts}) > 1 and slot.dtype in FLOATS]
    if not mixed:
        return []
    stored = ", ".join(f"{name} {checkpoint.dtype}" for name, checkpoint in pool.items())
    return [f"dtypes differ ({stored}): a soup of them is written in the widest, unless merge.dtype is set"]


def _ties(pool: Mapping[str, Checkpoint]) -> list[str]:
    """Heads stored beside a tied embedding by some: fine if they are equal to it, refused if not."""
    notes = []
    for head in redundant(pool):
        owners = [name for name, checkpoint in pool.items() if head in checkpoint.tensors]
        for owner in owners:
            _equals_embedding(owner, pool[owner], head)
        notes.append(f"{listed(owners)} stores the tied {head} beside the embedding, others do not: it is left out")
    return notes


def _equals_embedding(name: str, checkpoint: Checkpoint, head: str) -> None:
    tensor = checkpoint.tensors[head]
    others = [t for t in checkpoint.tensors.values() if t.name != head]
    twins = [t for t in others if (t.shape, t.dtype) == (tensor.shape, tensor.dtype)]
    if twins and not any(_same_bytes(checkpoint, tensor, checkpoint, twin) for twin in twins):
        raise UserError(
            f"tied embeddings on one side only: {name} stores {head}, which its config ties to the embedding, with "
            "other values, and another candidate does not store it"
        )


def _equal_where_not_float(pool: Mapping[str, Checkpoint], found: list[Slot]) -> None:
    names = list(pool)
    for slot in found:
        if all(part.dtype in FLOATS for part in slot.parts):
            continue
        odd = next(part.dtype for part in slot.parts if part.dtype not in FLOATS)
        for name, part in zip(names[1:], slot.parts[1:], strict=True):
            same = part.dtype == slot.parts[0].dtype and part.shape == slot.parts[0].shape
            if not same or not _same_bytes(pool[names[0]], slot.parts[0], pool[name], part):
                raise UserError(
                    f"{slot.name} is not a float tensor ({odd}) and differs between {names[0]} and {name}: "
                    "quantised models cannot be averaged. Use their float originals."
                )


def _same_bytes(a: Checkpoint, left: Tensor, b: Checkpoint, right: Tensor) -> bool:
    """Compare two tensors in chunks."""
    if left.nbytes != right.nbytes:
        return False
    with (a.folder / left.file).open("rb") as x, (b.folder / right.file).open("rb") as y:
        x.seek(left.offset, os.SEEK_SET)
        y.seek(right.offset, os.SEEK_SET)
        sizes = [min(CHUNK, left.nbytes - start) for start in range(0, left.nbytes, CHUNK)]
        return all(x.read(size) == y.read(size) for size in sizes)


def _config_drift(a: str, b: str, left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Warnings for settings that differ; what changes the meaning of the weights is refused."""
    notes = []
    for key in dict.fromkeys([*left, *right]):
        x, y = left.get(key), right.get(key)
        if key in IGNORED or x == y:
            continue
        if isinstance(x, dict) and isinstance(y, dict) and key.endswith("_config") and key != "quantization_config":
            notes += _config_drift(a, b, x, y, f"{prefix}{key}.")
        elif key in STRUCTURE and x is not None and y is not None:
            raise UserError(f"candidates {a} and {b} differ in config {prefix}{key}: {_short(x)} and {_short(y)}")
        else:
            what = "RoPE settings differ, config" if key.startswith("rope") else "configs differ in"
            notes.append(f"{what} {prefix}{key}: {a} {_short(x)}, {b} {_short(y)}")
    return notes


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _rows(pool: Mapping[str, Checkpoint], found: list[Slot], vocab: str) -> list[str]:
    uneven = [slot for slot in found if slot.uneven]
    if not uneven:
        return []
    rows = ", ".join(f"{name} {part.shape[0]}" for name, part in zip(pool, uneven[0].parts, strict=True))
    return [f"vocabularies differ ({rows}): merge.vocab={vocab} gives {uneven[0].shape[0]} rows"]
