"""`server=vllm`: `vllm serve`, on GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from souping.core import UserError
from souping.evaluate.engines.tensors import tied
from souping.evaluate.servers import client
from souping.evaluate.servers.launch import Running, served
from souping.evaluate.servers.settings import Server, check_packages

VERSION = 1
"""Raise when the same settings would give other answers."""


@dataclass(frozen=True, kw_only=True)
class VllmServer(Server):
    """vLLM's OpenAI-compatible server over `tensor_parallel_size` GPUs, of each of which it takes the fraction
    `gpu_memory_utilization`. `max_model_len` (tokens) bounds prompt and answer together; by default the model's own.

    With `url` the server keeps its tokenizer and its settings, and only its weights change: it must see this machine's
    files and run with VLLM_SERVER_DEV_MODE=1, or else serve the very folder that is asked for.
    """

    title: ClassVar[str] = "vllm serve"

    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    enforce_eager: bool = False
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gpu_settings("server", self.tensor_parallel_size, self.gpu_memory_utilization, self.max_model_len)

    @property
    def settings(self) -> dict[str, Any]:
        """What can change an answer beside the model and the request."""
        known = self.common("vllm", VERSION)
        if self.url is not None:
            return known
        names = ("tensor_parallel_size", "max_model_len", "dtype", "enforce_eager", "seed")
        return {**known, **{name: getattr(self, name) for name in names}}

    def check_installed(self) -> None:
        check_packages("vllm", self.interpreter, ("vllm",), "souping[vllm]", "vllm")

    def command(self, folder: Path, port: int) -> list[str]:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--dtype", self.dtype, "--seed", str(self.seed)]
        flags += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        flags += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        flags += ["--max-model-len", str(self.max_model_len)] if self.max_model_len else []
        flags += ["--enforce-eager"] if self.enforce_eager else []
        flags += ["--trust-remote-code"] if self.trust_remote_code else []
        return [self.interpreter, "-m", "vllm.entrypoints.cli.main", "serve", str(folder), *flags, *self.extra_args]

    def take(self, address: str, folder: Path, name: str) -> Running:
        """A server that is there already takes the folder's weights, or has them already."""
        try:
            model = self._renew(address, folder)
        except client.ServerError as error:
            raise UserError(
                f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                "start it on this machine with VLLM_SERVER_DEV_MODE=1 and a candidate as its model, or leave "
                "server.url out"
            ) from error
        host, port = client.place(address)
        return Running(url=f"{address}/v1", host=host, port=port, model=model)

    def _renew(self, address: str, folder: Path) -> str:
        """The served id, once the weights are the folder's. A server without the means has what it began with."""
        try:
            about = client.ask(f"{address}/server_info", timeout=60.0)
        except client.ServerError as error:
            if error.status != 404:
                raise
            return served(address, folder)
        if re.search(r"device(_config)?=.?cpu", about) and tied(folder):
            raise client.ServerError("on a CPU, vLLM does not renew tied embeddings in place")
        order = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        client.ask(f"{address}/collective_rpc", order, timeout=self.timeout)
        client.ask(f"{address}/reset_prefix_cache", {}, timeout=60.0)
        return str(client.models(address)[0]["id"])


def check_gpu_settings(where: str, tensor_parallel_size: int, fraction: float, max_model_len: int | None) -> None:
    """Refuse values out of range; `where` is the group whose keys they are.

    Raises:
        UserError: the message names the key.
    """
    if tensor_parallel_size < 1:
        raise UserError(f"{where}.tensor_parallel_size={tensor_parallel_size} must be at least 1")
    if not 0 < fraction <= 1:
        raise UserError(f"{where}.gpu_memory_utilization={fraction} must be above 0 and at most 1")
    if max_model_len is not None and max_model_len < 1:
        raise UserError(f"{where}.max_model_len={max_model_len} must be at least 1")
