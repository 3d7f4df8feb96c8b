"""Plans: layout, vocabularies, dtypes, per-pattern weights, NaN; each against the arithmetic written out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_files import expected, family, load, opened, random_tensors, same_bits, save, simple, sparse_70b

from souping.core import UserError
from souping.merge import runs as work
from souping.merge import statistics
from souping.merge.average import Kitchen, prepare
from souping.merge.backends import LocalMerge
from souping.merge.checkpoint import Checkpoint
from souping.merge.cook import cook
from souping.merge.kernels import Float32
from souping.merge.methods import METHODS, Method
from souping.merge.patterns import matcher
from souping.merge.plan import MergePlan, parse_size, plan


def soup_of(folders: dict[str, Path], out: Path, weights: tuple[float, ...], **fields: Any) -> dict[str, torch.Tensor]:
    merge = LocalMerge(**fields)
    recipe = merge.recipe(tuple(folders), weights, *opened(folders))
    return load(merge.write(merge.plan(recipe, folders), out))


@pytest.mark.parametrize("size", ["200", "0.5KB", "5GB"])
def test_any_layout_in_any_size_out(tmp_path: Path, size: str) -> None:
    folders = family(tmp_path, 2)
    save(folders["m1"], random_tensors(1), shards=3)
    (folders["m1"] / "model.safetensors").unlink()
    soup = soup_of(folders, tmp_path / "soup", (0.3, 0.7), max_shard_size=size)
    parts = [random_tensors(0), random_tensors(1)]
    for name in parts[0]:
        assert same_bits(soup[name], expected([p[name] for p in parts], (0.3, 0.7), torch.bfloat16)), name
    index = tmp_path / "soup" / "model.safetensors.index.json"
    assert index.exists() == (size != "5GB")
    if index.exists():
        table = json.loads(index.read_text())
        assert set(table["weight_map"]) == set(soup)
        assert table["metadata"]["total_size"] == sum(t.nbytes for t in soup.values())
        assert {p.name for p in (tmp_path / "soup").glob("*.safetensors")} == set(table["weight_map"].values())
    assert set(Checkpoint.open(tmp_path / "soup").tensors) == set(soup)


def test_same_plan_same_bytes(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders)
    again = MergePlan.from_json(made.to_json())
    assert again == made
    cook(made, tmp_path / "a")
    cook(again, tmp_path / "b")
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', '{"version": 9}', "null"])
def test_texts_that_are_no_plan(text: str) -> None:
    with pytest.raises(UserError, match="not a merge plan"):
        MergePlan.from_json(text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_corrupt_plans_never_escape(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Replace a value somewhere in a saved plan: it cooks, or a UserError comes and nothing is written."""
    root = tmp_path_factory.mktemp("plan")
    folders = family(root / "pool", 2)
    table = json.loads(plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=300).to_json())
    place: Any = table
    while isinstance(place, (dict, list)) and place:
        holder, key = place, data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = holder[key]
        if data.draw(st.integers(0, 5)) == 0:
            break
    odd = st.sampled_from([-1, 0, 3, 2**70, 1.5, "x", "../x", None, True, [], {}, [[]], float("nan"), "BF16", "copy"])
    holder[key] = data.draw(odd)
    refused = None
    try:
        cook(MergePlan.from_json(json.dumps(table)), root / "soup")
    except UserError as error:
        refused = error
    assert (refused is None) == (root / "soup").exists()
    assert sorted(path.name for path in root.iterdir()) == (["pool"] if refused else ["pool", "soup"])


def test_zero_weights_are_not_read(tmp_path: Path) -> None:
    folders = family(tmp_path, 3)
    made = plan(simple(folders, (0.5, 0.0, 0.5)), folders)
    assert [i.name for i in made.ingredients] == ["m0", "m2"]
    assert made.read_bytes == 2 * made.nbytes
    folders["m1"] = tmp_path / "nowhere"
    cook(plan(simple(folders, (0.5, 0.0, 0.5)), folders), tmp_path / "soup")


def test_an_ingredient_that_changed_is_refused(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    made = plan(simple(folders, (0.5, 0.5)), folders)
    with (folders["m0"] / "model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="has changed since the plan was made"):
        cook(made, tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    ("types", "asked", "got"),
    [
        ((torch.bfloat16, torch.bfloat16), None, torch.bfloat16),
        ((torch.float16, torch.float16), None, torch.float16),
        ((torch.float32, torch.float32), None, torch.float32),
        ((torch.bfloat16, torch.float32), None, torch.float32),
        ((torch.bfloat16, torch.float16), None, torch.float32),
        ((torch.float32, torch.float32), "bfloat16", torch.bfloat16),
        ((torch.bfloat16, torch.float16), "float16", torch.float16),
    ],
)
def test_dtypes(tmp_path: Path, types: tuple[torch.dtype, torch.dtype], asked: str | None, got: torch.dtype) -> None:
    folders = {str(i): save(tmp_path / str(i), random_tensors(i, dtype)) for i, dtype in enumerate(types)}
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


def test_the_shapes_of_fusion_bench_215(tmp_path: Path) -> None:
    folders = {}
    for rows in (128320, 128256):
        tensors = {"model.embed_tokens.weight": torch.randn(rows, 2).bfloat16(), "model.norm.weight": torch.ones(2)}
        folders[str(rows)] = save(tmp_path / str(rows), tensors, {"vocab_size": rows, "tie_word_embeddings": True})
    recipe = simple(folders, (0.5, 0.5), vocab="union")
    soup = load(cook(plan(recipe, folders), tmp_path / "soup"))
    assert soup["model.embed_tokens.weight"].shape == (128320, 2)
    long = load(folders["128320"])["model.embed_tokens.weight"]
    assert same_bits(soup["model.embed_tokens.weight"][128256:], long[128256:])
    with pytest.raises(UserError, match=r"merge\.vocab=union"):
        plan(simple(folders, (0.5, 0.5)), folders)


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
        ({"overrides": {"layers.7-2": [0.5, 0.5]}}, "ends before it starts"),
        ({"overrides": {"a": "x"}}, "list of weights"),
        ({"overrides": {"a": [True, False]}}, "must be numbers"),
        ({"overrides": {"a": [0.5, 0.5]}, "method": "slerp"}, "merge.method=linear only"),
        ({"vocab": "unions"}, r"merge\.vocab=unions must be one of .*did you mean union"),
        ({"dtype": "bf16"}, r"merge\.dtype=bf16 must be one of .*did you mean bfloat16"),
        ({"nonfinite": "ignore"}, r"merge\.nonfinite=ignore"),
        ({"resident": "gpu"}, r"merge\.resident=gpu"),
        ({"max_shard_size": "0"}, r"merge\.max_shard_size=0"),
        ({"max_shard_size": "5 bananas"}, r"merge\.max_shard_size"),
        ({"num_processes": 2}, r"merge\.num_processes=2 needs merge=accelerate"),
        ({"method": "task_arithmetic"}, r"set merge\.base=FOLDER"),
        ({"scale": 0.5}, r"merge\.scale=0\.5 needs a method with a base"),
        ({"scale": float("nan"), "method": "task_arithmetic", "base": "x"}, r"merge\.scale=nan"),
        ({"allow_pickle": "yes"}, r"merge\.allow_pickle=yes"),
    ],
)
def test_settings_out_of_range_name_their_key(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LocalMerge(**fields)


def test_overrides_have_to_fit_the_recipe(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    for overrides, message in (
        ({"layers.0": [1.0]}, r"has 1 weights for 2 candidates \(m0, m1\)"),
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_name_file_and_tensor(tmp_path: Path, bad: float, caplog: pytest.LogCaptureFixture) -> None:
    folders = family(tmp_path, 2)
    tensors = random_tensors(1)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = bad
    save(folders["m1"], tensors)
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.up_proj\.weight in .*m1/model\.safetensors"):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5))
    assert not (tmp_path / "soup").exists()
    soup = soup_of(folders, tmp_path / "soup", (0.5, 0.5), nonfinite="warn")
    assert not torch.isfinite(soup["model.layers.1.mlp.up_proj.weight"]).all()
    assert sum("NaN or infinity in tensor" in record.message for record in caplog.records) == 1
    with pytest.raises(UserError, match="NaN or infinity"):
        soup_of(folders, tmp_path / "single", (0.0, 1.0))


def test_overflow_of_a_narrow_dtype_is_found(tmp_path: Path) -> None:
    folders = {str(i): save(tmp_path / str(i), {"w": torch.full((9,), 7e4)}) for i in range(2)}
    with pytest.raises(UserError, match="overflow to infinity in tensor w"):
        soup_of(folders, tmp_path / "soup", (0.5, 0.5), dtype="float16")


@pytest.mark.parametrize("method", ["slerp", "model_stock", "task_arithmetic"])
def test_files_get_what_the_method_gives_on_whole_tensors(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "STEP", 16)
    monkeypatch.setattr(work, "BLOCK", 16)
    folders, based = family(tmp_path, 3), method != "slerp"
    fields = {"base": str(folders["m2"])} if based else {}
    pair = {name: folders[name] for name in ("m0", "m1")}
    soup = soup_of(pair, tmp_path / "soup", (0.35, 0.65), method=method, **fields)
    parts = [random_tensors(i) for i in ((2, 0, 1) if based else (0, 1))]
    weights = (0.0, 0.35, 0.65) if based else (0.35, 0.65)
    for name, tensor in soup.items():
        whole = METHODS[method]([p[name].float().numpy() for p in parts], weights)
        want = torch.from_numpy(whole).bfloat16()
        assert torch.allclose(tensor.float(), want.float(), rtol=2**-7, atol=1e-6), name
        assert (tensor != want).float().mean() < 0.05, name


def test_a_whole_tensor_method_is_never_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def middle(tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        seen.append(len(tensors[0]))
        return np.asarray(np.median(np.stack(tensors), axis=0), np.float32)

    monkeypatch.setattr(work, "BLOCK", 16)
    monkeypatch.setitem(METHODS, "middle", Method(function=middle, whole=True))
    folders = family(tmp_path, 3)
    soup = soup_of(folders, tmp_path / "soup", (0.2, 0.3, 0.5), method="middle")
    assert sorted(seen) == sorted(tensor.numel() for tensor in soup.values())
    parts = [random_tensors(i)["lm_head.weight"] for i in range(3)]
    assert torch.equal(soup["lm_head.weight"], torch.stack(parts).median(dim=0).values)


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


def test_a_single_model_of_a_mixed_pool_can_be_cast(tmp_path: Path) -> None:
    folders = family(tmp_path, 2)
    soup = soup_of(folders, tmp_path / "soup", (0.0, 1.0), dtype="float32")
    own = random_tensors(1)
    assert all(torch.equal(soup[name], own[name].float()) for name in own)


def test_what_a_plan_says(tmp_path: Path) -> None:
    folders = {
        str(i): save(tmp_path / str(i), random_tensors(i, d)) for i, d in enumerate((torch.bfloat16, torch.float32))
    }
    text = plan(simple(folders, (0.5, 0.5)), folders, max_shard_size=300).describe()
    assert "linear soup" in text
    assert "0.5 x 0 + 0.5 x 1" in text
    assert "note: ingredients differ in dtype (0 bfloat16, 1 float32): the widest is written" in text


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


def test_a_pool_of_70b_is_planned_from_headers_alone(tmp_path: Path) -> None:
    """The files are holes of the right size: a plan that read weights would take minutes and give other errors."""
    folders = {name: sparse_70b(tmp_path / name) for name in "abcd"}
    made = plan(simple(folders, (0.1, 0.2, 0.3, 0.4)), folders, max_shard_size="10GB")
    assert made.nbytes == 141_107_412_992
    assert made.read_bytes == 4 * made.nbytes
    assert len(made.tensors) == 723
    assert MergePlan.from_json(made.to_json()) == made


@settings(max_examples=25, deadline=None)
@given(ranks=st.integers(1, 7), block=st.sampled_from([8, 64, 1 << 18]))
def test_shares_of_ranks_cover_the_output_once(
    tmp_path_factory: pytest.TempPathFactory, ranks: int, block: int
) -> None:
    root = tmp_path_factory.mktemp("ranks")
    folders = family(root, 2)
    made = plan(simple(folders, (0.3, 0.7)), folders, max_shard_size=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "BLOCK", block)
        shares = [work.share(work.runs(made), rank, ranks) for rank in range(ranks)]
        assert sum(run.count for share in shares for run in share) == sum(run.count for run in work.runs(made))
        stage = root / "stage"
        stage.mkdir()
        prepare(made, stage)
        with Kitchen(made, stage) as kitchen:
            for rank in reversed(range(ranks)):
                kitchen.cook(rank, ranks)
    whole = load(cook(made, root / "whole"))
    assert all(same_bits(tensor, whole[name]) for name, tensor in load(stage).items())
