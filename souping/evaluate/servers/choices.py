"""Servers to choose from: `vllm serve` on GPUs, `transformers serve` on anything that transformers runs on."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from souping.checkpoints.checkpoint import stores_head
from souping.core.fields import Count, Precision, Seed, Share, Threads, component
from souping.core.protocols import ModelHost
from souping.core.text import install
from souping.core.types import Json, UserError
from souping.evaluate.servers import Server, check_packages
from souping.evaluate.servers.process import RunningServer, ServerError, ask, host_and_port, models_at, parsed, served

VLLM_VERSION = TRANSFORMERS_VERSION = 2
"""Raise when the same settings would give other answers."""
NEEDS = ("transformers", "fastapi", "uvicorn", "openai", "torch")


@component
class VllmServer(Server):
    """vLLM's OpenAI-compatible server over `tensor_parallel_size` GPUs, of each of which it takes the fraction
    `gpu_memory_utilization`. `max_model_len` (tokens) bounds prompt and answer together; by default the model's own.

    With `url` the server keeps its tokenizer and its settings, and only its weights change: it must see this machine's
    files and run with VLLM_SERVER_DEV_MODE=1, or else serve the very folder that is asked for.
    """

    title: ClassVar[str] = "vllm serve"
    draws: ClassVar[bool] = True

    tensor_parallel_size: Threads = 1
    gpu_memory_utilization: Share = 0.9
    max_model_len: Count | None = None
    dtype: Precision | Literal["auto"] = "auto"
    enforce_eager: bool = False
    seed: Seed = 0

    @property
    def settings(self) -> dict[str, Json]:
        """What can change an answer beside the model and the request."""
        known = self.common("vllm", VLLM_VERSION)
        if self.url is not None:
            return known
        names = ("tensor_parallel_size", "max_model_len", "dtype", "enforce_eager", "seed")
        return {**known, **{name: getattr(self, name) for name in names}}

    @property
    def request(self) -> dict[str, Json]:
        return {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

    @property
    def host(self) -> ModelHost:
        gpus, fraction = self.tensor_parallel_size, self.gpu_memory_utilization
        return ModelHost(dtype=self.dtype, gpus=gpus, fraction=fraction, url=self.url)

    def check_installed(self) -> None:
        check_packages("vllm", self.interpreter, ("vllm",), install("vllm"), "vllm")

    def command(self, folder: Path, port: int) -> list[str]:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--dtype", self.dtype, "--seed", str(self.seed)]
        flags += ["--generation-config", "vllm"]  # of the folder's own file the end tokens alone
        flags += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        flags += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        flags += ["--max-model-len", str(self.max_model_len)] if self.max_model_len else []
        flags += ["--enforce-eager"] if self.enforce_eager else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        return [self.interpreter, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *flags, *self.extra_args]

    def take(self, address: str, folder: Path, name: str) -> RunningServer:
        """A server that is there already takes the folder's weights, or has them already."""
        try:
            model = self._renew(address, folder)
        except ServerError as error:
            raise UserError(
                f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                "start it on this machine with VLLM_SERVER_DEV_MODE=1 and a candidate as its model, or leave "
                "server.url out"
            ) from error
        host, port = host_and_port(address)
        return RunningServer(url=f"{address}/v1", host=host, port=port, model=model)

    def _renew(self, address: str, folder: Path) -> str:
        """The served id, once the weights are the folder's. A server without the means has what it began with."""
        try:
            about = ask(f"{address}/server_info", timeout=60.0)
        except ServerError as error:
            if error.status != 404:
                raise
            return served(address, folder)
        if re.search(r"device(_config)?=.?cpu", about) and not stores_head(folder):
            raise ServerError("on a CPU, vLLM does not renew tied embeddings in place")
        order: dict[str, Json] = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        ask(f"{address}/collective_rpc", order, timeout=self.timeout)
        ask(f"{address}/reset_prefix_cache", {}, timeout=60.0)
        models = models_at(address)
        if not models:
            raise ServerError("it lists no model")
        return str(models[0]["id"])


@component
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

    @property
    def settings(self) -> dict[str, Json]:
        """What can change an answer beside the model and the request."""
        known = self.common("transformers", TRANSFORMERS_VERSION)
        if self.url is not None:
            return known
        return {
            **known,
            "device": self.device if self.device != "auto" else f"auto:{_kind()}",
            "dtype": self.dtype,
            "attn_implementation": self.attn_implementation,
            "continuous_batching": self.continuous_batching,
        }

    @property
    def host(self) -> ModelHost:
        return ModelHost(dtype=self.dtype, url=self.url)

    def check_installed(self) -> None:
        check_packages("transformers", self.interpreter, NEEDS, install("serving"), "transformers[serving]")

    def command(self, folder: Path, port: int) -> list[str]:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--device", self.device, "--dtype", self.dtype]
        if self.attn_implementation:
            flags += ["--attn-implementation", self.attn_implementation]
        flags += ["--continuous-batching"] if self.continuous_batching else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        module = "transformers.cli.transformers"
        return [self.interpreter, "-m", module, "serve", str(folder), *flags, *self.extra_args]

    def take(self, address: str, folder: Path, name: str) -> RunningServer:
        """A server that is there already loads the folder; `stop` makes it forget what it loaded."""
        try:
            told = ask(f"{address}/load_model", {"model": str(folder)}, timeout=self.timeout)
            failed = [event.get("message") for event in _events(told) if event.get("status") == "error"]
            if failed:
                raise ServerError((str(failed[-1]).splitlines() or ["it says nothing"])[0])
            model = served(address, folder)
        except ServerError as error:
            raise UserError(
                f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                "start it on this machine without a model (`transformers serve --port P`), or leave server.url out"
            ) from error
        host, port = host_and_port(address)
        return RunningServer(url=f"{address}/v1", host=host, port=port, model=model, end=lambda: _reset(address))


def _events(text: str) -> list[dict[str, Json]]:
    """The data of server-sent events."""
    return [parsed(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def _reset(address: str) -> None:
    with suppress(ServerError):  # it is somebody else's, and may be gone
        ask(f"{address}/reset", {})


def _kind() -> str:
    """What `auto` finds here, as far as answers depend on it."""
    return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
