"""Tokenizers of a pool: alike is what encodes alike."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from souping.checkpoints.compatibility import compare_tokenizers, preflight
from souping.core.types import UserError
from tests.support.checkpoints import family, opened

CHARACTERS = ["Ġ", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'"]
MERGES = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["a", "b"], ["b", "c"], ["i", "n"], ["in", "g"]]
TOKENS = [*CHARACTERS, *map("".join, MERGES)]
BPE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": {token: number for number, token in enumerate(TOKENS)},
        "merges": MERGES,
    },
}


def changed(table: dict[str, Any], place: str, value: object) -> dict[str, Any]:
    """A copy of a tokenizer.json with one other value; a value of `...` removes the key."""
    table = copy.deepcopy(table)
    *above, key = place.split(".")
    inner = table
    for name in above:
        inner = inner[name]
    if value is ...:
        del inner[key]
    else:
        inner[key] = value
    return table


def save(folders: dict[str, Path], *tables: dict[str, Any]) -> None:
    for folder, table in zip(folders.values(), tables, strict=True):
        (folder / "tokenizer.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.continuing_subword_prefix", ""),
        ("model.end_of_word_suffix", ""),
        ("model.unk_token", ""),
        ("model.unk_token", ...),
        ("model.fuse_unk", ...),
        ("model.byte_fallback", ...),
        ("model.ignore_merges", False),
        ("model.dropout", 0.1),
        ("model.merges", [" ".join(merge) for merge in MERGES]),
        ("normalizer", ...),
    ],
)
def test_null_absent_empty_and_default_are_one(
    tmp_path: Path, place: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = family(tmp_path, 2)
    save(folders, BPE, changed(BPE, place, value))
    # nothing has to be encoded
    monkeypatch.setattr("souping.checkpoints.compatibility.first_difference", None)
    assert preflight(opened(folders)[0]) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": []}),
        ("pre_tokenizer.use_regex", True),
        ("model.ignore_merges", True),
    ],
)
def test_settings_that_encode_alike_are_a_note(tmp_path: Path, place: str, value: object) -> None:
    folders = family(tmp_path, 2)
    save(folders, BPE, changed(BPE, place, value))
    (note,) = preflight(opened(folders)[0])
    assert "m0 and m1 differ in" in note
    assert place.split(".use")[0] in note


REFUSED: dict[str, tuple[str, object, list[str]]] = {
    "normaliser": ("normalizer", {"type": "Lowercase"}, ["normalizer", "None", "Lowercase"]),
    "pre-tokenizer": ("pre_tokenizer", {"type": "Whitespace"}, ["pre_tokenizer", "ByteLevel"]),
    "order of merges": (
        "model.merges",
        [*MERGES[:3], MERGES[4], MERGES[3], *MERGES[5:]],
        ["model.merges[3]", "a b", "b c"],
    ),
    "a merge less": ("model.merges", MERGES[:3] + MERGES[4:], ["model.merges[3]", "a b", "b c"]),
    "the last merge": ("model.merges", MERGES[:-1], ["model.merges[6]", "in g", "None"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_field_values_text_and_the_way_out(tmp_path: Path, case: str) -> None:
    place, value, needles = REFUSED[case]
    folders = family(tmp_path, 2)
    for tables in ((BPE, changed(BPE, place, value)), (changed(BPE, place, value), BPE)):
        save(folders, *tables)
        with pytest.raises(UserError, match=r"merge\.tokenizer_from=m1") as refusal:
            preflight(opened(folders)[0])
        assert all(
            needle in str(refusal.value) for needle in [*needles, "' is encoded differently"]
        )
        (note,) = preflight(opened(folders)[0], tokenizer_from="m1")
        assert "merge.tokenizer_from" in note


def test_scores_of_a_unigram_model_count(tmp_path: Path) -> None:
    pieces = [["<unk>", 0.0], ["a", -1.0], ["b", -1.0], ["ab", -1.5]]
    table = {
        "added_tokens": [],
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False},
    }
    folders = family(tmp_path, 2)
    save(folders, table, changed(table, "model.vocab", [*pieces[:3], ["ab", -9.0]]))
    with pytest.raises(UserError, match=r"model\.vocab\[3\] \(\[-1\.5\] and \[-9\.0\]\)"):
        preflight(opened(folders)[0])


def test_texts_of_the_items_decide_where_random_ones_do_not(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    pattern = {"type": "Replace", "pattern": {"String": "zebra crossing"}, "content": "z"}
    save(folders, BPE, changed(BPE, "normalizer", pattern))
    pool = opened(folders)[0]
    assert len(preflight(pool)) == 1
    assert len(compare_tokenizers(pool, "error", tokenizer_from=None, texts=["no zebra here"])) == 1
    with pytest.raises(UserError, match="zebra crossing"):
        compare_tokenizers(
            pool, "error", tokenizer_from=None, texts=["fine", "at the zebra crossing of the"]
        )


def test_tokenizers_that_cannot_be_loaded_are_refused_if_they_differ(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    save(folders, BPE, changed(BPE, "normalizer", {"type": "Unheard"}))
    with pytest.raises(UserError, match=r"normalizer .*cannot be compared"):
        preflight(opened(folders)[0])


def test_slow_tokenizers_are_their_files(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for folder in folders.values():
        (folder / "tokenizer.model").write_bytes(b"1")
    assert preflight(opened(folders)[0]) == []
    (folders["m1"] / "tokenizer.model").write_bytes(b"2")
    with pytest.raises(UserError, match=r"tokenizer\.model"):
        preflight(opened(folders)[0])
