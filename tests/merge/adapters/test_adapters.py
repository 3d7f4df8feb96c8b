"""Adapters in adapter space without PEFT: the arithmetic, loading and writing, refusals, runs and rebuilds."""

from __future__ import annotations

import json
import shlex
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from souping.merge.sites import named_tensor
from tests.conftest import Cli, pool_of
from tests.support.adapters import PREFIX, change_config, deltas, save_adapter, weighted
from tests.support.checkpoints import save
from tests.support.family import save_tokenizer
from tests.support.hub import files_of

Q0 = "model.layers.0.self_attn.q_proj"
Q1 = "model.layers.1.self_attn.q_proj"
UP1 = "model.layers.1.mlp.up_proj"
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def base(family: Path) -> Path:
    return family / "base"


def two(folder: Path, base: Path, **config: Any) -> dict[str, Path]:
    a = save_adapter(folder / "a", base, {Q0: 4, Q1: 2}, seed=1, **config)
    return {
        "a": a,
        "b": save_adapter(folder / "b", base, {Q0: 3, UP1: 3}, 2, torch.bfloat16, **config),
    }


def opened(folders: dict[str, Path], **merge: Any) -> AdapterPool:
    pool = LocalMerge(**merge).open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def write(pool: AdapterPool, weights: tuple[float, ...], out: Path) -> Path:
    return pool.write(pool.recipe(dict(zip(pool.names, weights, strict=True))), out)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@quick
@given(data=st.data())
def test_the_soup_is_the_weighted_sum_of_products(data: st.DataObject, base: Path) -> None:
    ranks = st.integers(1, 6)
    alphas = st.floats(0.5, 64)
    weights = data.draw(st.tuples(*[st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)] * 2))
    with tempfile.TemporaryDirectory() as name:
        folders = {}
        for seed, (who, module) in enumerate({"a": Q1, "b": UP1}.items()):
            shape = {Q0: data.draw(ranks), module: data.draw(ranks)}
            alpha = data.draw(alphas)
            rslora = data.draw(st.booleans())
            folders[who] = save_adapter(
                Path(name) / who, base, shape, seed, lora_alpha=alpha, use_rslora=rslora
            )
        soup = write(opened(folders), weights, Path(name) / "soup")
        config = json.loads((soup / "adapter_config.json").read_text())
        found = deltas(soup, dict.fromkeys((Q0, Q1, UP1), config["lora_alpha"]))
        want = weighted(
            {folders[who]: weight for who, weight in zip(folders, weights, strict=True)}
        )
    assert set(found) == set(want)
    for module, delta in want.items():
        largest = max(float(delta.abs().max()), 1e-3)
        assert (found[module] - delta).abs().max() <= largest * 2**-20


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_of_the_factors(base: Path, tmp_path: Path, dtype: str) -> None:
    pool = opened(two(tmp_path, base), dtype=dtype)
    soup = write(pool, (0.3, 0.7), tmp_path / "soup")
    tensors = load_file(soup / "adapter_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}
    module = load(base)
    pool.live(module).load_soup(pool.recipe({"a": 0.3, "b": 0.7}))
    a, b = (tensors[f"{PREFIX}{Q0}.lora_{side}.weight"].double() for side in "AB")
    exact = load_file(base / "model.safetensors")[f"{Q0}.weight"].double() + b @ a
    assert torch.equal(module.get_submodule(Q0).weight, exact.float())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_pouring_a_merged_soup_equals_writing_it(
    base: Path, tmp_path: Path, dtype: str | None
) -> None:
    pool = opened(two(tmp_path, base), adapters="merge", dtype=dtype, max_shard_size="9KB")
    module = load(base)
    live = pool.live(module)
    for number, weights in enumerate([(0.3, 0.7), (1.0, 0.0), (0.0, 1.0)]):
        written = load(write(pool, weights, tmp_path / f"full-{number}")).state_dict()
        live.load_soup(pool.recipe(dict(zip("ab", weights, strict=True))))
        assert all(
            torch.equal(tensor, written[name]) for name, tensor in module.state_dict().items()
        )


def test_fingerprints_are_of_content(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    before = opened(folders).fingerprints
    change_config(
        folders["a"],
        target_modules=["v_proj", "q_proj"],
        lora_dropout=0.5,
        base_model_name_or_path="./x",
    )
    change_config(folders["b"], base_model_name_or_path="./x")
    assert opened(folders, base_model=str(base)).fingerprints == before
    change_config(folders["a"], lora_alpha=1)
    after = opened(folders, base_model=str(base)).fingerprints
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


@pytest.mark.parametrize(
    ("changes", "needle"),
    [
        ({"peft_type": "IA3"}, "peft_type=IA3"),
        ({"shiny_new_thing": {"k": 1}}, "shiny_new_thing"),
        ({"lora_alpha": "8"}, "lora_alpha=8, not a finite number"),
        ({"alpha_pattern": {"layers.*": 1}}, "regular expression"),
        ({"zz": json.loads("[" * 300 + "]" * 300)}, "adapter_config.json"),
        ({"base_model_name_or_path": "org/other"}, "different base models"),
        ({"revision": "dev"}, "different revisions"),
    ],
    ids=str,
)
def test_an_adapter_with_an_unknown_setting_is_refused(
    base: Path, tmp_path: Path, changes: dict[str, Any], needle: str
) -> None:
    folders = two(tmp_path, base)
    change_config(folders["a"], **changes)
    with pytest.raises(UserError, match=needle) as caught:
        opened(folders)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("key", "shape", "needle"),
    [
        (f"{PREFIX}{Q0}.lora_magnitude_vector", (24,), "lora_magnitude_vector"),
        (f"{PREFIX}lm_head.modules_to_save.weight", (100, 24), "modules_to_save"),
        (f"{PREFIX}{Q1}.lora_A.weight", (2, 8), "do not fit the base"),
        (f"{PREFIX}{UP1}.lora_A.weight", (4, 24), "it needs A and B"),
        (f"{PREFIX}model.embed_tokens.weight", (100, 24), "whole weight of model.embed_tokens"),
    ],
)
def test_an_adapter_with_an_unknown_tensor_is_refused(
    base: Path, tmp_path: Path, key: str, shape: tuple[int, ...], needle: str
) -> None:
    folders = two(tmp_path, base)
    path = folders["a"] / "adapter_model.safetensors"
    save_file({**load_file(path), key: torch.ones(shape)}, path)
    with pytest.raises(UserError, match=needle):
        opened(folders)


def test_refusal_of_pickles_unless_asked_for(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    safe = folders["b"] / "adapter_model.safetensors"
    torch.save(load_file(safe), folders["b"] / "adapter_model.bin")
    before = write(opened(folders), (0.3, 0.7), tmp_path / "safe")
    safe.unlink()
    with pytest.raises(
        UserError, match=r"adapter_model\.bin holds pickled weights.*merge\.allow_pickle=true"
    ):
        opened(folders)
    after = write(opened(folders, allow_pickle=True), (0.3, 0.7), tmp_path / "pickled")
    assert (before / safe.name).read_bytes() == (after / safe.name).read_bytes()


def test_refusal_of_a_base_that_is_not_here(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base, base_model_name_or_path="org/model-8b")
    with pytest.raises(
        UserError, match=r"org/model-8b is not a folder here: set merge\.base_model=FOLDER"
    ):
        opened(folders)
    with pytest.raises(UserError, match=r"merge\.base_model=nowhere is not a folder"):
        opened(folders, base_model="nowhere")
    assert opened(folders, base_model=str(base)).architecture_folder == base


def test_one_base_may_have_two_paths_and_two_bases_are_refused(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    (tmp_path / "link").symlink_to(base)
    change_config(folders["b"], base_model_name_or_path=str(tmp_path / "link"))
    assert opened(folders).names == ("a", "b")
    shutil.copytree(base, tmp_path / "other")
    change_config(folders["b"], base_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(UserError, match="over different base models"):
        opened(folders)
    change_config(folders["b"], base_model_name_or_path="org/model-8b")
    with pytest.raises(UserError, match="over different base models"):
        opened(folders, base_model=str(base))


def test_revisions_of_a_base_are_one_or_refused(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    change_config(folders["a"], revision="main")
    opened(folders)
    change_config(folders["a"], revision="v2")
    with pytest.raises(UserError, match="different revisions"):
        opened(folders)


def test_a_weight_has_one_name_in_all_adapters(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    path = folders["b"] / "adapter_model.safetensors"
    tensors = load_file(path)
    inner = {key.replace(f"{PREFIX}model.", PREFIX): tensor for key, tensor in tensors.items()}
    save_file(inner, path, metadata={"format": "pt"})
    config = json.loads((folders["b"] / "adapter_config.json").read_text())
    pattern = {key.removeprefix("model."): rank for key, rank in config["rank_pattern"].items()}
    change_config(folders["b"], rank_pattern=pattern)
    with pytest.raises(UserError, match="by two names"):
        opened(folders)


@pytest.mark.parametrize(
    ("a_factor", "b_factor", "cosine", "distance"),
    [(0.5, 2.0, 1.0, 0.0), (-1.0, 1.0, -1.0, 2.0), (2.0, 1.0, 1.0, 0.5)],
)
def test_the_similarity_of_adapters_is_that_of_their_updates(
    base: Path, tmp_path: Path, a_factor: float, b_factor: float, cosine: float, distance: float
) -> None:
    """An adapter u and v = a b u: cosine(u, v) is the sign of a b, and |u - v| / |v| its distance."""
    folders = {"u": save_adapter(tmp_path / "u", base, {Q0: 4, Q1: 4}, seed=1)}
    folders["v"] = Path(shutil.copytree(folders["u"], tmp_path / "v"))
    path = folders["v"] / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, tensor in tensors.items():
        tensors[key] = tensor * (a_factor if "lora_A" in key else b_factor)
    save_file(tensors, path, metadata={"format": "pt"})
    similarity = opened(folders).similarity({"u": 0.5, "v": 0.5})
    assert similarity is not None
    u = similarity.models["u"]
    assert u.task_cosine == pytest.approx(cosine, abs=1e-5)
    assert u.task_distance == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("adapters", ["keep", "merge"])
def test_refusal_of_values_that_are_not_finite(base: Path, tmp_path: Path, adapters: str) -> None:
    folders = two(tmp_path, base)
    path = folders["a"] / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[f"{PREFIX}{Q1}.lora_B.weight"][3, 1] = float("nan")
    save_file(tensors, path)
    pool = opened(folders, adapters=adapters)
    with pytest.raises(
        UserError, match=r"NaN or infinity in tensor .*q_proj\.lora_B\.weight in .*a/adapter_model"
    ):
        write(pool, (0.3, 0.7), tmp_path / "soup")
    assert not [p for p in tmp_path.iterdir() if "soup" in p.name]
    with pytest.raises(UserError, match="NaN or infinity"):
        pool.live(load(base)).load_soup(pool.recipe({"a": 0.3, "b": 0.7}))
    write(opened(folders, adapters=adapters, nonfinite="warn"), (0.3, 0.7), tmp_path / "soup")


@quick
@given(data=st.data())
def test_corrupted_adapters_end_in_one_clear_error(
    data: st.DataObject, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pool"
    if not folder.exists():
        two(folder, base)
    name = data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    path = folder / "a" / name
    good = path.read_bytes()
    length = struct.unpack("<Q", good[:8])[0] + 8 if name.endswith("safetensors") else len(good)
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(bad[: data.draw(st.sampled_from([len(bad), len(bad) - 3, length - 5]))]))
    out = tmp_path / "soup"
    try:
        write(opened({n: folder / n for n in "ab"}), (0.3, 0.7), out)
        shutil.rmtree(out)
    except UserError:
        assert not out.exists()
    finally:
        path.write_bytes(good)


MODULES = {
    "ant": {f"model.layers.{i}.self_attn.{name}_proj": 4 for i in (0, 1) for name in "qv"},
    "bee": {f"model.layers.{i}.mlp.{name}_proj": 2 for i in (0, 1) for name in ("up", "down")},
    "cat": {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.mlp.up_proj": 5},
}


@pytest.fixture(scope="module")
def adapters(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three adapters over the family's base; the last has a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, modules) in enumerate(MODULES.items()):
        save_adapter(
            folder / name,
            family / "base",
            modules,
            seed,
            base_model_name_or_path="org/base",
            lora_alpha=4,
        )
    save_tokenizer(folder / "cat")
    return folder


def pool(family: Path, adapters: Path) -> list[str]:
    return [
        *pool_of(adapters, *MODULES),
        f"merge.base_model={family / 'base'}",
        f"benchmark.path={family / 'items.jsonl'}",
    ]


@pytest.mark.parametrize("mode", ["keep", pytest.param("merge", marks=pytest.mark.slow)])
def test_a_run_on_adapters(
    family: Path, adapters: Path, souping: Cli, tmp_path: Path, mode: str
) -> None:
    call = [*pool(family, adapters), "selector=topk", "selector.k=2", f"merge.adapters={mode}"]
    souping(*call, "hydra.run.dir=outputs/fam/one").ok()
    one = tmp_path / "outputs/fam/one"
    report = json.loads((one / "report.json").read_text())
    recipe = json.loads((one / "soup/recipe.json").read_text())
    assert recipe["settings"]["adapters"] == mode
    assert report["recipe"]["id"] == recipe["id"]
    weights = {
        adapters / n: w for n, w in zip(recipe["ingredients"], recipe["weights"], strict=True)
    }
    names = {p.name for p in (one / "soup").iterdir()}
    assert "README.md" in names
    if mode == "keep":
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert set(deltas(one / "soup")) == set(weighted(weights))
    else:
        soup, before = (load_file(f / "model.safetensors") for f in (one / "soup", family / "base"))
        for module, delta in weighted(weights).items():
            exact = before[f"{module}.weight"].double() + delta
            assert (
                soup[f"{module}.weight"].double() - exact
            ).abs().max() <= exact.abs().max() * 2**-8
    souping(*call, "hydra.run.dir=outputs/fam/two").ok()
    second = json.loads((tmp_path / "outputs/fam/two/report.json").read_text())
    assert second["cost"]["evaluated_items"] == 0
    two = {
        name: data.replace(b"fam/two", b"fam/one")
        for name, data in files_of(one.parent / "two/soup").items()
    }
    assert two == files_of(one / "soup")


@pytest.mark.parametrize("mode", ["keep", "merge"])
def test_a_soup_is_rebuilt_bit_for_bit(
    family: Path, adapters: Path, souping: Cli, tmp_path: Path, mode: str
) -> None:
    settings = [f"merge.adapters={mode}", "merge.tokenizer_from=cat", "merge.max_shard_size=20KB"]
    shutil.copytree(adapters / "ant", tmp_path / "mine")
    settings += [
        f"pool.candidates=[mine,{adapters / 'bee'},{adapters / 'cat'}]",
        f"merge.base_model={family / 'base'}",
    ]
    souping("+experiment=merge", "optimiser.weights=[0.5,0.2,0.3]", "out=soup", *settings).ok()
    assert (tmp_path / "soup/tokenizer.json").read_bytes() == (
        adapters / "cat/tokenizer.json"
    ).read_bytes()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")
    command = (
        (tmp_path / "soup/README.md").read_text().partition("```bash\n")[2].partition("\n```")[0]
    )
    place, words = command.split(" && ")
    assert place == f"cd {tmp_path}"
    assert f"merge.base_model={family / 'base'}" in words
    candidates = settings[-2].replace("[mine,", f"[{tmp_path / 'mine'},")
    souping(*shlex.split(words)[1:], candidates, "store=other.sqlite").ok()
    assert files_of(tmp_path / "rebuilt") == files_of(tmp_path / "soup")
    weights = tmp_path / "mine" / "adapter_model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    souping("rebuild", "soup/recipe.json", "out=other").refused("ingredient mine", "content")


def test_a_soup_of_adapters_finds_its_base_and_has_the_bases_tokenizer(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    shutil.copytree(family / "base", tmp_path / "models" / "base")
    (tmp_path / "models" / "base" / "chat_template.jinja").write_text("{{ messages }}")
    for seed, name in enumerate(("ant", "bee")):
        save_adapter(
            tmp_path / name,
            family / "base",
            MODULES["ant"],
            seed,
            base_model_name_or_path="models/base",
        )
    words = ["+experiment=merge", "optimiser.weights=[0.5,0.5]", "pool.candidates=[ant,bee]"]
    souping(*words, "merge.base_model=models/base", "out=soup").ok()
    config = json.loads((tmp_path / "soup/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "models/base").resolve())
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "soup" / name).read_bytes() == (
            tmp_path / "models/base" / name
        ).read_bytes()
    assert not (tmp_path / "soup/config.json").exists()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    assert files_of(tmp_path / "again") == files_of(tmp_path / "soup")


def test_tokenizers_of_adapters_are_compared_with_the_bases_by_encoding(
    family: Path, adapters: Path, souping: Cli, tmp_path: Path
) -> None:
    shutil.copytree(adapters / "cat", tmp_path / "cat")
    path = tmp_path / "cat" / "tokenizer.json"
    table = json.loads(path.read_text())
    words = [
        "+experiment=merge",
        "optimiser.weights=[0.5,0.5]",
        f"pool.candidates=[{adapters / 'ant'},cat]",
        f"merge.base_model={family / 'base'}",
    ]
    path.write_text(json.dumps(table | {"normalizer": {"type": "Sequence", "normalizers": []}}))
    souping(*words, "out=alike").ok()
    path.write_text(json.dumps(table | {"normalizer": {"type": "Lowercase"}}))
    souping(*words, "out=other").refused(
        "base and cat", "normalizer", "Lowercase", "merge.tokenizer_from="
    )
    souping(*words, "out=carried", "merge.tokenizer_from=cat").ok()
    assert (tmp_path / "carried/tokenizer.json").read_bytes() == path.read_bytes()


def test_a_soup_of_adapters_has_the_rank_of_both_and_takes_so_much_room(
    base: Path, tmp_path: Path
) -> None:
    """Q0 has the ranks 4 and 3. In fp32, A [7, in] and B [out, 7] of the three modules."""
    folders = two(tmp_path, base)
    shapes = load_file(base / "model.safetensors")
    sizes = sum(sum(shapes[f"{module}.weight"].shape) for module in (Q0, Q1, UP1))
    for limit, rank in ((None, 7), (5, 5), (9, 7)):
        pool = opened(folders, rank=limit)
        shape = pool.adapter_shape
        assert shape is not None
        assert (shape.rank, shape.modules) == (rank, ("q_proj", "up_proj"))
        assert shape.base == Checkpoint.open(base).folder
        assert pool.soup_bytes == 4 * rank * sizes + Checkpoint.open(base).side_bytes
    merged = opened(folders, adapters="merge", dtype="bfloat16")
    assert merged.adapter_shape is None
    whole = sum(tensor.numel() for tensor in shapes.values())
    assert merged.soup_bytes == 2 * whole + Checkpoint.open(base).side_bytes


def test_a_recipe_of_adapters_names_what_decides_the_soup(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    pool = opened(folders, rank=2)
    made = pool.recipe({"b": 0.25, "a": 0.0})
    assert (made.ingredients, made.weights) == (("b",), (0.25,))
    assert made.fingerprints == (pool.fingerprints["b"],)
    assert made.settings == {"adapters": "keep", "base": pool.base_fingerprint, "rank": 2}
    assert made.dtype == "float32"
    assert "rank" not in opened(folders).recipe({"a": 1.0}).settings
    merged = opened(folders, adapters="merge")
    assert merged.recipe({"a": 1.0}).dtype == Checkpoint.open(base).dtype
    assert opened(folders, adapters="merge", dtype="float16").recipe({"a": 1.0}).dtype == "float16"
    both = pool.plan(pool.recipe({"a": 0.3, "b": 0.7}))
    assert "0.3 x a + 0.7 x b" in both.describe()
    assert "kept an adapter, float32" in both.describe()
    assert "full model" in merged.plan(merged.recipe({"a": 1.0})).describe()
    known = pool.known_folders
    assert known[pool.base_fingerprint] == Checkpoint.open(base).folder
    assert {name: known[pool.fingerprints[name]] for name in "ab"} == folders


def test_values_of_adapters_are_rows_in_the_middle_of_the_weights(
    base: Path, tmp_path: Path
) -> None:
    folders = two(tmp_path, base)
    pool = opened(folders)
    weights = load_file(base / "model.safetensors")
    products = deltas(folders["a"])
    whole = pool.stored_values("a", update=False)
    update = pool.stored_values("a", update=True)
    assert set(whole) == set(update) == {f"{module}.weight" for module in (Q0, Q1, UP1)}
    for module in (Q0, Q1, UP1):
        name = f"{module}.weight"
        values = weights[name].double()
        product = products.get(module, torch.zeros_like(values))
        middle = len(values) // 2
        count = whole[name].size // values.shape[1]
        assert 0 < count <= middle
        rows = slice(middle, middle + count)
        expected = (values + product)[rows].reshape(-1).numpy()
        assert whole[name] == pytest.approx(expected, abs=1e-5)
        assert update[name] == pytest.approx(product[rows].reshape(-1).numpy(), abs=1e-5)


def test_a_module_that_only_other_adapters_change_gets_the_base_back(
    base: Path, tmp_path: Path
) -> None:
    pool = opened(two(tmp_path, base))
    module = load(base)
    weights = load_file(base / "model.safetensors")
    live = pool.live(module)
    for name, changed in (("a", {Q0, Q1}), ("b", {Q0, UP1}), ("a", {Q0, Q1})):
        live.load_soup(pool.recipe({name: 1.0}))
        state = module.state_dict()
        apart = {
            key
            for key in (Q0, Q1, UP1)
            if not torch.equal(state[f"{key}.weight"], weights[f"{key}.weight"].float())
        }
        assert apart == changed


def test_the_config_of_a_soup_of_adapters_scales_by_1(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base, task_type="CAUSAL_LM", revision="abc")
    soup = write(opened(folders), (0.5, 0.5), tmp_path / "soup")
    config = json.loads((soup / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (7, 7)
    assert config["target_modules"] == sorted([Q0, Q1, UP1])
    assert config["base_model_name_or_path"] == str(base.resolve())
    assert (config["task_type"], config["peft_type"]) == ("CAUSAL_LM", "LORA")
    assert not any(config[key] for key in ("fan_in_fan_out", "use_dora", "use_rslora"))
    assert (config["lora_dropout"], config["bias"], config["inference_mode"]) == (0.0, "none", True)


@pytest.mark.parametrize(
    ("names", "module", "found"),
    [
        (("model.q.weight", "q.weight"), "q", "q.weight"),
        (("model.q.weight",), "q", "model.q.weight"),
        (("q.weight",), "model.q", "q.weight"),
        (("model.q.weight", "other.q.weight"), "q", None),
        (("a.q.weight", "q.weight"), "x.q", "q.weight"),
        (("weight",), "q", None),
        (("xq.weight",), "q", None),
    ],
)
def test_a_module_is_found_by_its_name_but_for_leading_parts(
    tmp_path: Path, names: tuple[str, ...], module: str, found: str | None
) -> None:
    folder = save(tmp_path / "base", {name: torch.zeros(2, 3) for name in names})
    tensor = named_tensor(Checkpoint.open(folder), f"{module}.weight")
    assert (None if tensor is None else tensor.name) == found


@pytest.mark.parametrize("adapters", ["keep", "merge"])
def test_the_progress_of_a_soup_ends_with_all_of_its_bytes(
    base: Path, tmp_path: Path, adapters: str
) -> None:
    pool = opened(two(tmp_path, base), adapters=adapters)
    seen: list[tuple[int, int]] = []
    pool.write(
        pool.recipe({"a": 0.5, "b": 0.5}),
        tmp_path / "soup",
        progress=lambda count, total: seen.append((count, total)),
    )
    counts = [count for count, _ in seen]
    assert counts == sorted(counts)
    (total,) = {total for _, total in seen}
    weights = load_file(next((tmp_path / "soup").glob("*.safetensors")))
    assert seen[-1] == (total, total)
    assert total == sum(t.numel() * t.element_size() for t in weights.values())


def test_infinity_is_told_once_or_refused(base: Path, tmp_path: Path, caplog: Any) -> None:
    folders = two(tmp_path, base)
    path = folders["a"] / "adapter_model.safetensors"
    tensors = load_file(path)
    key = f"{PREFIX}{Q0}.lora_A.weight"
    tensors[key][0, 0] = float("inf")
    save_file(tensors, path, metadata={"format": "pt"})
    pool = opened(folders, nonfinite="warn")
    tensor = pool.adapters["a"].parts[Q0].a
    reader = pool.reader()
    for _ in range(2):
        rows = reader.rows("a", tensor)
        assert rows.shape == tensor.shape
    assert sum("NaN or infinity" in record.message for record in caplog.records) == 1
    assert reader.rows("a", tensor, 1, 2).shape == (2, tensor.shape[1])
    assert reader.rows("a", tensor, 1, 2) == pytest.approx(tensors[key][1:3].numpy())
    with pytest.raises(UserError, match="nonfinite"):
        opened(folders, nonfinite="error").reader().rows("a", tensor)
