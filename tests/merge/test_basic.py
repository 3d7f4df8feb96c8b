"""The engine on tiny Llamas: written soups equal the arithmetic, poured soups equal written ones, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from souping.checkpoints.checkpoint import Checkpoint, fingerprint
from souping.checkpoints.compatibility import preflight
from souping.core.types import UserError
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan

NAMES = ("a", "b", "c")
WEIGHTS = (0.2, 0.5, 0.3)


class Family:
    """Three saved models of one architecture."""

    def __init__(self, folder: Path) -> None:
        config = LlamaConfig(
            vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        self.folders = {name: folder / name for name in NAMES}
        for seed, path in enumerate(self.folders.values()):
            torch.manual_seed(seed)
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
        self.checkpoints = {name: Checkpoint.open(path) for name, path in self.folders.items()}
        self.fingerprints = {name: fingerprint(path) for name, path in self.folders.items()}

    def tensors(self) -> list[dict[str, torch.Tensor]]:
        return [load_file(path / "model.safetensors") for path in self.folders.values()]

    def plan(self, merge: LocalMerge, weights: tuple[float, ...] = WEIGHTS) -> MergePlan:
        recipe = merge.recipe(NAMES, weights, self.checkpoints, self.fingerprints)
        return merge.plan(recipe, self.folders)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("family"))


def test_written_soup_is_fp32_sum_in_order_rounded_once(family: Family, tmp_path: Path) -> None:
    out = LocalMerge().write(family.plan(LocalMerge()), tmp_path / "soup")
    soup = load_file(out / "model.safetensors")
    parts = family.tensors()
    for name, tensor in soup.items():
        total = torch.zeros(tensor.shape)
        for part, weight in zip(parts, WEIGHTS, strict=True):
            total.add_(part[name].float(), alpha=weight)
        assert torch.equal(tensor, total.to(torch.bfloat16)), name


def test_single_ingredient_keeps_its_bytes(family: Family, tmp_path: Path) -> None:
    out = LocalMerge().write(family.plan(LocalMerge(), (0.0, 1.0, 0.0)), tmp_path / "soup")
    soup, own = load_file(out / "model.safetensors"), family.tensors()[1]
    assert all(torch.equal(soup[name].view(torch.int16), own[name].view(torch.int16)) for name in own)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "model_stock"])
@pytest.mark.parametrize("resident", ["none", "cpu"])
def test_poured_equals_written(family: Family, tmp_path: Path, method: str, resident: str) -> None:
    based = method in ("task_arithmetic", "model_stock")
    settings: dict[str, Any] = {"base": str(family.folders["a"])} if based else {}
    merge = LocalMerge(method=method, resident=resident, **settings)
    recipe = merge.recipe(("b", "c"), (0.4, 0.6), family.checkpoints, family.fingerprints)
    out = merge.write(merge.plan(recipe, family.folders), tmp_path / "soup")
    written = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    module = AutoModelForCausalLM.from_pretrained(family.folders["a"], dtype=torch.float32)
    merge.live(family.checkpoints, module).pour(recipe)
    assert all(torch.equal(tensor, written[name]) for name, tensor in module.state_dict().items())


def test_plan_round_trips_through_json(family: Family, tmp_path: Path) -> None:
    plan = family.plan(LocalMerge(max_shard_size="20KB"))
    assert len(plan.shards) > 1
    assert MergePlan.load(plan.save(tmp_path / "plan.json")) == plan


def test_preflight_of_siblings_has_nothing_to_say(family: Family) -> None:
    assert preflight(family.checkpoints) == []


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"merge\.method=liner is not one of .*did you mean linear"):
        LocalMerge(method="liner")
