"""Compatibility of checkpoints: their tensors side by side, with the shape and dtype the soup will have.

What can be known to go wrong with a pool from headers, configs and tokenizers is found before any work. Tokenizers and
chat templates are compared by content, not by formatting.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.encodings import COMPARED_TEXTS, first_difference
from souping.checkpoints.folder import is_head, setting, side_files, unwrapped
from souping.checkpoints.header import FLOATS, OTHER_FLOATS, Tensor, parse_json, widest
from souping.checkpoints.reader import WeightReader
from souping.core.text import listed, shown
from souping.core.types import Json, Names, UserError, digest

VOCAB_WORDS = ("embed", "lm_head", "wte", "shared", "output_projection", "embd")
"""Words in names of tensors that have a row for each token."""
COMPARED_ELEMENTS = 1 << 20
"""Elements of two tensors that are in memory at once."""


@dataclass(frozen=True)
class AlignedTensor:
    """Tensor of the soup with its `dtype` and `shape`, and `parts`, its counterpart in each ingredient, in order.

    Numbers of rows may differ if `merge.vocab` allows it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]

    @property
    def uneven(self) -> bool:
        return len({part.shape for part in self.parts}) > 1

    @property
    def mixes_dtypes(self) -> bool:
        return len({part.soup_dtype for part in self.parts}) > 1


def align(checkpoints: Checkpoints, vocab: str = "error") -> list[AlignedTensor]:
    """The soup's tensors in the order of their names, which no layout of an ingredient changes.

    Raises:
        UserError: tensors are missing or extra, shapes differ, or a float type cannot be souped.
    """
    dropped = redundant(checkpoints)
    # {checkpoint: {name: tensor}}
    tables = dict[str, dict[str, Tensor]]()
    for name, checkpoint in checkpoints.items():
        tables[name] = {
            key: tensor for key, tensor in checkpoint.tensors.items() if key not in dropped
        }
    first, *later = checkpoints
    for name in later:
        _check_names(first, name, tables, checkpoints)
    aligned = [_align_tensor(name, tables, checkpoints, vocab) for name in sorted(tables[first])]
    _refuse_shapes(aligned, checkpoints, vocab)
    for index, name in enumerate(checkpoints):
        tensors = [slot.parts[index] for slot in aligned]
        unusable = [tensor for tensor in tensors if tensor.dtype in OTHER_FLOATS]
        if unusable:
            names = listed(tensor.name for tensor in unusable)
            raise UserError(
                f"{name} stores {names} as {unusable[0].dtype}: convert it to float32 or 16 bits"
            )
    return aligned


def redundant(checkpoints: Checkpoints) -> Names:
    """Output heads that some ingredients store although they are tied to the embedding, and others do not.

    They are left out of the soup: the models tie them again when they are loaded.
    """
    if not all(tied(checkpoint) for checkpoint in checkpoints.values()):
        return ()
    counts = Counter[str]()
    for checkpoint in checkpoints.values():
        counts.update(filter(is_head, checkpoint.tensors))
    return tuple(head for head, count in counts.items() if count < len(checkpoints))


def tied(checkpoint: Checkpoint) -> bool:
    """Whether the config ties the output head to the embedding."""
    return setting(checkpoint.config, "tie_word_embeddings") is True


def _check_names(
    a: str, b: str, tables: Mapping[str, Mapping[str, Tensor]], pool: Checkpoints
) -> None:
    """Refuse candidates `a` and `b` whose `tables` ({candidate: {name: tensor}}) have different names."""
    missing = [name for name in tables[a] if name not in tables[b]]
    extra = [name for name in tables[b] if name not in tables[a]]
    if not missing and not extra:
        return
    renamed = {unwrapped(name): name for name in extra}
    if renamed.keys() == {*map(unwrapped, missing)}:
        raise UserError(
            f"candidates {a} and {b} have the same tensors under different names, such as {shown(missing[0])} and "
            f"{shown(renamed[unwrapped(missing[0])])}: load both with one version of transformers and save them again"
        )
    differences = list[str]()
    if missing:
        differences.append(f"{b} lacks {listed(missing)}")
    if extra:
        differences.append(f"{b} also has {listed(extra)}")
    hint = ""
    if tied(pool[a]) != tied(pool[b]) and any(map(is_head, [*missing, *extra])):
        hint = " (tied embeddings on one side only)"
    raise UserError(
        f"candidates {a} and {b} do not have the same tensors{hint}: {'; '.join(differences)}"
    )


def _align_tensor(
    name: str,
    tables: Mapping[str, Mapping[str, Tensor]],
    pool: Checkpoints,
    vocab: str,
) -> AlignedTensor:
    """The tensor of one name in all models; `tables` are {candidate: {name: tensor}}.

    It has the rows of the largest vocabulary if `vocab` is union, of the smallest if it is intersect. Of other shapes
    that differ, it has the first: `_refuse_shapes` refuses them.
    """
    parts = tuple(table[name] for table in tables.values())
    shapes = [part.shape for part in parts]
    shape = shapes[0]
    if len(set(shapes)) > 1 and vocab != "error" and _is_vocab(name, parts, list(pool.values())):
        rows = [shape[0] for shape in shapes]
        shape = (max(rows) if vocab == "union" else min(rows), *shape[1:])
    return AlignedTensor(name, widest(part.soup_dtype for part in parts), shape, parts)


def _is_vocab(name: str, parts: Sequence[Tensor], pool: Sequence[Checkpoint]) -> bool:
    """Whether shapes differ in their first size alone, and that size is the vocabulary's by the configs or the name."""
    if len({part.shape[1:] for part in parts}) > 1 or not all(part.shape for part in parts):
        return False
    sizes = [setting(checkpoint.config, "vocab_size") for checkpoint in pool]
    rows = [part.shape[0] for part in parts]
    return rows == sizes or any(word in name for word in VOCAB_WORDS)


def _refuse_shapes(aligned: Sequence[AlignedTensor], pool: Checkpoints, vocab: str) -> None:
    """Refuse shapes that differ, unless they differ only in vocabulary rows and `vocab` says what to do about that."""
    checkpoints = list(pool.values())
    uneven = [slot for slot in aligned if slot.uneven]
    vocabularies = [slot for slot in uneven if _is_vocab(slot.name, slot.parts, checkpoints)]
    refused = uneven
    if vocab != "error":
        refused = [slot for slot in uneven if slot not in vocabularies]
    if not refused:
        return
    # If nothing else differs, there is something to set.
    hint = ""
    if len(vocabularies) == len(uneven):
        hint = ". Vocabularies differ: set merge.vocab=union or merge.vocab=intersect"

    # One example: the first refused tensor, in the first candidate and in the first that differs from that one.
    slot = refused[0]
    shapes = [list(part.shape) for part in slot.parts]
    places = list(zip(shapes, pool, strict=True))
    first_shape, first = places[0]
    shape, name = next((shape, name) for shape, name in places if shape != first_shape)
    what = f"{shown(slot.name)} is {first_shape} in {first} and {shape} in {name}"
    names = listed(slot.name for slot in refused)
    raise UserError(f"shapes differ in {names}: {what}{hint}")


IGNORED = {
    "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "vocab_size", "architectures", "model_type", "auto_map",
    "output_attentions", "output_hidden_states", "return_dict", "_commit_hash", "gradient_checkpointing",
}  # fmt: skip
"""Keys of a config that say nothing about the weights, or that are compared elsewhere."""
STRUCTURE = {
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "hidden_size", "n_head", "n_layer",
    "num_experts_per_tok", "num_local_experts", "num_experts", "hidden_act", "hidden_activation", "activation_function",
    "layer_types", "tie_word_embeddings", "is_encoder_decoder", "d_kv", "num_heads",
}  # fmt: skip
"""Keys of a config by which equal weights make another model."""


def preflight(
    checkpoints: Checkpoints, vocab: str = "error", tokenizer_from: str | None = None
) -> list[str]:
    """Check that a pool can be souped; returns warnings for the report. `tokenizer_from` names the tokenizer of soups.

    Reads no weight but tied heads that only some store: only headers, configs and tokenizers.

    Raises:
        UserError: tensors are missing or extra (at most ten named, then a count), shapes or architectures differ, a
            model is quantised or of a float type that cannot be souped, tokenizers give other ids.
    """
    names = list(checkpoints)
    if not names:
        raise UserError("the pool is empty")
    for name in names:
        _check_architecture(names[0], name, checkpoints)
    aligned = align(checkpoints, vocab)
    warnings = _dtype_and_row_notes(checkpoints, aligned, vocab)
    warnings += _tied_head_notes(checkpoints)
    config = checkpoints[names[0]].config
    for name in names[1:]:
        warnings += _config_drift(names[0], name, config, checkpoints[name].config)
    warnings += compare_tokenizers(checkpoints, vocab, tokenizer_from)
    return warnings


def _check_architecture(a: str, b: str, pool: Checkpoints) -> None:
    """Refuse candidates `a` and `b` whose configs name different architectures. A config may name none."""
    for key in ("model_type", "architectures"):
        a_value = pool[a].config.get(key)
        b_value = pool[b].config.get(key)
        if a_value != b_value and a_value is not None and b_value is not None:
            raise UserError(
                f"candidates {a} and {b} differ in {key}: {a_value!s:.80} and {b_value!s:.80}"
            )


def _tied_head_notes(pool: Checkpoints) -> list[str]:
    """One note on each tied head that only some models store (UserError: it does not equal their embedding)."""
    notes = []
    for head in redundant(pool):
        owners = [name for name, checkpoint in pool.items() if head in checkpoint.tensors]
        for owner in owners:
            _check_head(owner, pool[owner], head)
        notes.append(
            f"{listed(owners)} stores the tied {head} as well as the embedding, others do not: it is left out"
        )
    return notes


def _check_head(name: str, checkpoint: Checkpoint, head: str) -> None:
    """Refuse a stored head that equals no other tensor of its shape and dtype: one of those is the embedding.

    Without any, there is nothing to compare the head with.
    """
    tensor = checkpoint.tensors[head]
    possible = list[Tensor]()
    for embedding in checkpoint.tensors.values():
        same_kind = (embedding.shape, embedding.dtype) == (tensor.shape, tensor.dtype)
        if same_kind and embedding.name != head:
            possible.append(embedding)
    equal = any(same_values(checkpoint, tensor, checkpoint, embedding) for embedding in possible)
    if possible and not equal:
        raise UserError(
            f"tied embeddings on one side only: {name} stores {head} with values other than the embedding's"
        )


def same_values(a: Checkpoint, a_tensor: Tensor, b: Checkpoint, b_tensor: Tensor) -> bool:
    """Whether a tensor of `a` and one of `b` hold the same floats, in whatever float dtypes they are stored."""
    if {a_tensor.dtype, b_tensor.dtype} - set(FLOATS) or a_tensor.shape != b_tensor.shape:
        return False
    with WeightReader(a) as a_reader, WeightReader(b) as b_reader:
        for start in range(0, a_tensor.count, COMPARED_ELEMENTS):
            count = min(COMPARED_ELEMENTS, a_tensor.count - start)
            a_values = a_reader.values(a_tensor, start, count)
            if not np.array_equal(a_values, b_reader.values(b_tensor, start, count)):
                return False
    return True


def _config_drift(
    a: str, b: str, left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = ""
) -> list[str]:
    """Notes on settings that differ between the configs `left` of candidate `a` and `right` of `b`.

    Settings that change the meaning of the weights are refused (UserError). `prefix` is the path of nested configs.
    """
    notes = []
    for key in dict.fromkeys([*left, *right]):
        a_value = left.get(key)
        b_value = right.get(key)
        if key in IGNORED or a_value == b_value:
            continue
        if isinstance(a_value, dict) and isinstance(b_value, dict) and key.endswith("_config"):
            notes += _config_drift(a, b, a_value, b_value, f"{prefix}{key}.")
            continue
        values = f"{a_value!s:.80} and {b_value!s:.80}"
        # A config may leave a setting out, and the default may be the other's value.
        if key in STRUCTURE and a_value is not None and b_value is not None:
            raise UserError(f"candidates {a} and {b} differ in config {prefix}{key}: {values}")
        what = "RoPE settings differ, config" if key.startswith("rope") else "configs differ in"
        notes.append(f"{what} {prefix}{key}: {a} {a_value!s:.80}, {b} {b_value!s:.80}")
    return notes


def _dtype_and_row_notes(
    pool: Checkpoints, aligned: Sequence[AlignedTensor], vocab: str
) -> list[str]:
    """Notes on dtypes and on numbers of vocabulary rows that differ."""
    notes = []
    floats = [slot for slot in aligned if slot.dtype in FLOATS]
    if any(slot.mixes_dtypes for slot in floats):
        stored = ", ".join(f"{name} {checkpoint.dtype}" for name, checkpoint in pool.items())
        notes.append(
            f"dtypes differ ({stored}): a soup of them is written in the widest, unless merge.dtype is set"
        )
    # All uneven tensors have the rows of the vocabularies: the first shows them.
    slot = next((slot for slot in aligned if slot.uneven), None)
    if slot is not None:
        models = zip(pool, slot.parts, strict=True)
        rows = ", ".join(f"{name} {part.shape[0]}" for name, part in models)
        notes.append(
            f"vocabularies differ ({rows}): merge.vocab={vocab} gives {slot.shape[0]} rows"
        )
    return notes


TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tekken.json",
)
ENCODING = ("normalizer", "pre_tokenizer")
FRAMING = ("post_processor", "decoder")
DEFAULTS = {
    "byte_fallback": False, "fuse_unk": False, "ignore_merges": False, "max_input_chars_per_word": 100,
}  # fmt: skip
"""Settings of a tokenizer's model that are the same as none; null and the empty text are too."""
VOCAB_FILES = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


def check_tokenizer(name: str, folder: Path) -> None:
    """Refuse a model that has no tokenizer to be evaluated with."""
    if not has_tokenizer(folder):
        raise UserError(
            f"candidate {name}: {folder} has no tokenizer: copy its base model's tokenizer files"
        )


def has_tokenizer(folder: Path) -> bool:
    return any((folder / file).is_file() for file in TOKENIZERS)


@dataclass(frozen=True)
class Tokenizer:
    """Behaviour of a tokenizer.

    `ids` and `added` are {token: id} of ordinary and of added tokens. `settings` decide how texts are encoded: {place
    in tokenizer.json: value}, or digests of its files if there is none. `definition` is a tokenizer.json without added
    tokens, `template` the chat template or None, `present` whether there are any files.
    """

    ids: Mapping[str, int]
    added: Mapping[str, int]
    settings: Mapping[str, Any]
    definition: Mapping[str, Any]
    template: str | None
    present: bool


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a folder; an empty one if it has none.

    Raises:
        UserError: a tokenizer file is not JSON, or not one of a tokenizer.
    """
    fast = _json(checkpoint, "tokenizer.json")
    settings = _json(checkpoint, "tokenizer_config.json")
    try:
        return _parse_tokenizer(checkpoint, fast, settings)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the tokenizer of {checkpoint.folder} cannot be read: {error}") from None


def _parse_tokenizer(
    checkpoint: Checkpoint, fast: Mapping[str, Any], settings: Mapping[str, Any]
) -> Tokenizer:
    """The tokenizer that its tokenizer.json (`fast`) and tokenizer_config.json (`settings`) describe; {} for no file.

    Wrong content raises TypeError, ValueError, AttributeError or KeyError.
    """
    # Dropout of BPE merges is for training alone.
    model = {**(fast.get("model") or {}), "dropout": None}
    ids = _ids(model.get("vocab"))
    added = {str(token["content"]): int(token["id"]) for token in _list(fast.get("added_tokens"))}
    decisive = {step: fast.get(step) or None for step in ENCODING}
    for key, value in model.items():
        if key not in ("vocab", "merges") and value not in (None, "", DEFAULTS.get(key)):
            decisive[f"model.{key}"] = value
    for rank, merge in enumerate(_list(model.get("merges"))):
        decisive[f"model.merges[{rank}]"] = " ".join(merge) if isinstance(merge, list) else merge
    for number, row in enumerate(_list(model.get("vocab"))):
        # Only a Unigram model has a list, with rows [token, score]; the tokens are in `ids`.
        decisive[f"model.vocab[{number}]"] = row[1:]
    # Without a tokenizer.json, the files of a slow tokenizer decide.
    vocab_files = {name: checkpoint.side_text(name) for name in VOCAB_FILES}
    if not fast:
        for name, data in vocab_files.items():
            decisive[name] = data and digest(data.hex())
    return Tokenizer(
        ids={token: number for token, number in ids.items() if token not in added},
        added=added,
        settings=decisive,
        definition={
            **fast,
            "model": model,
            "added_tokens": [],
            "padding": None,
            "truncation": None,
        },
        template=_template(checkpoint, settings),
        present=bool(fast) or any(data is not None for data in vocab_files.values()),
    )


def compare_tokenizers(
    pool: Checkpoints, vocab: str, tokenizer_from: str | None, texts: Sequence[str] = ()
) -> list[str]:
    """Notes on tokenizers that differ from the first. If their settings differ, they encode random texts, and `texts`.

    Raises:
        UserError: an id means another ordinary token; one has ordinary tokens that the other lacks (`vocab=error`); or
            a text is encoded differently, and `tokenizer_from` names no candidate.
    """
    (a, first), *later = pool.items()
    left = read_tokenizer(first)
    files = _tokenizer_files(first)
    notes = []
    for b, checkpoint in later:
        # The same files are the same tokenizer, and need not be read.
        if _tokenizer_files(checkpoint) == files:
            continue
        right = read_tokenizer(checkpoint)
        notes += _compare_pair(a, b, left, right, vocab)
        notes += _compare_settings(a, b, left, right, tokenizer_from, texts)
    return notes


def _tokenizer_files(checkpoint: Checkpoint) -> dict[str, bytes | None]:
    """{name: content} of a checkpoint's side files, without the config."""
    return {name: checkpoint.side_text(name) for name in checkpoint.side if name != "config.json"}


def _compare_pair(a: str, b: str, left: Tokenizer, right: Tokenizer, vocab: str) -> list[str]:
    """Notes on tokens, framing and templates in which `left`, the tokenizer of `a`, and `right`, that of `b`, differ.

    Raises UserError if ordinary tokens differ in their ids, or with `vocab=error` if only one has some of them.
    """
    if left.present != right.present:
        owner, owner_of_none = (a, b) if left.present else (b, a)
        note = f"{owner} has a tokenizer, {owner_of_none} has none"
        return [note, *_template_notes(a, b, left, right)]
    right_tokens = {number: token for token, number in right.ids.items()}
    clash = list[str]()
    for token, number in left.ids.items():
        # A token or an id that only one tokenizer has is not a clash.
        other_id = right.ids.get(token, number) != number
        other_token = right_tokens.get(number, token) != token
        if other_id or other_token:
            clash.append(token)
    if clash:
        raise UserError(f"tokenizers of {a} and {b} differ: other ids for {listed(clash)}")
    lone = sorted(set(left.ids) ^ set(right.ids))
    if lone and vocab == "error":
        advice = "if the vocabularies differ in trailing rows alone, set merge.vocab=union or merge.vocab=intersect"
        raise UserError(f"tokenizers of {a} and {b} differ: only one has {listed(lone)}: {advice}")
    notes = []
    tokens = sorted({*left.added, *right.added})
    added = [token for token in tokens if left.added.get(token) != right.added.get(token)]
    if added:
        notes.append(f"{a} and {b} differ in the added tokens {listed(added)}")
    steps = [step for step in FRAMING if left.definition.get(step) != right.definition.get(step)]
    if steps:
        notes.append(f"tokenizers of {a} and {b} differ in {', '.join(steps)}")
    return [*notes, *_template_notes(a, b, left, right)]


def _compare_settings(
    a: str,
    b: str,
    left: Tokenizer,
    right: Tokenizer,
    tokenizer_from: str | None,
    texts: Sequence[str],
) -> list[str]:
    """A note if the settings of `left`, the tokenizer of `a`, and `right`, that of `b`, differ.

    Raises UserError if a text is encoded differently, and no `tokenizer_from` says which tokenizer a soup gets.
    """
    x = left.settings
    y = right.settings
    fields = [field for field in {**x, **y} if x.get(field) != y.get(field)]
    # A tokenizer that is missing has its note already.
    if not fields or left.present != right.present:
        return []
    what = f"tokenizers of {a} and {b} differ in {listed(fields, 3)}"
    # Other vocabularies encode texts differently anyway.
    if left.ids.keys() != right.ids.keys():
        return [what]
    if tokenizer_from is not None:
        return [f"{what}: soups with {tokenizer_from} have its tokenizer (merge.tokenizer_from)"]
    # If BPE merges ("a b") differ, the texts of the merged tokens ("ab") show it.
    first = fields[:COMPARED_TEXTS]
    merges = [*map(x.get, first), *map(y.get, first)]
    tokens = [str(merge).replace(" ", "") for merge in merges]
    difference = first_difference([left.definition, right.definition], tokens, texts)
    if difference is None:
        return [f"{what}, and encode alike"]
    raise UserError(
        f"{what} ({x.get(fields[0])!s:.80} and {y.get(fields[0])!s:.80}): {difference}. The vocabularies are equal, so "
        f"merge.tokenizer_from={b} gives soups with that candidate its tokenizer"
    )


def _template_notes(a: str, b: str, left: Tokenizer, right: Tokenizer) -> list[str]:
    """Notes on the chat templates of the models named `a` and `b`, whose tokenizers are `left` and `right`."""
    if left.template == right.template:
        return []
    if left.template is None or right.template is None:
        owner, owner_of_none = (b, a) if left.template is None else (a, b)
        return [
            f"{owner} has a chat template, {owner_of_none} has none: souping models of different training stages "
            "(base with instruct) is not advised"
        ]
    return [
        f"the chat template of {b} differs from that of {a}: a soup has one of them (merge.tokenizer_from={b})"
    ]


def _template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    """The chat template in its own file, else in the tokenizer's config (`settings`); several named ones as JSON."""
    text = checkpoint.side_text("chat_template.jinja")
    if text is not None:
        return text.decode("utf-8", "replace").strip()
    if checkpoint.side_text("chat_template.json") is not None:
        settings = _json(checkpoint, "chat_template.json")
    value = settings.get("chat_template")
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, sort_keys=True) if value else None


def chat_template(folder: Path) -> str | None:
    """The chat template of the tokenizer in the folder of a model or an adapter; several named ones as JSON.

    Raises:
        UserError: a file of it is not JSON.
    """
    bare = Checkpoint(
        source=folder, folder=folder, tensors={}, config={}, files=(), side=side_files(folder)
    )
    return _template(bare, _json(bare, "tokenizer_config.json"))


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in a side file; empty if there is no such file."""
    data = checkpoint.side_text(name)
    if data is None:
        return {}
    value = parse_json(checkpoint.home / name, data)
    if not isinstance(value, dict):
        raise UserError(f"{checkpoint.home / name} is not a JSON object: not a tokenizer's file")
    return value


def _list(value: Json) -> list[Any]:
    return value if isinstance(value, list) else []


def _ids(vocab: Json) -> dict[str, int]:
    """{token: id} of a vocabulary: BPE, WordPiece and WordLevel have that table, Unigram a list of [token, score]."""
    if isinstance(vocab, dict):
        return {str(token): number for token, number in vocab.items() if isinstance(number, int)}
    return {str(row[0]): i for i, row in enumerate(_list(vocab)) if isinstance(row, list) and row}
