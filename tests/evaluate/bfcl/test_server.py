"""What bfcl-eval makes of a server that fails, refuses or never answers, and that nothing of it outlives the run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from souping.core.types import Item, UserError
from souping.evaluate.bfcl import Environment
from tests.conftest import ROOT
from tests.support.bfcl import shortest
from tests.support.bfcl_server import DEMO, evaluator
from tests.support.http import FakeServer, Handler, serving

USED = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
CHOICE = {"index": 0, "text": "[f(x=1)]", "finish_reason": "stop"}
GOOD = {
    "id": "1",
    "object": "text_completion",
    "created": 0,
    "model": "m",
    "choices": [CHOICE],
    "usage": USED,
}


class Completions:
    """Lists its models, and answers every prompt with `status` and `body`; without a status it keeps it waiting."""

    def __init__(self, server: FakeServer) -> None:
        self.status: int | None = 200
        self.bodies: list[Any] = []
        self.refusal = "no, thank you"
        self.port = server.server_port
        self.server = server

    @property
    def asked(self) -> list[Any]:
        return [body for _, body, _ in self.server.requests if body is not None]

    def answer(self, handler: Handler, body: Any) -> None:
        """Say nothing as long as no `status` is set; then the next of `bodies`, or a refusal of that status."""
        while body is not None and self.status is None:
            time.sleep(0.1)
        if body is None:
            handler.say({"object": "list", "data": []})
        elif self.status == 200:
            handler.say(self.bodies.pop() if self.bodies else GOOD)
        else:
            handler.say({"error": {"message": self.refusal}}, self.status or 500)


@pytest.fixture
def server() -> Iterator[Completions]:
    with serving() as fake:
        made = Completions(fake)
        fake.answer = made.answer
        yield made
        made.status = made.status or 500


@pytest.fixture
def many(bfcl: Environment) -> tuple[Item, ...]:
    return tuple(shortest(bfcl, ("irrelevance",), 20))


@pytest.fixture
def items(many: tuple[Item, ...]) -> tuple[Item, ...]:
    return many[:2]


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
    server: Completions, items: tuple[Item, ...], status: int, words: str
) -> None:
    server.status = status
    server.refusal = "\x1b[2J\u202egone"
    with pytest.raises(UserError, match=words) as caught:
        evaluator(server.port).evaluate(DEMO, items)
    assert str(caught.value).isprintable()  # no control characters reach the terminal


def with_choice(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "choices": [{**CHOICE, **changes}]}


@pytest.mark.slow
def test_sampling_and_prompts_are_those_of_the_evaluator(
    server: Completions, items: tuple[Item, ...]
) -> None:
    found = evaluator(server.port, max_new_tokens=7).evaluate(DEMO, items, repeat=1)
    # no call was to be made
    assert [(record.output, record.score) for record in found] == [("[f(x=1)]", 0.0)] * 2
    assert [record.repeat for record in found] == [1, 1]
    for body in server.asked:
        assert (body["top_p"], body["min_p"], body["temperature"], body["max_tokens"]) == (
            1.0,
            0.0,
            0.001,
            7,
        )
        assert (body["model"], body["prompt"][-6:]) == ("served-name", "\nCall:")


@pytest.mark.slow
def test_an_answer_is_truncated_by_its_reason_or_by_its_tokens(
    server: Completions, items: tuple[Item, ...]
) -> None:
    seven = {**GOOD, "usage": {**USED, "completion_tokens": 7}}
    for body, limit, outcome in (
        (GOOD, None, "finished"),
        (with_choice(finish_reason="length"), None, "truncated"),
        (seven, 7, "truncated"),  # by the count of its tokens
        (seven, 8, "finished"),
    ):
        server.bodies = [body]
        (one,) = evaluator(server.port, max_new_tokens=limit).evaluate(DEMO, items[:1])
        assert (one.outcome, one.prompt_tokens) == (outcome, 5)


@pytest.mark.slow
def test_a_reply_that_is_no_completion_is_no_answer(
    server: Completions, many: tuple[Item, ...]
) -> None:
    garbage = [b"", b"\x00\xff", b"{}", b"null", {**GOOD, "choices": []}, {**GOOD, "choices": [5]}]
    server.bodies = [*garbage, with_choice(text="half \ud800 \x1b[2J")]
    found = evaluator(server.port).evaluate(DEMO, many[: len(garbage) + 2])
    assert sorted(record.output for record in found if record.outcome == "finished") == [
        "[f(x=1)]",
        "half ? \x1b[2J",
    ]
    reasons = {record.reason for record in found if record.outcome == "unanswered"}
    assert all(0 < len(reason) <= 80 and reason.isprintable() for reason in reasons)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(
    server: Completions, items: tuple[Item, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("souping.evaluate.bfcl.PATIENCE_S", 12.0)
    server.status = None
    with pytest.raises(UserError, match=r"^bfcl-eval: no answer for 12 s: "):
        evaluator(server.port).evaluate(DEMO, items[:1])


WAITING = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.bfcl_server import DEMO, evaluator
from tests.support.models import own_items
asking = evaluator(int(sys.argv[2]))
items = own_items(asking)
asking.evaluate(DEMO, [item for item in items if item.id == sys.argv[3]])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
@pytest.mark.slow
def test_nothing_outlives_the_run(
    server: Completions, items: tuple[Item, ...], number: int
) -> None:
    server.status = None
    command = [sys.executable, "-c", WAITING, str(ROOT), str(server.port), items[0].id]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _until(lambda: bool(server.asked))
    children = psutil.Process(run.pid).children(recursive=True)
    assert any("runner.py" in " ".join(child.cmdline()) for child in children)
    run.send_signal(number)
    run.wait(600)
    _until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def _until(happened: Any, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
