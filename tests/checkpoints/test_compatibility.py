"""Preflight: what does not fit is named before any work; what is merely odd is a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.checkpoints.compatibility import chat_template, preflight
from souping.core.types import UserError
from souping.merge.local import LocalMerge
from tests.support.checkpoints import aligned, family, load, opened, random_tensors, save

VOCAB = {f"w{i}": i for i in range(12)}


def check(folders: dict[str, Path], vocab: str = "error") -> list[str]:
    return preflight(opened(folders)[0], vocab)


def tokenizer(folder: Path, vocab: dict[str, int] | None = None, **parts: Any) -> None:
    table = {"model": {"type": "WordLevel", "vocab": vocab or VOCAB, "unk_token": "w0"}, "added_tokens": [], **parts}
    (folder / "tokenizer.json").write_text(json.dumps(table))


def test_missing_and_extra_tensors_by_name_then_a_count(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    tensors = random_tensors(1)
    del tensors["model.norm.weight"]
    save(folders["m1"], {**tensors, **{f"extra.{i:02}": torch.zeros(1) for i in range(13)}})
    with pytest.raises(UserError) as error:
        check(folders)
    message = str(error.value)
    assert "m1 lacks model.norm.weight" in message
    assert "extra.09 and 3 more" in message
    assert "extra.10" not in message


OTHER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "shape": ({"model.norm.weight": torch.zeros(34)}, {}, r"model\.norm\.weight is \[33\] in m0 and \[34\] in m1"),
    "model_type": ({}, {"model_type": "gemma"}, "m0 and m1 differ in model_type: llama and gemma"),
    "quantised": ({}, {"quantization_config": {"bits": 4}}, "m1 is quantised"),
    "heads": ({}, {"num_attention_heads": 8}, "num_attention_heads: 4 and 8"),
}


@pytest.mark.parametrize("case", OTHER)
def test_what_does_not_fit_is_named(tmp_path: Path, case: str) -> None:
    tensors, config, message = OTHER[case]
    folders = family(tmp_path, 2)
    save(folders["m0"], random_tensors(0), {"num_attention_heads": 4})
    save(folders["m1"], {**random_tensors(1), **tensors}, config)
    with pytest.raises(UserError, match=message):
        check(folders)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_other_floats_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    folders = family(tmp_path, 2)
    for seed, path in enumerate(folders.values()):
        save(path, {**random_tensors(seed), "odd.weight": torch.ones(3).to(dtype)})
    with pytest.raises(UserError, match=r"odd\.weight as F(64|8_E4M3)"):
        check(folders)


def test_tensors_that_are_not_floats_are_copied_when_equal_else_refused(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for seed, path in enumerate(folders.values()):
        save(path, {**random_tensors(seed), "ids": torch.arange(5), "mask": torch.tensor([True, False])})
    assert check(folders) == []
    merge = LocalMerge()
    recipe = merge.recipe(("m0", "m1"), (0.5, 0.5), *opened(folders))
    soup = load(merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup"))
    assert torch.equal(soup["ids"], torch.arange(5))
    assert torch.equal(soup["mask"], torch.tensor([True, False]))
    save(folders["m1"], {**random_tensors(1), "ids": torch.arange(5) + 1, "mask": torch.tensor([True, False])})
    with pytest.raises(UserError, match=r"I64 values.*differ.*tensor ids.*m1"):
        merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_rope_and_config_drift_are_warnings(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    save(folders["m1"], random_tensors(1), {"rope_theta": 5e5, "max_position_embeddings": 9, "_name_or_path": "x"})
    warnings = check(folders)
    assert any("RoPE" in text and "rope_theta" in text for text in warnings)
    assert any("max_position_embeddings" in text for text in warnings)
    assert len(warnings) == 2


def tied(folder: Path, head: str) -> None:
    tensors = random_tensors(3)
    del tensors["lm_head.weight"]
    heads = {"same": tensors["model.embed_tokens.weight"].clone(), "other": torch.zeros(12, 7, dtype=torch.bfloat16)}
    extra = {"lm_head.weight": heads[head]} if head in heads else {}
    save(folder, {**tensors, **extra}, {"tie_word_embeddings": True})


def test_tied_heads_stored_on_one_side_only(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    tied(folders["m0"], "none")
    tied(folders["m1"], "same")
    assert any("lm_head.weight" in text and "left out" in text for text in check(folders))
    merge = LocalMerge()
    recipe = merge.recipe(("m0", "m1"), (0.5, 0.5), *opened(folders))
    soup = load(merge.write(merge.plan(recipe, aligned(merge, folders)), tmp_path / "soup"))
    assert "lm_head.weight" not in soup
    tied(folders["m1"], "other")
    with pytest.raises(UserError, match="tied embeddings on one side only"):
        check(folders)
    save(folders["m1"], random_tensors(1), {"tie_word_embeddings": False})
    with pytest.raises(UserError, match=r"tied embeddings on one side only.*lm_head\.weight"):
        check(folders)


SWAPPED = {**VOCAB, "w3": 4, "w4": 3}
TOKENIZERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "swapped": (lambda folder: tokenizer(folder, SWAPPED), r"other ids for w3, w4"),
    "renamed": (lambda folder: tokenizer(folder, {**{k: v for k, v in VOCAB.items() if v != 5}, "x": 5}), "other ids"),
    "longer": (lambda folder: tokenizer(folder, {**VOCAB, "x": 12}), r"only one has x.*merge\.vocab=union"),
    "broken": (lambda folder: (folder / "tokenizer.json").write_text("{"), "not valid JSON"),  # type: ignore[dict-item]
    "strange": (lambda folder: tokenizer(folder, added_tokens=[{"id": "x"}]), "cannot be read"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_that_give_other_ids_are_refused(tmp_path: Path, case: str) -> None:
    folders = family(tmp_path, 2)
    tokenizer(folders["m0"])
    spoil, message = TOKENIZERS[case]
    spoil(folders["m1"])
    with pytest.raises(UserError, match=message):
        check(folders)


def test_tokenizers_are_compared_by_content_not_by_formatting(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for path in folders.values():
        tokenizer(path)
    table = json.loads((folders["m1"] / "tokenizer.json").read_text())
    (folders["m1"] / "tokenizer.json").write_text(json.dumps(table, indent=4, sort_keys=True))
    (folders["m0"] / "tokenizer_config.json").write_text(json.dumps({"chat_template": "hello"}))
    (folders["m1"] / "chat_template.jinja").write_text("hello\n")
    assert check(folders) == []
    (folders["m1"] / "chat_template.jinja").write_text("bye")
    assert any("chat template of m1 differs" in text for text in check(folders))
    (folders["m1"] / "chat_template.jinja").unlink()
    assert any("m0 has a chat template, m1 has none" in text for text in check(folders))
    (folders["m1"] / "tokenizer.json").unlink()
    assert any("m0 has a tokenizer, m1 has none" in text for text in check(folders))


@pytest.mark.parametrize("rule", ["union", "intersect"])
def test_padded_embeddings_pass_with_a_vocab_rule(tmp_path: Path, rule: str) -> None:
    folders = family(tmp_path, 1)
    folders["long"] = save(tmp_path / "long", random_tensors(1, rows=15), {"vocab_size": 15})
    with pytest.raises(UserError, match=r"Vocabularies differ: set merge\.vocab=union"):
        check(folders)
    rows = 15 if rule == "union" else 12
    assert any(f"gives {rows} rows" in text for text in check(folders, rule))


@pytest.mark.parametrize(
    ("file", "text", "there"),
    [
        ("chat_template.jinja", "{{ messages }}", True),
        ("chat_template.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": "{{ messages }}"}', True),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default", "template": "x"}]}', True),
        ("tokenizer_config.json", '{"chat_template": null}', False),
        ("tokenizer.json", "{}", False),
    ],
)
def test_a_folder_has_a_chat_template_or_not(tmp_path: Path, file: str, text: str, there: bool) -> None:
    (tmp_path / file).write_text(text)
    assert bool(chat_template(tmp_path)) is there
    (tmp_path / "tokenizer_config.json").write_text("{")
    if file != "chat_template.jinja":
        with pytest.raises(UserError, match=r"tokenizer_config\.json: not valid JSON"):
            chat_template(tmp_path)
