"""Pools that must not be averaged are warned of, and related models are not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import Like
from souping.core.reading import read, to_json
from souping.core.types import Json
from souping.core.weight_similarity import ModelSimilarity, PoolSimilarity
from souping.merge.local import LocalMerge
from souping.merge.weight_samples import WeightSample, beside_others, related
from souping.report.tables import similarity
from tests.conftest import ROOT, Cli, finished_words, report_of
from tests.support.adapters import PREFIX, change_config, deltas, save_adapter
from tests.support.checkpoints import save

Tensors = dict[str, torch.Tensor]
MODULES = [f"model.layers.{i}.up" for i in range(8)]


def drawn(seed: int, layers: int = 8) -> Tensors:
    """Random matrices, and vectors that all models share."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"norm.{i}": torch.ones(64) for i in range(layers)}
    for i in range(layers):
        tensors[f"layers.{i}.weight"] = torch.randn(64, 32, generator=generator)
    return tensors


def tuned(tensors: Tensors, seed: int, size: float = 0.2) -> Tensors:
    """Weights that moved by a random vector of `size` times their length."""
    step = drawn(seed)
    return {name: tensor + size * step[name] for name, tensor in tensors.items()}


def opened(folder: Path, pool: Mapping[str, Tensors]) -> dict[str, Checkpoint]:
    return {name: Checkpoint.open(save(folder / name, tensors)) for name, tensors in pool.items()}


def compared(folder: Path, pool: Mapping[str, Tensors], base: str = "") -> PoolSimilarity:
    models = opened(folder, pool)
    of_base = models.pop(base, None)
    result = WeightSample.of(models, of_base).similarity()
    assert result is not None
    return result


def test_cosine_and_distance_are_those_of_whole_tensors_if_blocks_are(tmp_path: Path) -> None:
    base = {"w": torch.randn(16, 8, generator=torch.Generator().manual_seed(0))}
    pool = {
        name: {"w": base["w"] + 0.3 * drawn(i)["layers.0.weight"][:16, :8]}
        for i, name in enumerate("abc")
    }
    result = compared(tmp_path, {**pool, "base": base}, base="base")
    vectors = {name: tensors["w"].double().numpy().ravel() for name, tensors in pool.items()}
    origin = base["w"].double().numpy().ravel()
    for name, row in result.models.items():
        mean = np.mean([vectors[other] for other in vectors if other != name], axis=0)
        for of, (cosine, distance) in (
            (np.zeros(1), (row.cosine, row.distance)),
            (origin, (row.task_cosine, row.task_distance)),
        ):
            w = vectors[name] - of
            m = mean - of
            assert cosine == pytest.approx(w @ m / np.linalg.norm(w) / np.linalg.norm(m))
            assert distance == pytest.approx(np.linalg.norm(w - m) / np.linalg.norm(m))


def test_tunes_of_one_base_are_related(tmp_path: Path) -> None:
    pool = {name: tuned(drawn(seed=0), seed) for seed, name in enumerate("abc", start=1)}
    result = compared(tmp_path, {**pool, "base": drawn(seed=0)}, base="base")
    assert result.groups == (("a", "b", "c", "merge.base_model"),)
    assert result.warnings == []


def test_other_seeds_are_warned_of(tmp_path: Path) -> None:
    result = compared(tmp_path, {name: drawn(seed) for seed, name in enumerate("abc")})
    assert result.groups == (("a",), ("b",), ("c",))
    (warning,) = result.warnings
    assert "3 unrelated groups" in warning


def test_two_families_are_two_groups(tmp_path: Path) -> None:
    """Beside the mean of the others alone, three and three models look related: their cosine is .55."""
    pool = {
        f"{family}{i}": tuned(drawn(family), seed=10 + i, size=0.05)
        for family in (1, 2)
        for i in range(3)
    }
    result = compared(tmp_path, pool)
    assert result.groups == (("10", "11", "12"), ("20", "21", "22"))
    cosine = result.models["10"].cosine
    assert cosine is not None
    assert cosine > 0.5


def test_another_base_is_warned_of(tmp_path: Path) -> None:
    pool = {
        "a": tuned(drawn(seed=0), seed=1),
        "b": tuned(drawn(seed=0), seed=2),
        "base": drawn(seed=9),
    }
    result = compared(tmp_path, pool, base="base")
    assert result.groups == (("a", "b"), ("merge.base_model",))


def test_heads_in_another_order_are_warned_of(tmp_path: Path) -> None:
    turned = {name: tensor.roll(8, dims=0) for name, tensor in drawn(seed=0).items()}
    assert compared(tmp_path, {"a": drawn(seed=0), "b": turned}).warnings


def test_a_trajectory_is_related_by_its_steps(tmp_path: Path) -> None:
    """The first and the last checkpoint have a cosine below the threshold, each two neighbours do not."""
    pool = {"0": drawn(seed=0)}
    for step in range(1, 6):
        pool[str(step)] = tuned(pool[str(step - 1)], seed=step, size=0.9)
    result = compared(tmp_path, pool)
    assert result.lowest is not None
    assert result.lowest < 0.5
    assert result.warnings == []


def test_dtypes_rows_and_shards_may_differ(tmp_path: Path) -> None:
    wide = drawn(seed=0)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in wide.items()}
    wide["layers.0.weight"] = torch.cat([wide["layers.0.weight"], torch.randn(3, 32)])
    a = Checkpoint.open(save(tmp_path / "a", wide, shards=3))
    b = Checkpoint.open(save(tmp_path / "b", narrow))
    result = WeightSample.of({"a": a, "b": b}, base=None).similarity()
    assert result is not None
    assert result.models["a"].cosine == pytest.approx(1, abs=1e-4)


def test_the_same_blocks_are_read_every_time(tmp_path: Path) -> None:
    pool = {name: drawn(seed) for seed, name in enumerate("ab")}
    assert compared(tmp_path / "x", pool) == compared(tmp_path / "y", pool)


@pytest.mark.parametrize(
    "weight", [torch.zeros(4, 4), torch.full((4, 4), float("nan")), torch.ones(4)]
)
def test_nothing_is_said_without_a_block_that_can_be_compared(
    tmp_path: Path, weight: torch.Tensor
) -> None:
    models = opened(tmp_path, {name: {"w": weight} for name in "ab"})
    assert WeightSample.of(models, base=None).similarity() is None


def test_a_tune_that_did_not_move_has_no_task_cosine(tmp_path: Path) -> None:
    pool = {"a": drawn(seed=0), "b": tuned(drawn(seed=0), seed=1), "base": drawn(seed=0)}
    result = compared(tmp_path, pool, base="base")
    assert result.models["a"].task_cosine is None
    assert result.warnings == []


def test_inner_products_give_cosines() -> None:
    inner = np.array([[4.0, 2.0], [2.0, 9.0]])
    first = beside_others(inner)[0]
    assert first.cosine == pytest.approx(1 / 3)
    assert first.distance == pytest.approx(1.0)


def test_groups_are_joined_by_chains() -> None:
    cosines = np.array([[1, 0, 0.6, 0], [0, 1, 0.6, 0], [0.6, 0.6, 1, 0], [0, 0, 0, 1]])
    assert related(cosines, "abcd") == (("a", "b", "c"), ("d",))


def test_an_edited_report_is_still_shown() -> None:
    table: Json = {"models": {"a": {"cosine": "x"}}, "groups": [["a"], ["b"]], "lowest": "y"}
    edited = read(PoolSimilarity, table)
    assert edited.models["a"] == ModelSimilarity(cosine=None, distance=None)
    assert edited.warnings == []
    assert similarity(edited) is not None
    whole = PoolSimilarity(models={}, groups=(("a",), ("b",)), lowest=0.1, blocks=3)
    assert read(PoolSimilarity, to_json(whole)) == whole


def test_only_the_named_models_are_compared(tmp_path: Path) -> None:
    folders = {name: save(tmp_path / name, drawn(seed)) for seed, name in enumerate("abc")}
    with closing(LocalMerge().open(folders)) as pool:
        result = pool.similarity({"a": 0.5, "b": 0.5})
        assert result is not None
        assert list(result.models) == ["a", "b"]
        assert pool.similarity({"a": 1.0}) is None


def test_sharded_checkpoints_are_compared_as_the_folders_they_are() -> None:
    """DCP by FSDP, files by rank, and DCP by tensor parallelism, whose matrices are cut by columns."""
    shared = ROOT / "tests" / "data" / "sharded"
    like = Like(shared / "plain" / "0")
    seeds = (("plain/0", "fsdp/checkpoint-10"), ("plain/1", "ranks", "tp/step-1", "shards"))
    models = {
        name: Checkpoint.open(shared / name, allow_pickle=True, like=like)
        for names in seeds
        for name in names
    }
    result = WeightSample.of(models, base=None).similarity()
    assert result is not None
    assert result.groups == seeds
    for names in seeds:
        result = WeightSample.of({name: models[name] for name in names}, base=None).similarity()
        assert result is not None
        assert result.lowest == pytest.approx(1)
    sharded = WeightSample.of(
        {name: models[name] for name in (seeds[0][1], seeds[1][2])}, None
    ).similarity()
    plain = WeightSample.of(
        {name: models[name] for name in ("plain/0", "plain/1")}, None
    ).similarity()
    assert sharded
    assert plain
    assert [*sharded.models.values()] == [*plain.models.values()]


def test_fp8_models_are_compared_by_what_their_weights_stand_for() -> None:
    """Blocks and rows of one model have other scales, so their bytes differ; the third has another seed."""
    folders = [ROOT / "tests" / "data" / "fp8" / name for name in ("block-0", "row-0", "tensor-1")]
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate", "down")]
    models = {}
    for folder in folders:
        model = Checkpoint.open(folder)
        # Other matrices are too small to be in FP8.
        tensors = {name: model.tensors[name] for name in names}
        models[folder.name] = replace(model, tensors=tensors)
    result = WeightSample.of(models, base=None).similarity()
    assert result is not None
    assert result.groups == (("block-0", "row-0"), ("tensor-1",))
    pair = WeightSample.of(
        {name: models[name] for name in ("block-0", "row-0")}, base=None
    ).similarity()
    assert pair is not None
    assert pair.lowest is not None
    assert 0.99 < pair.lowest < 1


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Path]:
    """One adapter, the same update by other factors, its double, and another one."""
    modules = [*MODULES, "extra"]
    base = save(
        tmp_path / "base", {f"{m}.weight": drawn(seed=0)["layers.0.weight"] for m in modules}
    )
    a = save_adapter(tmp_path / "a", base, dict.fromkeys(MODULES, 4), seed=1)
    turned = shutil.copytree(a, tmp_path / "turned")
    turn = torch.randn(4, 4, generator=torch.Generator().manual_seed(9)).double()
    tensors = load_file(a / "adapter_model.safetensors")
    for module in MODULES:
        key = f"{PREFIX}{module}.lora_"
        tensors[f"{key}A.weight"] = (turn.inverse() @ tensors[f"{key}A.weight"].double()).float()
        tensors[f"{key}B.weight"] = (tensors[f"{key}B.weight"].double() @ turn).float()
    save_file(tensors, turned / "adapter_model.safetensors", metadata={"format": "pt"})
    double = Path(shutil.copytree(a, tmp_path / "double"))
    change_config(double, lora_alpha=16)
    other = save_adapter(
        tmp_path / "other", base, {**dict.fromkeys(MODULES, 3), "extra": 2}, seed=2
    )
    return {"a": a, "turned": Path(turned), "double": double, "other": other}


def test_adapters_are_compared_by_what_they_add_and_not_by_their_factors(
    adapters: dict[str, Path],
) -> None:
    with closing(LocalMerge().open(adapters)) as pool:
        turned = pool.similarity({"a": 0.5, "turned": 0.5})
        double = pool.similarity({"a": 0.5, "double": 0.5})
        other = pool.similarity({"a": 0.5, "other": 0.5})
        assert pool.similarity({"a": 1.0}) is None
    assert turned
    assert double
    assert other
    assert turned.models["a"].task_cosine == pytest.approx(1, abs=1e-6)
    assert turned.models["a"].task_distance == pytest.approx(0, abs=1e-3)
    assert double.models["a"].task_cosine == pytest.approx(1)
    assert double.models["a"].task_distance == pytest.approx(0.5)
    assert other.models["a"].task_cosine == pytest.approx(0, abs=0.2)
    # Of all rows of all modules.
    first, second = (deltas(adapters[name])[MODULES[0]].ravel() for name in ("a", "other"))
    assert abs(float(torch.nn.functional.cosine_similarity(first, second, dim=0))) < 0.2
    for result in (turned, double, other):
        assert result.groups == ()
        assert result.warnings == []
        assert result.models["a"].cosine is None
        section = similarity(result)
        assert section is not None
        assert "Adapters share the weights of their base" in " ".join(section.lines)


def test_adapters_without_a_common_module_or_with_infinity_are_not_compared(
    adapters: dict[str, Path], tmp_path: Path
) -> None:
    alone = save_adapter(tmp_path / "alone", tmp_path / "base", {"extra": 2}, seed=3)
    tensors = load_file(adapters["double"] / "adapter_model.safetensors")
    infinite = {name: torch.full_like(tensor, torch.inf) for name, tensor in tensors.items()}
    save_file(infinite, adapters["double"] / "adapter_model.safetensors", metadata={"format": "pt"})
    with closing(LocalMerge().open({**adapters, "alone": alone})) as pool:
        assert pool.similarity({"a": 0.5, "alone": 0.5}) is None
        assert pool.similarity({"a": 0.5, "double": 0.5}) is None


def test_a_merge_warns_and_goes_on(
    souping: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(save(tmp_path / f"m{seed}", drawn(seed))) for seed in range(2)]
    words = ("+experiment=merge", f"pool.candidates=[{','.join(folders)}]", "optimiser=uniform")
    run = souping(*words, "out=soup").ok()
    assert "unrelated groups" in run.out + run.err
    assert (tmp_path / "soup" / "model.safetensors").is_file()
    results = list[PoolSimilarity | None]()

    def counted(sample: WeightSample) -> PoolSimilarity | None:
        results.append(similarity_of(sample))
        return results[-1]

    similarity_of = WeightSample.similarity
    monkeypatch.setattr(WeightSample, "similarity", counted)
    plan = souping("plan", *words, "out=other").ok()
    assert "unrelated groups" in plan.out + plan.err
    assert "cosine" in plan.out
    assert not (tmp_path / "other").exists()
    saved = json.loads(next(tmp_path.glob("outputs/*/plan_*.json")).read_text())["weights"]
    assert [read(PoolSimilarity, saved | {"rounding": None})] == results


def test_related_models_are_merged_without_a_warning(souping: Cli, family: Path) -> None:
    folders = ",".join(str(family / name) for name in ("ant", "bee"))
    words = (f"pool.candidates=[{folders}]", "optimiser=uniform", "out=soup")
    run = souping("+experiment=merge", *words).ok()
    assert "unrelated" not in run.out + run.err


def test_plan_and_report_have_the_same_figures(
    souping: Cli, finished: Path, family: Path, tmp_path: Path
) -> None:
    report = report_of(finished / "run")
    assert set(report["similarity"]["models"]) == {"ant", "bee", "cat", "dog"}
    assert report["similarity"]["groups"] == [["ant", "bee", "cat", "dog"]]
    assert "How similar the weights are" in (finished / "run" / "report.md").read_text()
    shown = souping("plan", *finished_words(family)).ok().out
    plan = json.loads(next(tmp_path.glob("outputs/*/plan_*.json")).read_text())
    # A plan is about the uniform soup, a report about its own.
    for table in (plan, report):
        assert table["similarity"].pop("rounding")["dtype"] == "bfloat16"
    assert plan["similarity"] == report["similarity"]
    assert "How similar the weights are" in shown
