"""Servers: what every one promises, what one of others may answer, the processes of a run, and a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping import demo
from souping.core.fields import component
from souping.core.types import Missing, UserError, digest
from souping.evaluate.servers.choices import TransformersServer, VllmServer
from souping.evaluate.servers.server_process import (
    Process,
    ServerError,
    free_port,
    models_at,
    post,
)
from tests.conftest import ROOT
from tests.support.http import Answer, FakeServer, Handler, body, endless, raw, serving
from tests.support.live import completions, local_answers, started
from tests.support.processes import gone, members, wait_for


@pytest.fixture(
    params=[TransformersServer(args={"device": "cpu"}), VllmServer()],
    ids=lambda s: type(s).__name__,
)
def server(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_settings_that_change_answers_are_recorded_and_no_others(server: Any) -> None:
    assert json.loads(json.dumps(server.settings)) == server.settings
    assert replace(server, timeout=3.0, python="/usr/bin/python3").settings == server.settings
    for change in ({"dtype": "float16"}, {"args": {"x": True}}, {"url": "http://127.0.0.1:1"}):
        assert digest(replace(server, **change).settings) != digest(server.settings)


def test_options_of_a_server_are_words_of_its_command(server: Any) -> None:
    options = {"on": True, "off": False, "left-out": None, "two_words": "a b", "deep": {"a": 1}}
    asked = replace(server, args=options)
    words = asked.command(Path("/m"), 1)
    typed = ["--deep", '{"a": 1}', "--no-off", "--on", "--two-words", "a b"]
    assert [word for word in words if word in typed] == typed
    assert asked.settings["extra_args"] == typed
    quiet = replace(server, args={"log-level": "error", "gpu-memory-utilization": 0.5})
    assert replace(server, args={}).settings == quiet.settings


@pytest.mark.parametrize("change", [{"timeout": 0.0}, {"url": "http://u:key@h"}], ids=str)
def test_values_out_of_range_are_refused(server: Any, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"server\.\w+=|Server\(\w+="):
        replace(server, **change)


def test_an_interpreter_without_the_packages_is_named(server: Any, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"python has no .*: .*python -m pip install") as told:
        replace(server, python=str(bare)).start(demo.path("tuned_python"), "m")
    assert "\n" not in str(told.value)


def test_a_server_refuses_what_it_says_is_missing(server: Any, tmp_path: Path) -> None:
    for change, words in (
        ({"python": "/nowhere/python"}, "server.python=/nowhere/python cannot be run"),
        ({"url": f"http://127.0.0.1:{free_port()}"}, "does not answer"),
    ):
        (missing,) = replace(server, **change).needs()
        assert words in missing.what
        with pytest.raises(UserError, match=words):
            replace(server, **change).start(tmp_path, "m")
    there = tmp_path / "python"
    there.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\n')
    there.chmod(0o755)
    assert replace(server, python=str(there)).needs() == []


@pytest.fixture
def hostile() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


def trickle(handler: Handler, _: Any) -> None:
    """A byte at a time until the other end hangs up: however busy the machine, never a whole answer."""
    while True:
        handler.wfile.write(b"H")
        time.sleep(0.05)


def slow_body(handler: Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    trickle(handler, _)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (raw(b"garbage\r\n\r\n"), "no answer"),
        (endless, "longer than 8 MB"),
        (trickle, "no whole answer after 0.5 s"),
        (slow_body, "no whole answer after 0.5 s"),
        (body(b"\x1b[2J \xe2\x80\xae gone", 500), r"\\x1b\[2J \\u202e gone"),
        (body(b'{"error": {"message": "out\\nof memory"}}', 503), "^out of memory$"),
    ],
)
def test_a_reply_that_is_no_response_is_a_line_in_time(
    hostile: FakeServer, answer: Answer, reason: str
) -> None:
    hostile.answer = answer
    with pytest.raises(ServerError, match=reason) as caught:
        post(f"{hostile.url}/x", timeout=0.5 if answer in (trickle, slow_body) else 60.0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 310


def test_the_limit_is_the_reason_whoever_notices_it_first(
    hostile: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of the request may see that the time is over before the caller does."""
    over = threading.Event()

    def late(handler: Handler, _: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        over.set()
        handler.wfile.write(b"H")

    clock = SimpleNamespace(monotonic=lambda: 1e9 * over.is_set())
    monkeypatch.setattr("souping.evaluate.servers.server_process.time", clock)
    hostile.answer = late
    with pytest.raises(ServerError, match="no whole answer after 60 s"):
        post(f"{hostile.url}/x", timeout=60.0)


def test_a_server_that_says_nothing_has_no_whole_answer(
    hostile: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's own limit, which is as long, may end the request before the caller's does."""
    answered = threading.Event()
    hostile.answer = lambda *_: answered.wait(600)
    join = threading.Thread.join
    monkeypatch.setattr(threading.Thread, "join", lambda thread, _=None: join(thread))
    try:
        with pytest.raises(ServerError, match=r"no whole answer after 0\.1 s"):
            post(f"{hostile.url}/x", timeout=0.1)
    finally:
        answered.set()


@pytest.mark.parametrize("sent", [None, {"prompt": "secret"}])
def test_redirects_are_not_followed(hostile: FakeServer, sent: Any) -> None:
    hostile.answer = lambda handler, _: handler.say(b"", 307, Location=f"{hostile.url}/elsewhere")
    with pytest.raises(
        ServerError, match=r"it redirects to http://\S+/elsewhere, which is not followed"
    ):
        post(f"{hostile.url}/x", sent)
    assert len(hostile.requests) == 1


def test_a_reply_that_is_no_list_of_models_is_refused(hostile: FakeServer) -> None:
    for text in (b"", b"[]", b'{"data": 5}', b'{"data": {"id": 1}}', b"[" * 100_000):
        hostile.answer = body(text)
        with pytest.raises(ServerError, match="no OpenAI-compatible server"):
            models_at(hostile.url)
    hostile.answer = body(b'{"data": [5, "id", {"id": 7}, {"id": null}, {"no": 1}, {"id": "m"}]}')
    assert [model.id for model in models_at(hostile.url)] == ["m"]


NAMES = [
    json.dumps({"data": [{"id": name}]}).encode()
    for name in ("\x1b[2Jother", "/a\0b", "/a\ud800", "~nobody/x")
]


@pytest.mark.parametrize("kind", [TransformersServer, VllmServer])
@pytest.mark.parametrize("text", [b"{}", *NAMES])
def test_a_running_server_is_refused_in_two_lines(
    hostile: FakeServer, tmp_path: Path, kind: Any, text: bytes
) -> None:
    hostile.answer = lambda handler, _: handler.say(
        text, 404 if handler.path == "/server_info" else 200
    )
    with pytest.raises(
        UserError, match=r"^server.url=\S+ (cannot serve m |does not answer)"
    ) as caught:
        kind(url=hostile.url).start(tmp_path, "m")
    assert str(caught.value).count("\n") <= 1


real = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TransformersServer.packages),
    reason="needs the extra `serving`",
)


PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); {}"
"""A server that has a process of its own."""


def start_process(tmp_path: Path, then: str = "time.sleep(600)") -> Process:
    process = Process([sys.executable, "-c", PARENT.format(then)], os.environ, tmp_path / "log")
    end = time.monotonic() + 600
    while len(members(process.group)) < 3 and process.alive and time.monotonic() < end:
        time.sleep(0.02)
    return process


def test_stop_ends_the_whole_group(tmp_path: Path) -> None:
    process = start_process(tmp_path)
    assert process.alive
    assert len(members(process.group)) == 3  # the guard, the server, the server's own
    process.stop()
    assert not process.alive
    assert gone(process.group)
    process.stop()


def test_a_server_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souping.evaluate.servers.server_process.SERVER_GRACE_S", 0.3)
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); "
    )
    process = start_process(tmp_path, f"exec({stubborn!r}); time.sleep(600)")
    while "on" not in process.log.read_text():
        time.sleep(0.02)
    process.stop()
    assert gone(process.group)  # a killed process is seen until the kernel has ended it


def test_a_server_that_ends_by_itself_takes_its_children_along_and_leaves_a_reason(
    tmp_path: Path,
) -> None:
    process = start_process(tmp_path, "raise ValueError('no such weights')")
    while process.alive:
        time.sleep(0.05)
    assert gone(process.group)
    assert process.reason() == "ValueError: no such weights"
    assert "ended by itself with status 1" in process.log.read_text()
    process.stop()


SERVER = """
from souping.evaluate.servers.server_process import Process
from tests.support.processes import members
group = Process([sys.executable, "-c", sys.argv[1]], os.environ, Path("log")).group
while len(members(group)) < 3:
    time.sleep(0.02)
Path("group").write_text(f"{group}\\n")
"""
ENGINE = """
import subprocess
from souping.evaluate.servers.server_process import PidGuard
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True)
while not Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().strip():
    time.sleep(0.02)
guard = PidGuard([child.pid])
Path("group").write_text(f"{child.pid}\\n")
"""


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGKILL,
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("code", [SERVER, ENGINE], ids=["server", "engine"])
def test_nothing_outlives_the_run(tmp_path: Path, code: str, how: signal.Signals | None) -> None:
    by_itself = "guard.stop()" if code == ENGINE else "pass"
    end = "time.sleep(600)" if how else by_itself
    whole = f"import os, sys, time\nfrom pathlib import Path\n{code}\n{end}"
    command = [sys.executable, "-c", whole, PARENT.format("time.sleep(600)")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
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

    def needs(self) -> list[Missing]:
        return []

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

    def test_a_failure_leaves_its_log_an_interrupt_nothing(
        self, logs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> str:
            raise KeyboardInterrupt

        self.refused(
            Scripted(code="raise SystemExit(3)"), r"its log: .*org_model_x\.log", "org/model x"
        )
        assert [log.name for log in logs.glob("souping-server-*/*")] == ["org_model_x.log"]
        monkeypatch.setattr("souping.evaluate.servers.choices.served", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Scripted(code="import time; time.sleep(60)").start(Path("/m"), "m")
        assert len(list(logs.glob("souping-server-*"))) == 1

    def test_a_server_that_takes_too_long(
        self, logs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object) -> str:
            while "reading" not in next(logs.glob("souping-server-*/m.log")).read_text():
                time.sleep(0.02)
            raise ServerError("it is loading")

        monkeypatch.setattr("souping.evaluate.servers.choices.served", never)
        code = "import time; print('reading shard 1', flush=True); time.sleep(600)"
        self.refused(
            Scripted(code=code, timeout=1.0),
            r"has not loaded m after 1 s: raise server.timeout\n.*reading",
        )


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    lines = demo.path("items").read_text().splitlines()[:200:50]
    return [json.loads(line)["prompt"] for line in lines]


@real
@pytest.mark.slow
def test_answers_of_a_transformers_server_are_those_of_the_local_evaluator(
    tmp_path: Path, prompts: list[str]
) -> None:
    model = shutil.copytree(demo.path("tuned_python"), tmp_path / "tuned_python")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    running = TransformersServer(args={"device": "cpu"}, dtype="float32").start(
        model, "tuned_python"
    )
    assert running.process is not None
    log = running.process.log
    group = running.process.group
    try:
        texts = completions(running.url, running.model, prompts, tokens=24)
        assert texts == local_answers(model, prompts, tokens=24)
        assert len(set(texts)) > 1
        chats = [({"role": "user", "content": prompt},) for prompt in prompts]
        assert completions(running.url, running.model, chats, tokens=24) == local_answers(
            model, chats, tokens=24
        )
    finally:
        running.stop()
    assert gone(group)
    assert not log.parent.exists()  # a temporary log goes where all went well


@real
@pytest.mark.slow
def test_a_found_server_loads_one_model_after_another(tmp_path: Path, prompts: list[str]) -> None:
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    with started(command, port, tmp_path / "log") as url:
        for name in ("tuned_python", "tuned_java"):
            running = TransformersServer(url=url).start(demo.path(name), name)
            assert running.process is None
            texts = completions(running.url, running.model, prompts, tokens=24)
            assert texts == local_answers(demo.path(name), prompts, tokens=24)
            running.stop()
            assert models_at(url) == []  # it forgot the soup, and runs on
