"""Tokenizers and chat templates compared by content, not by formatting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from souping.core import UserError, digest
from souping.merge.checkpoint import Checkpoint
from souping.merge.header import parse_json
from souping.merge.slots import listed

PROCESSING = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
VOCAB_FILES = ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


@dataclass(frozen=True)
class Tokenizer:
    """What a tokenizer does: ids of ordinary and of added tokens, and digests of the rest.

    `rules` are merges and the model's kind, `steps` digests of the processing around it, `files` of slow tokenizers'
    files, `template` the chat template or None.
    """

    ids: Mapping[str, int]
    added: Mapping[str, int]
    rules: str
    steps: Mapping[str, str]
    files: Mapping[str, str]
    template: str | None
    present: bool


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a folder; an empty one where it has none.

    Raises:
        UserError: a tokenizer file is not JSON, or not one of a tokenizer.
    """
    fast, settings = _json(checkpoint, "tokenizer.json"), _json(checkpoint, "tokenizer_config.json")
    try:
        return _read(checkpoint, fast, settings)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(f"the tokenizer of {checkpoint.folder} cannot be read: {error}") from None


def _read(checkpoint: Checkpoint, fast: Mapping[str, Any], settings: Mapping[str, Any]) -> Tokenizer:
    model: dict[str, Any] = fast.get("model") or {}
    ids = _ids(model.get("vocab"))
    added = {str(token["content"]): int(token["id"]) for token in _list(fast.get("added_tokens"))}
    rest = {key: value for key, value in model.items() if key not in ("vocab", "merges", "dropout")}
    merges = [" ".join(m) if isinstance(m, list) else m for m in _list(model.get("merges"))]
    raw = {name: checkpoint.side_text(name) for name in VOCAB_FILES}
    return Tokenizer(
        ids={token: number for token, number in ids.items() if token not in added},
        added=added,
        rules=digest([rest, merges]),
        steps={step: digest(fast.get(step)) for step in PROCESSING},
        files={name: digest(data.hex()) for name, data in raw.items() if data is not None and not fast},
        template=_template(checkpoint, settings),
        present=bool(fast) or any(data is not None for data in raw.values()),
    )


def compare_tokenizers(a: str, b: str, left: Tokenizer, right: Tokenizer, vocab: str) -> list[str]:
    """Warnings about two tokenizers.

    Raises:
        UserError: they give ids to different texts: an id means another ordinary token, or other merges apply; with
            `vocab=error` also where one has ordinary tokens that the other lacks.
    """
    if left.present != right.present:
        owner, other = (a, b) if left.present else (b, a)
        return [f"{owner} has a tokenizer, {other} has none", *_templates(a, b, left, right)]
    clash = [token for token, number in left.ids.items() if right.ids.get(token, number) != number]
    clash += [t for t, n in _swapped(left, right) if t not in clash]
    if clash:
        raise UserError(f"tokenizers of {a} and {b} differ: other ids for {listed(clash)}")
    lone = sorted(set(left.ids) ^ set(right.ids))
    if lone and vocab == "error":
        raise UserError(
            f"tokenizers of {a} and {b} differ: only one has {listed(lone)}. If the vocabularies differ in trailing "
            "rows alone, set merge.vocab=union or merge.vocab=intersect"
        )
    if (left.rules != right.rules and not lone) or left.files != right.files:
        raise UserError(f"tokenizers of {a} and {b} differ: same vocabulary, other merges or model settings")
    return [*_warn(a, b, left, right), *_templates(a, b, left, right)]


def _swapped(left: Tokenizer, right: Tokenizer) -> list[tuple[str, int]]:
    """Ordinary tokens whose id is another ordinary token on the other side."""
    names = {number: token for token, number in right.ids.items()}
    return [(token, number) for token, number in left.ids.items() if names.get(number, token) != token]


def _warn(a: str, b: str, left: Tokenizer, right: Tokenizer) -> list[str]:
    notes = []
    added = sorted(t for t in {*left.added, *right.added} if left.added.get(t) != right.added.get(t))
    if added:
        notes.append(f"{a} and {b} differ in the added tokens {listed(added)}")
    steps = [step for step in PROCESSING if left.steps.get(step) != right.steps.get(step)]
    if steps:
        notes.append(f"tokenizers of {a} and {b} differ in {', '.join(steps)}")
    return notes


def _templates(a: str, b: str, left: Tokenizer, right: Tokenizer) -> list[str]:
    if left.template == right.template:
        return []
    if left.template is None or right.template is None:
        owner, other = (b, a) if left.template is None else (a, b)
        return [
            f"{owner} has a chat template, {other} has none: souping models of different training stages "
            "(base with instruct) is not advised"
        ]
    return [f"chat templates of {a} and {b} differ: the soup carries one of them"]


def _template(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        data = checkpoint.side_text(name)
        if data is not None and name.endswith(".jinja"):
            return data.decode("utf-8", "replace").strip()
        if data is not None:
            value = _json(checkpoint, name).get("chat_template")
            return value.strip() if isinstance(value, str) else json.dumps(value, sort_keys=True)
    value = settings.get("chat_template")
    return value.strip() if isinstance(value, str) else (json.dumps(value, sort_keys=True) if value else None)


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    data = checkpoint.side_text(name)
    value = parse_json(checkpoint.folder / name, data) if data is not None else {}
    if not isinstance(value, dict):
        raise UserError(f"{checkpoint.folder / name} is not a JSON object: not a tokenizer's file")
    return value


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _ids(vocab: object) -> dict[str, int]:
    """Token ids of a BPE, WordPiece or WordLevel table, or of a Unigram list."""
    if isinstance(vocab, dict):
        return {str(token): number for token, number in vocab.items() if isinstance(number, int)}
    return {str(row[0]): i for i, row in enumerate(_list(vocab)) if isinstance(row, list) and row}
