"""Decoding: the settings' and nothing else; sampled answers that know no neighbours."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from souping.core.types import Candidate, Item, Record, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.engines.vllm import VllmEngine
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.templates import Decoding, keep_likely, sampler
from souping.merge.local import LocalMerge
from souping.pipeline.models import OpenPool
from souping.pipeline.store import Store
from tests.support.live import live

LOCAL = LocalEvaluator(max_new_tokens=6, batch_size=16, threads=1, device="cpu")
DRAWN = replace(LOCAL, temperature=1.0, samples=3)
PENALTY: Mapping[str, Any] = {"repetition_penalty": 1.7, "suppress_tokens": [23, 91], "do_sample": True, "top_k": 3}


@pytest.fixture(scope="module")
def served(family: Path) -> SimpleNamespace:
    return live(family / "ant", LOCAL.module_settings())


@pytest.fixture(scope="module")
def items(family: Path) -> tuple[Item, ...]:
    return Benchmark(path=str(family / "items.jsonl")).items()[:24]


def copy(family: Path, place: Path, name: str, config: Mapping[str, Any]) -> Path:
    folder = place / name
    shutil.copytree(family / name, folder)
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **config}))
    return folder


def test_no_generation_config_decodes_anything(
    family: Path, tmp_path: Path, served: SimpleNamespace, items: tuple[Item, ...]
) -> None:
    plain = [record.tokens for record in LOCAL.evaluate(served, items)]
    folder = copy(family, tmp_path, "ant", PENALTY)
    odd = live(folder, LOCAL.module_settings())
    assert [record.tokens for record in LOCAL.evaluate(odd, items)] == plain  # type: ignore[arg-type]
    greedy = copy(family, tmp_path, "bee", {**PENALTY, "do_sample": False})
    bound = replace(LOCAL, generation="model").for_pool(greedy, {"bee": greedy})
    assert [record.tokens for record in bound.evaluate(odd, items)] != plain  # type: ignore[arg-type]


def test_folders_are_served_with_a_generation_config_of_ids_alone(family: Path, tmp_path: Path) -> None:
    folders = {"ant": copy(family, tmp_path, "ant", {**PENALTY, "eos_token_id": [2, 9]}), "bee": family / "bee"}
    before = {path: path.read_bytes() for path in folders["ant"].iterdir()}
    with Store(tmp_path / "s") as store:
        pool = OpenPool([Candidate(name=n, path=p) for n, p in folders.items()], LocalMerge(), store)
        serve = pool.serving(replace(LOCAL, engine=VllmEngine()))
        for weights in ({"ant": 1.0}, {"ant": 0.5, "bee": 0.5}):
            ends = pool.eos_token_ids(pool.recipe(weights))
            folder = serve(pool.recipe(weights)).folder
            assert json.loads((folder / "generation_config.json").read_text()) == {
                "bos_token_id": 1,
                "eos_token_id": list(ends),
                "pad_token_id": 0,
            }
            assert ends == (2, 9)
            assert serve(pool.recipe(weights)).eos_token_ids == ends
        assert serve(pool.recipe({"bee": 1.0})).folder == family / "bee"
        pool.close()
    assert before == {path: path.read_bytes() for path in folders["ant"].iterdir()}


def test_what_a_generation_config_would_have_done_is_a_note(family: Path, tmp_path: Path) -> None:
    folders = {"ant": copy(family, tmp_path, "ant", {"temperature": 0.3, "repetition_penalty": 1.2}), "bee": family}
    (note,) = LOCAL.pool_notes(folders)
    assert note.startswith("ant: ")
    assert "repetition_penalty=1.2" in note
    (folders["ant"] / "generation_config.json").write_text("[1")
    with pytest.raises(UserError, match=r"generation_config\.json: not JSON"):
        LOCAL.pool_notes(folders)


def test_the_models_own_decoding_must_be_one(family: Path, tmp_path: Path) -> None:
    own = replace(LOCAL, generation="model")
    folders = {name: copy(family, tmp_path, name, PENALTY) for name in ("ant", "bee")}
    bound = own.for_pool(folders["ant"], folders)
    assert isinstance(bound, LocalEvaluator)
    assert (bound.decoding.temperature, bound.decoding.top_k) == (1.0, 3)
    assert bound.decoding.penalties == {"repetition_penalty": 1.7, "suppress_tokens": [23, 91]}
    assert bound.fingerprint != LOCAL.fingerprint
    assert "top_k=3" in bound.pool_notes(folders)[0]
    with pytest.raises(UserError, match="ant and cat differ in"):
        own.for_pool(family / "cat", {**folders, "cat": family / "cat"})
    with pytest.raises(UserError, match="generation=model takes temperature"):
        replace(own, temperature=0.5)


def outputs(records: list[Record]) -> list[tuple[int, ...]]:
    return [record.tokens for record in records]


def test_a_sampled_answer_knows_no_neighbours(served: SimpleNamespace, items: tuple[Item, ...]) -> None:
    together = outputs(DRAWN.evaluate(served, items, 1))
    assert together == [outputs(DRAWN.evaluate(served, [item], 1))[0] for item in items]
    assert together == outputs(replace(DRAWN, workers=3).evaluate(served, items[::-1], 1))[::-1]
    assert together == outputs(DRAWN.evaluate(served, items, 1))
    assert together != outputs(DRAWN.evaluate(served, items, 0))
    assert together != outputs(replace(DRAWN, sampling_seed=1).evaluate(served, items, 1))
    assert together != outputs(LOCAL.evaluate(served, items))


def test_draws_follow_the_probabilities() -> None:
    import torch

    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])
    decode = Decoding(temperature=0.7)
    draw = sampler(decode, range(4000), 0)
    counts = Counter(draw(torch.zeros((4000, 1)), logits.repeat(4000, 1)).argmax(-1).tolist())
    expected = (logits / 0.7).softmax(-1).tolist()
    for token, share in enumerate(expected):
        error = np.sqrt(share * (1 - share) / 4000)
        assert abs(counts[token] / 4000 - share) < 4 * error


def test_what_sampling_leaves_out() -> None:
    import torch

    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for settings, kept in (({"top_k": 2}, 2), ({"top_p": 0.79}, 2), ({"top_p": 0.81}, 3), ({"min_p": 0.2}, 3), ({}, 4)):
        decode = Decoding(temperature=1.0, **settings)  # type: ignore[arg-type]
        assert int(torch.isfinite(keep_likely(scores, decode)).sum()) == kept


@pytest.mark.parametrize(
    "change", [{"top_p": 0.0}, {"samples": 2}, {"replicates": 2, "temperature": 1.0}, {"generation": "own"}]
)
def test_odd_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"evaluator\.\w+=|LocalEvaluator\(\w+="):
        replace(LOCAL, **change)


def test_more_answers_keep_the_first_ones(family: Path) -> None:
    assert DRAWN.fingerprint == replace(DRAWN, samples=9, aggregate="pass").fingerprint != LOCAL.fingerprint
    assert LOCAL.fingerprint == replace(LOCAL, sampling_seed=5, top_p=0.5).fingerprint  # greedy: no part of it
    assert DRAWN.fingerprint != replace(DRAWN, sampling_seed=5).fingerprint
    assert len({replace(DRAWN, aggregate=how).look for how in ("mean", "pass", "majority")}) == 3  # type: ignore[arg-type]


def test_how_answers_become_a_score() -> None:
    item = Item(id="i", category="c", prompt="p", answer="7", scorer="number")
    said = ["it is 7", "3", "no: 3", "7.0", "so 3"]
    records = [[Record(item="i", score=float(text in ("it is 7", "7.0")), output=text) for text in said]]
    for how, score in (("mean", 0.4), ("pass", 1.0), ("majority", 0.0)):
        found = replace(DRAWN, aggregate=how).item_scores([item], records)  # type: ignore[arg-type]
        assert found.tolist() == [pytest.approx(score)]
    majority = replace(DRAWN, aggregate="majority").item_scores([item], [[records[0][0], records[0][3]]])
    assert majority.tolist() == [1.0]


def test_a_greedy_replicate_is_asked_in_other_batches(items: tuple[Item, ...]) -> None:
    twice = replace(LOCAL, replicates=2)
    first, second = (twice.batches(items, replicate) for replicate in (0, 1))
    assert first == LOCAL.batches(items)
    assert {len(batch) for batch in second} == {8}
    assert sorted(i.id for batch in second for i in batch) == sorted(i.id for i in items)
    assert (twice.answers_per_item, DRAWN.answers_per_item, DRAWN.batches(items, 2)) == (2, 3, LOCAL.batches(items))


def test_dtype_is_float32_on_a_cpu_and_the_checkpoints_own_on_a_gpu(family: Path) -> None:
    folders = {"ant": family / "ant"}
    assert LOCAL.for_pool(family / "ant", folders).settings["dtype"] == "float32"  # type: ignore[attr-defined]
    gpu = replace(LOCAL, device="cuda").for_pool(family / "ant", folders)
    assert gpu.module_settings().dtype == "bfloat16"
    half = replace(LOCAL, device="cuda", dtype="float16").for_pool(family / "ant", folders)
    assert half.module_settings().dtype == "float16"
