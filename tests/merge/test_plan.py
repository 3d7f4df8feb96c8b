"""Plans and settings of a merge against the arithmetic written out; mergekit's YAML, runs and bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.merge_inputs import sparse_70b
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.views import Float32
from souping.core.types import UserError
from souping.merge import Vocab, mixing
from souping.merge.__main__ import merge_plan
from souping.merge.alignment import matcher
from souping.merge.local import LocalMerge
from souping.merge.mergekit import MergekitMerge
from souping.merge.mergekit_yaml import to_yaml
from souping.merge.methods import METHODS, Method
from souping.merge.stored import load_plan
from souping.merge.writer import fill_shards, make_shards
from tests.conftest import recipe
from tests.support.checkpoints import (
    expected,
    family,
    load,
    plan,
    random_tensors,
    same_bits,
    save,
    simple,
    soup_of,
)


@pytest.mark.parametrize("size", ["200", "0.5KB", "5GB"])
def test_any_layout_in_any_size_out(tmp_path: Path, size: str) -> None:
    folders = family(tmp_path, 2)
    save(folders["m1"], random_tensors(1), shards=3)
    (folders["m1"] / "model.safetensors").unlink()
    soup = soup_of(folders, tmp_path / "soup", (0.3, 0.7), max_shard_size=size)
    parts = [random_tensors(0), random_tensors(1)]
    for name in parts[0]:
        assert same_bits(
            soup[name], expected([p[name] for p in parts], (0.3, 0.7), torch.bfloat16)
        ), name
    index = tmp_path / "soup" / "model.safetensors.index.json"
    assert index.exists() == (size != "5GB")
    if index.exists():
        table = json.loads(index.read_text())
        assert set(table["weight_map"]) == set(soup)
        assert table["metadata"]["total_size"] == sum(t.nbytes for t in soup.values())
        assert {p.name for p in (tmp_path / "soup").glob("*.safetensors")} == set(
            table["weight_map"].values()
        )
    assert set(Checkpoint.open(tmp_path / "soup").tensors) == set(soup)


def test_same_plan_same_bytes(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders)
    again = load_plan(made.save(tmp_path / "plan.json"))
    assert again == made
    LocalMerge().write(made, tmp_path / "a")
    LocalMerge().write(again, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupt_plans_never_escape(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("plan")
    folders = family(root / "pool", 2)
    path = plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=300).save(
        root / "pool" / "plan.json"
    )
    table = json.loads(path.read_text())
    place: Any = table
    while isinstance(place, (dict, list)) and place:
        holder = place
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        place = holder[key]
        if data.draw(st.integers(0, 5)) == 0:
            break
    odd: list[object] = [-1, 0, 3, 2**70, 1.5, "x", "../x", None, True, [], {}, [[]]]
    odd += [float("nan"), "BF16", "copy"]
    holder[key] = data.draw(st.sampled_from(odd))
    path.write_text(json.dumps(table))
    refused = None
    try:
        LocalMerge().write(load_plan(path), root / "soup")
    except (UserError, OSError) as error:
        refused = error
    assert (refused is None) == (root / "soup").exists()
    assert sorted(path.name for path in root.iterdir()) == (
        ["pool"] if refused else ["pool", "soup"]
    )


def test_zero_weights_are_not_read(tmp_path: Path) -> None:
    folders = family(tmp_path, 3)
    made = plan(simple(folders, (0.5, 0.0, 0.5)), folders)
    assert [i.name for i in made.ingredients] == ["m0", "m2"]
    assert made.read_bytes == 2 * made.nbytes
    folders["m1"] = tmp_path / "nowhere"
    LocalMerge().write(plan(simple(folders, (0.5, 0.0, 0.5)), folders), tmp_path / "soup")


def test_plans_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = family(tmp_path / "pool", 2)
    path = plan(simple(folders, (0.5, 0.5)), folders).save(tmp_path / "plan.json")
    table = json.loads(path.read_text())
    (tmp_path / "loop").symlink_to("loop")
    texts = {
        text[:9]: text
        for text in ("\ud800" * 3, "[" * 100_000, "", "{}", "[]", '{"version": 9}', "null")
    }
    changes: dict[str, dict[str, Any]] = {
        "folder": {"folders": {**table["folders"], "m1": "\0"}},
        "loop": {"folders": {**table["folders"], "m1": str(tmp_path / "loop")}},
        "file": {"files": {**table["files"], "m1": {"../../../etc/passwd": 5}}},
        "size": {"files": {**table["files"], "m1": {"model.safetensors": 1 << 61}}},
        "recipe": {"recipe": {**table["recipe"], "weights": ["x", 1]}},
    }
    texts |= {name: json.dumps({**table, **change}) for name, change in changes.items()}
    for name, text in texts.items():
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert merge_plan([str(path), str(tmp_path / "soup")]) == 2, name
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert sorted(each.name for each in tmp_path.iterdir()) == ["loop", "plan.json", "pool"], (
            name
        )


@pytest.mark.parametrize(
    ("types", "asked", "got"),
    [
        ((torch.float16, torch.float16), None, torch.float16),
        ((torch.bfloat16, torch.float32), None, torch.float32),
        ((torch.bfloat16, torch.float16), None, torch.float32),
        ((torch.bfloat16, torch.float16), "float16", torch.float16),
    ],
)
def test_a_soup_has_the_common_dtype_or_the_one_requested(
    tmp_path: Path, types: tuple[torch.dtype, torch.dtype], asked: str | None, got: torch.dtype
) -> None:
    folders = {
        str(i): save(tmp_path / str(i), random_tensors(i, dtype)) for i, dtype in enumerate(types)
    }
    soup = soup_of(folders, tmp_path / "soup", (0.35, 0.65), dtype=asked)
    parts = [random_tensors(i, dtype) for i, dtype in enumerate(types)]
    for name in soup:
        assert same_bits(soup[name], expected([p[name] for p in parts], (0.35, 0.65), got)), name
    config = json.loads((tmp_path / "soup" / "config.json").read_text())
    assert config["torch_dtype"] == str(got).removeprefix("torch.")


def test_a_model_that_mixes_dtypes_keeps_them(tmp_path: Path) -> None:
    folders = {}
    for i in range(2):
        tensors = {**random_tensors(i), "model.norm.weight": torch.randn(33)}
        folders[str(i)] = save(tmp_path / str(i), tensors)
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert soup["model.norm.weight"].dtype == torch.float32
    assert soup["lm_head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_name_file_and_tensor(
    tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    folders = family(tmp_path, 2)
    tensors = random_tensors(1)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = bad
    save(folders["m1"], tensors)
    with pytest.raises(
        UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight in .*m1/model\.safetensors"
    ):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert not (tmp_path / "soup").exists()
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), nonfinite="warn")
    assert not torch.isfinite(soup["model.layers.1.mlp.up_proj.weight"]).all()
    assert sum("NaN or infinity in tensor" in record.message for record in caplog.records) == 1
    with pytest.raises(UserError, match="NaN or infinity"):
        soup_of(folders, tmp_path / "single", (0.0, 1.0))


@pytest.mark.parametrize("method", ["slerp", "model_stock", "task_arithmetic"])
def test_files_get_what_methods_give_on_tensors(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixing, "PRODUCT_ELEMENTS", 16)
    monkeypatch.setattr(mixing, "BLOCK_ELEMENTS", 16)
    folders = family(tmp_path, 3)
    fields: dict[str, str] = {}
    seeds = [0, 1]
    weights = [0.35, 0.65]
    if method != "slerp":
        # The base comes first, with weight 0.
        fields = {"base_model": str(folders["m2"])}
        seeds = [2, *seeds]
        weights = [0.0, *weights]
    pair = {name: folders[name] for name in ("m0", "m1")}
    soup = soup_of(pair, tmp_path / "soup", (0.35, 0.65), method=method, **fields)
    parts = [random_tensors(seed) for seed in seeds]
    for name, tensor in soup.items():
        whole = METHODS[method]([p[name].float().numpy() for p in parts], weights)
        want = torch.from_numpy(whole).bfloat16()
        assert torch.allclose(tensor.float(), want.float(), rtol=2**-7, atol=1e-6), name
        assert (tensor != want).float().mean() < 0.05, name


def test_a_whole_tensor_method_is_never_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def middle(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        seen.append(len(tensors[0]))
        return np.asarray(np.median(np.stack(tensors), axis=0), np.float32)

    monkeypatch.setattr(mixing, "BLOCK_ELEMENTS", 16)
    monkeypatch.setitem(METHODS, "middle", Method(function=middle, whole=True))
    folders = family(tmp_path, 3)
    soup = soup_of(folders, tmp_path / "soup", (0.2, 0.3, 0.5), method="middle")
    assert sorted(seen) == sorted(tensor.numel() for tensor in soup.values())
    parts = [random_tensors(i)["lm_head.weight"] for i in range(3)]
    assert torch.equal(soup["lm_head.weight"], torch.stack(parts).median(dim=0).values)


def test_a_pool_of_70b_is_planned_from_headers_alone(tmp_path: Path) -> None:
    """The files are holes of the right size: a plan that read weights would take minutes and give other errors."""
    folders = {name: sparse_70b(tmp_path / name) for name in "abcd"}
    made = plan(simple(folders, (0.1, 0.2, 0.3, 0.4)), folders, max_shard_size="10GB")
    assert made.nbytes == 141_107_412_992
    assert made.read_bytes == 4 * made.nbytes
    assert len(made.tensors) == 723
    assert load_plan(made.save(tmp_path / "plan.json")) == made


@settings(max_examples=25, deadline=None)
@given(ranks=st.integers(1, 7), block=st.sampled_from([8, 64, 1 << 18]))
def test_shares_of_ranks_cover_the_output(
    ranks: int, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("ranks")
    folders = family(root, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders, max_shard_size=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixing, "BLOCK_ELEMENTS", block)
        shares = [mixing.share_of_rank(mixing.chunks(made), rank, ranks) for rank in range(ranks)]
        everything = sum(chunk.count for chunk in mixing.chunks(made))
        assert sum(chunk.count for share in shares for chunk in share) == everything
        stage = root / "stage"
        stage.mkdir()
        make_shards(made, stage)
        for share in reversed(shares):
            fill_shards(made, stage, work=share)
    whole = load(LocalMerge().write(made, root / "whole"))
    assert all(same_bits(tensor, whole[name]) for name, tensor in load(stage).items())


@pytest.mark.parametrize("rule", ["union", "intersect"])
def test_vocabularies_of_unlike_length(tmp_path: Path, rule: str) -> None:
    sizes = (12, 15, 19)
    weights = (0.2, 0.3, 0.5)
    folders = {
        f"v{rows}": save(
            tmp_path / str(rows), random_tensors(rows, rows=rows), {"vocab_size": rows}
        )
        for rows in sizes
    }
    soup = soup_of(folders, tmp_path / "soup", weights, vocab=rule)
    parts = [random_tensors(rows, rows=rows) for rows in sizes]
    bands = [(0, 12, (0, 1, 2)), (12, 15, (1, 2)), (15, 19, (2,))][: 3 if rule == "union" else 1]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert soup[name].shape[0] == bands[-1][1]
        for low, high, who in bands:
            factor = 1.0 / sum(weights[i] for i in who)
            scaled = tuple(weights[i] * factor for i in who)
            want = expected([parts[i][name][low:high] for i in who], scaled, torch.bfloat16)
            assert torch.allclose(soup[name][low:high].float(), want.float(), rtol=2**-7, atol=0)
    if rule == "union":
        assert same_bits(soup["lm_head.weight"][15:], parts[2]["lm_head.weight"][15:])
    assert json.loads((tmp_path / "soup" / "config.json").read_text())["vocab_size"] == bands[-1][1]


@pytest.mark.parametrize(
    ("rule", "tokenizer_from", "ends"), [("union", "long", (2, 14)), ("intersect", "short", (2,))]
)
def test_a_carrier_has_the_soups_vocabulary(
    tmp_path: Path, rule: Vocab, tokenizer_from: str, ends: tuple[int, ...]
) -> None:
    rows = {"short": (12, 2), "long": (15, 14)}
    folders = {
        n: save(tmp_path / n, random_tensors(r, rows=r), {"vocab_size": r})
        for n, (r, _) in rows.items()
    }
    for name, (_, end) in rows.items():
        (folders[name] / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    other = next(name for name in folders if name != tokenizer_from)
    size = rows[tokenizer_from][0]
    with pytest.raises(
        UserError,
        match=rf"merge\.tokenizer_from={other} has a tokenizer .* the soup has {size}: choose {tokenizer_from}",
    ):
        _ = LocalMerge(vocab=rule, tokenizer_from=other).open(folders).warnings
    pool = LocalMerge(vocab=rule, tokenizer_from=tokenizer_from).open(folders)
    recipe = pool.recipe({"short": 0.5, "long": 0.5})
    assert pool.tokenizer_folder(recipe) == folders[tokenizer_from]
    assert pool.eos_token_ids(recipe) == ends
    written = json.loads(
        (pool.write(recipe, tmp_path / "soup") / "generation_config.json").read_text()
    )
    assert written["eos_token_id"] == (list(ends) if len(ends) > 1 else ends[0])


def test_overrides_per_layer_and_per_pattern(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    overrides = {"layers.0-0": [1.0, 0.0], "*.mlp.*": [0.25, 0.75]}
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), tensor_weights=overrides)
    parts = [random_tensors(0), random_tensors(1)]
    for name, tensor in soup.items():
        weights = (0.5, 0.5)
        # The first pattern that fits counts.
        if "layers.0." in name:
            weights = (1.0, 0.0)
        elif ".mlp." in name:
            weights = (0.25, 0.75)
        assert same_bits(tensor, expected([p[name] for p in parts], weights, torch.bfloat16)), name


@pytest.mark.parametrize(
    ("pattern", "name", "hit"),
    [
        ("layers.0-7", "model.layers.7.mlp.w", True),
        ("layers.0-7", "model.layers.8.mlp.w", False),
        ("layers.1", "model.layers.11.w", False),
        ("head", "lm_head.weight", False),
        ("*.layers.2-3.*.weight", "model.layers.3.mlp.up.weight", True),
        ("*.layers.2-3.*.weight", "model.layers.4.mlp.up.weight", False),
        ("a[0]", "a0", False), ("layers.?", "layers.7", True), ("layers.?", "layers.17", False),
        ("layers.?", "layers.", False), ("layers.2-3", "layers.2", True), ("layers.2-3", "layers.1", False),
    ],
)  # fmt: skip
def test_a_pattern_matches_whole_words_and_ranges_of_numbers(
    pattern: str, name: str, hit: bool
) -> None:
    assert matcher(pattern)(name) is hit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tensor_weights": {"layers.0": [0.5, 0.6]}},
            r"merge\.tensor_weights\.layers\.0=.*sums to 1\.1",
        ),
        ({"tensor_weights": {"layers.7-2": [0.5, 0.5]}}, "must be ascending"),
        ({"tensor_weights": {"a": [0.5, 0.5]}, "method": "slerp"}, "merge.method=linear only"),
        ({"dtype": "bf16"}, r"\(dtype=.*did you mean bfloat16"),
        ({"max_shard_size": "5 bananas"}, r"merge\.max_shard_size"),
        ({"method": "task_arithmetic"}, r"set merge\.base_model=FOLDER"),
        ({"scale": 0.5}, r"merge\.scale=0\.5 needs a method with a base"),
    ],
)
def test_settings_out_of_range_name_their_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalMerge(**fields)


def test_overrides_of_a_part_of_the_pool(tmp_path: Path) -> None:
    folders = family(tmp_path, 3)
    with pytest.raises(UserError, match="has 1 weights for 3 candidates"):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5, 0.0), tensor_weights={"layers.0": [1.0]})
    pool = LocalMerge(
        tensor_weights={"layers.0": [0.5, 0.25, 0.25], "layers.1": [0.0, 0.0, 1.0]}
    ).open(folders)
    assert pool.recipe({"m0": 0.5, "m1": 0.5}).settings == {
        "overrides": [["layers.0", [2 / 3, 1 / 3]]]
    }
    assert pool.recipe({"m0": 1.0}).settings == {}


@pytest.mark.parametrize("base_rows", [12, 15])
def test_differences_to_a_base_with_another_vocabulary(tmp_path: Path, base_rows: int) -> None:
    folders = {
        f"v{r}": save(tmp_path / str(r), random_tensors(r, rows=r), {"vocab_size": r})
        for r in (12, 14)
    }
    base = save(tmp_path / "base", random_tensors(7, rows=base_rows), {"vocab_size": base_rows})
    soup = soup_of(
        folders,
        tmp_path / "soup",
        (0.5, 0.5),
        method="task_arithmetic",
        base_model=str(base),
        vocab="union",
    )
    rows = max(14, base_rows)
    name = "lm_head.weight"
    assert soup[name].shape == (rows, 7)
    long = random_tensors(14, rows=14)[name]
    own = random_tensors(7, rows=base_rows)[name]
    assert torch.allclose(soup[name][12:14].float(), long[12:].float(), rtol=2**-7)
    assert same_bits(soup[name][14:], own[14:])


COMMAND = os.environ.get("SOUPING_MERGEKIT") or shutil.which(
    "mergekit-yaml", path=Path(sys.executable).parent
)
missing = pytest.mark.skipif(
    COMMAND is None, reason="mergekit is not installed (or set SOUPING_MERGEKIT)"
)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=40,
        intermediate_size=55,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    root = tmp_path_factory.mktemp("llamas")
    for seed in range(20):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).bfloat16().save_pretrained(root / f"m{seed}")
    return {f"m{seed}": root / f"m{seed}" for seed in range(20)}


def run_mergekit(text: str, folder: Path) -> dict[str, torch.Tensor]:
    assert COMMAND is not None
    folder.mkdir()
    (folder / "config.yml").write_text(text)
    command = [
        COMMAND,
        str(folder / "config.yml"),
        str(folder / "out"),
        "--no-copy-tokenizer",
        "--quiet",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return load(folder / "out")


@missing
@pytest.mark.slow
@pytest.mark.parametrize(
    "weights",
    [(1 / 3,) * 3, (0.15, 0.85), (0.1, 0.2, 0.3, 0.15, 0.25), (0.05,) * 20, (1.3, -0.3)],
    ids=str,
)
def test_same_bytes_as_mergekit(
    weights: tuple[float, ...], llamas: dict[str, Path], tmp_path: Path
) -> None:
    folders = dict(list(llamas.items())[: len(weights)])
    pool = LocalMerge().open(folders)
    recipe = pool.recipe(dict(zip(folders, weights, strict=True)))
    text = to_yaml(recipe, folders)
    assert yaml.safe_load(text)["parameters"] == {"normalize": False}
    theirs = run_mergekit(text, tmp_path / "theirs")
    ours = load(pool.write(recipe, tmp_path / "ours"))
    assert set(ours) == set(theirs)
    assert all(same_bits(ours[name], theirs[name]) for name in ours)


@missing
@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic", "slerp"])
def test_other_methods_agree_with_mergekit(
    method: str, llamas: dict[str, Path], tmp_path: Path
) -> None:
    folders = dict(list(llamas.items())[:2])
    settings: dict[str, Any] = (
        {"base_model": str(llamas["m5"]), "scale": 0.8} if method == "task_arithmetic" else {}
    )
    pool = LocalMerge(method=method, **settings).open(folders)
    recipe = pool.recipe({"m0": 0.3, "m1": 0.7})
    theirs = run_mergekit(
        to_yaml(recipe, folders, base=settings.get("base_model")), tmp_path / "theirs"
    )
    ours = load(pool.write(recipe, tmp_path / "ours"))
    for name, tensor in ours.items():
        assert torch.allclose(tensor.float(), theirs[name].float(), rtol=2**-7, atol=1e-6), name


def test_the_backend_checks_what_the_command_wrote(tmp_path: Path) -> None:
    """Programs that stand in for another Python are called with -m MODULE CONFIG OUT."""
    folders = family(tmp_path / "pool", 2)
    program = tmp_path / "python"
    pool = MergekitMerge(method="linear", python=str(program)).open(folders)
    recipe = pool.recipe({"m0": 0.4, "m1": 0.6})
    assert "linear" in pool.plan(recipe).describe()
    program.write_text(f'#!/bin/sh\ncp {folders["m1"]}/* "$4"\ncp "$3" "$4/mergekit_config.yml"\n')
    program.chmod(0o755)
    out = pool.write(recipe, tmp_path / "soup")
    assert set(Checkpoint.open(out).tensors) == set(load(folders["m1"]))
    assert not (out / "mergekit_config.yml").exists()
    program.write_text("#!/bin/sh\necho half done\n")
    with pytest.raises(UserError, match=r"no config\.json"):
        pool.write(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_single_ingredient_needs_no_mergekit(tmp_path: Path) -> None:
    folders = family(tmp_path / "pool", 2)
    pool = MergekitMerge(method="linear", python="no-such-program").open(folders)
    soup = load(pool.write(pool.recipe({"m1": 1.0}), tmp_path / "soup"))
    own = load(folders["m1"])
    assert all(same_bits(soup[name], own[name]) for name in own)
    with pytest.raises(UserError, match=r"merge\.python=no-such-program is not a program"):
        pool.write(pool.recipe({"m0": 0.5, "m1": 0.5}), tmp_path / "other")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "model_stock"}, "no export"),
        ({"settings": {"overrides": [["a", [1, 0]]]}}, r"merge\.tensor_weights"),
        ({"method": "task_arithmetic"}, r"merge\.base_model"),
    ],
)
def test_a_method_that_mergekit_does_not_have_is_not_exported(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        to_yaml(replace(recipe(0.5, 0.5), **fields), {"a": "a", "b": "b"})
