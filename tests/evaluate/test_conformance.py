"""Evaluators: what the protocol promises, of every one that ships. Engines and servers have suites of their own."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from souping import demo
from souping.core.protocols import Evaluator, evaluator_fingerprint
from souping.core.types import Item, Recipe, UserError
from souping.evaluate.bfcl import BfclEvaluator
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval import HarnessEvaluator
from souping.evaluate.loss import LossEvaluator
from souping.testing import check_evaluator
from tests.support import lm_eval_tasks
from tests.support.evaluators import DeadServer, bfcl_place, bfcl_runner
from tests.support.live import live
from tests.support.models import HeldModel, own_items
from tests.support.texts import texts

MODELS = ("tuned_python", "tuned_java")
ROWS = ("local", "local in bfloat16", "loss", "lm_eval", "bfcl")
SOUP = Recipe(ingredients=MODELS, fingerprints=MODELS, weights=(0.5, 0.5), dtype="float32")
SINGLE = replace(SOUP, weights=(1.0, 0.0))


@dataclass(frozen=True)
class Row:
    """An evaluator, items for it, and two models as it wants them."""

    evaluator: Evaluator
    items: tuple[Item, ...]
    models: tuple[Any, ...]


def served(evaluator: Evaluator, name: str) -> Any:
    folder = demo.path(name)
    if evaluator.hosting.model_form == "folder":
        return HeldModel(folder=Path(folder))
    return live(folder, evaluator.hosting.module_settings())


@pytest.fixture(scope="module", params=ROWS)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluator that answers in this process, with items that it can score and models that it can load."""
    place = tmp_path_factory.mktemp("row")
    name = request.param
    items: tuple[Item, ...] = ()
    evaluator: Evaluator
    if name.startswith("local"):
        settings: dict[str, Any] = {} if name == "local" else {"dtype": "bfloat16", "workers": 2}
        evaluator = LocalEvaluator(
            batch_size=4, max_new_tokens=6, threads=1, device="cpu", **settings
        )
        items = demo.DemoBenchmark(path=str(demo.path("items"))).items()[:6]
    elif name == "loss":
        evaluator = LossEvaluator(batch_size=4, threads=1, workers=2, stride=64, device="cpu")
        items = texts()[:6]
    elif name == "lm_eval":
        if importlib.util.find_spec("lm_eval") is None:
            pytest.skip("needs the extra `lm_eval`")
        lm_eval_tasks.make(place)
        evaluator = HarnessEvaluator(
            tasks=["write"], include_path=str(place), batch_size=1, threads=1, device="cpu"
        )
    else:
        evaluator = BfclEvaluator(
            server=DeadServer(),
            categories=["simple_python"],
            handler="plain",
            python=str(bfcl_place(place) / "bin" / "python"),
        )
    if evaluator.prompts.benchmark is not None:
        items = own_items(evaluator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("souping.evaluate.bfcl.run_bfcl_eval", bfcl_runner)
        yield Row(evaluator, items, tuple(served(evaluator, name) for name in MODELS))
        evaluator.close()


def test_an_evaluator_conforms(row: Row) -> None:
    check_evaluator(row.evaluator, row.models[0], row.items)
    records = row.evaluator.evaluate(row.models[0], row.items)
    row.evaluator.close()
    row.evaluator.close()
    assert row.evaluator.evaluate(row.models[0], row.items) == records
    values = row.evaluator.scoring.item_scores(row.items, [[record] for record in records])
    assert values.mean() == pytest.approx(sum(r.score for r in records) / len(records))


def test_an_evaluator_declares_what_it_needs_and_how_it_answers(row: Row) -> None:
    evaluator = row.evaluator
    benchmark = row.evaluator.prompts.benchmark
    outline = row.evaluator.prompts.outline()
    assert (evaluator.hosting.host is None) == (evaluator.hosting.model_form == "module")
    assert evaluator.needs() == []
    evaluator.prompts.check(MODELS)
    evaluator.prompts.check_tokenizer(
        demo.path(MODELS[0]), [i for i in row.items if isinstance(i.prompt, str)]
    )
    assert evaluator.prompts.brings_items == (benchmark is not None)
    assert benchmark is None or len({item.id for item in benchmark.items()}) == len(row.items)
    assert not outline or evaluator.prompts.brings_items
    assert not any(item.prompt or item.answer for item in outline)


def test_an_evaluator_bound_to_a_recipe_cuts_the_same_blocks(row: Row) -> None:
    for recipe in (SINGLE, SOUP):
        own = row.evaluator.for_recipe(recipe)
        assert evaluator_fingerprint(own.for_recipe(recipe)) == evaluator_fingerprint(own)
        assert own.batches(row.items) == row.evaluator.batches(row.items)


def test_a_template_is_looked_for_in_its_three_places(tmp_path: Path) -> None:
    """Messages without a chat template are refused before any work."""
    local = LocalEvaluator(device="cpu")
    item = Item(id="i", category="c", prompt=({"role": "user"},), answer="x")
    files = {
        "chat_template.jinja": "{{ messages }}",
        "chat_template.json": '{"chat_template": "x"}',
    }
    for name, text in {
        **files,
        "tokenizer_config.json": '{"chat_template": "{{ messages }}"}',
    }.items():
        with pytest.raises(
            UserError,
            match="item i: chat messages need a chat template, and the tokenizer has none",
        ):
            local.prompts.check_tokenizer(tmp_path, [item])
        (tmp_path / name).write_text(text)
        local.prompts.check_tokenizer(tmp_path, [item])
        (tmp_path / name).unlink()
    local.prompts.check_tokenizer(tmp_path, [replace(item, prompt="x")])
