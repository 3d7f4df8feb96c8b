"""bfcl-eval on a model that is really served, from end to end."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from souping import demo
from souping.answers.claims import evaluator_digest
from souping.core.protocols import ModuleSettings, evaluator_fingerprint
from souping.core.types import Item, UserError, digest
from souping.evaluate.bfcl import BfclEvaluator, Environment
from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.servers.choices import TransformersServer, VllmServer
from souping.evaluate.servers.server_process import free_port
from tests.conftest import Cli, recipe
from tests.support.bfcl import prompt, shortest
from tests.support.evaluators import DeadServer
from tests.support.live import started
from tests.support.models import HeldModel

SERVER = TransformersServer(args={"device": "cpu"}, dtype="float32")
MODEL = Path(demo.path("tuned_python"))
OTHER = Path(demo.path("tuned_javascript"))
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
served = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TransformersServer.packages),
    reason="needs the extra `serving`",
)


def table(folder: Path) -> HeldModel:
    return HeldModel(folder=folder)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo model with a chat template and room for BFCL's own prompts."""
    folder = tmp_path_factory.mktemp("roomy") / "tuned_python"
    shutil.copytree(MODEL, folder)
    for name, keys in {
        "config.json": {"max_position_embeddings": 8192},
        "tokenizer_config.json": {"model_max_length": 8192, "chat_template": TEMPLATE},
    }.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | keys))
    return folder


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that is there already and loads what it is asked for."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        "--host",
        "127.0.0.1",
    ]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    with started(command, port, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@served
@pytest.mark.slow
class TestGenerate:
    def test_a_server_that_the_evaluator_starts(self, bfcl: Environment) -> None:
        asked = [*shortest(bfcl, ("simple_python", "irrelevance"), 2)]
        asked += BfclBenchmark(data=bfcl.data, categories=("live_multiple",)).items()[:1]
        evaluator = BfclEvaluator(
            server=SERVER,
            categories=["single_turn"],
            handler="plain",
            temperature=0.0,
            max_new_tokens=12,
        )
        try:
            found = evaluator.evaluate(table(MODEL), asked)
            running = SERVER.current.swap(MODEL, SERVER)
            assert running.process is not None
            assert running.process.alive
        finally:
            evaluator.close()
        assert not running.process.alive
        assert [record.item for record in found] == [item.id for item in asked]
        # no call, and none was to be made
        assert [record.score for record in found[2:4]] == [1.0, 1.0]
        assert "does not fit the context of 512 tokens" in found[4].output
        assert (found[4].outcome, found[4].score) == ("unanswered", 0.0)
        assert found[4].reason == "the prompt does not fit the context of 512 tokens"
        assert [(record.output, record.outcome) for record in found[:4]] == [
            greedy(item, 12) for item in asked[:4]
        ]
        assert all(0 < record.prompt_tokens < 512 for record in found[:4])

    def test_handlers_ask_in_their_own_ways(
        self, bfcl: Environment, roomy: Path, address: str
    ) -> None:
        asked = shortest(bfcl, ("simple_python", "simple_java"), 1)
        evaluator = BfclEvaluator(
            server=TransformersServer(url=address),
            categories=["single_turn"],
            temperature=0.0,
            max_new_tokens=6,
            num_concurrent=2,
        )
        texts = {}
        for handler in (
            "plain",
            "chat-template",
            "watt-ai/watt-tool-8B",
            "Salesforce/Llama-xLAM-2-8b-fc-r",
        ):
            found = replace(evaluator, handler=handler).evaluate(table(roomy), asked)
            assert not [record.output for record in found if record.output.startswith("Error")], (
                handler
            )
            texts[handler] = tuple(record.output for record in found)
        assert len(set(texts.values())) > 1
        with pytest.raises(
            UserError,
            match=r"no item could be evaluated: the tokenizer has no chat template; evaluator.handler=plain",
        ):
            evaluator.evaluate(table(MODEL), asked)
        evaluator.close()


def greedy(item: Item, tokens: int) -> tuple[str, str]:
    """What the model writes after the item's prompt by transformers itself, and how it ends."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    inputs = tokenizer(prompt(item), return_tensors="pt", return_token_type_ids=False)
    model: Any = load_module(MODEL, ModuleSettings())
    out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    written = out[0, inputs["input_ids"].shape[1] :].tolist()
    outcome = "truncated" if len(written) >= tokens else "finished"
    return str(tokenizer.decode(written, skip_special_tokens=True)), outcome


def test_a_dead_server_stops_the_run(bfcl: Environment) -> None:
    evaluator = BfclEvaluator(server=DeadServer(), categories=["single_turn"], handler="plain")
    with pytest.raises(
        UserError, match=r"^bfcl-eval: the server at http://127.0.0.1:9/v1 does not answer"
    ):
        evaluator.evaluate(table(MODEL), shortest(bfcl, ("simple_python",), 1))


def test_code_of_a_folder_is_not_run(bfcl: Environment, roomy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coded"
    shutil.copytree(roomy, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "auto_map": {"AutoTokenizer": ["x.Y"]}
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="names code of its own"):
        BfclEvaluator(server=DeadServer()).evaluate(
            table(folder), shortest(bfcl, ("simple_python",), 1)
        )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"handler": {"java_cok": "plain"}},
            r"evaluator\.handler: name=java_cok .*tuned_java",
        ),
        ({"handler": "plaid"}, r"evaluator\.handler=plaid"),
        ({"temperature": 0.6}, "temperature=0.6"),
        ({"python": "/opt/bfcl"}, "python=.*bin/python"),
    ],
)
def test_a_wrong_handler_or_setting_is_refused_by_its_key(
    bfcl: Environment, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        BfclEvaluator(**{"server": SERVER, "categories": ["live"], **settings}).prompts.check(
            ["tuned_java"]
        )


def test_a_candidate_may_have_a_handler_of_its_own() -> None:
    """Its answers are keyed by that handler alone, whatever the handlers of others are."""
    evaluator = BfclEvaluator(server=SERVER, handler={"soup": "plain", "b": "watt-ai/watt-tool-8B"})
    for one, handler in (
        (recipe(1.0, names=("a",)), "plain"),
        (recipe(1.0, names=("b",)), "watt-ai/watt-tool-8B"),
        (recipe(0.5, 0.5), "plain"),
    ):
        own = evaluator.for_recipe(one)
        assert own.handler == handler
        assert (
            evaluator_fingerprint(own)
            == evaluator_fingerprint(BfclEvaluator(server=SERVER, handler=handler))
            != evaluator_fingerprint(evaluator)
        )


def test_settings_that_change_answers_change_the_fingerprint() -> None:
    evaluator = BfclEvaluator(server=VllmServer())
    assert evaluator_fingerprint(evaluator) == digest(evaluator.settings)

    def differs(**change: Any) -> bool:
        changed = replace(evaluator, **change)
        return evaluator_fingerprint(changed) != evaluator_fingerprint(evaluator)

    assert differs(temperature=0.0)
    assert differs(max_new_tokens=9)
    assert differs(handler="x")
    assert differs(server=SERVER)
    assert not differs(num_concurrent=2)
    assert not differs(python="/x/bin/python")
    assert not differs(categories=["live"])
    assert not differs(repeats=2)
    assert evaluator_digest(replace(evaluator, repeats=2)) == evaluator_digest(evaluator)
    assert evaluator_digest(replace(evaluator, max_new_tokens=7)) != evaluator_digest(evaluator)


@served
@pytest.mark.slow
def test_a_run_with_bfcl_evaluates_and_reuses_answers(
    bfcl: Environment, address: str, souping: Cli, tmp_path: Path
) -> None:
    words = [
        "evaluator=bfcl",
        f"evaluator.python={bfcl.python}",
        f"server.url={address}",
        "selector=all",
        "analysis=[]",
    ]
    words += [
        "benchmark.limit=10",
        f"pool.candidates=[{MODEL},{OTHER}]",
    ]
    words += [
        "evaluator.categories=[simple_python,irrelevance]",
        "evaluator.max_new_tokens=12",
        "evaluator.num_concurrent=2",
    ]
    words += [
        "evaluator.handler={soup:plain,tuned_python:plain,tuned_javascript:plain}",
        "name=served",
    ]
    words += ["optimiser=fixed", "optimiser.weights=[0.5,0.5]"]
    done = souping(*words)
    assert done.code == 0, done.err
    (report,) = (
        json.loads(path.read_text()) for path in tmp_path.glob("outputs/served/*/report.json")
    )
    with next(tmp_path.glob("outputs/served/*/trials.csv")).open() as lines:
        trials = list(csv.DictReader(lines))
    assert [float(trial["objective"]) > 0.0 for trial in trials] == [True]
    assert report["benchmark"]["name"] == "bfcl"
    assert report["objective"]["coefficients"] == {"simple_python": 0.5, "irrelevance": 0.5}
    warnings = " ".join(report["warnings"])
    assert "overall without simple_java" in warnings
    assert report["cost"]["trials"] == 1
    assert (next(tmp_path.glob("outputs/served/*/soup")) / "model.safetensors").is_file()
    again = souping(*words, "server.url=http://127.0.0.1:9")  # nothing is left to ask
    assert again.code == 2, again.err  # another server is another evaluator
    again = souping(*words)
    assert again.code == 0, again.err
    latest = max(
        tmp_path.glob("outputs/served/*/report.json"), key=lambda path: path.stat().st_mtime_ns
    )
    assert json.loads(latest.read_text())["cost"]["evaluated_items"] == 0
