"""Ingredients side by side: the tensors they share, by name, with the shape and dtype the soup will have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from souping.core import UserError
from souping.merge.checkpoint import TORCH_NAMES, Checkpoint
from souping.merge.header import Tensor, shown

FLOATS = tuple(TORCH_NAMES.values())
OTHER_FLOATS = ("F64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
VOCAB_RULES = ("error", "intersect", "union")
VOCAB_WORDS = ("embed", "lm_head", "wte", "shared", "output_projection", "embd")
TIED = ("lm_head.weight", "output.weight")


@dataclass(frozen=True)
class Slot:
    """A tensor of the soup and its counterpart in each ingredient. Rows may differ where `merge.vocab` allows it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]

    @property
    def uneven(self) -> bool:
        return len({part.shape for part in self.parts}) > 1


def listed(names: Iterable[str], limit: int = 10) -> str:
    """At most ten names, then a count."""
    every = [shown(name) for name in names]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more


def slots(checkpoints: Mapping[str, Checkpoint], vocab: str = "error") -> list[Slot]:
    """The soup's tensors in the first ingredient's file order.

    Raises:
        UserError: tensors are missing or extra, shapes differ, or a float type cannot be souped.
    """
    first = next(iter(checkpoints))
    tables = {name: _table(checkpoint, checkpoints) for name, checkpoint in checkpoints.items()}
    for name, table in tables.items():
        _same_names(first, name, tables[first], table, checkpoints)
    found = [_slot(name, tables, checkpoints, vocab) for name in tables[first]]
    _refuse_shapes(found, checkpoints, vocab)
    _refuse_floats(found, checkpoints)
    return found


def redundant(checkpoints: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """Output heads that some ingredients store beside the embedding they are tied to, and others do not.

    They are left out of the soup: the models tie them again when they are loaded.
    """
    if not all(tied(checkpoint) for checkpoint in checkpoints.values()):
        return ()
    counts = [(head, sum(head in checkpoint.tensors for checkpoint in checkpoints.values())) for head in TIED]
    return tuple(head for head, count in counts if 0 < count < len(checkpoints))


def tied(checkpoint: Checkpoint) -> bool:
    """Whether the config ties the output head to the embedding."""
    return _setting(checkpoint, "tie_word_embeddings") is True


def _setting(checkpoint: Checkpoint, key: str) -> object:
    nested = checkpoint.config.get("text_config")
    inner = nested.get(key) if isinstance(nested, dict) else None
    return checkpoint.config.get(key, inner)


def _table(checkpoint: Checkpoint, pool: Mapping[str, Checkpoint]) -> dict[str, Tensor]:
    drop = redundant(pool)
    return {name: tensor for name, tensor in checkpoint.tensors.items() if name not in drop}


def _same_names(
    a: str, b: str, left: Mapping[str, Tensor], right: Mapping[str, Tensor], pool: Mapping[str, Checkpoint]
) -> None:
    missing, extra = [n for n in left if n not in right], [n for n in right if n not in left]
    if not missing and not extra:
        return
    lines = [f"{b} lacks {listed(missing)}"] if missing else []
    lines += [f"{b} also has {listed(extra)}"] if extra else []
    hint = ""
    if tied(pool[a]) != tied(pool[b]) and {*missing, *extra} & set(TIED):
        hint = " (tied embeddings on one side only)"
    raise UserError(f"candidates {a} and {b} do not have the same tensors{hint}: {'; '.join(lines)}")


def _slot(name: str, tables: Mapping[str, Mapping[str, Tensor]], pool: Mapping[str, Checkpoint], vocab: str) -> Slot:
    parts = tuple(table[name] for table in tables.values())
    shapes = [part.shape for part in parts]
    shape = shapes[0]
    if len(set(shapes)) > 1 and vocab != "error" and _is_vocab(name, parts, list(pool.values())):
        pick = max if vocab == "union" else min
        shape = (pick(s[0] for s in shapes), *shape[1:])
    return Slot(name, widest(part.dtype for part in parts), shape, parts)


def _is_vocab(name: str, parts: Sequence[Tensor], pool: Sequence[Checkpoint]) -> bool:
    """Shapes differ in their first size alone, and that size is the vocabulary's."""
    if len({part.shape[1:] for part in parts}) > 1 or not all(part.shape for part in parts):
        return False
    sizes = [_setting(checkpoint, "vocab_size") for checkpoint in pool]
    rows = [part.shape[0] for part in parts]
    return rows == sizes or any(word in name for word in VOCAB_WORDS)


def _refuse_shapes(found: Sequence[Slot], pool: Mapping[str, Checkpoint], vocab: str) -> None:
    names, checkpoints = list(pool), list(pool.values())
    bad = [
        slot
        for slot in found
        if slot.uneven and (vocab == "error" or not _is_vocab(slot.name, slot.parts, checkpoints))
    ]
    if not bad:
        return
    slot = bad[0]
    other = next(i for i, part in enumerate(slot.parts) if part.shape != slot.parts[0].shape)
    hint = ""
    if all(_is_vocab(s.name, s.parts, checkpoints) for s in bad):
        hint = ". Vocabularies differ: set merge.vocab=union or merge.vocab=intersect"
    raise UserError(
        f"shapes differ in {listed(s.name for s in bad)}: {shown(slot.name)} is {list(slot.parts[0].shape)} in "
        f"{names[0]} and {list(slot.parts[other].shape)} in {names[other]}{hint}"
    )


def _refuse_floats(found: Sequence[Slot], pool: Mapping[str, Checkpoint]) -> None:
    for name, index in zip(pool, range(len(pool)), strict=True):
        bad = [slot.parts[index] for slot in found if slot.parts[index].dtype in OTHER_FLOATS]
        if bad:
            raise UserError(
                f"candidate {name} stores {listed(t.name for t in bad)} as {bad[0].dtype}: only bfloat16, float16 and "
                "float32 tensors are souped. Convert it first."
            )


def widest(dtypes: Iterable[str]) -> str:
    """The dtype that holds every value of all of them: bf16 with fp16 needs fp32. Others come back as they are."""
    present = set(dtypes)
    if len(present) == 1 or not present <= set(FLOATS):
        return sorted(present)[0]
    return "F32"
