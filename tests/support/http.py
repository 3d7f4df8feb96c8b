"""A server on this machine whose responses a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from souping.evaluate.servers.server_process import LONGEST_ANSWER_BYTES


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: Any) -> None:
        self.server.requests.append((self.path, body, self.headers.get("Authorization", "")))
        self.server.answer(self, body)

    def say(self, content: Any, status: int = 200, **headers: str) -> None:
        """Send a response; what is not bytes goes as JSON."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class FakeServer(ThreadingHTTPServer):
    """`answer(handler, body)` responds; `requests` holds (path, body, Authorization) of each request."""

    daemon_threads = True
    answer: Callable[[Handler, Any], object]
    requests: list[tuple[str, Any, str]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """A client may hang up."""


@contextmanager
def serving() -> Iterator[FakeServer]:
    server = FakeServer(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


Answer = Callable[[Handler, Any], object]
"""What a server does with a request and its body"""


def raw(text: bytes) -> Answer:
    """Bytes without a response's first line."""
    return lambda handler, _: handler.wfile.write(text)


def body(text: bytes, status: int = 200) -> Answer:
    return lambda handler, _: handler.say(text, status)


def endless(handler: Handler, _: Any) -> None:
    """A body that is longer than any answer may be."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(LONGEST_ANSWER_BYTES // 65536 + 8):
        handler.wfile.write(b"x" * 65536)


class LoraServer:
    """Stands where `vllm serve BASE --enable-lora` would: its routes for models and adapters, in vLLM 0.32.0's words.

    Without `allowed` there are no such routes, as without VLLM_ALLOW_RUNTIME_LORA_UPDATING. `sees` is the folder below
    which it finds adapters. `changes` has other answers, by path.
    """

    def __init__(self, server: FakeServer, base: Path) -> None:
        self.url = server.url
        self.base = str(base)
        self.allowed = True
        self.max_rank = 16
        self.sees = Path("/")
        self.changes: dict[str, Answer] = {}
        self.adapters: dict[str, str] = {}
        self.lists = True
        # (name, what its folder holds) of every adapter that was ever loaded, and the model of each completion.
        self.loaded: list[tuple[str, set[str]]] = []
        self.answered: list[str] = []

    def answer(self, handler: Handler, body: Any) -> None:
        """What vLLM's server says of models, completions and adapters, unless `changes` has the path."""
        path = handler.path.removeprefix("/v1")
        if path in self.changes:
            self.changes[path](handler, body)
        elif path == "/models":
            cards = [{"id": self.base, "root": self.base, "parent": None}]
            for name, place in self.adapters.items():
                cards.append({"id": name, "root": place, "parent": self.base})
            handler.say({"object": "list", "data": cards[: None if self.lists else 1]})
        elif path == "/completions" and body["model"] in (self.base, *self.adapters):
            self.answered.append(body["model"])
            handler.say({"choices": [{"text": "[f()]"}]})
        elif path == "/completions":
            _error(handler, 404, f"The model `{body['model']}` does not exist.")
        elif path == "/load_lora_adapter" and self.allowed:
            self._load(handler, body["lora_name"], body["lora_path"])
        elif path == "/unload_lora_adapter" and self.allowed:
            self._unload(handler, body["lora_name"])
        else:
            handler.say({"detail": "Not Found"}, 404)

    def _load(self, handler: Handler, name: str, place: str) -> None:
        """Refuse what vLLM refuses: a name that is there, a folder that it cannot see, a rank above its limit."""
        config = Path(place) / "adapter_config.json"
        if name in self.adapters:
            return _error(handler, 400, f"The lora adapter '{name}' has already been loaded.")
        if not config.is_relative_to(self.sees) or not config.is_file():
            message = f"Loading lora {name} failed: No adapter found for {place}"
            return _error(handler, 404, message)
        rank = json.loads(config.read_text())["r"]
        if rank > self.max_rank:
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."
            return _error(handler, 500, message)
        self.adapters[name] = place
        self.loaded.append((name, {path.name for path in config.parent.iterdir()}))
        return handler.say(f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _unload(self, handler: Handler, name: str) -> None:
        if self.adapters.pop(name, None) is None:
            return _error(handler, 404, f"The lora adapter '{name}' cannot be found.")
        return handler.say(f"Success: LoRA adapter '{name}' removed successfully.".encode())


def _error(handler: Handler, status: int, message: str) -> None:
    handler.say({"error": {"message": message, "type": "", "param": None, "code": status}}, status)
