"""Every merge backend of the configuration, and live loading: soups are the same three ways, on any architecture."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from souping.core.text import install
from souping.core.types import Recipe, UserError
from souping.merge import CandidatePool, Vocab
from souping.merge.accelerate import AccelerateMerge
from souping.merge.adapters import AdapterPool
from souping.merge.backend import MergeBackend
from souping.merge.local import FullModelPool, LocalMerge
from souping.merge.mergekit import MergekitMerge
from souping.merge.methods import METHODS
from tests.conftest import ROOT
from tests.support.adapters import save_adapter
from tests.support.evaluators import unpacked

FAKE = """#!{python}
import shutil, sys, yaml
from pathlib import Path
source, flip = yaml.safe_load(Path(sys.argv[3]).read_text())["models"][0]["model"], Path(__file__).with_name("flip")
shutil.copytree(source, sys.argv[4], dirs_exist_ok=True)
if flip.exists():
    changed = Path(flip.read_text())
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
"""
"""A Python with a mergekit that takes the first model for the soup, and may change the file that is named beside it."""
Siblings = dict[str, Path]
BACKENDS = ("local", "accelerate", "mergekit")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> MergeBackend:
    """A backend of each kind; of mergekit with a stand-in for its program."""
    program = tmp_path / "python"
    program.write_text(FAKE.format(python=sys.executable))
    program.chmod(0o755)
    makers: dict[str, Callable[[], MergeBackend]] = {
        "local": LocalMerge,
        "accelerate": lambda: AccelerateMerge(num_processes=1),
        "mergekit": lambda: MergekitMerge(method="linear", python=str(program)),
    }
    return makers[request.param]()


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return pool_of(tmp_path / "pool")


@pytest.mark.parametrize("name", BACKENDS)
def test_the_configuration_names_the_class_and_its_settings(name: str) -> None:
    assert sorted(path.stem for path in (ROOT / "conf" / "merge").glob("*.yaml")) == sorted(
        BACKENDS
    )
    table = yaml.safe_load((ROOT / "conf" / "merge" / f"{name}.yaml").read_text())
    module, _, part = table["_target_"].rpartition(".")
    made = vars(importlib.import_module(module))[part]
    assert issubclass(made, MergeBackend)
    keys = {key for key in table if not key.startswith("_") and key != "defaults"}
    assert keys <= set(inspect.signature(made).parameters)


def test_a_pool_of_full_models(backend: MergeBackend, folders: Siblings) -> None:
    digests: dict[str, str] = {}
    pool = backend.open(folders, digests)
    assert isinstance(pool, FullModelPool)
    assert (pool.names, list(pool.warnings)) == (tuple(folders), [])
    assert len(set(pool.fingerprints.values())) == 3
    assert digests
    assert dict(pool.known_folders) == {
        pool.fingerprints[name]: folder for name, folder in folders.items()
    }
    assert pool.architecture_folder == folders["m0"]
    assert pool.soup_bytes > 0
    with pytest.raises(UserError, match=r"candidate m0: .* has no tokenizer"):
        pool.check_tokenizers()
    pool.close()


def test_recipes_keep_the_pools_order_and_drop_zeros(
    backend: MergeBackend, folders: Siblings
) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe({"m2": 0.75, "m1": 0.0, "m0": 0.25})
    assert (recipe.ingredients, recipe.weights) == (("m0", "m2"), (0.25, 0.75))
    assert pool.recipe({"m0": 0.25, "m2": 0.75}).id == recipe.id
    assert pool.tokenizer_folder(recipe) == folders["m0"]
    assert pool.candidate_folder(recipe) is None
    alone = pool.recipe({"m1": 1.0})
    assert (alone.method, dict(alone.settings)) == ("linear", {})
    assert pool.candidate_folder(alone) == folders["m1"]


@pytest.mark.parametrize("weights", [{"m0": 0.25, "m2": 0.75}, {"m1": 1.0}])
def test_the_written_soup_is_the_soup_in_memory(
    backend: MergeBackend, folders: Siblings, weights: Mapping[str, float], tmp_path: Path
) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe(weights)
    out = pool.write(recipe, tmp_path / "soup", extra_files={"README.md": "card"})
    assert (out / "README.md").read_text() == "card"
    assert recipe.id in (out / "recipe.json").read_text()
    plan = pool.plan(recipe)
    assert recipe.id in plan.describe()
    assert plan.save(tmp_path / "plan.json") == tmp_path / "plan.json"
    assert recipe.id in (tmp_path / "plan.json").read_text()
    module = LlamaForCausalLM.from_pretrained(folders["m0"], dtype=torch.float32)
    pool.live(module).load_soup(recipe)
    state = module.state_dict()
    written = load_file(out / "model.safetensors")
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in written.items())
    stream = pool.stream(recipe)
    assert (stream is not None) == backend.streams
    if stream is not None:
        streamed = unpacked(stream)
        assert streamed.keys() == written.keys()
        assert all(torch.equal(streamed[name], tensor) for name, tensor in written.items())
        assert stream.config == (out / "config.json").read_text()
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        pool.write(recipe, tmp_path / "soup")


def flip(path: Path) -> None:
    """Change the last bit of a file, and keep its times."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_ingredient_that_changed_makes_no_soup(
    backend: MergeBackend, folders: Siblings, tmp_path: Path
) -> None:
    pool = backend.open(folders)
    recipe = pool.recipe({"m0": 0.25, "m1": 0.75})
    module = LlamaForCausalLM.from_pretrained(folders["m0"], dtype=torch.float32)
    live = pool.live(module)
    stream = pool.stream(recipe)
    flip(folders["m1"] / "model.safetensors")
    for make in (
        lambda: live.load_soup(recipe),
        lambda: pool.write(recipe, tmp_path / "soup"),
        lambda: list(stream.chunks()) if stream else live.load_soup(recipe),
    ):
        with pytest.raises(
            UserError, match=r"m1/model\.safetensors has changed since it was opened"
        ):
            make()
    assert not (tmp_path / "soup").exists()


def test_an_ingredient_that_changes_meanwhile(
    backend: MergeBackend, folders: Siblings, tmp_path: Path
) -> None:
    pool = backend.open(folders)
    victim = folders["m1"] / "model.safetensors"
    recipe = pool.recipe({"m0": 0.25, "m1": 0.75})
    if isinstance(backend, MergekitMerge):
        (tmp_path / "flip").write_text(str(victim))
    with pytest.raises(UserError, match=r"m1/model\.safetensors has changed since it was opened"):
        pool.write(recipe, tmp_path / "soup", progress=lambda done, total: flip(victim))
    assert not (tmp_path / "soup").exists()


def test_answers_end_at_any_ingredients_end(
    backend: MergeBackend, folders: Siblings, tmp_path: Path
) -> None:
    for name, ends in {
        "m0": {"eos_token_id": 7, "top_k": 5},
        "m1": {"eos_token_id": [9, 2]},
        "m2": {},
    }.items():
        (folders[name] / "generation_config.json").write_text(json.dumps(ends))
    config = json.loads((folders["m2"] / "config.json").read_text())
    (folders["m2"] / "config.json").write_text(json.dumps({**config, "eos_token_id": 11}))
    pool = backend.open(folders)
    three = pool.recipe(dict.fromkeys(folders, 1 / 3))
    two = pool.recipe({"m0": 0.5, "m1": 0.5})
    assert (pool.eos_token_ids(three), pool.eos_token_ids(two)) == ((2, 7, 9, 11), (2, 7, 9))
    assert [pool.eos_token_ids(pool.recipe({name: 1.0})) for name in folders] == [
        (7,),
        (2, 9),
        (11,),
    ]
    assert any(
        "answers end at different tokens (m0 7, m1 2/9, m2 11)" in note for note in pool.warnings
    )
    written = pool.write(three, tmp_path / "soup") / "generation_config.json"
    assert json.loads(written.read_text()) == {"eos_token_id": [2, 7, 9, 11], "top_k": 5}
    alone = pool.write(pool.recipe({"m1": 1.0}), tmp_path / "alone") / "generation_config.json"
    assert alone.read_bytes() == (folders["m1"] / "generation_config.json").read_bytes()


def test_a_pool_of_adapters(backend: MergeBackend, folders: Siblings, tmp_path: Path) -> None:
    adapters = {
        name: save_adapter(
            tmp_path / name, folders["m0"], {"model.layers.0.self_attn.q_proj": 2}, seed
        )
        for seed, name in enumerate("ab", 1)
    }
    if backend.adapters is None:
        with pytest.raises(UserError, match="does not soup adapters: use merge=local"):
            backend.open(adapters)
        return
    pool: CandidatePool = backend.with_settings({"base_model": str(folders["m0"])}).open(adapters)
    assert isinstance(pool, AdapterPool)
    recipe = pool.recipe({"a": 0.25, "b": 0.75})
    assert pool.architecture_folder == folders["m0"]
    assert pool.candidate_folder(recipe) is None
    with pytest.raises(UserError, match=r"candidate a: .*m0 has no tokenizer: copy"):
        pool.check_tokenizers()
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="candidate b: "):
        backend.with_settings({"base_model": str(folders["m0"])}).open(adapters).check_tokenizers()
    plan = pool.plan(recipe)
    assert "0.25 x a + 0.75 x b" in plan.describe()
    assert plan.save(tmp_path / "plan.json") is None
    assert (pool.write(recipe, tmp_path / "soup") / "adapter_config.json").is_file()
    mixed = backend.open({"a": adapters["a"], "m1": folders["m1"]})
    assert mixed.recipe({"a": 0.5, "m1": 0.5}).settings["adapters"] == "merge"


def test_a_backend_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("souping.core.text.find_spec", lambda name: None)
    assert LocalMerge().needs() == []
    assert [one.fix for one in MergekitMerge().needs()] == [install("mergekit")]
    assert [one.what for one in AccelerateMerge().needs()] == [
        "the package accelerate is not installed"
    ]
    assert MergekitMerge(python="there").needs() == []


def llama(seed: int, **settings: Any) -> LlamaForCausalLM:
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 55, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig.from_dict({**sizes, **settings})).bfloat16()


def pool_of(
    folder: Path, sizes: tuple[int, ...] = (97, 97, 97), **settings: Any
) -> dict[str, Path]:
    folders = {f"m{i}": folder / f"m{i}" for i in range(len(sizes))}
    for i, (path, rows) in enumerate(zip(folders.values(), sizes, strict=True)):
        llama(i, vocab_size=rows, **settings).save_pretrained(path)
    return folders


def mix(pool: CandidatePool, *weights: float) -> Recipe:
    return pool.recipe(dict(zip(pool.names, weights, strict=True)))


def loaded(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    return model


def check_equal(module: torch.nn.Module, written: torch.nn.Module) -> None:
    state = module.state_dict()
    for name, tensor in written.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16, torch.float16])
def test_pour_after_pour_equals_loading_what_was_written(
    tmp_path: Path, compute: torch.dtype, tied: bool
) -> None:
    folders = pool_of(tmp_path, tie_word_embeddings=tied)
    pool = LocalMerge().open(folders)
    module = loaded(folders["m0"], compute)
    storages = {name: tensor.data_ptr() for name, tensor in module.state_dict().items()}
    live = pool.live(module)
    for number, weights in enumerate([(0.2, 0.5, 0.3), (0.0, 1.0, 0.0), (0.5, 0.5, 0.0)]):
        live.load_soup(mix(pool, *weights))
        check_equal(
            module, loaded(pool.write(mix(pool, *weights), tmp_path / f"soup{number}"), compute)
        )
    assert {name: tensor.data_ptr() for name, tensor in module.state_dict().items()} == storages


@pytest.mark.parametrize("rule", ["union", "intersect"])
def test_the_vocabulary_follows_the_soup(tmp_path: Path, rule: Vocab) -> None:
    folders = pool_of(tmp_path, (97, 103, 97), tie_word_embeddings=True)
    pool = LocalMerge(vocab=rule).open(folders)
    module = loaded(folders["m0"], torch.float32)
    live = pool.live(module)
    for number, weights in enumerate([(0.5, 0.5, 0.0), (0.0, 1.0, 0.0), (0.5, 0.0, 0.5)]):
        live.load_soup(mix(pool, *weights))
        check_equal(
            module,
            loaded(pool.write(mix(pool, *weights), tmp_path / f"soup{number}"), torch.float32),
        )


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "model_stock"])
def test_whatever_was_poured_before_a_pour_equals_what_is_written(
    tmp_path: Path, method: str
) -> None:
    folders = pool_of(tmp_path)
    merge = LocalMerge(
        method=method, base_model=str(folders["m2"]) if METHODS[method].base else None
    )
    half = replace(merge, dtype="float32", scale=0.5 if METHODS[method].base else 1.0)
    recipes = []
    weights = ((0.35, 0.65, 0.0), (0.9, 0.1, 0.0), (0.0, 1.0, 0.0), (0.35, 0.65, 0.0))
    for pool in (merge.open(folders), half.open(folders)):
        recipes += [mix(pool, *row) for row in weights]
    if method == "linear":
        for recipe, row in ((recipes[1], [1.0, 0.0]), (recipes[0], [0.5, 0.5])):
            recipes.append(replace(recipe, settings={"overrides": [["layers.0", row]]}))
    pool = merge.open(folders)
    written = {}
    for recipe in recipes:
        if recipe.id not in written:
            written[recipe.id] = loaded(pool.write(recipe, tmp_path / recipe.id), torch.float32)
    module = loaded(folders["m0"], torch.float32)
    live = pool.live(module)
    for recipe in [*recipes, *reversed(recipes)]:
        live.load_soup(recipe)
        check_equal(module, written[recipe.id])


def test_a_module_whose_parameters_moved_is_filled_where_they_are(tmp_path: Path) -> None:
    folders = pool_of(tmp_path)
    pool = LocalMerge().open(folders)
    module = loaded(folders["m0"], torch.float32)
    live = pool.live(module)
    live.load_soup(mix(pool, 0.2, 0.5, 0.3))
    module.bfloat16()
    norm = module.model.norm
    norm.weight = torch.nn.Parameter(torch.zeros_like(norm.weight))
    live.load_soup(mix(pool, 0.3, 0.4, 0.3))
    check_equal(
        module, loaded(pool.write(mix(pool, 0.3, 0.4, 0.3), tmp_path / "soup"), torch.bfloat16)
    )


SMALL = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig.from_dict({**SMALL, "num_local_experts": 4})
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeForCausalLM(
        transformers.Qwen2MoeConfig.from_dict(
            {**SMALL, **EXPERTS, "shared_expert_intermediate_size": 24}
        )
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig.from_dict({**SMALL, **EXPERTS, "head_dim": 8})
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
        )
    ),
    "gemma": lambda: transformers.GemmaForCausalLM(transformers.GemmaConfig.from_dict({**SMALL, "head_dim": 8})),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config.from_dict({
            "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "decoder_start_token_id": 0,
        })
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=99, hidden_size=32, state_size=8, num_hidden_layers=2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_soup_is_the_arithmetic_and_generates(name: str, tmp_path: Path) -> None:
    folders = {str(seed): tmp_path / str(seed) for seed in range(2)}
    for seed, folder in folders.items():
        torch.manual_seed(int(seed))
        MODELS[name]().bfloat16().save_pretrained(folder)
    pool = LocalMerge().open(folders)
    recipe = pool.recipe({"0": 0.25, "1": 0.75})
    assert list(pool.warnings) == []
    out = pool.write(recipe, tmp_path / "soup")

    parts = [load_file(folder / "model.safetensors") for folder in folders.values()]
    soup = load_file(out / "model.safetensors")
    assert set(soup) == set(parts[0])
    for key, tensor in soup.items():
        total = torch.zeros(tensor.shape)
        for part, weight in zip(parts, (0.25, 0.75), strict=True):
            total.add_(part[key].float(), alpha=weight)
        assert torch.equal(tensor, total.to(tensor.dtype)), key

    kind = type(MODELS[name]())
    written = kind.from_pretrained(out, dtype=torch.float32).eval()
    live = kind.from_pretrained(folders["0"], dtype=torch.float32).eval()
    pool.live(live).load_soup(recipe)
    check_equal(live, written)
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    answers = [model.generate(prompt, **settings) for model in (written, live)]
    assert answers[0].shape[1] > 1
    assert torch.equal(answers[0], answers[1])
