"""Stand-ins for what evaluators stand on: vLLM, a server, bfcl-eval's environment and its runner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file

from souping.core.protocols import AdapterShape, ModelHost, WeightSamples, WeightStream
from souping.core.types import Json, Missing
from souping.evaluate.bfcl import BFCL_EVAL_VERSION, Environment
from souping.evaluate.servers.choices import RunningServer, Server
from souping.logs.bfcl_items import MULTI_TURN, SINGLE_TURN
from souping.merge.loaded_weights import sample_weights


class Sink:
    """Stands where vLLM's engine would, and keeps what reaches it. It answers with the prompt's own first tokens."""

    def __init__(
        self, folder: Path, fails: bool = False, no_chunks: Exception | None = None
    ) -> None:
        self.got: list[Any] = [folder]
        self.fails = fails
        self.closed = False
        self.adapters = False
        self.context_length = 128
        self.in_place = True
        self.no_chunks = no_chunks
        self.sampling: list[dict[str, Any]] = []
        self.salts: list[str] = []
        # What it holds in place of what it was given, always and only after chunks.
        self.lost: dict[str, Any] = {}
        self.lost_in_chunks: dict[str, Any] = {}

    def reload(self, folder: Path) -> None:
        if self.fails:
            raise RuntimeError("cannot reload")
        self.got.append(folder)

    def load_soup(self, stream: WeightStream) -> None:
        if self.no_chunks:
            raise self.no_chunks
        self.got.append(unpacked(stream))

    def take_adapter(self, folder: Path, soup: str) -> None:
        """Keep the products of its factors."""
        factors = load_file(folder / "adapter_model.safetensors")
        products = {}
        for key, a in factors.items():
            if "lora_A" in key:
                module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                product = factors[key.replace("lora_A", "lora_B")] @ a
                products[f"{module} adapter 0"] = product
        self.got.append(products)
        self.adapters = True

    def sample_weights(self) -> WeightSamples:
        """Of what it took last, with `lost` as the engine holds it."""
        loaded = self.got[-1]
        lost = self.lost
        if isinstance(loaded, Path):
            loaded = load_file(loaded / "model.safetensors")
        else:
            lost = {**lost, **self.lost_in_chunks}
        samples = sample_weights(sorted({**loaded, **lost}.items()))
        return replace(samples, adapters=self.adapters)

    def generate(
        self, prompts: list[list[int]], sampling: list[dict[str, Any]], soup: str
    ) -> list[tuple[list[int], str]]:
        self.sampling = sampling
        self.salts.append(soup)
        return [
            (prompt[: one["max_tokens"]], "length")
            for prompt, one in zip(prompts, sampling, strict=True)
        ]

    def logprobs(self, prompts: list[list[int]], soup: str) -> list[list[float]]:
        self.salts.append(soup)
        values = []
        for prompt in prompts:
            values.append([-float(token) for token in prompt[1:]])
        return values

    def close(self) -> None:
        self.closed = True


def unpacked(stream: WeightStream) -> dict[str, Any]:
    """{name: tensor} of the chunks, each filled in memory that nobody else has."""
    import torch

    tensors = {}
    for chunk in stream.chunks():
        memory = bytearray(chunk.nbytes)
        chunk.fill(memoryview(memory))
        for name, dtype, shape, offset in chunk.tensors:
            flat = torch.frombuffer(
                memory, dtype=getattr(torch, dtype), count=math.prod(shape), offset=offset
            )
            tensors[name] = flat.view(*shape)
    return tensors


@dataclass(frozen=True, kw_only=True)
class DeadServer(Server):
    """Says that it serves, and does not."""

    title: ClassVar[str] = "dead"

    @property
    def settings(self) -> Mapping[str, Json]:
        return {"name": "dead"}

    @property
    def host(self) -> ModelHost:
        return ModelHost(dtype="auto")

    def needs(self) -> list[Missing]:
        return []

    def command(self, folder: Path, port: int) -> list[str]:
        return []

    def load_into(self, address: str, folder: Path) -> RunningServer:
        raise AssertionError

    def start(self, folder: Path, name: str, shape: AdapterShape | None = None) -> RunningServer:
        return RunningServer(url="http://127.0.0.1:9/v1", model=name)


def bfcl_place(place: Path, count: int = 6, apart: bool = False) -> Path:
    """A minimal environment that holds data files of BFCL's shape, `count` items in simple_python, all of one group.

    With `apart`, each item has a function of its own, so is a group of its own.
    """
    package = place / "lib" / "python3.11" / "site-packages" / "bfcl_eval"
    package.with_name(f"bfcl_eval-{BFCL_EVAL_VERSION}.dist-info").mkdir(parents=True)
    answers = package / "data" / "possible_answer"
    answers.mkdir(parents=True)
    (package / "constants").mkdir()
    (package / "constants" / "model_config.py").write_text("local_inference_model_map = {}\n")
    for name in (*SINGLE_TURN, *MULTI_TURN):
        (package / "data" / f"BFCL_v4_{name}.json").write_text("")
    parameters = {"type": "dict", "properties": {}, "required": []}
    names = [f"add_{i}" if apart else "add" for i in range(count)]
    rows = [
        {
            "id": f"simple_python_{i}",
            "question": [[{"role": "user", "content": f"add {i}"}]],
            "function": [{"name": name, "parameters": parameters}],
        }
        for i, name in enumerate(names)
    ]
    truth = [{"id": row["id"], "ground_truth": [{"add": {}}]} for row in rows]
    _lines(package / "data" / "BFCL_v4_simple_python.json", rows)
    _lines(answers / "BFCL_v4_simple_python.json", truth)
    return place


def bfcl_runner(
    environment: Environment,
    root: Path,
    handler: str,
    ids: Mapping[str, Sequence[str]],
    generate: Mapping[str, Json] | None = None,
    patience: float = 0.0,
) -> None:
    """Stands where bfcl-eval would run: answers every item, and has every other one wrong."""
    for category, own in ids.items():
        folder = handler.replace("/", "_")
        results = root / "result" / folder
        scores = root / "score" / folder
        failed = [{"id": name} for name in own if int(name.rsplit("_", 1)[1]) % 2]
        _lines(
            results / f"BFCL_v4_{category}_result.json",
            [{"id": name, "result": f"[{handler}()]"} for name in own],
        )
        _lines(scores / f"BFCL_v4_{category}_score.json", [{"accuracy": 0.5}, *failed])


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
