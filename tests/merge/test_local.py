"""Settings of a merge: vocabularies, per-pattern weights, and values out of their range."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from souping.core.types import UserError
from souping.merge.alignment import matcher, plan
from souping.merge.local import LocalMerge
from souping.merge.plan import parse_size
from tests.support.checkpoints import expected, family, opened, random_tensors, same_bits, save, simple, soup_of


@pytest.mark.parametrize("rule", ["union", "intersect"])
def test_vocabularies_of_unlike_length(tmp_path: Path, rule: str) -> None:
    sizes, weights = (12, 15, 19), (0.2, 0.3, 0.5)
    folders = {
        f"v{rows}": save(tmp_path / str(rows), random_tensors(rows, rows=rows), {"vocab_size": rows}) for rows in sizes
    }
    soup = soup_of(folders, tmp_path / "soup", weights, vocab=rule)
    parts = [random_tensors(rows, rows=rows) for rows in sizes]
    bands = [(0, 12, (0, 1, 2)), (12, 15, (1, 2)), (15, 19, (2,))][: 3 if rule == "union" else 1]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert soup[name].shape[0] == bands[-1][1]
        for low, high, who in bands:
            scaled = tuple(weights[i] * (1.0 / sum(weights[j] for j in who)) for i in who)
            want = expected([parts[i][name][low:high] for i in who], scaled, torch.bfloat16)
            assert torch.allclose(soup[name][low:high].float(), want.float(), rtol=2**-7, atol=0)
    if rule == "union":
        assert same_bits(soup["lm_head.weight"][15:], parts[2]["lm_head.weight"][15:])
    assert json.loads((tmp_path / "soup" / "config.json").read_text())["vocab_size"] == bands[-1][1]


@pytest.mark.parametrize(("rule", "carry", "ends"), [("union", "long", (2, 14)), ("intersect", "short", (2,))])
def test_a_carrier_has_the_soups_vocabulary(tmp_path: Path, rule: str, carry: str, ends: tuple[int, ...]) -> None:
    rows = {"short": (12, 2), "long": (15, 14)}
    folders = {n: save(tmp_path / n, random_tensors(r, rows=r), {"vocab_size": r}) for n, (r, _) in rows.items()}
    for name, (_, end) in rows.items():
        (folders[name] / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    other = next(name for name in folders if name != carry)
    size = rows[carry][0]
    with pytest.raises(UserError, match=rf"merge\.carry={other} has a tokenizer .* the soup has {size}: carry {carry}"):
        _ = LocalMerge(vocab=rule, carry=other).open(folders).warnings
    pool = LocalMerge(vocab=rule, carry=carry).open(folders)
    recipe = pool.recipe({"short": 0.5, "long": 0.5})
    assert pool.tokenizer_folder(recipe) == folders[carry]
    assert pool.eos_token_ids(recipe) == ends
    written = json.loads((pool.write(recipe, tmp_path / "soup") / "generation_config.json").read_text())
    assert written["eos_token_id"] == (list(ends) if len(ends) > 1 else ends[0])


def test_a_carrier_without_a_tokenizer_is_refused_where_another_has_one(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    assert LocalMerge(carry="m0").open(folders).warnings == []
    (folders["m1"] / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"merge\.carry=m0 has no tokenizer, so the soup would have none: carry m1"):
        _ = LocalMerge(carry="m0").open(folders).warnings
    pool = LocalMerge(carry="m1").open(folders)
    recipe = pool.recipe({"m0": 0.5, "m1": 0.5})
    assert pool.tokenizer_folder(recipe) == folders["m1"]
    assert (pool.write(recipe, tmp_path / "soup") / "tokenizer.json").is_file()


def test_overrides_per_layer_and_per_pattern(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    overrides = {"layers.0-0": [1.0, 0.0], "*.mlp.*": [0.25, 0.75]}
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), overrides=overrides)
    parts = [random_tensors(0), random_tensors(1)]
    for name, tensor in soup.items():
        weights = (1.0, 0.0) if "layers.0." in name else (0.25, 0.75) if ".mlp." in name else (0.5, 0.5)
        assert same_bits(tensor, expected([p[name] for p in parts], weights, torch.bfloat16)), name


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("layers.0-7", "model.layers.7.mlp.w", True),
        ("layers.0-7", "model.layers.8.mlp.w", False),
        ("layers.1", "model.layers.11.w", False),
        ("layers.1", "model.layers.1.w", True),
        ("*.mlp.*", "model.layers.3.mlp.up.weight", True),
        ("*.mlp.*", "mlp.up", False),
        ("lm_head", "lm_head.weight", True),
        ("head", "lm_head.weight", False),
        ("*.layers.2-3.*.weight", "model.layers.3.mlp.up.weight", True),
        ("*.layers.2-3.*.weight", "model.layers.4.mlp.up.weight", False),
        ("a[0]", "a0", False),
    ],
)
def test_patterns(pattern: str, name: str, hit: bool) -> None:
    assert matcher(pattern)(name) is hit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overrides": {"layers.0": [0.5, 0.6]}}, r"merge\.overrides\.layers\.0=.*sums to 1\.1"),
        ({"overrides": {"layers.7-2": [0.5, 0.5]}}, "must be ascending"),
        ({"overrides": {"a": "x"}}, r"\(overrides="),
        ({"overrides": {"a": [True, False]}}, r"\(overrides="),
        ({"overrides": {"a": [0.5, 0.5]}, "method": "slerp"}, "merge.method=linear only"),
        ({"vocab": "unions"}, r"\(vocab=.*did you mean union"),
        ({"dtype": "bf16"}, r"\(dtype=.*did you mean bfloat16"),
        ({"nonfinite": "ignore"}, r"\(nonfinite="),
        ({"max_shard_size": "0"}, r"merge\.max_shard_size=0"),
        ({"max_shard_size": "5 bananas"}, r"merge\.max_shard_size"),
        ({"method": "task_arithmetic"}, r"set merge\.base=FOLDER"),
        ({"scale": 0.5}, r"merge\.scale=0\.5 needs a method with a base"),
        ({"scale": float("nan"), "method": "task_arithmetic", "base": "x"}, r"\(scale=nan"),
        ({"allow_pickle": "yes"}, r"\(allow_pickle="),
    ],
)
def test_settings_out_of_range_name_their_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalMerge(**fields)


def test_overrides_have_to_fit_the_recipe(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for overrides, message in (
        ({"layers.0": [1.0]}, "has 1 weights for 2 candidates"),
        ({"layers.99": [0.5, 0.5]}, "matches no tensor; a tensor's name is"),
    ):
        with pytest.raises(UserError, match=message):
            soup_of(folders, tmp_path / "soup", (0.5, 0.5), overrides=overrides)


def test_overrides_of_a_part_of_the_pool(tmp_path: Path) -> None:
    folders = family(tmp_path, 3)
    merge = LocalMerge(overrides={"layers.0": [0.5, 0.25, 0.25], "layers.1": [0.0, 0.0, 1.0]})
    pair = merge.recipe(("m1", "m0"), (0.5, 0.5), *opened(folders))
    assert pair.settings == {"overrides": [["layers.0", [1 / 3, 2 / 3]]]}
    assert merge.recipe(("m0", "m1"), (1.0, 0.0), *opened(folders)).settings == {}


SIZES = [("5GB", 5 * 10**9), ("1GiB", 2**30), ("200", 200), (7, 7), ("1.5 MB", 1500000)]


@pytest.mark.parametrize(("text", "value"), SIZES)
def test_sizes(text: str | int, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("size", [1.5, "0", "-5", "5 lightyears", True, "9" * 400 + "GB"])
def test_sizes_that_are_none(size: str | int | float) -> None:
    with pytest.raises(UserError, match=r"merge\.max_shard_size="):
        parse_size(size)


@pytest.mark.parametrize("base_rows", [12, 15])
def test_differences_to_a_base_with_another_vocabulary(tmp_path: Path, base_rows: int) -> None:
    """Rows that the base lacks are averaged; rows that only the base has are its own."""
    folders = {f"v{r}": save(tmp_path / str(r), random_tensors(r, rows=r), {"vocab_size": r}) for r in (12, 14)}
    base = save(tmp_path / "base", random_tensors(7, rows=base_rows), {"vocab_size": base_rows})
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), method="task_arithmetic", base=str(base), vocab="union")
    rows, name = max(14, base_rows), "lm_head.weight"
    assert soup[name].shape == (rows, 7)
    long, own = random_tensors(14, rows=14)[name], random_tensors(7, rows=base_rows)[name]
    assert torch.allclose(soup[name][12:14].float(), long[12:].float(), rtol=2**-7)
    assert same_bits(soup[name][14:], own[14:])


def test_recipes_that_do_not_fit_their_folders(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    with pytest.raises(UserError, match="ingredient m1 has no folder"):
        plan(simple(folders, (0.5, 0.5)), {"m0": folders["m0"]})
    with pytest.raises(UserError, match="no ingredient with a weight above zero"):
        plan(simple(folders, (0.0, 0.0)), folders)
    with pytest.raises(UserError, match=r"merge\.carry=m7 is not an ingredient"):
        plan(simple(folders, (0.5, 0.5)), folders, carry="m7")
    with pytest.raises(UserError, match=r"set merge\.base=FOLDER"):
        plan(replace(simple(folders, (0.5, 0.5)), method="task_arithmetic"), folders)
    assert plan(simple(folders, (0.5, 0.5)), folders, carry="m1").carry == 1
