"""OpenAI-compatible servers that a run starts, uses and stops, or finds: `server={transformers,vllm}`."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from souping.checkpoints.checkpoint import stores_head
from souping.core.fields import Form, Precision, Seconds, Threads, component
from souping.core.files import expanded
from souping.core.protocols import AdapterShape, ModelHost
from souping.core.text import install
from souping.core.types import Json, JsonObject, Missing, Names, UserError
from souping.evaluate.engines.vllm import adapter_arguments
from souping.evaluate.servers.adapters import load_adapter, unload_adapter
from souping.evaluate.servers.server_process import (
    HOST,
    Process,
    ServerError,
    free_port,
    models_at,
    parsed,
    post,
    served,
)
from souping.evaluate.tool_arguments import GPU_FRACTION, WITHOUT_EFFECT, check_tool_arguments

LOG_EVERY = 15.0
"""Seconds between two lines on how long a model has been loading."""
QUIET = {
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of a server, unless the user has set them."""
Url = Annotated[
    str, Form(r"https?://[^/\s@?#]+(/v1)?/?", "the address of a server, as http://127.0.0.1:8000")
]
log = logging.getLogger("souping.evaluate.servers")


@dataclass(kw_only=True)
class RunningServer:
    """Server of one model. `url` ends with /v1, and requests name the id `model`.

    `process` is the server's if this run started it; `stop` then ends it with all of its processes, and a second call
    does nothing.
    """

    url: str
    model: str
    process: Process | None = None
    stop: Callable[[], None] = field(default=lambda: None, repr=False)


class CurrentServer:
    """The running server of an evaluator, if any, and the folder of the model that it serves."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._server: RunningServer | None = None

    def swap(
        self, folder: Path, server: Server, shape: AdapterShape | None = None
    ) -> RunningServer:
        """A running server, by these settings, of the model in `folder`; with a `shape`, of the adapter there.

        A server of another model is stopped first.
        """
        if self._server is None or folder != self._folder:
            self.stop()
            self._server = server.start(folder, folder.name, shape)
            self._folder = folder
        return self._server

    def stop(self) -> None:
        """Stop the running server; without one, nothing happens."""
        running = self._server
        self._server = None
        if running is not None:
            running.stop()


@component
class Server(ABC):
    """Settings of a server; `start` makes it serve one model.

    `url` is a server that somebody else runs. Without it, one is started on a free port by `python` (the interpreter of
    another environment; default: this one), which has `timeout` seconds to load a model.
    `args` are options of its command line: {max_model_len: 4096, enforce_eager: true}.
    """

    title: ClassVar[str]
    """Name in messages."""
    module: ClassVar[str]
    """Module that its interpreter runs."""
    kind: ClassVar[str]
    """Name in `server=...`, and in the fingerprint."""
    version: ClassVar[int]
    """Raise when the same settings would give other answers."""
    packages: ClassVar[Names]
    """Packages that its interpreter needs."""
    extra: ClassVar[str]
    """Extra of this package that has them."""
    how_to_start: ClassVar[str]
    """How somebody must have started a server for `url`."""
    defaults: ClassVar[JsonObject] = {}
    """Options that are always given."""
    request: ClassVar[JsonObject] = {}
    """Fields of every request that leave nothing of the decoding to the defaults of server or folder."""

    url: Url | None = None
    timeout: Seconds = 1800.0
    python: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    current: CurrentServer = field(
        default_factory=CurrentServer, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        check_tool_arguments(self.command_options, "server.args")

    @property
    def command_options(self) -> dict[str, Any]:
        """{option of the command line: value}: the `defaults` and, over them, `args`, with underscores in names."""
        args = {name.replace("-", "_"): value for name, value in self.args.items()}
        return {**self.defaults, **args}

    @property
    def address(self) -> str | None:
        """`http://host:port` of the server that somebody else runs; None without `url`."""
        return self.url and self.url.rstrip("/").removesuffix("/v1")

    @property
    def interpreter(self) -> str:
        """Path of the interpreter that runs the server."""
        return str(expanded(self.python, "server.python")) if self.python else sys.executable

    @property
    def settings(self) -> JsonObject:
        """Everything that can change an answer besides model and request."""
        common: dict[str, Json] = {"name": self.kind, "version": self.version}
        # Of a server that somebody else runs, only the address is known.
        if self.url is not None:
            return {**common, "url": self.address}
        return {
            **common,
            # The name that stored answers have for these.
            "extra_args": option_words(self.command_options, {*self.defaults, *WITHOUT_EFFECT}),
            **self.decisive,
        }

    @property
    def decisive(self) -> JsonObject:
        """Settings that can change an answer, for a server that this run starts; options with defaults are included."""
        return {}

    @property
    @abstractmethod
    def host(self) -> ModelHost:
        """Where the model is held, for plans and checks."""

    def needs(self) -> list[Missing]:
        """The packages that the interpreter lacks, or the server at `url` if it does not answer."""
        try:
            if self.address is not None:
                models_at(self.address)
                return []
            absent = absent_packages(self.interpreter, self.packages)
        except ServerError as error:
            return [Missing(what=f"server.url={self.url} does not answer: {error}")]
        except (OSError, subprocess.SubprocessError) as error:
            return [Missing(what=f"server.python={self.interpreter} cannot be run: {error}")]
        if not absent:
            return []
        place = f"server={self.kind}"
        fix = install(self.extra)
        if self.python is not None:
            place = self.interpreter
            fix = f"{self.interpreter} -m pip install {' '.join(absent)}"
        return [Missing(what=f"{place} has no {' and no '.join(absent)}", fix=fix)]

    def check_adapters(self, shape: AdapterShape) -> None:
        """Refuse adapters of this shape, if the server cannot take them (UserError)."""
        raise UserError(f"server={self.kind} serves no adapters: set merge.adapters=merge")

    def start(self, folder: Path, name: str, shape: AdapterShape | None = None) -> RunningServer:
        """A running server for the model in `folder`, or the adapter of this `shape`, called `name` in messages.

        Its log is in a temporary folder, which stays only if the server fails. The caller calls `stop()`; the server
        ends in any case when the caller's process does.

        Raises:
            UserError: the server cannot start here, or does not load the model.
        """
        if shape is not None:
            self.check_adapters(shape)
        for missing in self.needs():
            raise missing.error()
        folder = folder.absolute()
        if self.address is not None:
            return self._at_url(self.address, folder, name, shape)
        port = free_port()
        logs = Path(tempfile.mkdtemp(prefix="souping-server-"))
        log_name = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80] or "server"
        process = Process(
            self.command(folder, port), {**QUIET, **os.environ}, logs / f"{log_name}.log"
        )

        def stop() -> None:
            process.stop()
            shutil.rmtree(logs, ignore_errors=True)

        try:
            model = self._wait(folder, name, f"http://{HOST}:{port}", process)
        # The message of an error names the log, so it stays.
        except Exception:
            process.stop()
            raise
        # After Ctrl-C the log is not needed.
        except BaseException:
            stop()
            raise
        return RunningServer(
            url=f"http://{HOST}:{port}/v1", model=model, process=process, stop=stop
        )

    def _at_url(
        self, address: str, folder: Path, name: str, shape: AdapterShape | None
    ) -> RunningServer:
        """The server that somebody else runs at `address`, with the model or adapter loaded (UserError if it fails)."""
        try:
            if shape is not None:
                return self.load_adapter(address, folder, shape)
            return self.load_into(address, folder)
        except ServerError as error:
            raise UserError(
                f"server.url={self.url} cannot serve {name} ({folder}): {error}\n"
                f"start it {self.how_to_start}, or leave server.url out"
            ) from error

    def _wait(self, folder: Path, name: str, address: str, process: Process) -> str:
        """Wait until the server at `address` lists the model, and return the id under which it does.

        Raises:
            UserError: the process has ended, or `timeout` is over.
        """
        start = logged = time.monotonic()
        while process.alive:
            # It does not answer before the model is loaded.
            with suppress(ServerError):
                return served(address, folder)
            now = time.monotonic()
            if now - start > self.timeout:
                raise UserError(
                    f"{self.title} has not loaded {name} after {self.timeout:g} s: raise server.timeout\n"
                    f"the last line of its log {process.log}: {process.reason()}"
                )
            if now - logged > LOG_EVERY:
                logged = now
                log.info(f"{self.title} loads {name}: {now - start:.0f} s")
            # Often at first, as a small model loads fast; later once a second.
            time.sleep(min(1.0, 0.1 + (now - start) / 10))
        raise UserError(
            f"{self.title} cannot serve {name}: {process.reason()}\nits log: {process.log}"
        )

    def command(self, folder: Path, port: int) -> list[str]:
        """The command line of a server for the model in `folder`."""
        start = [self.interpreter, "-m", self.module, "serve", str(folder)]
        trust = ["--trust-remote-code"] if self.trust_remote_code else []
        address = ["--host", HOST, "--port", str(port)]
        return [*start, *address, *self.flags(), *trust, *option_words(self.command_options)]

    def flags(self) -> list[str]:
        """Words of the command line for settings that are keys, and not in `args`."""
        return []

    @abstractmethod
    def load_into(self, address: str, folder: Path) -> RunningServer:
        """Make a server that somebody else runs at `address` serve the model in `folder`.

        Raises:
            ServerError: it does not load the model.
        """

    def load_adapter(self, address: str, folder: Path, shape: AdapterShape) -> RunningServer:
        """Make a server that somebody else runs at `address` serve the adapter of this shape in `folder`.

        It is called if `check_adapters` takes the shape.

        Raises:
            UserError: it does not load the adapter; the error says how the server has to be started.
        """
        raise NotImplementedError


def option_words(options: JsonObject, without: Collection[str] = ()) -> list[str]:
    """Options as words of a command line, sorted by name: True becomes `--name`, and False `--no-name`.

    Options in `without` and options with the value None are left out.
    """
    words = list[str]()
    for name, value in sorted(options.items()):
        flag = name.replace("_", "-")
        if name in without or value is None:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", value if isinstance(value, str) else json.dumps(value)]
    return words


@lru_cache(maxsize=16)
def absent_packages(interpreter: str, packages: Names) -> list[str]:
    """The packages that an interpreter lacks, found by running it.

    Raises:
        OSError, subprocess.SubprocessError: the interpreter cannot be run.
    """
    code = "import importlib.util as u, sys; print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))"
    words = [interpreter, "-c", code, *packages]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()


@component
class VllmServer(Server):
    """vLLM's OpenAI-compatible server on `tensor_parallel_size` GPUs.

    With `url` the server keeps its tokenizer and its settings, and only its weights change. It must see this machine's
    files and run with VLLM_SERVER_DEV_MODE=1, or serve the requested folder already. Soups that stay adapters are
    loaded beside their base model, if it runs with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
    """

    title = "vllm serve"
    module = "vllm.entrypoints.cli.main"
    kind = extra = "vllm"
    version = 2
    packages = ("vllm",)
    how_to_start = "on this machine with VLLM_SERVER_DEV_MODE=1 and a candidate as its model"
    request: ClassVar[JsonObject] = {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }

    defaults: ClassVar[JsonObject] = {GPU_FRACTION: 0.9, "max_model_len": None}

    tensor_parallel_size: Threads = 1
    dtype: Precision | Literal["auto"] = "auto"

    @property
    def decisive(self) -> JsonObject:
        return {
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.command_options["max_model_len"],
            "dtype": self.dtype,
        }

    @property
    def host(self) -> ModelHost:
        return ModelHost(
            dtype=self.dtype,
            gpus=self.tensor_parallel_size,
            fraction=float(self.command_options[GPU_FRACTION]),
            url=self.url,
        )

    def flags(self) -> list[str]:
        # With `vllm`, only end tokens come from the folder's generation_config.
        flags = ["--dtype", self.dtype, "--generation-config", "vllm"]
        return [*flags, "--tensor-parallel-size", str(self.tensor_parallel_size)]

    def check_adapters(self, shape: AdapterShape) -> None:
        adapter_arguments(shape)
        if self.url is None:
            raise UserError(
                "server=vllm takes adapters only where it runs already: set server.url, or merge.adapters=merge"
            )

    def load_into(self, address: str, folder: Path) -> RunningServer:
        """Let vLLM's workers reload their weights. Without its development mode, it has to serve this model already.

        Raises:
            ServerError: it does not load the model.
        """
        url = f"{address}/v1"
        try:
            info = post(f"{address}/server_info", timeout=60.0)
        except ServerError as error:
            if error.status != 404:
                raise
            # Only the development mode has this address, and can reload weights.
            return RunningServer(url=url, model=served(address, folder))
        if re.search(r"device(_config)?=.?cpu", info) and not stores_head(folder):
            raise ServerError("on a CPU, vLLM does not renew tied embeddings in place")
        call: dict[str, Json] = {
            "method": "reload_weights",
            "kwargs": {"weights_path": str(folder)},
        }
        post(f"{address}/collective_rpc", call, timeout=self.timeout)
        # Cached prefixes are of the model before.
        reply = parsed(post(f"{address}/reset_prefix_cache", {}, timeout=60.0))
        if reply.get("success") is not True:
            raise ServerError(
                "it keeps the prefix cache of the model before, as other requests run"
            )
        # The server still lists the model that it was started with, and requests must name that one.
        models = models_at(address)
        if not models:
            raise ServerError("it lists no model")
        return RunningServer(url=url, model=models[0].id)

    def load_adapter(self, address: str, folder: Path, shape: AdapterShape) -> RunningServer:
        """Load an adapter beside the base model; `stop` unloads it."""
        try:
            name = load_adapter(address, folder, shape.base, self.timeout)
        except ServerError as error:
            rank = adapter_arguments(shape)["max_lora_rank"]
            fix = (
                "start it by VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve "
                f"{shape.base} --enable-lora --max-lora-rank {rank}"
            )
            # vLLM's words for a folder that it does not see.
            if "No adapter found" in str(error):
                fix = "set TMPDIR to a folder that the server sees too"
            raise UserError(
                f"server.url={self.url} cannot take the soup as an adapter: {error}", fix=fix
            ) from error
        unload = partial(unload_adapter, address, name)
        return RunningServer(url=f"{address}/v1", model=name, stop=unload)


@component
class TransformersServer(Server):
    """transformers' own OpenAI-compatible server, one request at a time unless `args` has continuous_batching.

    `dtype` auto is the model's own; without a `device` in `args`, a model is spread over all GPUs. A server for `url`
    must be started without a model (`transformers serve --port P`) and see this machine's files: it loads the requested
    folder.
    """

    title = "transformers serve"
    module = "transformers.cli.transformers"
    kind = "transformers"
    version = 2
    packages = ("transformers", "fastapi", "uvicorn", "openai", "torch")
    extra = "serving"
    how_to_start = "on this machine without a model (`transformers serve --port P`)"

    defaults: ClassVar[JsonObject] = {"device": "auto"}

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @property
    def decisive(self) -> JsonObject:
        device = self.command_options["device"]
        # On a GPU and on a CPU, `auto` gives other answers.
        if device == "auto":
            device = "auto:cuda" if Path("/dev/nvidiactl").exists() else "auto:cpu"
        return {"dtype": self.dtype, "device": device}

    @property
    def host(self) -> ModelHost:
        return ModelHost(dtype=self.dtype, url=self.url)

    def flags(self) -> list[str]:
        return ["--dtype", self.dtype]

    def load_into(self, address: str, folder: Path) -> RunningServer:
        """Let the server load the model; `stop` then makes it unload all models.

        Raises:
            ServerError: it does not load the model.
        """
        # A stream of server-sent events, each with its JSON after `data:`.
        response = post(f"{address}/load_model", {"model": str(folder)}, timeout=self.timeout)
        events = [parsed(line[5:]) for line in response.splitlines() if line.startswith("data:")]
        errors = [event.get("message") for event in events if event.get("status") == "error"]
        if errors:
            raise ServerError((str(errors[-1]).splitlines() or ["it gives no reason"])[0])

        def unload() -> None:
            with suppress(ServerError):  # somebody else runs it, and it may be gone
                post(f"{address}/reset", {})

        return RunningServer(url=f"{address}/v1", model=served(address, folder), stop=unload)
