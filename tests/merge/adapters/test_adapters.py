"""Adapters in adapter space without PEFT: the arithmetic, pouring and writing, what is refused, hostile files."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.factors import DeviceProduct, Product
from souping.merge.local import LocalMerge, open_pool
from tests.support.adapters import PREFIX, change_config, deltas, save_adapter, weighted

Q0, Q1, UP1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.family import save_model

    folder = tmp_path_factory.mktemp("adapters") / "base"
    save_model(folder, seed=0)
    return folder


def two(folder: Path, base: Path, **config: Any) -> dict[str, Path]:
    """a and b share Q0; the other modules are their own."""
    a = save_adapter(folder / "a", base, {Q0: 4, Q1: 2}, 1, **config)
    return {"a": a, "b": save_adapter(folder / "b", base, {Q0: 3, UP1: 3}, 2, torch.bfloat16, **config)}


def opened(folders: dict[str, Path], **merge: Any) -> AdapterPool:
    pool = open_pool(folders, LocalMerge(**merge))
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
    import tempfile

    ranks, alphas = st.integers(1, 6), st.floats(0.5, 64)
    weights = data.draw(st.tuples(*[st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)] * 2))
    with tempfile.TemporaryDirectory() as name:
        folders = {}
        for seed, (who, module) in enumerate({"a": Q1, "b": UP1}.items()):
            shape = {Q0: data.draw(ranks), module: data.draw(ranks)}
            extra = {"lora_alpha": data.draw(alphas), "use_rslora": data.draw(st.booleans())}
            folders[who] = save_adapter(Path(name) / who, base, shape, seed, **extra)
        soup = write(opened(folders), weights, Path(name) / "soup")
        config = json.loads((soup / "adapter_config.json").read_text())
        found = deltas(soup, dict.fromkeys((Q0, Q1, UP1), config["lora_alpha"]))
        want = weighted({folders[who]: weight for who, weight in zip(folders, weights, strict=True)})
    assert set(found) == set(want)
    for module, delta in want.items():
        largest = max(float(delta.abs().max()), 1e-3)
        assert (found[module] - delta).abs().max() <= largest * 2**-20


def test_the_soup_scales_by_one_and_names_its_ranks(base: Path, tmp_path: Path) -> None:
    soup = write(opened(two(tmp_path, base)), (0.3, 0.7), tmp_path / "soup")
    config = json.loads((soup / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (7, 7, False)
    assert config["target_modules"] == sorted([Q0, UP1, Q1])
    assert config["base_model_name_or_path"] == str(base)
    tensors = load_file(soup / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert {t.shape["lora_B" in name] for name, t in tensors.items()} == {7}
    assert {p.name for p in soup.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}


def test_a_soup_is_an_adapter_that_soups_again(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    soup = write(opened(folders), (0.3, 0.7), tmp_path / "soup")
    again = write(opened({"soup": soup, "a": folders["a"]}), (1.0, 0.0), tmp_path / "again")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (soup, again))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_is_that_of_the_factors(base: Path, tmp_path: Path, dtype: str) -> None:
    pool = opened(two(tmp_path, base), dtype=dtype)
    soup = write(pool, (0.3, 0.7), tmp_path / "soup")
    tensors = load_file(soup / "adapter_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {f"torch.{dtype}"}
    module = load(base)
    pool.live(module).pour(pool.recipe({"a": 0.3, "b": 0.7}))
    a, b = (tensors[f"{PREFIX}{Q0}.lora_{side}.weight"].double() for side in "AB")
    exact = load_file(base / "model.safetensors")[f"{Q0}.weight"].double() + b @ a
    assert torch.equal(module.get_submodule(Q0).weight, exact.float())


@pytest.mark.parametrize("resident", ["none", "cpu"])
@pytest.mark.parametrize("dtype", [None, "float16"])
def test_pouring_a_merged_soup_equals_writing_it(base: Path, tmp_path: Path, dtype: str | None, resident: str) -> None:
    pool = opened(two(tmp_path, base), adapters="merge", dtype=dtype, resident=resident, max_shard_size="9KB")
    module = load(base)
    live = pool.live(module)
    for number, weights in enumerate([(0.3, 0.7), (1.0, 0.0), (0.0, 1.0)]):
        written = load(write(pool, weights, tmp_path / f"full-{number}")).state_dict()
        live.pour(pool.recipe(dict(zip("ab", weights, strict=True))))
        assert all(torch.equal(tensor, written[name]) for name, tensor in module.state_dict().items())


def test_a_merged_soup_is_the_base_plus_the_sum_rounded_once(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    out = write(opened(folders, adapters="merge"), (0.3, 0.7), tmp_path / "full")
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    want = weighted({folders["a"]: 0.3, folders["b"]: 0.7})
    for name, tensor in after.items():
        delta = want.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(tensor, before[name]), name
        else:
            exact = before[name].double() + delta
            assert ((tensor.double() - exact).abs() <= exact.abs() * 2**-8).all(), name
    assert {"config.json", "tokenizer.json", "recipe.json"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize("transposed", [False, True])
def test_the_sum_on_a_device_is_the_sum_in_numpy(transposed: bool) -> None:
    dice = np.random.default_rng(0)
    a, b = (dice.standard_normal(shape, dtype=np.float32) for shape in ((5, 30), (20, 5)))
    made = Product(a, b, transposed)
    rows = dice.standard_normal((7, 20 if transposed else 30), dtype=np.float32)
    assert np.array_equal(DeviceProduct(made, "cpu").added(rows, 4).numpy(), made.added(rows, 4))


def test_fingerprints_are_of_content(base: Path, tmp_path: Path) -> None:
    folders = two(tmp_path, base)
    before = opened(folders).fingerprints
    change_config(folders["a"], target_modules=["v_proj", "q_proj"], lora_dropout=0.5, base_model_name_or_path="./x")
    change_config(folders["b"], base_model_name_or_path="./x")
    assert opened(folders, base=str(base)).fingerprints == before
    change_config(folders["a"], lora_alpha=1)
    after = opened(folders, base=str(base)).fingerprints
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


class TestRefusals:
    """One or two lines that name what is wrong."""

    @pytest.mark.parametrize(
        ("changes", "needle"),
        [
            ({"peft_type": "IA3"}, "peft_type=IA3"),
            ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
            ({"shiny_new_thing": {"k": 1}}, "shiny_new_thing"),
            ({"lora_alpha": "8"}, "lora_alpha=8, not a finite number"),
            ({"alpha_pattern": {"a{e<=1}": 1}}, "too complex"),
            ({"alpha_pattern": {"(" + "[a-z_.0-9]?" * 8 + f".*.*.*z{n})|q{n}": 2 for n in range(999)}}, "to match"),
            ({"lora_alpha": 10**400}, "adapter_config.json"),
            ({"zz": json.loads("[" * 300 + "]" * 300)}, "adapter_config.json"),
            ({"alpha_pattern": {"(": 1}}, "the pattern"),
            ({"base_model_name_or_path": "org/other"}, "different base models"),
            ({"base_model_name_or_path": 3}, "base_model_name_or_path"),
            ({"revision": "dev"}, "different revisions"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_of_settings(
        self, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], needle: str
    ) -> None:
        monkeypatch.setattr("souping.checkpoints.lora.MATCHING", 0.1)
        folders = two(tmp_path, base)
        change_config(folders["a"], **changes)
        with pytest.raises(UserError, match=needle) as caught:
            opened(folders)
        assert len(str(caught.value).splitlines()) <= 2

    @pytest.mark.parametrize(
        ("key", "shape", "needle"),
        [
            (f"{PREFIX}{Q0}.lora_magnitude_vector", (24,), "lora_magnitude_vector"),
            (f"{PREFIX}{Q0}.lora_B.bias", (24,), r"lora_B\.bias"),
            (f"{PREFIX}lm_head.modules_to_save.weight", (100, 24), "modules_to_save"),
            (f"{PREFIX}{Q1}.lora_A.weight", (2, 8), "do not fit the base"),
            (f"{PREFIX}{Q1}.lora_A.weight", (2, 24, 1, 1), "no matrices that fit"),
            (f"{PREFIX}{UP1}.lora_A.weight", (4, 24), "it needs A and B"),
            (f"{PREFIX}model.embed_tokens.weight", (100, 24), "whole weight of model.embed_tokens"),
        ],
    )
    def test_of_tensors(self, base: Path, tmp_path: Path, key: str, shape: tuple[int, ...], needle: str) -> None:
        folders = two(tmp_path, base)
        path = folders["a"] / "adapter_model.safetensors"
        save_file({**load_file(path), key: torch.ones(shape)}, path)
        with pytest.raises(UserError, match=needle):
            opened(folders)

    def test_of_pickles_unless_asked_for(self, base: Path, tmp_path: Path) -> None:
        folders = two(tmp_path, base)
        safe = folders["b"] / "adapter_model.safetensors"
        torch.save(load_file(safe), folders["b"] / "adapter_model.bin")
        before = write(opened(folders), (0.3, 0.7), tmp_path / "safe")
        safe.unlink()
        with pytest.raises(UserError, match=r"adapter_model\.bin holds pickled weights.*merge\.allow_pickle=true"):
            opened(folders)
        after = write(opened(folders, allow_pickle=True), (0.3, 0.7), tmp_path / "pickled")
        assert (before / safe.name).read_bytes() == (after / safe.name).read_bytes()

    def test_of_a_base_that_is_not_here(self, base: Path, tmp_path: Path) -> None:
        folders = two(tmp_path, base, base_model_name_or_path="org/model-8b")
        with pytest.raises(UserError, match=r"org/model-8b is not a folder here: set merge\.base=FOLDER"):
            opened(folders)
        with pytest.raises(UserError, match=r"merge\.base=nowhere is not a folder"):
            opened(folders, base="nowhere")
        assert opened(folders, base=str(base)).architecture_folder == base

    def test_of_mixed_pools_and_full_models_settings(self, base: Path, tmp_path: Path) -> None:
        folders = two(tmp_path, base)
        with pytest.raises(UserError, match=r"mixes adapters \(a, b\) and others \(base\)"):
            opened({**folders, "base": base})
        with pytest.raises(UserError, match=r"merge\.method=slerp is for full models"):
            opened(folders, method="slerp")
        with pytest.raises(UserError, match=r"merge\.overrides is for full models"):
            opened(folders, overrides={"layers.0": [0.5, 0.5]})
        (folders["a"] / "model.safetensors").write_bytes(b"")
        with pytest.raises(UserError, match="move one of them away"):
            opened(folders)

    @pytest.mark.parametrize("adapters", ["keep", "merge"])
    def test_of_values_that_are_not_finite(self, base: Path, tmp_path: Path, adapters: str) -> None:
        folders = two(tmp_path, base)
        path = folders["a"] / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors[f"{PREFIX}{Q1}.lora_B.weight"][3, 1] = float("nan")
        save_file(tensors, path)
        pool = opened(folders, adapters=adapters)
        with pytest.raises(UserError, match=r"NaN or infinity in tensor .*q_proj\.lora_B\.weight in .*a/adapter_model"):
            write(pool, (0.3, 0.7), tmp_path / "soup")
        assert not [p for p in tmp_path.iterdir() if "soup" in p.name]
        with pytest.raises(UserError, match="NaN or infinity"):
            pool.live(load(base)).pour(pool.recipe({"a": 0.3, "b": 0.7}))
        write(opened(folders, adapters=adapters, nonfinite="warn"), (0.3, 0.7), tmp_path / "soup")


@quick
@given(data=st.data())
def test_corrupted_adapters_end_in_one_clear_error(data: st.DataObject, base: Path, tmp_path: Path) -> None:
    """Bytes of header or config changed: refused, or opened and souped; nothing else."""
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
