"""What bfcl-eval makes of a server that fails, refuses or never answers, and that nothing of it outlives the run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from souping.core.types import Item, UserError
from souping.evaluate.bfcl.benchmark import BfclBenchmark
from souping.evaluate.bfcl.environment import Environment
from souping.evaluate.bfcl.evaluator import BfclEvaluator
from souping.evaluate.servers.process import RunningServer
from souping.examples import pantry
from souping.pipeline.models import ServedModel
from tests.conftest import ROOT

COOK = Path(pantry.path("python_cook"))


class Server(ThreadingHTTPServer):
    """Lists its models, and answers every prompt with `status`; with none it keeps the asker waiting."""

    daemon_threads = True
    status: int | None = 200
    asked: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        while self.server.status is None:
            time.sleep(0.1)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "text": "[f(x=1)]", "finish_reason": "stop"}
        good = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        self._answer(self.server.status, good if self.server.status == 200 else {"error": {"message": "no, thank you"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.status = 500 if made.status is None else made.status
    made.shutdown()
    made.server_close()


class There:
    """The server as the evaluator knows servers."""

    trust_remote_code = False

    def __init__(self, port: int) -> None:
        self.port, self.settings = port, {"name": "there"}

    def start(self, folder: Path, name: str) -> RunningServer:
        return RunningServer(
            url=f"http://127.0.0.1:{self.port}/v1", host="127.0.0.1", port=self.port, model="served-name"
        )


def evaluator(server: Server, **more: Any) -> BfclEvaluator:
    where = There(server.server_address[1])
    return BfclEvaluator(server=where, categories=["irrelevance"], handler="plain", threads=1, **more)


@pytest.fixture
def items(bfcl: Environment) -> tuple[Item, ...]:
    """Two items that fit the pantry's context."""
    everything = BfclBenchmark(environment=bfcl, categories=("irrelevance",)).items()
    return tuple(sorted(everything, key=lambda i: len(json.dumps(i.answer)) + len(i.prompt[0]["content"]))[:2])


TABLE = ServedModel(module=None, tokenizer=None, folder=COOK)


def test_what_is_asked(server: Server, items: tuple[Item, ...]) -> None:
    """The served model's name, the wanted temperature and length; a call where none may be made is wrong."""
    found = evaluator(server, temperature=0.25, max_tokens=7).evaluate(TABLE, items)
    assert [record.score for record in found] == [0.0, 0.0]
    assert [record.output for record in found] == ["[f(x=1)]"] * 2
    assert len(server.asked) == 2
    for body in server.asked:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("served-name", 0.25, 7)
        assert body["prompt"].endswith("\nCall:")


def test_without_a_limit_the_context_is_one(server: Server, items: tuple[Item, ...]) -> None:
    evaluator(server).evaluate(TABLE, items[:1])
    assert 0 < server.asked[0]["max_tokens"] < 512


@pytest.mark.parametrize("status", [500, 404])
def test_a_server_that_fails_stops_the_run(server: Server, items: tuple[Item, ...], status: int) -> None:
    server.status = status
    with pytest.raises(UserError, match=rf"^bfcl-eval: the server at \S+ failed: Error code: {status}") as caught:
        evaluator(server).evaluate(TABLE, items)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_is_refused_by_every_item_stops_the_run(server: Server, items: tuple[Item, ...]) -> None:
    server.status = 400
    with pytest.raises(UserError, match="handler plain: no item could be asked: Error code: 400"):
        evaluator(server).evaluate(TABLE, items)


WAITING = """
import sys
sys.path.insert(0, sys.argv[1])
from types import SimpleNamespace
from tests.evaluate.bfcl.test_server import TABLE, evaluator
from souping.evaluate.bfcl.benchmark import BfclBenchmark
asking = evaluator(SimpleNamespace(server_address=("127.0.0.1", int(sys.argv[2]))), ids=[sys.argv[3]])
asking.evaluate(TABLE, asking.benchmark.items())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_nothing_outlives_the_run(server: Server, items: tuple[Item, ...], number: int) -> None:
    server.status = None
    root = ROOT
    command = [sys.executable, "-c", WAITING, str(root), str(server.server_address[1]), items[0].id]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _until(lambda: bool(server.asked))
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("runner.py" in " ".join(child.cmdline()) for child in children)
    run.send_signal(number)
    run.wait(60)
    _until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def _until(happened: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
