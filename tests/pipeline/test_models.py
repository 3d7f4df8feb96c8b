"""How soups reach evaluators: one live module for all that want it alike, or a folder that comes and goes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from souping import pantry
from souping.core.files import hold_folder
from souping.core.types import Candidate, FloatArray, Item, Record, UserError
from souping.evaluate.generate import LocalEvaluator
from souping.merge.local import LocalMerge
from souping.pipeline import models
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.models import OpenPool
from souping.pipeline.store import Store
from tests.conftest import Cli, FakeEvaluator, make_items, pool_of


@dataclass
class FolderEvaluator(FakeEvaluator):
    """ModelForm a folder and remembers what it was given."""

    model_form = "folder"
    folders: list[Path] = field(default_factory=list)


@pytest.fixture
def opened(family: Path, tmp_path: Path) -> OpenPool:
    pool = [Candidate(name=name, path=family / name) for name in ("ant", "bee")]
    with Store(tmp_path / "store.sqlite") as store:
        return OpenPool(pool, LocalMerge(), store)


def test_a_single_is_served_from_its_own_folder(opened: OpenPool, family: Path) -> None:
    serve = opened.serving(FolderEvaluator(skill={}))
    assert serve(opened.recipe({"bee": 1.0})).folder == family / "bee"


def test_a_soup_is_served_as_the_folder_that_would_be_written(opened: OpenPool, tmp_path: Path) -> None:
    serve = opened.serving(FolderEvaluator(skill={}))
    recipe = opened.recipe({"ant": 0.5, "bee": 0.5})
    served = serve(recipe)
    opened.merge_pool.write(recipe, tmp_path / "soup")
    assert (served.folder / "model.safetensors").read_bytes() == (tmp_path / "soup" / "model.safetensors").read_bytes()
    assert serve(recipe).folder == served.folder
    other = serve(opened.recipe({"ant": 0.25, "bee": 0.75})).folder
    assert other.is_dir()
    assert not served.folder.exists()
    opened.close()
    assert not other.exists()
    assert not other.parent.exists()


def test_what_a_killed_run_left_goes_and_what_is_in_use_stays(
    opened: OpenPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SHARED_MEMORY", tmp_path)
    dead, live, other = (tmp_path / f"{models.PREFIX}{name}" for name in ("dead", "live", "other"))
    for folder in (dead, live, other):
        folder.mkdir()
    hold_folder(dead).close()
    with hold_folder(live):
        served = opened.serving(FolderEvaluator(skill={}))(opened.recipe({"ant": 0.5, "bee": 0.5})).folder
        assert served.parent.parent == tmp_path
        assert [folder.exists() for folder in (dead, live, other)] == [False, True, True]
    opened.close()
    assert not served.parent.exists()


def test_a_soup_in_a_wider_dtype_needs_twice_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(models, "scratch_place", lambda size: asked.append(size) or tmp_path)
    pool = [Candidate(name=name, path=pantry.path(name)) for name in pantry.CANDIDATES[:2]]  # in bfloat16
    for dtype in ("bfloat16", "float32"):
        with Store(tmp_path / "store.sqlite") as store:
            opened = OpenPool(pool, LocalMerge(dtype=dtype), store)
        opened.serving(FolderEvaluator(skill={}))(opened.uniform(opened.names))
        opened.close()
    beside = sum(f.stat().st_size for f in pool[0].path.iterdir() if f.suffix != ".safetensors")
    assert 1.9 * (asked[0] - beside) < asked[1] - beside <= 2 * asked[0]


def test_no_room_is_said_before_the_soup_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    with pytest.raises(UserError, match="set TMPDIR"):
        models.check_space(models.scratch_place(2 * 10**9), 2 * 10**9)
    assert models.scratch_place(10**8) == models.SHARED_MEMORY if models.SHARED_MEMORY.is_dir() else True


def test_evaluators_that_want_the_module_alike_share_it(opened: OpenPool) -> None:
    one, two = (LocalEvaluator(threads=1, device="cpu", max_new_tokens=n) for n in (2, 3))
    half = LocalEvaluator(threads=1, device="cpu", dtype="bfloat16")
    recipe = opened.recipe({"ant": 0.5, "bee": 0.5})
    module = opened.serving(one)(recipe).module
    assert opened.serving(two)(recipe).module is module
    other = opened.serving(half)(recipe).module
    assert other is not module
    assert str(next(other.parameters()).dtype) == "torch.bfloat16"


def test_a_soup_without_end_tokens_does_not_keep_those_of_the_one_before(family: Path, tmp_path: Path) -> None:
    pool = [Candidate(name=name, path=tmp_path / name) for name in ("ant", "bee")]
    for candidate, ends in zip(pool, ([5], None), strict=True):
        shutil.copytree(family / candidate.name, candidate.path)
        config = json.loads((candidate.path / "config.json").read_text())
        (candidate.path / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
        (candidate.path / "generation_config.json").unlink(missing_ok=True)
    with Store(tmp_path / "store.sqlite") as store:
        opened = OpenPool(pool, LocalMerge(), store)
    serve = opened.serving(LocalEvaluator(threads=1, device="cpu"))
    found = [serve(opened.recipe({name: 1.0})).module.generation_config.eos_token_id for name in ("ant", "bee", "ant")]
    assert found == [[5], None, [5]]


class Corpus(FakeEvaluator):
    """A corpus metric: the share of the items' counts, which is no mean of item scores."""

    def evaluate(self, model: Any, items: Any, replicate: int = 0) -> list[Record]:
        return [Record(item=item.id, score=0.0, statistics=(float(item.answer), 2.0)) for item in items]

    def item_scores(self, items: Any, records: Any) -> FloatArray:
        whole = [r.statistics for (r,) in records]
        return np.full(len(items), sum(s[0] for s in whole) / sum(s[1] for s in whole))


def test_statistics_are_kept_and_aggregated(tmp_path: Path) -> None:
    items: list[Item] = make_items(4)
    recipe = SimpleNamespace(fingerprint="f", as_dict=dict)
    values = []
    for _ in range(2):  # the second time from the store alone
        with Store(tmp_path / "s.sqlite") as store:
            evaluation = Evaluation(store, Corpus(skill={}), lambda r: SimpleNamespace(), lambda r: (), lambda n: None)  # type: ignore[arg-type, return-value]
            values.append(evaluation.scores(recipe, items).values)  # type: ignore[arg-type]
    assert evaluation.evaluated == 0
    assert values[0].tolist() == values[1].tolist() == [12 / 16] * 8


def test_own_items_need_an_evaluator_that_has_some(family: Path, souping: Cli) -> None:
    arguments = [a for a in pool_of(family) if not a.startswith("benchmark.")]
    souping(*arguments, "benchmark=own").refused("this evaluator brings no items", "benchmark.path=items.jsonl")


@pytest.mark.parametrize("extra", [(), ("plan=true",)])
def test_an_evaluator_with_its_own_items_asks_no_others(souping: Cli, extra: tuple[str, ...]) -> None:
    told = souping("+experiment=bfcl", "evaluator=lm_eval", "evaluator.tasks=[mine]", *extra)
    told.refused("evaluator=HarnessEvaluator brings its own items: add benchmark=own")
