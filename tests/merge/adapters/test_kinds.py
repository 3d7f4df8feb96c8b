"""Conformance of the kinds of adapters that PEFT trains: kind x keep or merge x live, disk, vLLM.

Candidates are trained and soups are loaded by PEFT. Weights are compared with the formula of each kind in float64, and
the formulas with PEFT's own `merge_and_unload`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from souping.core.types import UserError
from souping.evaluate.engines.vllm import VllmEngine
from souping.merge.adapters import AdapterPool
from souping.merge.local import LocalMerge
from tests.conftest import Cli
from tests.support.adapters import PREFIX, change_config
from tests.support.peft_models import close, forward, load_base, save_base

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

WEIGHTS = {"a": 0.3, "b": 0.7}
Settings = dict[str, Any]
Tensors = dict[str, torch.Tensor]
PATTERNS: Settings = {
    "r": 2, "lora_alpha": 6, "rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 3},
    "target_modules": ["q_proj", "v_proj"],
}  # fmt: skip
RSLORA: Settings = {"r": 3, "use_rslora": True, "target_modules": ["q_proj"]}
EMBEDDING: Settings = {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}
EXPERTS: Settings = {
    "r": 2, "lora_alpha": 6, "rank_pattern": {"gate_up_proj": 5}, "alpha_pattern": {"experts.down_proj": 3},
    "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}  # fmt: skip
"""With `rank_pattern`, factors of one adapter have several ranks."""
OTHER_EXPERTS: Settings = RSLORA | {"target_parameters": ["gate_up_proj", "down_proj"]}
KINDS: dict[str, tuple[str, Settings, Settings]] = {
    "saved modules": ("untied", PATTERNS | {"modules_to_save": ["lm_head"]}, RSLORA | {"modules_to_save": ["norm"]}),
    "a tied head": ("tied", PATTERNS | {"modules_to_save": ["lm_head"]}, RSLORA),
    "tied embeddings": ("tied", RSLORA, PATTERNS | {"modules_to_save": ["embed_tokens"]}),
    "embeddings that stay tied": (
        "tied", RSLORA, PATTERNS | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "biases": ("biased", PATTERNS | {"bias": "all"}, RSLORA | {"bias": "lora_only"}),
    "lora_bias": ("biased", PATTERNS | {"lora_bias": True}, RSLORA | {"lora_bias": True}),
    "lora_bias of one": ("biased", PATTERNS | {"lora_bias": True}, RSLORA),
    "lora_bias alone": ("untied", PATTERNS | {"lora_bias": True}, RSLORA | {"lora_bias": True}),
    "tokens": ("untied", PATTERNS | {"trainable_token_indices": [3, 5]}, RSLORA | {"trainable_token_indices": [5, 70]}),
    "tokens of both": (
        "untied", RSLORA, PATTERNS | {"trainable_token_indices": {"embed_tokens": [3], "lm_head": [1, 0]}},
    ),
    "tied tokens": ("tied", PATTERNS | {"trainable_token_indices": [3, 5]}, RSLORA),
    "DoRA": ("untied", PATTERNS | {"use_dora": True}, RSLORA | {"use_dora": True}),
    "DoRA of one": ("untied", PATTERNS | {"use_dora": True}, RSLORA),
    "DoRA of embeddings": ("untied", EMBEDDING | {"use_dora": True}, RSLORA),
    "fused experts": ("gpt_oss", EXPERTS, OTHER_EXPERTS),
    "half of the experts, which PEFT turns": (
        "llama4", EXPERTS | {"target_parameters": ["experts.down_proj"]}, OTHER_EXPERTS,
    ),
    "experts that transformers fuses, and a router": (
        "qwen3_moe", EXPERTS | {"target_parameters": [*EXPERTS["target_parameters"], "gate.weight"]}, OTHER_EXPERTS,
    ),
    "experts that PEFT fuses too": ("mixtral", RSLORA | {"target_modules": ["w1", "w2", "w3"]}, OTHER_EXPERTS),
    "other halves": (
        "gpt_oss", EXPERTS | {"target_parameters": ["gate_up_proj"]},
        EXPERTS | {"target_parameters": ["down_proj"]},
    ),
    "mixed": ("untied", PATTERNS | {"modules_to_save": ["v_proj"], "target_modules": ["q_proj"]}, PATTERNS),
}  # fmt: skip
"""{kind: (base, settings of a, settings of b)}"""
FULL = {"DoRA", "DoRA of one", "DoRA of embeddings", "mixed", "other halves"}
"""Kinds whose soups are full models whatever `merge.adapters` is."""
KEPT_ONLY = {"a tied head", "tied embeddings", "embeddings that stay tied", "lora_bias alone"}
"""Kinds that no full model of the base's architecture can hold."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{kind: a small model}, for every kind of adapter."""
    folder = tmp_path_factory.mktemp("bases")
    save_base(folder / "untied")
    save_base(folder / "tied", tie=True)
    config = AutoConfig.from_pretrained(folder / "untied", attention_bias=True)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.15)
    model.save_pretrained(folder / "biased")
    for kind in ("gpt_oss", "llama4", "mixtral", "qwen3_moe"):
        save_base(folder / kind, kind)
    return {path.name: path for path in folder.iterdir()}


def train(folder: Path, base: Path, seed: int, settings: Settings) -> Path:
    """An adapter whose parameters PEFT started and a random step moved."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(load_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    model.save_pretrained(folder)
    return folder


def trained(folder: Path, bases: dict[str, Path], kind: str) -> tuple[Path, dict[str, Path]]:
    base, *settings = KINDS[kind]
    folders = {}
    for seed, name in enumerate(WEIGHTS):
        folders[name] = train(folder / name, bases[base], seed, settings[seed])
    return bases[base], folders


def pool_of(folders: dict[str, Path], **merge: Any) -> AdapterPool:
    pool = LocalMerge(**merge).open(folders)
    assert isinstance(pool, AdapterPool)
    return pool


def base_weights(base: Path) -> Tensors:
    """The base in float64; a tied head has its own copy."""
    return state(load_base(base))


def by_formula(base: Path, adapter: Path) -> Tensors:
    """The weights of base and adapter in float64, by the formula of each kind."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = base_weights(base)
    before = dict(weights)
    tied = "lm_head.weight" not in load_file(base / "model.safetensors")
    tensors = {
        name.removeprefix(PREFIX): tensor.double()
        for name, tensor in load_file(adapter / "adapter_model.safetensors").items()
    }
    for name, a in tensors.items():
        module, _, side = name.rpartition(".lora_")
        if side not in ("A.weight", "embedding_A"):
            continue
        b = tensors[name.replace("_A", "_B")]
        if config["target_parameters"] and re.search(r"\.experts|\.mlp\.gate$", module):
            parameter, delta = of_parameter(module, a, b, base, config)
            weights[parameter] = before[parameter] + delta
            continue
        patterns = config["alpha_pattern"].items()
        alpha = next((v for key, v in patterns if module.endswith(key)), config["lora_alpha"])
        scaling = alpha / (len(a) ** 0.5 if config["use_rslora"] else len(a))
        old = before[f"{module}.weight"]
        new = (old if side == "A.weight" else old.T) + scaling * b @ a
        magnitude = tensors.get(f"{module}.lora_magnitude_vector")
        if magnitude is not None:
            new = magnitude[:, None] * new / new.norm(dim=1, keepdim=True)
        weights[f"{module}.weight"] = new if side == "A.weight" else new.T
        if f"{module}.lora_B.bias" in tensors:
            bias = before.get(f"{module}.bias", torch.zeros(len(b)).double())
            weights[f"{module}.bias"] = bias + scaling * tensors[f"{module}.lora_B.bias"]
    for name, tensor in tensors.items():
        module = name.partition(".token_adapter")[0]
        if module != name:
            tokens = config["trainable_token_indices"]
            rows = tokens if isinstance(tokens, list) else tokens[module.rpartition(".")[2]]
            for each in (module, "lm_head") if tied else (module,):
                weights[f"{each}.weight"] = weights[f"{each}.weight"].clone()
                weights[f"{each}.weight"][rows] = tensor
        elif "lora_" not in name and not name.endswith("base_layer.weight"):
            weights[name.replace(".base_layer.", ".")] = tensor
    return weights


def of_parameter(
    module: str, a: torch.Tensor, b: torch.Tensor, base: Path, config: Settings
) -> tuple[str, torch.Tensor]:
    """(parameter, what is added to it), expert by expert and rank by rank; PEFT wraps gate_up_proj first."""
    owner = module.removesuffix(".base_layer")
    experts = 3 if owner.endswith("experts") else 1
    lasts = [
        target.rpartition(".")[2] for target in sorted(config["target_parameters"], reverse=True)
    ]
    if experts == 1:
        lasts = ["weight"]
    elif module != owner:
        lasts = ["gate_up_proj"]
    elif "down_proj" in lasts:
        lasts = ["down_proj"]
    (last,) = lasts
    rank = len(a) // experts
    alpha = config["lora_alpha"]
    for key, value in config["alpha_pattern"].items():
        alpha = value if key.endswith(last) else alpha
    delta = torch.zeros(experts, len(b), a.shape[1]).double()
    for expert in range(experts):
        for number in range(rank):
            delta[expert] += b[:, number * experts + expert, None] * a[expert * rank + number]
    delta *= alpha / (rank**0.5 if config["use_rslora"] else rank)
    if json.loads((base / "config.json").read_text())["model_type"] == "gpt_oss":
        delta = delta.mT
    return f"{owner}.{last}", delta if experts > 1 else delta[0]


def expected(base: Path, folders: dict[str, Path]) -> Tensors:
    """base + sum_i w_i (adapter_i - base) in float64."""
    before = base_weights(base)
    soup = dict(before)
    for name, weight in WEIGHTS.items():
        for key, value in by_formula(base, folders[name]).items():
            old = before.get(key, torch.zeros_like(value))
            soup[key] = soup.get(key, torch.zeros_like(value)) + weight * (value - old)
    return soup


def state(model: Any) -> Tensors:
    return {name: tensor.detach().double() for name, tensor in model.state_dict().items()}


def check(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        close(found[name], tensor, 2**-20)


def logits_of(base: Path, weights: Tensors) -> torch.Tensor:
    """Logits of the base's model with these weights, which may have biases that it lacks."""
    model = load_base(base).double()
    # Products of groups of tokens are in fp32 at most.
    model.set_experts_implementation("eager")
    for name, tensor in weights.items():
        module, _, last = name.rpartition(".")
        model.get_submodule(module).register_parameter(last, torch.nn.Parameter(tensor))
    return forward(model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_soup_is_the_formula_for_peft_and_in_memory(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base, folders = trained(tmp_path, bases, kind)
    wanted = expected(base, folders)
    pool = pool_of(folders)
    recipe = pool.recipe(WEIGHTS)
    soup = pool.write(recipe, tmp_path / "soup")
    live = load_base(base)
    pool.live(live).load_soup(recipe)
    check(state(live), wanted)
    assert recipe.settings["adapters"] == ("merge" if kind in FULL else "keep")
    assert any("merge.adapters=merge" in note for note in pool.warnings) == (kind in FULL)
    name = "model" if kind in FULL else "adapter_model"
    size = (soup / f"{name}.safetensors").stat().st_size
    # Planned are the values, without the header.
    assert 0 < size - (pool.soup_bytes - pool.base.side_bytes) < 8000
    if kind in FULL:
        check(state(load_base(soup)), wanted)
        return
    loaded = peft.PeftModel.from_pretrained(load_base(base), soup).eval()
    close(forward(loaded), logits_of(base, wanted), 2**-17)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_soup_is_the_formula_on_disk_and_in_memory(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base, folders = trained(tmp_path, bases, kind)
    if kind in KEPT_ONLY:
        with pytest.raises(UserError, match=r"merge\.adapters=keep"):
            pool_of(folders, adapters="merge")
        return
    pool = pool_of(folders, adapters="merge")
    recipe = pool.recipe(WEIGHTS)
    full = load_base(pool.write(recipe, tmp_path / "soup"))
    live = load_base(base)
    loading = pool.live(live)
    loading.load_soup(pool.recipe({"a": 1.0}))
    loading.load_soup(recipe)
    check(state(full), expected(base, folders))
    for name, tensor in full.state_dict().items():
        assert torch.equal(tensor, live.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_and_merges_by_the_same_formula(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base, *every = KINDS[kind]
    for seed, settings in enumerate(every):
        folder = train(tmp_path / str(seed), bases[base], seed, settings)
        wanted = logits_of(bases[base], by_formula(bases[base], folder))
        loaded = peft.PeftModel.from_pretrained(load_base(bases[base]), folder).eval()
        close(forward(loaded), wanted, 2**-17)
        # PEFT refuses to merge a bias into a layer without one.
        if kind != "lora_bias alone":
            close(forward(loaded.merge_and_unload()), wanted, 2**-17)


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, EMBEDDING], ids=str)
def test_peft_merges_other_weights_than_it_loads_if_they_are_tied(
    settings: Settings, bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT 0.21.2; docs/merging.md says it, and is to be changed when this fails."""
    folder = train(tmp_path / "a", bases["tied"], seed=0, settings={"r": 2} | settings)
    loaded = peft.PeftModel.from_pretrained(load_base(bases["tied"]), folder).eval()
    before = forward(loaded)
    after = forward(loaded.merge_and_unload())
    assert (before - after).abs().max() > 0.1 * before.abs().max()


@pytest.mark.parametrize("peft_is_right", [True, False])
@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"alpha_pattern": {"w2": 4}}], ids=str)
def test_adapters_of_single_experts_are_merged_by_the_formula(
    settings: Settings, peft_is_right: bool, tmp_path: Path
) -> None:
    """PEFT 0.21.2 is wrong with these settings; docs/merging.md says it, and is to be changed when this fails."""
    base = save_base(tmp_path / "base", "mixtral")
    own = {} if peft_is_right else settings
    wanted = {k: tensor.double() for k, tensor in load_file(base / "model.safetensors").items()}
    tensors = Tensors()
    torch.manual_seed(1)
    for name in [name for name in wanted if ".experts." in name]:
        module = name.removesuffix(".weight")
        rows, columns = wanted[name].shape
        a = torch.randn(2, columns) / 4
        b = torch.randn(rows, 2) / 4
        tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        alpha = own.get("alpha_pattern", {}).get(module[-2:], 8)
        scaling = alpha / (2**0.5 if own.get("use_rslora") else 2)
        wanted[name] = wanted[name] + scaling * b.double() @ a.double()
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a/adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 8,
        "bias": "none",
    }
    config |= {"base_model_name_or_path": str(base), "target_modules": ["w1", "w2", "w3"], **own}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    pool = pool_of({"a": tmp_path / "a"}, adapters="merge")
    full = pool.write(pool.recipe({"a": 1.0}), tmp_path / "full")
    for name, tensor in load_file(full / "model.safetensors").items():
        close(tensor, wanted[name], 2**-20)
    right = forward(load_base(full))
    loaded = forward(peft.PeftModel.from_pretrained(load_base(base), tmp_path / "a").eval())
    error = (loaded - right).abs().max() / right.abs().max()
    assert error < 1e-5 if peft_is_right else error > 0.1


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_souped_once_it_is_converted(
    start: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["untied"]
    settings = PATTERNS | {"init_lora_weights": start}
    model = peft.get_peft_model(load_base(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape) / 8)
    model.eval()
    wanted = forward(model)
    model.save_pretrained(tmp_path / "raw")
    model.save_pretrained(
        tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    with pytest.raises(UserError, match=f"{start}.*path_initial_model_for_weight_conversion"):
        pool_of({"raw": tmp_path / "raw"})
    pool = pool_of({"a": tmp_path / "a"}, base_model=str(base))
    live = load_base(base)
    pool.live(live).load_soup(pool.recipe({"a": 1.0}))
    close(forward(live), wanted, 2**-14)


def test_modules_that_peft_drops_when_it_converts_a_start_are_missed(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT 0.21.2; docs/merging.md says it, and is to be changed when this fails."""
    settings = RSLORA | {"init_lora_weights": "pissa", "modules_to_save": ["lm_head"]}
    base = load_base(bases["untied"])
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    start = str(tmp_path / "start")
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=start)
    with pytest.raises(UserError, match="lm_head"):
        pool_of({"a": tmp_path / "a"}, base_model=str(bases["untied"]))


HEAD = f"{PREFIX}lm_head.weight"


def without(tensors: Tensors) -> None:
    del tensors[HEAD]


def cut(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[HEAD][:70].contiguous()


def as_integers(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[HEAD].to(torch.int8)


def as_bfloat16(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[HEAD].to(torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "needle"),
    [(without, "lm_head"), (cut, r"\[70, 24\]"), (as_integers, "I8"), (as_bfloat16, None)],
)
def test_a_saved_module_is_whole_or_the_adapter_is_refused(
    change: Callable[[Tensors], None], needle: str | None, bases: dict[str, Path], tmp_path: Path
) -> None:
    base, folders = trained(tmp_path, bases, "saved modules")
    path = folders["a"] / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    if needle is not None:
        with pytest.raises(UserError, match=needle) as caught:
            pool_of(folders)
        assert len(str(caught.value).splitlines()) <= 2
        return
    live = load_base(base)
    pool = pool_of(folders)
    pool.live(live).load_soup(pool.recipe(WEIGHTS))
    check(state(live), expected(base, folders))


def test_a_saved_module_needs_all_of_its_tensors(bases: dict[str, Path], tmp_path: Path) -> None:
    settings = PATTERNS | {"modules_to_save": ["k_proj"]}
    folder = train(tmp_path / "a", bases["biased"], seed=0, settings=settings)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"{PREFIX}model.layers.1.self_attn.k_proj.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.k_proj\.bias is missing"):
        pool_of({"a": folder})


@pytest.mark.parametrize("rows", [[3], [3, 3], [3, 71], [3, -1], [3, "5"]], ids=str)
def test_rows_that_do_not_fit_are_refused(
    rows: list[Any], bases: dict[str, Path], tmp_path: Path
) -> None:
    _, folders = trained(tmp_path, bases, "tokens")
    change_config(folders["a"], trainable_token_indices=rows)
    with pytest.raises(UserError, match="trainable_token_indices") as caught:
        pool_of(folders)
    # A row too many is named.
    assert ("no row 71 in" in str(caught.value)) == (71 in rows)


def test_a_tensor_without_its_setting_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    _, folders = trained(tmp_path, bases, "DoRA of one")
    change_config(folders["a"], use_dora=False)
    with pytest.raises(UserError, match="lora_magnitude_vector"):
        pool_of(folders)


def test_what_the_settings_make_of_the_tensors_is_in_the_fingerprint(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    _, folders = trained(tmp_path, bases, "tokens")
    before = pool_of(folders).fingerprints
    change_config(folders["a"], trainable_token_indices=[5, 3])
    after = pool_of(folders).fingerprints
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_a_rank_limit_on_a_pool_that_is_merged_is_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    _, folders = trained(tmp_path, bases, "DoRA")
    with pytest.raises(UserError, match=r"merge\.rank"):
        pool_of(folders, rank=2)


@pytest.mark.parametrize(
    ("base", "kept", "full"),
    [
        ("untied", {"lora_bias": True}, {"use_dora": True}),
        ("untied", {"lora_bias": True}, None),
        ("tied", {"modules_to_save": ["lm_head"]}, {"use_dora": True}),
    ],
)
def test_a_pool_that_neither_an_adapter_nor_a_full_model_can_hold_says_what_forbids_each(
    base: str, kept: Settings, full: Settings | None, bases: dict[str, Path], tmp_path: Path
) -> None:
    folders = {
        "a": train(tmp_path / "a", bases[base], seed=0, settings=RSLORA | kept),
        "b": bases[base],
    }
    if full is not None:
        folders["b"] = train(tmp_path / "b", bases[base], seed=1, settings=RSLORA | full)
    with pytest.raises(UserError, match=r"DoRA|full models") as caught:
        pool_of(folders)
    # That is what the pool has already.
    assert "merge.adapters=keep" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_of_an_adapter_without_their_config_are_told(tmp_path: Path, souping: Cli) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({HEAD: torch.zeros(2, 2)}, tmp_path / name / "adapter_model.safetensors")
    words = ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]", "out=soup"]
    souping("merge", *words).refused("adapter_config.json")
    assert not (tmp_path / "soup").exists()


@pytest.mark.parametrize(
    "kind", ["saved modules", "lora_bias", "tokens", "biases", "fused experts"]
)
def test_what_vllm_cannot_serve_is_named_in_one_line(
    kind: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    _, folders = trained(tmp_path, bases, kind)
    shape = pool_of(folders).adapter_shape
    assert shape is not None
    with pytest.raises(UserError, match=r"merge\.adapters=merge") as caught:
        VllmEngine().check_adapters(shape)
    assert len(str(caught.value).splitlines()) == 1
    assert pool_of(folders, adapters="merge").adapter_shape is None


def test_a_soup_with_saved_modules_is_rebuilt_bit_for_bit(
    bases: dict[str, Path], souping: Cli, tmp_path: Path
) -> None:
    trained(tmp_path, bases, "saved modules")
    words = ["pool.candidates=[a,b]", "optimiser.weights=[0.5,0.5]"]
    souping("merge", *words, "out=soup").ok()
    souping("rebuild", "soup/recipe.json", "out=again").ok()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "soup" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
