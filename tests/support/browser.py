"""A headless Chromium over its debugging pipe: pages are opened and measured without any package."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """The browser: `SOUPING_BROWSER`, else the first known name on the path."""
    given = os.environ.get("SOUPING_BROWSER")
    return given or next((found for name in NAMES if (found := shutil.which(name))), None)


def axe() -> Path | None:
    """axe-core's script: `SOUPING_AXE`, else what `npm install axe-core` left in the working directory."""
    places = [Path(given)] if (given := os.environ.get("SOUPING_AXE")) else []
    places += [Path("node_modules/axe-core/axe.min.js").resolve()]
    return next((place for place in places if place.is_file()), None)


class Browser:
    """One process and its pipe; `messages` are those of the console, errors of pages among them."""

    def __init__(self, send: Callable[[bytes], int], receive: Callable[[], bytes]) -> None:
        self._write = send
        self._read = receive
        self._rest = b""
        self._count = 0
        self._session = ""
        self.messages: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one command of the DevTools protocol."""
        self._count += 1
        request = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        self._write(json.dumps(request).encode() + b"\0")
        reply = self._until(lambda message: message.get("id") == self._count)
        result: dict[str, Any] = reply.get("result", {})
        return result

    def open(
        self, page: Path, width: int = 1280, scheme: str = "light", media: str = "screen"
    ) -> None:
        """Load a file in a window of this width."""
        self.messages = []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=feature)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, promises awaited."""
        given = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in given, given["exceptionDetails"]
        return given["result"].get("value")

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        while True:
            while b"\0" not in self._rest:
                chunk = self._read()
                assert chunk, "the browser ended"
                self._rest += chunk
            line, self._rest = self._rest.split(b"\0", 1)
            message: dict[str, Any] = json.loads(line)
            self._note(message)
            assert "error" not in message, message["error"]
            if wanted(message):
                return message

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") in (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
        ):
            self.messages.append(json.dumps(message["params"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, ended and cleared away afterwards."""
    here = os.pipe()
    theirs = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [str(executable()), *FLAGS, f"--user-data-dir={profile}"]
        script = f'exec "$@" 3<&{here[0]} 4>&{theirs[1]}'
        process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(here[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(here[0])
        os.close(theirs[1])
        try:
            yield Browser(lambda text: _whole(here[1], text), lambda: os.read(theirs[0], 1 << 20))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(here[1])
            os.close(theirs[0])


def _whole(pipe: int, text: bytes) -> int:
    sent = 0
    while sent < len(text):
        sent += os.write(pipe, text[sent:])
    return sent
