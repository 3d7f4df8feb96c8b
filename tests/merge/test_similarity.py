"""Pools that must not be averaged are warned of, and related models are not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.reading import read, to_json
from souping.core.similarity import ModelSimilarity, PoolSimilarity
from souping.merge.local import LocalMerge
from souping.merge.similarity import (
    beside_others,
    pool_similarity,
    related,
)
from souping.report.tables import similarity
from tests.conftest import Cli, finished_words, report_of
from tests.support.checkpoints import save

Tensors = dict[str, torch.Tensor]


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
    result = pool_similarity(models, of_base)
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
    pool = {name: tuned(drawn(0), seed) for seed, name in enumerate("abc", start=1)}
    result = compared(tmp_path, {**pool, "base": drawn(0)}, base="base")
    assert result.groups == (("a", "b", "c", "merge.base"),)
    assert result.warning is None


def test_other_seeds_are_warned_of(tmp_path: Path) -> None:
    result = compared(tmp_path, {name: drawn(seed) for seed, name in enumerate("abc")})
    assert result.groups == (("a",), ("b",), ("c",))
    assert result.warning
    assert "3 unrelated groups" in result.warning


def test_two_families_are_two_groups(tmp_path: Path) -> None:
    """Beside the mean of the others alone, three and three models look related: their cosine is .55."""
    pool = {
        f"{family}{i}": tuned(drawn(family), 10 + i, 0.05) for family in (1, 2) for i in range(3)
    }
    result = compared(tmp_path, pool)
    assert result.groups == (("10", "11", "12"), ("20", "21", "22"))
    cosine = result.models["10"].cosine
    assert cosine is not None
    assert cosine > 0.5


def test_another_base_is_warned_of(tmp_path: Path) -> None:
    pool = {"a": tuned(drawn(0), 1), "b": tuned(drawn(0), 2), "base": drawn(9)}
    result = compared(tmp_path, pool, base="base")
    assert result.groups == (("a", "b"), ("merge.base",))


def test_heads_in_another_order_are_warned_of(tmp_path: Path) -> None:
    turned = {name: tensor.roll(8, dims=0) for name, tensor in drawn(0).items()}
    assert compared(tmp_path, {"a": drawn(0), "b": turned}).warning


def test_a_trajectory_is_related_by_its_steps(tmp_path: Path) -> None:
    """The first and the last checkpoint have a cosine below the threshold, each two neighbours do not."""
    pool = {"0": drawn(0)}
    for step in range(1, 6):
        pool[str(step)] = tuned(pool[str(step - 1)], step, 0.9)
    result = compared(tmp_path, pool)
    assert result.lowest is not None
    assert result.lowest < 0.5
    assert result.warning is None


def test_dtypes_rows_and_shards_may_differ(tmp_path: Path) -> None:
    wide = drawn(0)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in wide.items()}
    wide["layers.0.weight"] = torch.cat([wide["layers.0.weight"], torch.randn(3, 32)])
    a = Checkpoint.open(save(tmp_path / "a", wide, shards=3))
    b = Checkpoint.open(save(tmp_path / "b", narrow))
    result = pool_similarity({"a": a, "b": b}, None)
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
    assert pool_similarity(models, None) is None


def test_a_tune_that_did_not_move_has_no_task_cosine(tmp_path: Path) -> None:
    pool = {"a": drawn(0), "b": tuned(drawn(0), 1), "base": drawn(0)}
    result = compared(tmp_path, pool, base="base")
    assert result.models["a"].task_cosine is None
    assert result.warning is None


def test_inner_products_give_cosines() -> None:
    inner = np.array([[4.0, 2.0], [2.0, 9.0]])
    first = beside_others(inner)[0]
    assert first.cosine == pytest.approx(1 / 3)
    assert first.distance == pytest.approx(1.0)


def test_groups_are_joined_by_chains() -> None:
    cosines = np.array([[1, 0, 0.6, 0], [0, 1, 0.6, 0], [0.6, 0.6, 1, 0], [0, 0, 0, 1]])
    assert related(cosines, "abcd") == (("a", "b", "c"), ("d",))


def test_an_edited_report_is_still_shown() -> None:
    table = {"models": {"a": {"cosine": "x"}}, "groups": [["a"], ["b"]], "lowest": "y"}
    edited = read(PoolSimilarity, table)
    assert edited.models["a"] == ModelSimilarity(cosine=None, distance=None)
    assert edited.warning is None
    assert similarity(edited) is not None
    whole = PoolSimilarity(models={}, groups=(("a",), ("b",)), lowest=0.1, blocks=3)
    assert read(PoolSimilarity, to_json(whole)) == whole


def test_only_the_named_models_are_compared(tmp_path: Path) -> None:
    folders = {name: save(tmp_path / name, drawn(seed)) for seed, name in enumerate("abc")}
    with closing(LocalMerge().open(folders)) as pool:
        result = pool.similarity(("a", "b"))
        assert result is not None
        assert list(result.models) == ["a", "b"]
        assert pool.similarity(("a",)) is None


def test_a_merge_warns_and_goes_on(souping: Cli, tmp_path: Path) -> None:
    folders = [str(save(tmp_path / f"m{seed}", drawn(seed))) for seed in range(2)]
    words = ("+experiment=merge", f"pool.candidates=[{','.join(folders)}]", "optimiser=uniform")
    run = souping(*words, "out=soup").ok()
    assert "unrelated groups" in run.out + run.err
    assert (tmp_path / "soup" / "model.safetensors").is_file()
    plan = souping(*words, "out=other", "plan=true").ok()
    assert "unrelated groups" in plan.out + plan.err
    assert "cosine" in plan.out
    assert not (tmp_path / "other").exists()


def test_related_models_are_merged_without_a_warning(souping: Cli, family: Path) -> None:
    folders = ",".join(str(family / name) for name in ("ant", "bee"))
    words = (f"pool.candidates=[{folders}]", "optimiser=uniform", "out=soup")
    run = souping("+experiment=merge", *words).ok()
    assert "unrelated" not in run.out + run.err


def test_plan_and_report_have_the_same_figures(
    souping: Cli, finished: Path, family: Path, tmp_path: Path
) -> None:
    report = report_of(finished / "run")
    assert set(report["weights"]["models"]) == {"ant", "bee", "cat", "dog"}
    assert report["weights"]["groups"] == [["ant", "bee", "cat", "dog"]]
    assert "How similar the weights are" in (finished / "run" / "report.md").read_text()
    souping(*finished_words(family), "plan=true", "hydra.run.dir=planned").ok()
    plan = json.loads((tmp_path / "planned" / "plan.json").read_text())
    assert plan["weights"] == report["weights"]
    assert "How similar the weights are" in (tmp_path / "planned" / "plan.md").read_text()
