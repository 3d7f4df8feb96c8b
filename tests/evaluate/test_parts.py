"""Evaluators are put together: few members, parts that are held, and values that nothing writes into."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from souping import demo
from souping.core.protocols import EVALUATOR_PARTS, Evaluator, Hosting, Prompts, Sampling, Scoring
from souping.core.types import Recipe, UserError
from souping.evaluate import lm_eval
from souping.evaluate.bfcl import BfclEvaluator
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.lm_eval import HarnessEvaluator
from souping.evaluate.lm_eval.tasks import IN_ITEMS, HarnessSettings, Loaded, load_documents
from tests.support import lm_eval_tasks
from tests.support.evaluators import DeadServer

MEMBERS = 12
needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs the extra `lm_eval`"
)


def single(name: str) -> Recipe:
    return Recipe(ingredients=(name,), fingerprints=(name,), weights=(1.0,), dtype="float32")


def test_an_evaluator_has_at_most_twelve_members_required_and_optional() -> None:
    members = {name for name in dir(Evaluator) if not name.startswith("_")}
    assert len(members) <= MEMBERS, sorted(members)
    assert Evaluator.__abstractmethods__ == {"settings", "batches", "evaluate"}
    assert members >= EVALUATOR_PARTS.keys()


def test_no_evaluator_has_two_bases() -> None:
    kinds = [Evaluator]
    for kind in kinds:
        kinds += [one for one in kind.__subclasses__() if one.__module__.startswith("souping.")]
    assert len(kinds) > 6
    wide = [kind for kind in kinds[1:] if len(kind.__bases__) > 1]
    assert wide == []


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("check_tokenizer", lambda self, folder, items: None),
        ("answers_per_item", 2),
        ("item_scores", lambda self, items, records: None),
        ("model_form", "folder"),
        ("module_settings", lambda self: None),
    ],
)
def test_a_member_of_a_part_is_refused_where_nothing_would_read_it(member: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"Mine\.{member} "):
        type("Mine", (Evaluator,), {member: value})


def test_a_setting_may_have_the_name_of_a_parts_member() -> None:
    kind = type("Mine", (Evaluator,), {"device": "cpu", "__annotations__": {"device": "str"}})
    assert issubclass(kind, Evaluator)


def test_parts_that_are_not_chosen_have_defaults() -> None:
    class Plain(Evaluator):
        settings: ClassVar = {"evaluator": "plain"}

        def batches(self, items: Any, repeat: int = 0) -> Any:
            return [tuple(items)]

        def evaluate(self, model: Any, items: Any, repeat: int = 0) -> Any:
            return []

    plain = Plain()
    assert type(plain.prompts) is Prompts
    assert (plain.sampling, plain.scoring, plain.hosting) == (Sampling(), Scoring(), Hosting())
    assert plain.for_recipe(single("a")) is plain


def test_the_pool_settles_threads_and_leaves_what_was_set() -> None:
    folder = demo.path("tuned_python")
    free = LocalEvaluator(device="cpu")
    assert free.for_pool(folder, {}).machine.resolved_threads == 1
    chosen = LocalEvaluator(device="cpu", threads=3, dtype="bfloat16")
    bound = chosen.for_pool(folder, {})
    assert (bound.threads, bound.dtype, bound.device) == (3, "bfloat16", "cpu")
    assert replace(bound, threads=None).machine.resolved_threads == free.machine.resolved_threads


@needs_lm_eval
def test_every_setting_of_lm_eval_is_in_the_fingerprint_or_in_its_items(tmp_path: Path) -> None:
    """In an item's own digest, under another name, or what changes no answer."""
    in_items = {
        *("tasks", "include_path", "metric", "filter", "category", "group", "num_fewshot"),
        *("gen_kwargs", "allow_task_code", "confirm_run_unsafe_code"),
        *("aggregate", "repeats", "logs"),
    }
    evaluator = HarnessEvaluator(tasks=["write"], device="cpu", args={"new": 1})
    # Under another name, or as entries.
    known = {field.name for field in fields(evaluator) if field.init} - {"seed", "args"}
    others = {"evaluator", "version", "lm_eval", "sampling_seed"}
    entries = evaluator.arguments.keys() - IN_ITEMS
    assert evaluator.settings.keys() == (known - in_items) | others | entries


@needs_lm_eval
def test_copies_of_an_evaluator_load_its_tasks_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval_tasks.make(tmp_path)
    loads = list[HarnessSettings]()

    def counted(settings: HarnessSettings) -> dict[str, Loaded]:
        loads.append(settings)
        return load_documents(settings)

    monkeypatch.setattr(lm_eval, "load_documents", counted)
    first = HarnessEvaluator(
        tasks=["write"], include_path=str(tmp_path), device="cpu", logs={"ant": "/some/log"}
    )
    bound = first.for_pool(demo.path("tuned_python"), {})
    assert not loads
    logged = bound.for_recipe(single("ant"))
    assert logged is not bound
    assert logged.for_recipe(single("ant")) is logged
    assert logged.loaded is bound.loaded is first.loaded
    assert len(loads) == 1
    # other settings are other tasks
    assert replace(first, num_fewshot=1).loaded is not first.loaded


def test_models_of_one_evaluator_share_their_server(tmp_path: Path) -> None:
    shared = BfclEvaluator(server=DeadServer(), handler={"ant": "plain"})
    ant = shared.for_recipe(single("ant"))
    assert (ant.handlers["soup"], shared.handlers["soup"]) == ("plain", "chat-template")
    running = ant.server.current.swap(tmp_path / "ant", ant.server)
    assert shared.server.current.swap(tmp_path / "ant", shared.server) is running
    stopped = list[str]()
    running.stop = lambda: stopped.append("ant")
    assert shared.server.current.swap(tmp_path / "bee", shared.server).model == "bee"
    ant.close()
    assert stopped == ["ant"]
