"""Soups of checkpoints of trainers and of mixtures of experts: names, routers, plans, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.fingerprints import fingerprint
from souping.checkpoints.folder import Like
from souping.checkpoints.sharded import metadata
from souping.core.types import UserError
from souping.merge.local import LocalMerge
from souping.merge.stored import load_plan
from tests.conftest import Cli
from tests.support.checkpoints import expected, load, same_bits, save
from tests.support.trainers import opened_case, step_of, tensors_of, unpacked

TITAN = "torchtitan_llama"
MEGATRON = "megatron_llama_pp"
EMA = "torchtitan_ema_plain"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("trainers"), TITAN, MEGATRON, EMA)


def pool_of(written: Path) -> dict[str, Path]:
    return {name: step_of(written / name) for name in (TITAN, MEGATRON)}


def average(written: Path) -> dict[str, torch.Tensor]:
    tables = [tensors_of(opened_case(written / name)) for name in (TITAN, MEGATRON)]
    averages = {}
    for name in tables[0]:
        pair = [torch.from_numpy(table[name].copy()) for table in tables]
        averages[name] = expected(pair, (0.25, 0.75), torch.float32)
    return averages


def test_checkpoints_of_two_trainers_are_averaged_and_their_plan_read_again(
    written: Path, tmp_path: Path
) -> None:
    pool = LocalMerge().open(pool_of(written), like=Like(written / TITAN))
    recipe = pool.recipe({TITAN: 0.25, MEGATRON: 0.75})
    made = load(pool.write(recipe, tmp_path / "soup"))
    assert all(same_bits(made[name], tensor) for name, tensor in average(written).items())
    path = pool.plan(recipe).save(tmp_path / "plan.json")
    assert path is not None
    again = load(LocalMerge().write(load_plan(path), tmp_path / "again"))
    assert all(same_bits(again[name], tensor) for name, tensor in made.items())


def test_names_are_shown_and_nothing_is_merged(souping: Cli, written: Path, tmp_path: Path) -> None:
    folders = ",".join(str(path) for path in pool_of(written).values())
    words = (f"pool.candidates=[{folders}]", f"pool.reference_model={written / TITAN}")
    done = souping("names", *words)
    assert done.code == 0, done.err
    assert (
        "layers.0.attention.qkv_linear.wq.weight -> model.layers.0.self_attn.q_proj.weight [32, 32]"
        in done.out
    )
    assert (
        "decoder.layers.mlp.linear_fc1.weight -> model.layers.0.mlp.up_proj.weight [24, 32]"
        in done.out
    )
    assert not (tmp_path / "soup").exists()


def test_rules_of_a_user_by_the_command_line(souping: Cli, written: Path, tmp_path: Path) -> None:
    folders = ",".join(str(path) for path in pool_of(written).values())
    words = (
        "+experiment=merge",
        f"pool.candidates=[{folders}]",
        f"pool.reference_model={written / TITAN}",
    )
    norm = ["decoder.final_layernorm.weight", "model.norm.weight", "hidden"]
    (tmp_path / "rules.json").write_text(json.dumps({"extends": "megatron", "rules": [norm]}))
    done = souping(
        *words, "optimiser.weights=[0.25,0.75]", "out=soup", "merge.name_rules=rules.json"
    )
    assert done.code == 0, done.err
    made = load(tmp_path / "soup")
    assert all(same_bits(made[name], tensor) for name, tensor in average(written).items())
    souping(
        *words, "optimiser.weights=[0.25,0.75]", "out=soup", "merge.name_rules=none.json"
    ).refused("merge.name_rules")


# Mixtures of experts

CONFIG = {"model_type": "qwen3_moe", "num_experts": 2, "hidden_size": 4, "moe_intermediate_size": 3}
EXPERTS = "model.layers.0.mlp.experts."
ROUTER = "model.layers.0.mlp.gate.weight"


def experts(seed: int) -> dict[str, torch.Tensor]:
    """A layer of two experts as the Hub lists them."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        f"{EXPERTS}{e}.{part}_proj.weight": (3, 4) for e in range(2) for part in ("gate", "up")
    }
    shapes |= {f"{EXPERTS}{e}.down_proj.weight": (4, 3) for e in range(2)}
    shapes |= {ROUTER: (2, 4), "model.embed_tokens.weight": (12, 4), "model.norm.weight": (4,)}
    return {
        name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()
    }


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers has experts in memory."""
    gates = []
    for expert in (f"{EXPERTS}0", f"{EXPERTS}1"):
        parts = [tensors[f"{expert}.gate_proj.weight"], tensors[f"{expert}.up_proj.weight"]]
        gates.append(torch.cat(parts))
    downs = [tensors[f"{EXPERTS}{e}.down_proj.weight"] for e in range(2)]
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(EXPERTS)}
    return rest | {
        f"{EXPERTS}gate_up_proj": torch.stack(gates),
        f"{EXPERTS}down_proj": torch.stack(downs),
    }


def test_experts_listed_and_fused_are_one_model_and_mix(tmp_path: Path) -> None:
    a = experts(0)
    b = experts(1)
    listed = save(tmp_path / "listed", a, CONFIG)
    packed = save(tmp_path / "packed", fused(a), CONFIG)
    assert fingerprint(listed) == fingerprint(packed)
    pool = LocalMerge().open({"a": packed, "b": save(tmp_path / "b", b, CONFIG)})
    made = load(pool.write(pool.recipe({"a": 0.3, "b": 0.7}), tmp_path / "soup"))
    assert set(made) == set(a)
    assert all(same_bits(made[n], expected([a[n], b[n]], (0.3, 0.7), torch.bfloat16)) for n in a)
    with pytest.raises(UserError, match="down_proj"):
        Checkpoint.open(
            save(tmp_path / "odd", fused(a) | {f"{EXPERTS}down_proj": torch.zeros(2, 3, 5)}, CONFIG)
        )


def test_routers_are_averaged_or_those_of_one_ingredient(tmp_path: Path) -> None:
    tables = {name: experts(seed) for seed, name in enumerate("abc")}
    folders = {name: save(tmp_path / name, table, CONFIG) for name, table in tables.items()}
    pool = LocalMerge(moe_router="keep:b").open(folders)
    for names in ("abc", "ac"):
        weights = {name: 1 / len(names) for name in names}
        made = load(pool.write(pool.recipe(weights), tmp_path / names))
        wanted = {}
        for tensor in made:
            parts = [tables[name][tensor] for name in names]
            wanted[tensor] = expected(parts, tuple(weights.values()), torch.bfloat16)
        if "b" in names:
            wanted[ROUTER] = tables["b"][ROUTER]
        assert all(same_bits(made[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(UserError, match=r"merge\.moe_router"):
        LocalMerge(moe_router="keep:d").open(folders).recipe({"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match=r"merge\.moe_router"):
        LocalMerge(moe_router="best")


def test_an_average_in_optimiser_state_is_a_candidate_of_a_merge(
    souping: Cli, written: Path, tmp_path: Path
) -> None:
    step = step_of(written / EMA)
    words = ("+experiment=merge", f"pool.candidates=['{step}','{step}#ema']")
    like = f"pool.reference_model={written / EMA}"
    done = souping(*words, like, "optimiser.weights=[0,1]", "out=soup")
    assert done.code == 0, done.err
    weights = tensors_of(opened_case(written / EMA))
    known = tensors_of(Checkpoint.open(Path(f"{step}#ema"), like=Like(written / EMA)))
    souping(*words, like, "optimiser.weights=[0.25,0.75]", "out=mixed").ok()
    mixed = load(tmp_path / "mixed")
    for name in known:
        pair = [torch.from_numpy(table[name]) for table in (weights, known)]
        assert same_bits(mixed[name], expected(pair, (0.25, 0.75), torch.float32))
    made = load(tmp_path / "soup")
    assert all(same_bits(made[name], torch.from_numpy(array)) for name, array in known.items())
    assert json.loads((tmp_path / "soup" / "recipe.json").read_text())["ingredients"] == [
        "step-10#ema"
    ]
    done = souping("rebuild", "soup/recipe.json", like, "out=again")
    assert done.code == 0, done.err
    refused = souping(*words, like, "optimiser.weights=[0.5,0.5]", "merge.format=same", "out=more")
    refused.refused("merge.format=same")


def test_a_soup_in_the_trainers_layout_keeps_no_average_of_one_ingredient(
    written: Path, tmp_path: Path
) -> None:
    folders = {name: step_of(written / name) for name in (EMA, TITAN)}
    merge = LocalMerge(format="same", tokenizer_from=EMA)
    pool = merge.open(folders, like=Like(written / EMA, stored=True))
    soup = pool.write(pool.recipe({EMA: 0.25, TITAN: 0.75}), tmp_path / "soup")
    names = {entry.name for entry in metadata(soup, "")[1]}
    assert "train_state.step" in names
    assert not any("ema_optimizer" in name for name in names)
