"""Engines under evaluator=local: settings, what they change in a fingerprint, and how soups and tensors reach them."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.checkpoints import stored_names, stores_head
from souping.core.text import install
from souping.core.types import Candidate, Item, UserError, digest
from souping.evaluate.engines.transformers import TransformersEngine, load_module, load_tokenizer
from souping.evaluate.engines.vllm import (
    VERSIONS,
    VllmEngine,
    check_decoding,
    check_version,
    checkpoint_tensors,
    chunks,
    llm_arguments,
)
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.templates import Decoding
from souping.merge.local import LocalMerge
from souping.pipeline.models import OpenPool
from souping.pipeline.store import Store
from tests.conftest import ROOT, Cli, pool_of
from tests.support.evaluators import Sink
from tests.support.family import save_model
from tests.support.processes import gone, members, wait_for

LOCAL = LocalEvaluator(max_new_tokens=4, batch_size=16, threads=1, device="cpu")
VLLM = replace(LOCAL, engine=VllmEngine())


def test_the_fingerprint_covers_what_changes_answers_and_nothing_else() -> None:
    assert "engine" not in LOCAL.settings
    assert LOCAL.fingerprint == digest(LOCAL.settings) == replace(LOCAL, engine=TransformersEngine()).fingerprint
    engines: list[dict[str, Any]] = [
        {"tensor_parallel_size": 2},
        {"max_model_len": 99},
        {"dtype": "float16"},
        {"enforce_eager": True},
        {"seed": 1},
        {"speculative": {"method": "ngram", "num_speculative_tokens": 4}},
    ]
    evaluators: list[dict[str, Any]] = [{"batch_size": 3}, {"max_new_tokens": 9}, {"stop": ["x"]}]
    changed = [replace(VLLM, engine=VllmEngine(**change)) for change in engines]
    changed += [replace(VLLM, **change) for change in evaluators]
    assert len({one.fingerprint for one in [LOCAL, VLLM, *changed]}) == 2 + len(changed)
    engine = VllmEngine(weights="reload", gpu_memory_utilization=0.3)
    assert replace(VLLM, engine=engine, dtype="bfloat16", threads=7, workers=3).fingerprint == VLLM.fingerprint


def test_speculation_goes_to_vllm_as_it_is() -> None:
    speculative = {"method": "ngram", "num_speculative_tokens": 4}
    settings = {**VllmEngine(speculative=speculative).settings, "gpu_memory_utilization": 0.5}
    arguments = llm_arguments(Path("/m"), {**settings, "trust_remote_code": False}, transfer=False)
    assert arguments["speculative_config"] == speculative


@pytest.mark.parametrize(
    ("version", "fits"), [("0.31.9", False), ("0.32.0", True), ("0.33.1+cpu", True), ("0.34.0", False), ("1.0", False)]
)
def test_the_version_must_be_in_the_range_of_the_extra(
    version: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (low, lower), (high, higher) = VERSIONS
    assert f'"vllm>={low}.{lower},<{high}.{higher}"' in (ROOT / "setup.py").read_text()
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    with nullcontext() if fits else pytest.raises(UserError, match=rf"vllm {re.escape(version)} .*pip install"):
        check_version()


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is there")
def test_a_run_without_vllm_is_told_how_to_get_it(family: Path, souping: Cli) -> None:
    souping(*pool_of(family), "engine=vllm").refused(f"the package vllm is not installed: {install('vllm')}")
    served = SimpleNamespace(
        soup="s", architecture_folder=family / "ant", folder=family / "ant", tokenizer=None, eos_token_ids=()
    )
    with pytest.raises(UserError, match=rf"engine=vllm needs vLLM: {re.escape(install('vllm'))}") as told:
        VLLM.evaluate(served, [Item(id="i", category="c", prompt="red:", answer="")])
    assert "\n" not in str(told.value)


class TestTensors:
    @pytest.mark.parametrize("tied", [True, False])
    def test_every_stored_name_is_sent_once(self, family: Path, tmp_path: Path, tied: bool) -> None:
        folder = family / "ant" if tied else tmp_path / "untied"
        if not tied:
            save_model(folder, 3, tie_word_embeddings=False)
        module, stored = load_module(folder, LOCAL.module_settings()), stored_names(folder)
        found = checkpoint_tensors(module, stored)
        assert found is not None
        assert sorted(name for name, _ in found) == sorted(stored)
        assert stores_head(folder) != tied
        other = frozenset(name.replace("mlp.up_proj", "mlp.experts.0.up_proj") for name in stored)
        assert checkpoint_tensors(module, other) is None  # the module's names are not the checkpoint's
        module.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
        assert stored_names(tmp_path / "shards") == stored

    def test_chunks_hold_everything_once_in_order_and_keep_to_their_size(self) -> None:
        import torch

        sizes = [3, 50, 20, 200, 1, 1]
        tensors = [(str(i), torch.arange(n, dtype=torch.uint8)) for i, n in enumerate(sizes)]
        tensors.insert(5, ("other", torch.ones(2)))
        runs = list(chunks(tensors, 64))
        assert [name for run in runs for name, _ in run] == [name for name, _ in tensors]
        assert [[name for name, _ in run] for run in runs] == [["0", "1"], ["2"], ["3"], ["4"], ["other"], ["5"]]


@pytest.fixture
def sinks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(all=[], fails="")

    def start(folder: Path, settings: dict[str, Any], transfer: bool) -> Sink:
        found.all.append(Sink(folder, found.fails))
        return found.all[-1]

    monkeypatch.setattr("souping.evaluate.engines.vllm.Vllm", start)
    return found


class TestTheWayOfASoup:
    """The opened's soups up to the door of vLLM; tests/evaluate/engines/test_vllm.py goes through it."""

    def answers(self, family: Path, tmp_path: Path, engine: VllmEngine) -> list[Any]:
        evaluator = replace(LOCAL, engine=engine)
        items = [Item(id=str(i), category="c", prompt=f"red {i}:", answer="red") for i in range(3)]
        with Store(tmp_path / "s") as store:
            pool = [Candidate(name=name, path=family / name) for name in ("ant", "bee")]
            opened = OpenPool(pool, LocalMerge(), store)
            soups = []
            for weights in ({"ant": 0.5, "bee": 0.5}, {"bee": 1.0}):
                recipe = opened.recipe(weights)
                opened.merge_pool.write(recipe, tmp_path / recipe.id)
                soups.append(
                    load_module(tmp_path / recipe.id, replace(LOCAL, dtype="bfloat16").module_settings()).state_dict()
                )
                for batch in (items[:2], items[2:]):
                    records = evaluator.evaluate(opened.serving(evaluator)(recipe), batch)
                    assert [r.output for r in records] == ["red "] * len(batch)
            evaluator.close()
            opened.close()
        return soups

    def test_the_very_numbers_that_would_be_written_are_sent_once(
        self, family: Path, tmp_path: Path, sinks: SimpleNamespace
    ) -> None:
        import torch

        soups = self.answers(family, tmp_path, VllmEngine())
        (sink,) = sinks.all
        assert sink.got[0] == family / "ant"
        assert len(sink.got) == 3
        for sent, soup in zip(sink.got[1:], soups, strict=True):
            assert all(
                torch.equal(tensor, soup[name]) and tensor.dtype == soup[name].dtype for name, tensor in sent.items()
            )
            assert len(sent) == len(stored_names(family / "ant"))
        assert sink.closed

    def test_a_failed_transfer_turns_to_folders(
        self, family: Path, tmp_path: Path, sinks: SimpleNamespace, caplog: pytest.LogCaptureFixture
    ) -> None:
        sinks.fails = "send"
        self.answers(family, tmp_path, VllmEngine())
        (sink,) = sinks.all
        assert len(sink.got) == 3
        assert sink.got[2] == family / "bee"  # a candidate's own
        assert not sink.got[1].exists()  # a soup's is gone when the run is over
        assert caplog.text.count("no IPC here") <= 1

    def test_what_cannot_reload_starts_anew(self, family: Path, tmp_path: Path, sinks: SimpleNamespace) -> None:
        sinks.fails = "send reload"
        self.answers(family, tmp_path, VllmEngine(weights="reload"))
        assert [len(sink.got) for sink in sinks.all] == [1, 1]
        assert all(sink.closed for sink in sinks.all)

    def test_a_transfer_that_must_be_is_an_error_in_one_line(
        self, family: Path, tmp_path: Path, sinks: SimpleNamespace
    ) -> None:
        sinks.fails = "send"
        with pytest.raises(UserError, match=r"engine.weights=transfer failed: no IPC here; try reload"):
            self.answers(family, tmp_path, VllmEngine(weights="transfer"))

    def test_every_prompt_has_its_own_arguments(self, family: Path, sinks: SimpleNamespace) -> None:
        """Room, end tokens, and a seed for each drawn answer, which its neighbours do not change."""
        tokenizer = load_tokenizer(family / "ant")
        served = SimpleNamespace(
            soup="s",
            architecture_folder=family / "ant",
            folder=family / "ant",
            tokenizer=tokenizer,
            eos_token_ids=(1, 3),
        )
        items = [Item(id=str(i), category="c", prompt="a" * length, answer="") for i, length in enumerate((9, 127))]
        engine = VllmEngine(weights="reload")
        replace(LOCAL, engine=engine).evaluate(served, items)
        (sink,) = sinks.all
        plain = {"stop": None, "stop_token_ids": [1, 3], "temperature": 0.0}
        assert sink.sampling == [{"max_tokens": 4, **plain}, {"max_tokens": 1, **plain}]
        drawn = replace(LOCAL, engine=engine, temperature=0.6, top_p=0.9, samples=2)
        seeds = {}
        for replicate in (0, 1):
            drawn.evaluate(served, items, replicate)
            seeds[replicate] = [one["seed"] for one in sink.sampling]
            drawn.evaluate(served, items[1:], replicate)
            assert [one["seed"] for one in sink.sampling] == seeds[replicate][1:]
        assert len({*seeds[0], *seeds[1]}) == 4
        rule = {key: sink.sampling[0][key] for key in ("temperature", "top_p", "top_k", "min_p")}
        assert rule == {"temperature": 0.6, "top_p": 0.9, "top_k": -1, "min_p": 0.0}

    def test_penalties_that_it_does_not_know_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"engine=vllm has no no_repeat_ngram_size .*evaluator.generation=model"):
            check_decoding(Decoding(penalties={"no_repeat_ngram_size": 3}))
        check_decoding(Decoding(penalties={"repetition_penalty": 1.3}))


def test_a_soup_that_is_wanted_either_way_is_made_when_it_is_asked_for(family: Path, tmp_path: Path) -> None:
    import torch

    with Store(tmp_path / "s") as store:
        pool = [Candidate(name=name, path=family / name) for name in ("ant", "bee")]
        opened = OpenPool(pool, LocalMerge(), store)
        served = opened.serving(VLLM)(opened.recipe({"ant": 0.25, "bee": 0.75}))
        assert served.architecture_folder == family / "ant"
        module, folder = served.module, served.folder
        assert folder is not None
        assert {p.dtype for p in module.parameters()} == {torch.bfloat16}  # the pool's own, in main memory
        written = load_module(folder, replace(LOCAL, dtype="bfloat16").module_settings()).state_dict()
        assert all(torch.equal(value, written[name]) for name, value in module.state_dict().items())
        opened.close()
        assert not folder.exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, pytest.param(None, marks=pytest.mark.slow)], ids=str)
def test_an_engines_processes_do_not_outlive_the_run(how: signal.Signals | None, tmp_path: Path) -> None:
    code = f"""
        import os, subprocess, sys, time
        from pathlib import Path
        from souping.evaluate.servers.process import PidGuard
        inner = "import time; time.sleep(600)"
        outer = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", outer, inner], start_new_session=True)
        while not Path(f"/proc/{{child.pid}}/task/{{child.pid}}/children").read_text().strip():
            time.sleep(0.02)
        guard = PidGuard([child.pid])
        Path("group").write_text(f"{{child.pid}}\\n")
        {"time.sleep(600)" if how else "guard.stop()"}
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    group = int(wait_for(tmp_path / "group"))
    if how is not None:
        assert len(members(group)) == 2
        run.send_signal(how)
    run.wait(600)
    assert gone(group)
