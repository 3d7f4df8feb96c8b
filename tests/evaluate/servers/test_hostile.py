"""What a server of others may answer: each is an error in a line, in time, and nothing goes anywhere else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import UserError
from souping.evaluate.servers.choices import TransformersServer, VllmServer
from souping.evaluate.servers.process import LONGEST, ServerError, models_at, post
from tests.support.http import FakeServer, Handler, serving

Answer = Callable[[Handler, Any], object]


@pytest.fixture
def hostile() -> Iterator[FakeServer]:
    with serving() as server:
        yield server


def raw(text: bytes) -> Answer:
    return lambda handler, _: handler.wfile.write(text)


def body(text: bytes, status: int = 200) -> Answer:
    return lambda handler, _: handler.say(text, status)


def endless(handler: Handler, _: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(LONGEST // 65536 + 8):
        handler.wfile.write(b"x" * 65536)


def trickle(handler: Handler, _: Any) -> None:
    """A byte at a time until the other end hangs up."""
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
        (raw(b""), "no answer"),
        (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "no answer"),
        (endless, "longer than 8 MB"),
        (trickle, "no whole answer after 0.5 s"),
        (slow_body, "no whole answer after 0.5 s"),
        (body(b"\x1b[2J \xe2\x80\xae gone", 500), r"\\x1b\[2J \\u202e gone"),
        (body(b"[" * 100_000, 500), r"\[\[\["),
        (body(b'{"error": {"message": "out\\nof memory"}}', 503), "^out of memory$"),
    ],
)
def test_what_is_no_response_is_a_line_in_time(hostile: FakeServer, answer: Answer, reason: str) -> None:
    hostile.answer = answer
    with pytest.raises(ServerError, match=reason) as caught:
        post(f"{hostile.url}/x", timeout=0.5 if answer in (trickle, slow_body) else 60.0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 310


@pytest.mark.parametrize("sent", [None, {"prompt": "secret"}])
def test_redirects_are_not_followed(hostile: FakeServer, sent: Any) -> None:
    for count, status in enumerate((301, 302, 307), start=1):
        hostile.answer = lambda handler, _, code=status: handler.say(b"", code, Location=f"{hostile.url}/elsewhere")
        with pytest.raises(ServerError, match=r"it redirects to http://\S+/elsewhere, which is not followed"):
            post(f"{hostile.url}/x", sent)
        assert len(hostile.requests) == count


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b'{"data": 5}', b'{"data": {"id": 1}}', b"[" * 100_000])
def test_what_is_no_list_of_models(hostile: FakeServer, text: bytes) -> None:
    hostile.answer = body(text)
    with pytest.raises(ServerError, match="no OpenAI-compatible server"):
        models_at(hostile.url)


def test_entries_that_are_no_models_are_left_out(hostile: FakeServer) -> None:
    hostile.answer = body(b'{"data": [5, "id", {"id": 7}, {"id": null}, {"no": 1}, {"id": "m"}]}')
    assert models_at(hostile.url) == [{"id": "m"}]


NAMES = [json.dumps({"data": [{"id": name}]}).encode() for name in ("\x1b[2Jother", "/a\0b", "/a\ud800", "~nobody/x")]


@pytest.mark.parametrize("kind", [TransformersServer, VllmServer])
@pytest.mark.parametrize("text", [b"{}", b"data: {", b'{"data": []}', *NAMES])
def test_a_running_server_is_refused_in_two_lines(hostile: FakeServer, tmp_path: Path, kind: Any, text: bytes) -> None:
    """Whatever it says to loading and listing: the wrong model's answers would stay in the store."""
    hostile.answer = lambda handler, _: handler.say(text, 404 if handler.path == "/server_info" else 200)
    with pytest.raises(UserError, match=r"^server.url=\S+ (cannot serve m |does not answer)") as caught:
        kind(url=hostile.url).start(tmp_path, "m")
    assert str(caught.value).count("\n") <= 1
