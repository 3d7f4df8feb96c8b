"""The servers that ship: `server={transformers,vllm}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Literal

from souping.checkpoints.checkpoint import stores_head
from souping.core.fields import Count, Precision, Seed, Share, Threads, component
from souping.core.protocols import ModelHost
from souping.core.text import install
from souping.core.types import Json
from souping.evaluate.servers import RunningServer, Server, check_packages
from souping.evaluate.servers.process import ServerError, ask, models_at, parsed, served

NEEDS = ("transformers", "fastapi", "uvicorn", "openai", "torch")
"""Packages that `transformers serve` imports."""


@component
class VllmServer(Server):
    """vLLM's OpenAI-compatible server on `tensor_parallel_size` GPUs. It takes the fraction `gpu_memory_utilization` of
    each. `max_model_len` (tokens) limits prompt and answer together; the default is the model's own limit.

    With `url` the server keeps its tokenizer and its settings, and only its weights change. It must see this machine's
    files and run with VLLM_SERVER_DEV_MODE=1, or serve the requested folder already.
    """

    title: ClassVar[str] = "vllm serve"
    kind: ClassVar[str] = "vllm"
    version: ClassVar[int] = 2
    decisive: ClassVar[tuple[str, ...]] = ("tensor_parallel_size", "max_model_len", "dtype", "enforce_eager", "seed")
    how_to_start: ClassVar[str] = "on this machine with VLLM_SERVER_DEV_MODE=1 and a candidate as its model"
    draws: ClassVar[bool] = True

    tensor_parallel_size: Threads = 1
    gpu_memory_utilization: Share = 0.9
    max_model_len: Count | None = None
    dtype: Precision | Literal["auto"] = "auto"
    enforce_eager: bool = False
    seed: Seed = 0

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
        flags += ["--generation-config", "vllm"]  # only end tokens come from the folder's own file
        flags += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        flags += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        flags += ["--max-model-len", str(self.max_model_len)] if self.max_model_len else []
        flags += ["--enforce-eager"] if self.enforce_eager else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        return [self.interpreter, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *flags, *self.extra_args]

    def take(self, address: str, folder: Path) -> RunningServer:
        return RunningServer(url=f"{address}/v1", model=self._renew(address, folder))

    def _renew(self, address: str, folder: Path) -> str:
        """The served id, once the weights are the folder's. A server that cannot reload keeps its first model."""
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

    `dtype` auto is the model's own; `device` auto spreads a model over all GPUs. A server for `url` must be started
    without a model (`transformers serve --port P`) and see this machine's files: it loads the requested folder.
    """

    title: ClassVar[str] = "transformers serve"
    kind: ClassVar[str] = "transformers"
    version: ClassVar[int] = 2
    decisive: ClassVar[tuple[str, ...]] = ("dtype", "attn_implementation", "continuous_batching")
    how_to_start: ClassVar[str] = "on this machine without a model (`transformers serve --port P`)"

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str | None = None
    continuous_batching: bool = False

    @property
    def settings(self) -> Mapping[str, Json]:
        kind = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"  # what `auto` finds here
        device = self.device if self.device != "auto" else f"auto:{kind}"
        return super().settings if self.url is not None else {**super().settings, "device": device}

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

    def take(self, address: str, folder: Path) -> RunningServer:
        """`stop` makes the server forget what it loaded."""
        reply = ask(f"{address}/load_model", {"model": str(folder)}, timeout=self.timeout)
        failed = [event.get("message") for event in _events(reply) if event.get("status") == "error"]
        if failed:
            raise ServerError((str(failed[-1]).splitlines() or ["it gives no reason"])[0])
        model = served(address, folder)
        return RunningServer(url=f"{address}/v1", model=model, end=lambda: _reset(address))


def _events(text: str) -> list[dict[str, Json]]:
    """The data of server-sent events."""
    return [parsed(line[5:]) for line in text.splitlines() if line.startswith("data:")]


def _reset(address: str) -> None:
    with suppress(ServerError):  # somebody else runs it, and it may be gone
        ask(f"{address}/reset", {})
