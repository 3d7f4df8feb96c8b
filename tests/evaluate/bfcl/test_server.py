"""What bfcl-eval makes of a server that fails, refuses or never answers, and that nothing of it outlives the run."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from souping import pantry
from souping.core.types import Item, UserError
from souping.evaluate.bfcl.benchmark import BfclBenchmark
from souping.evaluate.bfcl.environment import Environment
from souping.evaluate.bfcl.evaluator import BfclEvaluator
from souping.evaluate.servers import RunningServer
from souping.evaluate.servers.choices import VllmServer
from tests.conftest import ROOT

COOK = Path(pantry.path("python_cook"))


USED = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
CHOICE = {"index": 0, "text": "[f(x=1)]", "finish_reason": "stop"}
GOOD = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [CHOICE], "usage": USED}


class Server(ThreadingHTTPServer):
    """Lists its models, and answers every prompt with `status` and `body`; with none it keeps the asker waiting."""

    daemon_threads = True
    status: int | None = 200
    body: Any = GOOD
    bodies: list[Any] = []  # noqa: RUF012
    refusal = "no, thank you"
    headers: dict[str, str] = {}  # noqa: RUF012
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
        body = self.server.bodies.pop() if self.server.bodies else self.server.body
        good = self.server.status == 200
        self._answer(self.server.status, body if good else {"error": {"message": self.server.refusal}})

    def _answer(self, status: int, body: Any) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        told = {"Content-Type": "application/json", "Content-Length": str(len(text)), **self.server.headers}
        self.send_response(status)
        for key, value in told.items():
            self.send_header(key, value)
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


class There(VllmServer):
    """Server that runs already, on `port`."""

    settings = {"name": "there"}  # noqa: RUF012
    request = {"top_p": 1.0, "min_p": 0.0}  # noqa: RUF012

    def start(self, folder: Path, name: str, *_: object) -> RunningServer:  # type: ignore[override]
        return RunningServer(url=f"http://127.0.0.1:{self.port}/v1", model="served-name")


def evaluator(server: Server, **more: Any) -> BfclEvaluator:
    where = There(port=server.server_address[1])
    return BfclEvaluator(server=where, categories=["irrelevance"], handler="plain", threads=1, **more)


@pytest.fixture
def many(bfcl: Environment) -> tuple[Item, ...]:
    """Items that fit the pantry's context."""
    everything = BfclBenchmark(environment=bfcl, categories=("irrelevance",)).items()
    return tuple(sorted(everything, key=lambda i: len(json.dumps(i.answer)) + len(i.prompt[0]["content"]))[:20])


@pytest.fixture
def items(many: tuple[Item, ...]) -> tuple[Item, ...]:
    return many[:2]


TABLE: Any = SimpleNamespace(soup="", architecture_folder=COOK, eos_token_ids=(), folder=COOK)


def test_what_is_asked(server: Server, items: tuple[Item, ...]) -> None:
    """The served model's name, the wanted temperature and length; a call where none may be made is wrong."""
    found = evaluator(server, temperature=0.25, max_tokens=7).evaluate(TABLE, items)
    assert [record.score for record in found] == [0.0, 0.0]
    assert [record.output for record in found] == ["[f(x=1)]"] * 2
    assert len(server.asked) == 2
    for body in server.asked:
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("served-name", 0.25, 7)
        assert body["prompt"].endswith("\nCall:")
    evaluator(server).evaluate(TABLE, items[:1])  # without a limit the context is one
    assert 0 < server.asked[2]["max_tokens"] < 512


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, r"^bfcl-eval: the server at \S+ failed: Error code: 500"),
        (404, r"^bfcl-eval: the server at \S+ failed: Error code: 404"),
        (400, "handler plain: no item could be evaluated: Error code: 400"),
    ],
)
@pytest.mark.slow
def test_a_server_that_fails_or_refuses_every_item_stops_the_run(
    server: Server, items: tuple[Item, ...], status: int, words: str
) -> None:
    server.status, server.refusal = status, "\x1b[2J\u202egone"
    with pytest.raises(UserError, match=words) as caught:
        evaluator(server).evaluate(TABLE, items)
    assert str(caught.value).isprintable()  # no control characters reach the terminal


def with_choice(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "choices": [{**CHOICE, **changes}]}


@pytest.mark.slow
def test_what_the_server_does_not_decide(server: Server, items: tuple[Item, ...]) -> None:
    """Nothing is left to its defaults, and a drawn answer has a seed of its own: the same again, another each time."""
    asking = evaluator(server, temperature=0.6, samples=2, top_p=0.9, top_k=4)
    for replicate in (0, 1, 0):
        found = asking.evaluate(TABLE, items, replicate)
        assert [record.replicate for record in found] == [replicate] * 2
    for body in server.asked:
        assert (body["top_p"], body["top_k"], body["min_p"], body["temperature"]) == (0.9, 4, 0.0, 0.6)
    seeds = [body["seed"] for body in server.asked]
    assert seeds[:2] == seeds[4:]
    assert len(set(seeds)) == 4
    assert set(seeds) == {asking.decoding.seed_of(item, n) for item in items for n in (0, 1)}
    evaluator(server).evaluate(TABLE, items)
    assert "seed" not in server.asked[-1]


@pytest.mark.slow
def test_outcomes(server: Server, items: tuple[Item, ...]) -> None:
    """By the server's word, or by the count of its tokens where it does not say."""
    (one,) = evaluator(server).evaluate(TABLE, items[:1])
    assert (one.outcome, one.reason, one.prompt_tokens) == ("finished", "", 5)
    server.body = with_choice(finish_reason="length")
    assert evaluator(server).evaluate(TABLE, items[:1])[0].outcome == "truncated"
    server.body = {**GOOD, "usage": {**USED, "completion_tokens": 7}}
    assert evaluator(server, max_tokens=7).evaluate(TABLE, items[:1])[0].outcome == "truncated"
    assert evaluator(server, max_tokens=8).evaluate(TABLE, items[:1])[0].outcome == "finished"


GARBAGE: list[Any] = [
    *(b"", b"\x00\xff", b"[" * 100_000, b"{}", b"null", [GOOD], {**GOOD, "choices": []}, {**GOOD, "choices": [5]}),
    *({**GOOD, "usage": None}, with_choice(text=None), with_choice(text=7)),
]


@pytest.mark.slow
def test_garbage_is_no_answer(server: Server, many: tuple[Item, ...]) -> None:
    """Whatever it is: its item has none, for a reason in a few plain words."""
    server.bodies = [*GARBAGE, with_choice(text="half \ud800 \x1b[2J")]
    found = evaluator(server).evaluate(TABLE, many[: len(GARBAGE) + 2])
    assert sorted(record.output for record in found if record.outcome == "finished") == ["[f(x=1)]", "half ? \x1b[2J"]
    reasons = {record.reason for record in found if record.outcome == "unanswered"}
    assert "what the server answers is no completion" in reasons
    assert all(0 < len(reason) <= 80 and reason.isprintable() for reason in reasons)


@pytest.mark.slow
def test_a_redirect_is_not_followed(server: Server, items: tuple[Item, ...]) -> None:
    server.status, server.headers = 307, {"Location": f"http://127.0.0.1:{server.server_address[1]}/else"}
    with pytest.raises(UserError, match=r"^bfcl-eval: the server at \S+ failed: Error code: 307"):
        evaluator(server).evaluate(TABLE, items[:1])
    assert len(server.asked) == 1


@pytest.mark.slow
def test_an_answer_without_end_is_not_read(server: Server, items: tuple[Item, ...]) -> None:
    """Neither as it stands nor packed: what was not asked for packed is not unpacked."""
    server.body, server.headers = b" " * ((1 << 25) + 1), {}
    with pytest.raises(UserError, match="an answer is longer than 32 MB"):
        evaluator(server).evaluate(TABLE, items[:1])
    server.body, server.headers = gzip.compress(json.dumps(GOOD).encode()), {"Content-Encoding": "gzip"}
    with pytest.raises(UserError, match="no item could be evaluated"):
        evaluator(server).evaluate(TABLE, items[:1])


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(server: Server, items: tuple[Item, ...]) -> None:
    server.status = None
    with pytest.raises(UserError, match=r"^bfcl-eval: no answer for 12 s: .*evaluator.timeout"):
        evaluator(server, timeout=12.0).evaluate(TABLE, items[:1])


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
@pytest.mark.slow
def test_nothing_outlives_the_run(server: Server, items: tuple[Item, ...], number: int) -> None:
    server.status = None
    root = ROOT
    command = [sys.executable, "-c", WAITING, str(root), str(server.server_address[1]), items[0].id]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _until(lambda: bool(server.asked))
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("runner.py" in " ".join(child.cmdline()) for child in children)
    run.send_signal(number)
    run.wait(600)
    _until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def _until(happened: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
