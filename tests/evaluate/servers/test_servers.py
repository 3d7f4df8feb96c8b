"""Servers that a run starts: the process and its end, the errors, and `transformers serve` for real."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping import pantry
from souping.core.fields import component
from souping.core.types import Candidate, Item, Json, UserError
from souping.evaluate.bfcl.evaluator import BfclEvaluator
from souping.evaluate.decoding import IDS
from souping.evaluate.engines.transformers import load_module, load_tokenizer
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.servers import RunningServer
from souping.evaluate.servers.choices import NEEDS, TransformersServer
from souping.evaluate.servers.process import Process, ServerError, ask, free_port, models_at
from souping.merge.local import LocalMerge
from souping.pipeline.models import OpenPool
from souping.pipeline.store import Store
from tests.conftest import ROOT
from tests.support.processes import gone, members, wait_for

REAL = TransformersServer(device="cpu", dtype="float32", timeout=300)
real = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDS), reason="needs the extra `serving`"
)


PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); {}"
"""A server that has a process of its own."""


class TestProcess:
    def start(self, tmp_path: Path, then: str = "time.sleep(600)") -> Process:
        process = Process([sys.executable, "-c", PARENT.format(then)], os.environ, tmp_path / "log")
        end = time.monotonic() + 600
        while len(members(process.group)) < 3 and process.alive and time.monotonic() < end:
            time.sleep(0.02)
        return process

    def test_stop_ends_the_whole_group(self, tmp_path: Path) -> None:
        process = self.start(tmp_path)
        assert process.alive
        assert len(members(process.group)) == 3  # the guard, the server, the server's own
        process.stop()
        assert not process.alive
        assert gone(process.group)
        process.stop()

    def test_one_that_will_not_end_is_made_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("souping.evaluate.servers.process.GRACE", 0.3)
        stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); "
        process = self.start(tmp_path, f"exec({stubborn!r}); time.sleep(600)")
        while "on" not in process.log.read_text():
            time.sleep(0.02)
        process.stop()
        assert gone(process.group)  # a killed process is seen until the kernel has ended it

    def test_one_that_ends_by_itself_takes_its_own_along_and_leaves_its_reason(self, tmp_path: Path) -> None:
        process = self.start(tmp_path, "time.sleep(1); raise ValueError('no such weights')")
        while process.alive:
            time.sleep(0.05)
        assert gone(process.group)
        assert process.reason() == "ValueError: no such weights"
        assert "ended by itself with status 1" in process.log.read_text()
        process.stop()

    def test_a_killed_guard_does_not_leave_the_rest(self, tmp_path: Path) -> None:
        process = self.start(tmp_path)
        os.kill(process.group, signal.SIGKILL)
        process.stop()
        assert gone(process.group)

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, None], ids=str)
    def test_nothing_outlives_the_run(self, tmp_path: Path, how: signal.Signals | None) -> None:
        """Ctrl-C, a termination, a kill, and a plain end without `stop`."""
        code = f"""
            import os, sys, time
            from pathlib import Path
            from souping.evaluate.servers.process import Process
            process = Process([sys.executable, "-c", {PARENT.format("time.sleep(600)")!r}], os.environ, Path("log"))
            Path("group").write_text(f"{{process.group}}\\n")
            {"time.sleep(600)" if how is not None else "time.sleep(1)"}
        """
        run = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        group = int(wait_for(tmp_path / "group"))
        if how is not None:
            assert len(members(group)) > 0
            run.send_signal(how)
        run.wait(600)
        assert gone(group)


@component
class Scripted(TransformersServer):
    """Server whose program is Python code."""

    code: str = "pass"

    def check_installed(self) -> None:
        return None

    def command(self, folder: Path, port: int) -> list[str]:
        return [sys.executable, "-c", self.code, str(port)]


class TestStart:
    @pytest.fixture(autouse=True)
    def logs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        return tmp_path

    def refused(self, server: Scripted, match: str, name: str = "m") -> None:
        with pytest.raises(UserError, match=match) as caught:
            server.start(Path("/m"), name)
        assert str(caught.value).count("\n") <= 1

    def test_a_failure_leaves_its_log_and_an_interrupt_leaves_nothing(
        self, logs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> str:
            raise KeyboardInterrupt

        self.refused(Scripted(code="raise SystemExit(3)"), r"its log: .*org_model_x\.log", "org/model x")
        assert [log.name for log in logs.glob("souping-server-*/*")] == ["org_model_x.log"]
        monkeypatch.setattr("souping.evaluate.servers.served", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Scripted(code="import time; time.sleep(60)").start(Path("/m"), "m")
        assert len(list(logs.glob("souping-server-*"))) == 1

    def test_a_port_that_is_taken(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            self.refused(Scripted(port=port), f"server.port={port} is taken")

    @pytest.mark.parametrize(
        ("code", "reason"), [("raise OSError('no weights')", "OSError: no weights"), ("pass", r".*status 0\nits log: ")]
    )
    def test_a_program_that_ends(self, code: str, reason: str) -> None:
        self.refused(Scripted(code=code), f"cannot serve m: {reason}")

    def test_one_that_takes_too_long(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: object) -> str:
            while "reading" not in next(logs.glob("souping-server-*/m.log")).read_text():
                time.sleep(0.02)
            raise ServerError("it is loading")

        monkeypatch.setattr("souping.evaluate.servers.served", never)
        code = "import time; print('reading shard 1', flush=True); time.sleep(600)"
        self.refused(Scripted(code=code, timeout=1.0), r"has not loaded m after 1 s: raise server.timeout\n.*reading")


def said(running: RunningServer, prompt: str, tokens: int) -> str:
    body: Json = {"model": running.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return str(json.loads(ask(f"{running.url}/completions", body, 120))["choices"][0]["text"])


def local(folder: Path, prompts: list[Any], tokens: int) -> list[str]:
    """What evaluator=local says."""
    evaluator = LocalEvaluator(max_new_tokens=tokens, device="cpu", threads=1, batch_size=1)
    served = SimpleNamespace(
        module=load_module(folder, evaluator.module_settings()),
        tokenizer=load_tokenizer(folder),
        folder=folder,
        eos_token_ids=(),
    )
    items = [Item(id=str(i), category="c", prompt=prompt, answer="") for i, prompt in enumerate(prompts)]
    return [evaluator.evaluate(served, [item])[0].output for item in items]


@pytest.fixture(scope="module")
def cook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pantry model that has a chat template."""
    folder = tmp_path_factory.mktemp("pantry") / "python_cook"
    shutil.copytree(pantry.path("python_cook"), folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return folder


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    lines = pantry.path("items").read_text().splitlines()[:200:50]
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="module")
def running(cook: Path) -> Iterator[RunningServer]:
    running = REAL.start(cook, "python_cook")
    yield running
    assert running.process is not None
    log, group = running.process.log, running.process.group
    assert len(members(group)) >= 2
    running.stop()
    assert members(group) == []
    assert not log.parent.exists()  # a temporary log goes where all went well


@real
@pytest.mark.slow
class TestTransformersServe:
    def test_it_lists_the_model(self, running: RunningServer, cook: Path) -> None:
        assert [m["id"] for m in models_at(running.url.removesuffix("/v1"))] == [running.model] == [str(cook)]

    def test_its_answers_are_the_local_evaluators(self, running: RunningServer, cook: Path, prompts: list[str]) -> None:
        texts = [said(running, prompt, 24) for prompt in prompts]
        assert texts == local(cook, prompts, 24)
        assert len(set(texts)) > 1
        chats: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
        body: dict[str, Json] = {"model": running.model, "max_tokens": 24, "temperature": 0}
        replies = [ask(f"{running.url}/chat/completions", {**body, "messages": chat}, 120) for chat in chats]
        texts = [json.loads(reply)["choices"][0]["message"]["content"] for reply in replies]
        assert texts == local(cook, [tuple(chat) for chat in chats], 24)

    def test_what_it_refuses_is_told(self, running: RunningServer) -> None:
        with pytest.raises(ServerError, match="pinned to"):
            ask(f"{running.url}/completions", {"model": "another", "prompt": "x"})


@real
@pytest.mark.slow
def test_a_model_that_does_not_load_is_two_lines(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match=r"transformers serve cannot serve broken: .*\w") as caught:
        REAL.start(tmp_path / "broken", "broken")
    assert str(caught.value).count("\n") == 1


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    process = Process(command, os.environ, tmp_path_factory.mktemp("found") / "log")
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 600
    while time.monotonic() < end:
        try:
            models_at(address)
            break
        except ServerError:
            time.sleep(0.2)
    yield address
    process.stop()


@real
@pytest.mark.slow
class TestAFoundServer:
    def test_it_loads_one_model_after_another(self, url: str, prompts: list[str]) -> None:
        server = TransformersServer(url=url)
        for name in ("python_cook", "java_cook"):
            running = server.start(pantry.path(name), name)
            assert running.process is None
            assert [said(running, p, 24) for p in prompts] == local(pantry.path(name), prompts, 24)
            running.stop()
            assert models_at(url) == []  # it forgot the soup
        models_at(url)  # and runs on

    def test_a_models_own_generation_config_decodes_nothing(
        self, url: str, cook: Path, prompts: list[str], tmp_path: Path
    ) -> None:
        """A candidate that asks for a penalty and for sampling is served as one that does not."""
        odd = shutil.copytree(cook, tmp_path / "odd")
        own = json.loads((odd / "generation_config.json").read_text())
        asks = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 3.0, "max_new_tokens": 2}
        (odd / "generation_config.json").write_text(json.dumps({**own, **asks}))
        evaluator = BfclEvaluator(server=TransformersServer(url=url))
        with Store(tmp_path / "s") as store:
            pool = OpenPool([Candidate(name=odd.name, path=odd)], LocalMerge(), store)
            served = pool.serving(evaluator)(pool.recipe({odd.name: 1.0}))
            told = json.loads((served.folder / "generation_config.json").read_text())
            assert told.keys() <= {*IDS}
            assert told["eos_token_id"] == list(served.eos_token_ids)
            running = evaluator.server.start(served.folder, odd.name)
            assert [said(running, prompt, 24) for prompt in prompts] == local(cook, prompts, 24)
            running.stop()
            (note,) = evaluator.pool_notes({odd.name: odd})[:-1]
            assert "repetition_penalty=1.3" in note
            pool.close()

    def test_a_folder_that_it_cannot_load(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"server.url=\S+ cannot serve m \(.*\): .*\n.*leave server.url out"):
            TransformersServer(url=url).start(tmp_path, "m")


@real
@pytest.mark.slow
def test_a_found_server_that_is_pinned_serves_its_own_model_alone(cook: Path, running: RunningServer) -> None:
    found = TransformersServer(url=running.url)
    assert found.start(cook, "anything").model == str(cook)
    with pytest.raises(UserError, match=r"cannot serve java_cook .*: it serves .*python_cook"):
        found.start(pantry.path("java_cook"), "java_cook")
