"""`server=transformers`: `transformers serve`, which runs on anything that transformers runs on."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from souping.core import UserError
from souping.evaluate.servers import client
from souping.evaluate.servers.launch import Running, served
from souping.evaluate.servers.settings import Server, check_packages

VERSION = 1
"""Raise when the same settings would give other answers."""
NEEDS = ("transformers", "fastapi", "uvicorn", "openai", "torch")


@dataclass(frozen=True, kw_only=True)
class TransformersServer(Server):
    """transformers' own OpenAI-compatible server, one request at a time, or several with `continuous_batching`.

    `dtype` auto is the model's own; `device` auto shares a model out over the GPUs there are. With `url` it must be
    started without a model (`transformers serve --port P`), where it loads whatever folder it is asked for: it has to
    see this machine's files.
    """

    title: ClassVar[str] = "transformers serve"

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    continuous_batching: bool = False
    trust_remote_code: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """What can change an answer beside the model and the request."""
        known = self.common("transformers", VERSION)
        if self.url is not None:
            return known
        return {
            **known,
            "device": self.device if self.device != "auto" else f"auto:{_kind()}",
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "continuous_batching": self.continuous_batching,
        }

    def check_installed(self) -> None:
        check_packages("transformers", self.interpreter, NEEDS, "souping[serving]", "transformers[serving]")

    def command(self, folder: Path, port: int) -> list[str]:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--device", self.device, "--dtype", self.dtype]
        if self.attn_implementation:
            flags += ["--attn-implementation", self.attn_implementation]
        flags += ["--continuous-batching"] if self.continuous_batching else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        module = "transformers.cli.transformers"
        return [self.interpreter, "-m", module, "serve", str(folder), *flags, *self.extra_args]

    def take(self, address: str, folder: Path, name: str) -> Running:
        """A server that is there already loads the folder; `stop` makes it forget what it loaded."""
        try:
            told = client.ask(f"{address}/load_model", {"model": str(folder)}, timeout=self.timeout)
            failed = [event["message"] for event in _events(told) if event.get("status") == "error"]
            if failed:
                raise client.ServerError(str(failed[-1]).splitlines()[0])
            model = served(address, folder)
        except client.ServerError as error:
            raise UserError(
                f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                "start it on this machine without a model (`transformers serve --port P`), or leave server.url out"
            ) from error
        host, port = client.place(address)
        return Running(url=f"{address}/v1", host=host, port=port, model=model, end=lambda: _reset(address))


def _events(text: str) -> list[dict[str, Any]]:
    """The data of server-sent events."""
    return [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def _reset(address: str) -> None:
    with suppress(client.ServerError):  # it is somebody else's, and may be gone
        client.ask(f"{address}/reset", {})


def _kind() -> str:
    """What `auto` finds here, as far as answers depend on it."""
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
