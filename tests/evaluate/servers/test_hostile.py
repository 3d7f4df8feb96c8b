"""What a server of others may answer: each is an error in a line, in time, and nothing goes anywhere else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import UserError
from souping.evaluate.servers import TransformersServer, VllmServer
from souping.evaluate.servers.process import LONGEST, ServerError, models_at, post

Answer = Callable[["Handler"], object]


class Handler(BaseHTTPRequestHandler):
    server: Hostile

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.answer(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(f"{self.path} {body.get('model')}")
        self.server.answer(self)

    def say(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Hostile(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer
    asked: list[str]

    def handle_error(self, *_: object) -> None:
        """An asker that hangs up is what is wanted."""


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    made = Hostile(("127.0.0.1", 0), Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def address(hostile: Hostile) -> str:
    return f"http://127.0.0.1:{hostile.server_address[1]}"


def raw(text: bytes) -> Answer:
    return lambda handler: handler.wfile.write(text)


def body(text: bytes, status: int = 200) -> Answer:
    return lambda handler: handler.say(text, status)


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(LONGEST // 65536 + 8):
        handler.wfile.write(b"x" * 65536)


def trickle(handler: Handler) -> None:
    """A byte at a time until the other end hangs up."""
    while True:
        handler.wfile.write(b"H")
        time.sleep(0.05)


def slow_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    trickle(handler)


class TestPost:
    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (raw(b"garbage\r\n\r\n"), "no answer"),
            (raw(b"HTTP/1.1 banana\r\n\r\n"), "no answer"),
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
    def test_what_is_no_answer_is_a_line_in_time(self, hostile: Hostile, answer: Answer, reason: str) -> None:
        hostile.answer = answer
        with pytest.raises(ServerError, match=reason) as caught:
            post(f"{address(hostile)}/x", timeout=0.5 if answer in (trickle, slow_body) else 60.0)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) <= 310

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    @pytest.mark.parametrize("sent", [None, {"prompt": "secret"}])
    def test_redirects_are_not_followed(self, hostile: Hostile, status: int, sent: Any) -> None:
        hostile.answer = lambda handler: handler.say(b"", status, Location=f"{address(hostile)}/elsewhere")
        with pytest.raises(ServerError, match=r"it redirects to http://\S+/elsewhere, which is not followed"):
            post(f"{address(hostile)}/x", sent)
        assert len(hostile.asked) == 1


class TestModels:
    @pytest.mark.parametrize(
        "text",
        [b"", b"[]", b"5", b"null", b"{}", b'{"data": 5}', b'{"data": "ids"}', b'{"data": {"id": 1}}', b"[" * 100_000],
    )
    def test_what_is_no_list(self, hostile: Hostile, text: bytes) -> None:
        hostile.answer = body(text)
        with pytest.raises(ServerError, match="no OpenAI-compatible server"):
            models_at(address(hostile))

    def test_entries_that_are_none_are_left_out(self, hostile: Hostile) -> None:
        hostile.answer = body(b'{"data": [5, "id", {"id": 7}, {"id": null}, {"no": 1}, {"id": "m"}]}')
        assert models_at(address(hostile)) == [{"id": "m"}]

    @pytest.mark.parametrize("kind", [TransformersServer, VllmServer])
    @pytest.mark.parametrize("text", [b"{}", b"data: {", b'{"data": []}', b'{"data": [{"id": "\\u001b[2Jother"}]}'])
    def test_a_found_server_is_refused_in_two_lines(
        self, hostile: Hostile, tmp_path: Path, kind: Any, text: bytes
    ) -> None:
        """Whatever it says to loading, listing and completing: the wrong model's answers would stay in the store."""
        hostile.answer = lambda handler: handler.say(text, 404 if handler.path == "/server_info" else 200)
        with pytest.raises(UserError, match=r"^server.url=\S+ (cannot serve m |does not answer)") as caught:
            kind(url=address(hostile)).start(tmp_path, "m")
        assert str(caught.value).count("\n") <= 1

    @pytest.mark.parametrize("kind", [TransformersServer, VllmServer])
    @pytest.mark.parametrize("name", ["/a\0b", "/a\ud800", "~nosuchuser/x", "~/\0"])
    def test_names_that_are_no_paths(self, hostile: Hostile, tmp_path: Path, kind: Any, name: str) -> None:
        text = json.dumps({"data": [{"id": name}]}).encode()
        hostile.answer = lambda handler: handler.say(text, 404 if handler.path == "/server_info" else 200)
        with pytest.raises(UserError, match=r"^server.url="):
            kind(url=address(hostile)).start(tmp_path, "m")
