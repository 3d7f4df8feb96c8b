"""Trainers' tensors by Hugging Face's names: bit-equal to each tool's own export, or refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from souping.checkpoints import layouts, trainers
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import Like
from souping.checkpoints.names import Mapped, map_names
from souping.checkpoints.trainers import TRAINERS
from souping.checkpoints.views import Part, StoredTensor
from souping.core.types import UserError
from tests.support.layouts import (
    EMBEDDED,
    EXPERTS,
    LAYER,
    LAYOUTS,
    MEGATRON,
    MOE,
    PLAIN,
    SIZES,
    SPLIT,
    TITAN,
    Array,
    halves,
)
from tests.support.trainers import TOOLS, opened_case, step_of, tensors_of, unpacked

LOOSE = {"torchtitan_qwen3_moe": 0.05}
"""Tools whose logits are less exact than float32: torchtitan multiplies experts in bfloat16."""


EMAS = [tool for tool in TOOLS if "_ema_" in tool]
"""Files of torchtitan with an average in the optimiser state."""


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real tools wrote, unpacked."""
    return unpacked(tmp_path_factory.mktemp("trainers"), *TOOLS)


def test_every_file_of_rules_is_of_a_trainer() -> None:
    files = {*trainers.RULES.glob("*.json")} - {trainers.RULES / "common.json"}
    assert {trainer.rules for trainer in TRAINERS} == files


@pytest.mark.parametrize("tool", TOOLS)
def test_tensors_are_those_of_the_tools_own_export(written: Path, tool: str) -> None:
    table = {
        name: [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in tensors_of(opened_case(written / tool)).items()
    }
    assert table == json.loads((written / tool / "export.json").read_text())


@pytest.mark.parametrize("tool", EMAS)
def test_the_average_is_torchtitans_own_export_of_it(written: Path, tool: str) -> None:
    step = step_of(written / tool)
    averaged = Path(f"{step}#ema")
    table = {
        name: [list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in tensors_of(Checkpoint.open(averaged, like=Like(written / tool))).items()
    }
    assert table == json.loads((written / tool / "ema.json").read_text())
    assert table != json.loads((written / tool / "export.json").read_text())
    cache: dict[str, str] = {}
    prints = [fingerprint(path, cache, like=Like(written / tool)) for path in (step, averaged)] * 2
    assert len(set(prints)) == 2


@pytest.mark.parametrize("tool", ["torchtitan_llama", "verl_llama"])
def test_a_checkpoint_without_an_average_is_refused_as_one(written: Path, tool: str) -> None:
    path = Path(f"{step_of(written / tool)}#ema")
    with pytest.raises(UserError, match="holds no average in its optimiser state"):
        Checkpoint.open(path, allow_pickle=True, like=Like(written / tool))


@pytest.mark.slow
@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in EMAS])
def test_logits_in_transformers_are_the_tools_own(written: Path, tmp_path: Path, tool: str) -> None:
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    save_file(
        tensors_of(opened_case(written / tool)), tmp_path / "model.safetensors", {"format": "pt"}
    )
    (tmp_path / "config.json").write_text((written / tool / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    known = load_file(written / tool / "logits.safetensors")
    with torch.no_grad():
        logits = model(known["tokens"]).logits
    assert torch.allclose(logits, known["logits"], atol=LOOSE.get(tool, 1e-5), rtol=0)


# Layouts that no tool wrote here, against the same moves in numpy


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def headers(arrays: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: ("F32", array.shape) for name, array in arrays.items()}


def taken(tensor: Mapped, arrays: Mapping[str, Array]) -> Array:
    """A mapped tensor, read from the arrays that stand for the files."""

    def fetch(file: str, into: Any, offset: int) -> None:
        into[:] = arrays[file].reshape(-1).view(np.uint8)[offset : offset + len(into)]

    stored = {
        name: StoredTensor("F32", a.shape, [Part(name, 0, (0,) * a.ndim, a.shape)])
        for name, a in arrays.items()
    }
    out = np.empty(tensor.view.shape, np.float32)
    tensor.view.read(0, out.reshape(-1).view(np.uint8), stored, fetch)
    return out


@pytest.mark.parametrize("case", LAYOUTS)
def test_elements_are_where_the_model_has_them(case: str) -> None:
    config, shapes, expected = LAYOUTS[case]
    arrays = drawn(shapes)
    mapped = map_names(headers(arrays), {**SIZES, **config})
    for name, array in expected(arrays).items():
        assert np.array_equal(taken(mapped[name], arrays), array), name


WRAPS: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name,
    "Accelerate": lambda name: f"model.{name}",
    "apps": lambda name: f"app.model.{name}",
    "wrappers": lambda name: f"module._orig_mod.{name}".replace(
        "layers.0", "layers.0._fsdp_wrapped_module"
    ),
}


@pytest.mark.parametrize("like", [None, PLAIN])
@pytest.mark.parametrize("wrap", WRAPS)
def test_hugging_face_names_below_any_prefix(
    wrap: str, like: dict[str, tuple[int, ...]] | None
) -> None:
    native = {WRAPS[wrap](name): ("F32", shape) for name, shape in PLAIN.items()}
    extra = {
        "app.optim.state.model.norm.weight.exp_avg": ("F32", (8,)),
        "dataloader.x": ("F32", (1,)),
    }
    mapped = map_names(native | extra, SIZES, like)
    assert {name: tensor.view.shape for name, tensor in mapped.items()} == PLAIN


def test_a_tied_head_is_left_out_or_made_as_the_model_has_it() -> None:
    tied = {**SIZES, "tie_word_embeddings": True}
    headless = {k: v for k, v in PLAIN.items() if k != "lm_head.weight"}
    arrays = drawn(headless)
    assert set(map_names(headers(drawn(PLAIN)), tied)) == set(headless)
    assert set(map_names(headers(drawn(PLAIN)), tied, headless)) == set(headless)
    head = map_names(headers(arrays), tied, PLAIN)["lm_head.weight"]
    assert np.array_equal(taken(head, arrays), arrays["model.embed_tokens.weight"])


REFUSED: dict[
    str, tuple[dict[str, tuple[int, ...]], dict[str, Any], dict[str, tuple[int, ...]] | None, str]
] = {
    "no family": ({"encoder.x": (1,)}, {}, None, "encoder.x"),
    "no rule": (
        MEGATRON | {"decoder.layers.self_attention.gate": (1,)},
        {},
        None,
        "self_attention.gate",
    ),
    "no rule for the model": (
        {**TITAN, "layers.0.attention.wq.weight": (16, 8)},
        {"model_type": "x"},
        None,
        "wq",
    ),
    "another shape": (MEGATRON, {"intermediate_size": 5}, None, "linear_fc1.weight"),
    "another vocabulary": (MEGATRON, {"vocab_size": 9}, None, "word_embeddings"),
    "a stacked layer less": (MEGATRON, {"num_hidden_layers": 2}, None, "decoder.layers"),
    "a numbered layer less": (PLAIN, {"num_hidden_layers": 2}, None, "layer 1"),
    "a layer more": (PLAIN | {"model.layers.1.x": (1,)}, {}, None, "layer 1"),
    "a layer between, without a count in the config": (
        PLAIN | {"model.layers.2.x": (1,)},
        {"num_hidden_layers": None},
        None,
        "there is no layer 1, and the last is 2",
    ),
    "an expert less": (
        {**EMBEDDED, f"{SPLIT}0.down_proj.weight": (8, 6)},
        {"model_type": "llama4", **MOE},
        None,
        "expert",
    ),
    "two of one name": (
        MEGATRON | {"decoder.layers.0.mlp.linear_fc1.weight": (12, 8)},
        {},
        None,
        "gate_proj",
    ),
    "not in the model": (PLAIN | {"model.x": (1,)}, {}, PLAIN, "model.x"),
    "lacking": (PLAIN, {}, PLAIN | {"model.x": (1,)}, "model.x"),
    "another shape than the model": (
        PLAIN,
        {},
        PLAIN | {"model.norm.weight": (9,)},
        "model.norm.weight",
    ),
    "a billion tensors": (
        {"tok_embeddings.weight": (5, 8), "layers.0.moe.experts.w1": (10**9, 6, 8)},
        {"model_type": "deepseek_v3"},
        None,
        "layers.0.moe.experts.w1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tensor_that_does_not_fit_is_refused_by_name_in_one_line(case: str) -> None:
    shapes, config, like, word = REFUSED[case]
    with pytest.raises(UserError) as error:
        map_names(
            {name: ("F32", shape) for name, shape in shapes.items()}, {**SIZES, **config}, like
        )
    assert word in str(error.value)
    assert "\n" not in str(error.value)


# Rules of one's own


def written_rules(folder: Path, **table: Any) -> Path:
    path = folder / "rules.json"
    path.write_text(json.dumps(table))
    return path


def test_rules_of_a_user_name_drop_and_cut_the_tensors_of_a_checkpoint(tmp_path: Path) -> None:
    arrays = drawn({"net.wte": (5, 8), "net.h.0.swiglu": (8, 12), "net.rng": (3,)})
    rules = [
        ["wte", "model.embed_tokens.weight", "vocab hidden"],
        [
            "h.{layer}.swiglu",
            "model.layers.{layer}.mlp.up_proj.weight",
            "hidden (ffn part=2) -> (part[1] ffn) hidden",
        ],
        [
            "h.{layer}.swiglu",
            "model.layers.{layer}.mlp.gate_proj.weight",
            "hidden (ffn p=2) -> (p[0] ffn) hidden",
        ],
    ]
    path = written_rules(tmp_path, prefix="net.", drop=["net.rng"], rules=rules)
    mapped = map_names(headers(arrays), SIZES, rules=path)
    up = taken(mapped["model.layers.0.mlp.up_proj.weight"], arrays)
    assert np.array_equal(up, arrays["net.h.0.swiglu"].reshape(8, 6, 2)[:, :, 1].T)


def test_rules_of_a_user_extend_those_of_a_trainer(tmp_path: Path) -> None:
    extended = tmp_path / "extended.json"
    row = ["decoder.layers.[{layer}.]extra", "model.layers.{layer}.extra", "hidden"]
    extended.write_text(json.dumps({"extends": "megatron", "rules": [row]}))
    native = {
        name: ("F32", shape)
        for name, shape in (MEGATRON | {"decoder.layers.extra": (1, 8)}).items()
    }
    assert "model.layers.0.extra" in map_names(native, SIZES, rules=extended)


def test_the_example_of_the_page_is_a_file_of_rules(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    table = json.loads(page.partition("```yaml\n")[2].partition("```")[0])
    arrays = drawn(
        {"net.wte": (8, 8), "net.h.0.swiglu": (12, 8), "net.h.0.q": (16, 8), "net.rng": (1,)}
    )
    arrays |= drawn({"net.moe.w1": (1, 3, 8, 6)})
    mapped = map_names(headers(arrays), {**SIZES, **MOE}, rules=written_rules(tmp_path, **table))
    query = taken(mapped[f"{LAYER}self_attn.q_proj.weight"], arrays)
    assert np.array_equal(query, halves(arrays["net.h.0.q"], 4))
    assert np.array_equal(
        taken(mapped[f"{EXPERTS}1.gate_proj.weight"], arrays), arrays["net.moe.w1"][0, 1].T
    )


BAD: dict[str, dict[str, Any]] = {
    "a key": {"rule": []},
    "no list": {"rules": 3},
    "a row": {"rules": [["a", "b"]]},
    "an axis": {"rules": [["a", "b", "x!"]]},
    "an axis lost": {"rules": [["a", "b", "x y -> x"]]},
    "an axis twice": {"rules": [["a", "b", "x x"]]},
    "an index": {"rules": [["a", "b.{layer}", "x"]]},
    "a placeholder twice": {"rules": [["a.{n}.{n}", "b.{n}", "x"]]},
    "a prefix": {"prefix": 3},
    "another file": {"extends": "megatro"},
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_of_rules_that_makes_no_sense_is_refused(tmp_path: Path, case: str) -> None:
    path = written_rules(tmp_path, **BAD[case])
    with pytest.raises(UserError, match=r"rules\.json"):
        map_names({"a": ("F32", (1,))}, SIZES, rules=path)


@pytest.mark.parametrize("count", [6, 7, 25])
def test_optional_parts_of_a_rule_are_bounded(tmp_path: Path, count: int) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": [["[a]" * count + "wte", "x.weight", ""]]}))
    if count == 6:
        assert len(layouts.read_rules(path).rules) == 2**6
        return
    with pytest.raises(
        UserError, match=rf"rules\.json: .*wte has {count} optional parts.* at most 6"
    ):
        layouts.read_rules(path)
