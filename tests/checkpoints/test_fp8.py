"""FP8 checkpoints that compressed-tensors wrote (`python -m tests.support.fp8 OUT`), and DeepSeek's layout of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.header import TORCH_DTYPES
from souping.checkpoints.reader import WeightReader
from souping.core.types import UserError
from souping.merge.accelerate import AccelerateMerge
from souping.merge.local import LocalMerge
from tests.conftest import ROOT, Cli
from tests.support.checkpoints import expected, load, same_bits
from tests.support.evaluators import unpacked
from tests.support.fp8 import DATA, LAYOUTS, digest

UP = "model.layers.0.mlp.up_proj.weight"


def rewrite(
    folder: Path, change: dict[str, torch.Tensor | None], config: dict[str, Any] | None = None
) -> Path:
    """Other tensors in a folder (None: taken out), and other settings of its quantisation."""
    tensors: dict[str, Any] = {**load(folder), **change}
    kept = {name: value.contiguous() for name, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**table, "quantization_config": config}))
    return folder


DEEPSEEK = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def deepseek(source: str, out: Path, **config: Any) -> Path:
    """A model in DeepSeek's layout: other names, fp32 scales, and each scale in another file than its weight."""
    folder = Path(shutil.copytree(DATA / source, out))
    tensors = {
        name.replace("weight_scale", "weight_scale_inv").replace(
            "input_scale", "activation_scale"
        ): value
        for name, value in load(folder).items()
    }
    scales = {
        n: v.float().reshape(()) if v.numel() == 1 else v.float()
        for n, v in tensors.items()
        if "scale" in n
    }
    (folder / "model.safetensors").unlink()
    places = dict[str, str]()
    for number, part in enumerate(({n: v for n, v in tensors.items() if n not in scales}, scales)):
        file = f"model-0000{number + 1}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    table = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**table, "quantization_config": {**DEEPSEEK, **config}})
    )
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors as a merge reads them, in pieces that begin and end anywhere."""
    checkpoint = Checkpoint.open(folder)
    found = {}
    with WeightReader(checkpoint) as reader:
        for name, tensor in checkpoint.tensors.items():
            raw = np.empty(tensor.nbytes, np.uint8)
            for start in range(0, tensor.nbytes, 4 * 331):
                reader.read(
                    checkpoint.file_number(tensor),
                    raw[start : start + 4 * 331],
                    tensor.offset + start,
                )
            kind = getattr(torch, TORCH_DTYPES[tensor.dtype])
            found[name] = torch.from_numpy(raw).view(kind).float().reshape(tensor.shape)
    return found


@pytest.fixture
def pool(tmp_path: Path) -> dict[str, Path]:
    """Blocks, and DeepSeek's scale for each tensor."""
    return {
        "a": DATA / "block-0",
        "b": deepseek("tensor-1", tmp_path / "b", weight_block_size=None),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_what_compressed_tensors_makes_of_them(tmp_path: Path, layout: str) -> None:
    wanted = json.loads((DATA / "expected.json").read_text())[layout]
    assert {name: digest(value) for name, value in read(DATA / layout).items()} == wanted
    size = None if layout.startswith("tensor") else [128, 128]
    renamed = deepseek(layout, tmp_path / "deepseek", weight_block_size=size)
    assert {name: digest(value) for name, value in read(renamed).items()} == wanted


@pytest.mark.parametrize("llvm", [True, False])
def test_every_number_of_fp8_is_what_torch_reads(
    llvm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not llvm:
        monkeypatch.setattr("souping.checkpoints.quantised.compiled", lambda _: None)
    folder = Path(shutil.copytree(DATA / "block-0", tmp_path / "a"))
    numbers = torch.arange(256, dtype=torch.uint8).repeat(125).reshape(200, 160)
    scales = torch.tensor([[1.5, 3.0], [2.0**-130, 0.7]])
    rewrite(folder, {UP: numbers.view(torch.float8_e4m3fn), f"{UP}_scale": scales})
    wanted = (
        numbers.view(torch.float8_e4m3fn).float()
        * torch.kron(scales, torch.ones(128, 128))[:200, :160]
    )
    torch.testing.assert_close(read(folder)[UP], wanted, rtol=0, atol=0, equal_nan=True)


def test_a_soup_is_the_fp32_average_rounded_once_in_a_float_model(
    tmp_path: Path, pool: dict[str, Path]
) -> None:
    opened = LocalMerge().open(pool)
    recipe = opened.recipe({"a": 0.3, "b": 0.7})
    made = opened.write(recipe, tmp_path / "soup")
    parts = [read(folder) for folder in pool.values()]
    tensors = load(made)
    assert set(tensors) == set(parts[0])
    for name, value in tensors.items():
        assert same_bits(
            value, expected([part[name] for part in parts], (0.3, 0.7), torch.bfloat16)
        ), name
    assert (recipe.dtype, opened.warnings) == ("bfloat16", [])
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    assert (
        opened.soup_bytes >= sum(path.stat().st_size for path in made.glob("*.safetensors")) - 4096
    )


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accelerate_and_a_live_module_give_the_same_bytes(
    tmp_path: Path, pool: dict[str, Path], ranks: int
) -> None:
    from souping.core.protocols import ModuleSettings
    from souping.evaluate.engines.transformers import load_module

    opened = LocalMerge().open(pool)
    recipe = opened.recipe({"a": 0.3, "b": 0.7})
    first = opened.write(recipe, tmp_path / "first")
    again = AccelerateMerge(num_processes=ranks).open(pool).write(recipe, tmp_path / "second")
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    module = load_module(opened.architecture_folder, ModuleSettings(device="cpu", dtype="bfloat16"))
    opened.live(module).load_soup(recipe)
    assert all(same_bits(module.state_dict()[name], value) for name, value in load(first).items())
    stream = opened.stream(recipe)
    assert stream is not None
    streamed = unpacked(stream)
    assert all(same_bits(streamed[name], value) for name, value in load(first).items())


def test_experts_one_by_one_are_averaged_and_refused_beside_fused_ones(tmp_path: Path) -> None:
    pool = {
        name: Path(shutil.copytree(DATA / f"block-{n}", tmp_path / name))
        for n, name in enumerate("ab")
    }
    parts = {
        UP.replace("up_proj", f"experts.{n}.up_proj") + end: UP + end
        for n in "01"
        for end in ("", "_scale")
    }
    for folder in pool.values():
        rewrite(folder, {part: load(folder)[source].clone() for part, source in parts.items()})
    opened = LocalMerge().open(pool)
    made = load(opened.write(opened.recipe({"a": 0.3, "b": 0.7}), tmp_path / "soup"))
    assert all(same_bits(made[part], made[UP]) for part, source in parts.items() if source == UP)
    rewrite(
        pool["b"],
        dict.fromkeys(parts) | {"model.layers.0.mlp.experts.up_proj": torch.ones(2, 200, 16)},
    )
    with pytest.raises(UserError, match=r"same tensors: .*experts\.0\.up_proj"):
        LocalMerge().open(pool).write(opened.recipe({"a": 0.3, "b": 0.7}), tmp_path / "refused")


def test_fp8_and_bf16_members_of_one_model(tmp_path: Path) -> None:
    plain = Path(shutil.copytree(DATA / "block-1", tmp_path / "plain"))
    weights = {name: value.bfloat16() for name, value in read(plain).items()}
    dropped = dict.fromkeys(name for name in load(plain) if name not in weights)
    rewrite(plain, {**weights, **dropped}, {})
    for pool in ({"a": DATA / "block-0", "b": plain}, {"a": plain, "b": DATA / "block-0"}):
        opened = LocalMerge().open(pool)
        made = load(
            opened.write(
                opened.recipe({"a": 0.25, "b": 0.75}),
                tmp_path / next(iter(pool.values())).name / "soup",
            )
        )
        parts = [read(folder) for folder in pool.values()]
        for name, value in made.items():
            assert same_bits(
                value, expected([part[name] for part in parts], (0.25, 0.75), torch.bfloat16)
            )
    alone = load(opened.write(opened.recipe({"b": 1.0}), tmp_path / "alone"))
    assert all(
        # Adding 0 turns -0 into 0, as a sum does.
        same_bits(value, read(DATA / "block-0")[name].bfloat16() + 0)
        for name, value in alone.items()
    )


def test_scales_of_activations_and_caches_vanish_and_fp32_tensors_stay(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "block-0", tmp_path / "a"))
    one = torch.ones(1)
    bias = torch.tensor([1 + 2.0**-20])
    more: dict[str, torch.Tensor | None] = {
        "model.layers.0.self_attn.k_scale": one,
        "model.layers.0.mlp.gate.e_score_correction_bias": bias,
    }
    rewrite(folder, more)
    opened = LocalMerge().open({"a": folder, "b": folder})
    made = load(opened.write(opened.recipe({"a": 0.5, "b": 0.5}), tmp_path / "soup"))
    assert not any(name.endswith("_scale") for name in made)
    assert made["model.layers.0.mlp.gate.e_score_correction_bias"].tolist() == bias.tolist()
    assert made[UP].dtype == torch.bfloat16


def test_where_a_scale_is_stored_changes_no_fingerprint(
    tmp_path: Path, pool: dict[str, Path]
) -> None:
    whole = Path(shutil.copytree(pool["b"], tmp_path / "whole"))
    tensors = load(whole)
    for path in whole.glob("model*"):
        path.unlink()
    save_file(tensors, whole / "model.safetensors", {"format": "pt"})
    assert fingerprint(whole) == fingerprint(pool["b"])
    rewrite(whole, {f"{UP}_scale_inv": torch.tensor(0.5)})
    assert fingerprint(whole) != fingerprint(pool["b"])


def test_a_merge_by_the_command_line_and_its_rebuild(
    souping: Cli, tmp_path: Path, pool: dict[str, Path]
) -> None:
    words = [f"pool.candidates=[{pool['a']},{pool['b']}]", "optimiser.weights=[0.3,0.7]"]
    done = souping("+experiment=merge", *words, "out=soup")
    assert done.code == 0, done.err
    recipe = json.loads((tmp_path / "soup" / "recipe.json").read_text())
    assert recipe["fingerprints"] == [fingerprint(folder) for folder in pool.values()]
    again = souping("rebuild", "soup/recipe.json", "out=again")
    assert again.code == 0, again.err
    soup, copy = (tmp_path / name / "model.safetensors" for name in ("soup", "again"))
    assert soup.read_bytes() == copy.read_bytes()


@pytest.mark.slow
def test_a_whole_run_on_fp8_candidates(souping: Cli, tmp_path: Path) -> None:
    pool = []
    for name in ("tuned_python", "tuned_java", "tuned_parallel"):
        folder = Path(shutil.copytree(ROOT / "souping" / "demo" / "models" / name, tmp_path / name))
        projections = {
            name: value.float() for name, value in load(folder).items() if "_proj" in name
        }
        scales = {name: value.abs().max() / 448 for name, value in projections.items()}
        packed = {
            name: (value / scales[name]).to(torch.float8_e4m3fn)
            for name, value in projections.items()
        }
        named = {f"{name}_scale_inv": scale for name, scale in scales.items()}
        pool.append(rewrite(folder, {**packed, **named}, {"quant_method": "fp8", "fmt": "e4m3"}))
    words = [
        "+experiment=bfcl",
        "pool=folders",
        f"pool.candidates=[{','.join(map(str, pool))}]",
        "dry_run=1",
    ]
    done = souping(*words, "optimiser=uniform", "out=soup")
    assert done.code == 0, done.err
    assert {value.dtype for value in load(tmp_path / "soup").values()} <= {
        torch.bfloat16,
        torch.float32,
    }


REFUSED: dict[str, dict[str, Any]] = {
    "ue8m0": {**DEEPSEEK, "scale_fmt": "ue8m0"},
    "fp4": {**DEEPSEEK, "expert_dtype": "fp4"},
    "e5m2": {**DEEPSEEK, "fmt": "e5m2"},
    "two whole numbers": {**DEEPSEEK, "weight_block_size": [128, 0]},
    "compressed-tensors, pack-quantized": {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"type": "int", "num_bits": 4, "strategy": "group"}}},
    },
    "scales by group": {
        "format": "float-quantized",
        "config_groups": {"g": {"weights": {"type": "float", "num_bits": 8, "strategy": "group"}}},
    },
    "sparse": {
        "format": "float-quantized", "sparsity_config": {"format": "sparse-24-bitmask"},
        "config_groups": {"g": {"weights": {"type": "float", "num_bits": 8, "strategy": "tensor"}}},
    },
    "of an unknown kind": {"bits": 4},
}  # fmt: skip
METHODS = [
    "mxfp4", "gptq", "awq", "auto-round", "bitsandbytes", "gguf", "fbgemm_fp8", "modelopt", "hqq", "aqlm", "quanto",
    "torchao", "bitnet", "vptq", "spqr", "eetq", "higgs", "quark", "fp_quant", "sinq", "metal",
]  # fmt: skip


@pytest.mark.parametrize("case", [*REFUSED, *METHODS])
def test_other_kinds_are_refused_by_name(tmp_path: Path, case: str) -> None:
    folder = Path(shutil.copytree(DATA / "block-0", tmp_path / "a"))
    rewrite(folder, {}, REFUSED.get(case, {"quant_method": case}))
    with pytest.raises(UserError, match=case):
        Checkpoint.open(folder)


def test_a_folder_of_gguf_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="gguf"):
        Checkpoint.open(tmp_path)


NAN = torch.tensor([[float("nan")], [1.0]])
DAMAGED: dict[str, tuple[dict[str, torch.Tensor | None], str]] = {
    "missing": ({f"{UP}_scale": None}, UP),
    "shape": ({f"{UP}_scale": torch.ones(3, 1)}, f"{UP}_scale"),
    "transposed": ({f"{UP}_scale": torch.ones(1, 2)}, f"{UP}_scale"),
    "dtype": ({f"{UP}_scale": torch.ones(2, 1, dtype=torch.uint8)}, f"{UP}_scale"),
    "of nothing": ({UP: torch.ones(200, 16)}, f"{UP}_scale"),
    "zero point": (
        {UP.replace("weight", "weight_zero_point"): torch.ones(2, 1)},
        "weight_zero_point",
    ),
    "packed": ({UP.replace("weight", "qweight"): torch.ones(2, 1, dtype=torch.int32)}, "qweight"),
    "e5m2": ({UP: torch.ones(200, 16).to(torch.float8_e5m2)}, rf"{UP}\w*"),
    "NaN": ({f"{UP}_scale": NAN}, f"{UP}_scale"),
    "infinite": ({f"{UP}_scale": NAN.nan_to_num(float("inf"))}, f"{UP}_scale"),
    "NaN weight": ({UP: torch.full((200, 16), float("nan")).to(torch.float8_e4m3fn)}, UP),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named_by_tensor_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    change, name = DAMAGED[case]
    folder = rewrite(Path(shutil.copytree(DATA / "block-0", tmp_path / "a")), change)
    with pytest.raises(UserError, match=rf"(tensor|fp8,) \S*{name}\b"):
        LocalMerge().open({"a": DATA / "block-1", "b": folder}).write(
            LocalMerge().open({"a": DATA / "block-1", "b": folder}).recipe({"a": 0.5, "b": 0.5}),
            tmp_path / "soup",
        )
    assert not (tmp_path / "soup").exists()
