"""Soups of adapters against PEFT itself: it trains the parts, loads the soup, merges it and refuses nothing of ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from souping.core.types import UserError
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from tests.conftest import Cli
from tests.support.adapters import save_adapter
from tests.support.peft_models import close, forward, load_base, save_base

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

WEIGHTS = {"a": 0.2, "b": 0.5, "c": 0.3}
Settings = dict[str, Any]


def train(folder: Path, base: Path, seed: int, settings: Settings) -> Path:
    """An adapter by PEFT with random factors; its other parameters moved by a random step."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(load_base(base), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn(parameter.shape) / 4)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    model.save_pretrained(folder)
    return folder


def pool_of(folder: Path, base: Path, every: Mapping[str, Settings], **merge: Any) -> AdapterPool:
    """A pool of adapters with these settings, each trained on the base."""
    folders = {
        name: train(folder / name, base, seed, settings)
        for seed, (name, settings) in enumerate(every.items(), 1)
    }
    pool = LocalMerge(**merge).open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def products(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """{module: PEFT's own product, as it is added to the weight}."""
    model = peft.PeftModel.from_pretrained(load_base(base), folder)
    layers = {
        n: m
        for n, m in model.base_model.model.named_modules()
        if isinstance(m, peft.tuners.lora.LoraLayer)
    }
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


QV = {"target_modules": ["q_proj", "v_proj"]}
CASES: dict[str, dict[str, Settings]] = {
    "equal": {name: {"r": 4, "lora_alpha": 8, **QV} for name in "abc"},
    "ranks and alphas": {
        "a": {"r": 2, "lora_alpha": 7, **QV},
        "b": {"r": 5, "lora_alpha": 1, **QV},
        "c": {"r": 3, "lora_alpha": 24, **QV},
    },
    "rslora": {
        "a": {"r": 3, "lora_alpha": 8, "use_rslora": True, **QV},
        "b": {"r": 4, "lora_alpha": 8, **QV},
        "c": {"r": 6, "lora_alpha": 5, "use_rslora": True, **QV},
    },
    "patterns": {
        "a": {
            "r": 2,
            "lora_alpha": 4,
            "rank_pattern": {"q_proj": 6},
            "alpha_pattern": {"v_proj": 3},
            **QV,
        },
        "b": {
            "r": 3,
            "rank_pattern": {r"layers\.0\..*": 1},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 9},
            **QV,
        },
        "c": {"r": 4, "use_rslora": True, "rank_pattern": {"1.self_attn.(q|v)_proj": 5}, **QV},
    },
    "targets": {
        "a": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]},
        "b": {"r": 3, "target_modules": "all-linear"},
        "c": {"r": 4, "target_modules": r".*layers\.0\.mlp\.(up|down)_proj"},
    },
    "embedding": {
        "a": {"r": 2, "target_modules": ["embed_tokens", "q_proj"]},
        "b": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["embed_tokens"]},
        "c": {"r": 2, "target_modules": ["lm_head", "k_proj"]},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_soup_which_is_the_weighted_sum_of_products(
    case: str, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base")
    pool = pool_of(tmp_path, base, CASES[case])
    recipe = pool.recipe(WEIGHTS)
    soup = pool.write(recipe, tmp_path / "soup")
    want: dict[str, torch.Tensor] = {}
    for name, weight in WEIGHTS.items():
        for module, delta in products(base, tmp_path / name).items():
            want[module] = want.get(module, 0) + weight * delta.double()
    found = products(base, soup)
    assert set(found) == set(want)
    for module, delta in found.items():
        close(delta, want[module])
    summed = load_base(base).double()
    with torch.no_grad():
        for module, delta in want.items():
            summed.get_submodule(module).weight += delta
    loaded = peft.PeftModel.from_pretrained(load_base(base), soup).eval()
    close(forward(loaded), forward(summed), 2**-17)
    loaded = load_base(base)
    pool.live(loaded).load_soup(recipe)
    close(forward(loaded), forward(summed), 2**-17)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merged_model_is_what_peft_merges(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", dtype=dtype)
    pool = pool_of(tmp_path, base, CASES["patterns"], adapters="merge", max_shard_size="20KB")
    recipe = pool.recipe(WEIGHTS)
    out = pool.write(recipe, tmp_path / "full")
    kept = LocalMerge().open({n: tmp_path / n for n in WEIGHTS})
    assert kept is not None
    soup = kept.write(kept.recipe(WEIGHTS), tmp_path / "soup")
    merged = peft.PeftModel.from_pretrained(load_base(base), soup).merge_and_unload().state_dict()
    stored = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).state_dict()
    half_step = 2**-8 if dtype is torch.bfloat16 else 2**-21
    for name, tensor in stored.items():
        assert tensor.dtype == dtype
        assert (
            (tensor.double() - merged[name].double()).abs() <= half_step * merged[name].abs() + 1e-7
        ).all(), name


@pytest.mark.parametrize("tie", [False, True])
def test_embeddings_that_the_base_ties(tie: bool, tmp_path: Path) -> None:
    """PEFT leaves the head alone when it adapts the embedding tied to it, and so does a load."""
    base = save_base(tmp_path / "base", tie=tie)
    pool = pool_of(tmp_path, base, {"a": CASES["embedding"]["a"], "b": CASES["embedding"]["b"]})
    recipe = pool.recipe({"a": 0.4, "b": 0.6})
    soup = pool.write(recipe, tmp_path / "soup")
    loaded = load_base(base)
    live = pool.live(loaded)
    live.load_soup(recipe)
    close(
        forward(loaded),
        forward(peft.PeftModel.from_pretrained(load_base(base), soup).eval()),
        2**-17,
    )
    live.load_soup(pool.recipe({"a": 0.0, "b": 1.0}))
    close(
        forward(loaded),
        forward(peft.PeftModel.from_pretrained(load_base(base), tmp_path / "b").eval()),
        2**-17,
    )
    if tie:
        with pytest.raises(
            UserError, match=r"embed_tokens, whose weight the base ties.*merge\.adapters=keep"
        ):
            LocalMerge(adapters="merge").open({"a": tmp_path / "a", "b": tmp_path / "b"})


def test_weights_stored_the_other_way_round(tmp_path: Path) -> None:
    """GPT-2's Conv1D modules store weights as [in, out].

    The config of `a` says so, that of `b` leaves it to PEFT; the embedding of `b` is stored as everywhere.
    """
    base = save_base(tmp_path / "base", "gpt2")
    every: dict[str, Settings] = {
        "a": {"r": 2, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        "b": {"r": 3, "target_modules": ["c_proj", "c_fc", "wte"]},
    }
    pool = pool_of(tmp_path, base, every)
    recipe = pool.recipe({"a": 0.25, "b": 0.75})
    soup = pool.write(recipe, tmp_path / "soup")
    loaded = load_base(base)
    pool.live(loaded).load_soup(recipe)
    close(
        forward(loaded),
        forward(peft.PeftModel.from_pretrained(load_base(base), soup).eval()),
        2**-17,
    )


def test_attention_of_a_mixture_of_experts(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "mixtral")
    pool = pool_of(tmp_path, base, {"a": {"r": 2, **QV}, "b": {"r": 3, **QV}}, adapters="merge")
    recipe = pool.recipe({"a": 0.25, "b": 0.75})
    loaded = load_base(base)
    pool.live(loaded).load_soup(recipe)
    written = load_base(pool.write(recipe, tmp_path / "full"))
    assert torch.equal(forward(loaded), forward(written))
    want = {name: products(base, tmp_path / name) for name in "ab"}
    for module in want["a"]:
        delta = loaded.get_submodule(module).weight - load_base(base).get_submodule(module).weight
        close(delta, 0.25 * want["a"][module] + 0.75 * want["b"][module], 2**-19)


REFUSED: dict[str, tuple[Settings, str]] = {
    "replication": ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa.*path_initial_model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_is_no_plain_lora_is_refused_by_name(case: str, tmp_path: Path) -> None:
    settings, needle = REFUSED[case]
    base = save_base(tmp_path / "base")
    with pytest.raises(UserError, match=needle):
        pool_of(tmp_path, base, {"a": {"r": 2, **QV}, "b": {"r": 2, **QV, **settings}})


@pytest.mark.slow
def test_the_code_on_the_card_answers_from_another_folder(
    family: Path, souping: Cli, tmp_path: Path
) -> None:
    shutil.copytree(family / "base", tmp_path / "models" / "base")
    for seed, name in enumerate(("a", "b")):
        modules = {"model.layers.0.self_attn.q_proj": 2}
        save_adapter(
            tmp_path / name, family / "base", modules, seed, base_model_name_or_path="models/base"
        )
    words = ["optimiser.weights=[0.5,0.5]", "pool.candidates=[a,b]", "merge.base_model=models/base"]
    souping("+experiment=merge", *words, "out=soup").ok()
    code = (tmp_path / "soup/README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "elsewhere", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Hello" in done.stdout
