"""`engine=vllm`: one running vLLM engine that takes soup after soup."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from souping.core import Item, UserError
from souping.evaluate.engines import Asked, Stage
from souping.evaluate.engines.prompts import check_context, cut, render
from souping.evaluate.engines.tensors import checkpoint_tensors, stored_names
from souping.evaluate.engines.vllm_adapter import Vllm
from souping.evaluate.loading import first_line
from souping.evaluate.servers.vllm_serve import check_gpu_settings
from souping.protocols import Served

VERSION = 1
"""Raise when the same settings would give other answers, as with another range of versions of vLLM."""
log = logging.getLogger("souping.evaluate")


class Running:
    """The live side: the engine, the soup that is in it, and the way that soups take."""

    def __init__(self) -> None:
        self.engine: Vllm | None = None
        self.served: object = None
        self.config = ""
        self.by_folder = False
        self.in_place = True

    def close(self) -> None:
        engine, self.engine, self.served = self.engine, None, None
        if engine is not None:
            engine.close()


@dataclass(frozen=True, kw_only=True)
class VllmEngine:
    """vLLM over `tensor_parallel_size` GPUs, of each of which it takes the fraction `gpu_memory_utilization`.

    `max_model_len` (tokens) bounds prompt and answer together; by default the model's own context. A soup reaches the
    workers by `weights`: `transfer` pours it into a module in main memory and sends that through CUDA IPC, `reload`
    writes it as a folder (to shared memory where it fits) that the workers read, `auto` transfers where the module's
    tensors are the checkpoint's and turns to folders where they are not or a transfer fails. All give the same
    weights, so `weights` and the GPU fraction are not part of the fingerprint.
    """

    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.85
    max_model_len: int | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    enforce_eager: bool = False
    seed: int = 0
    weights: Literal["auto", "transfer", "reload"] = "auto"
    running: Running = field(default_factory=Running, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_gpu_settings("engine", self.tensor_parallel_size, self.gpu_memory_utilization, self.max_model_len)

    @property
    def wants(self) -> Literal["module", "either"]:
        return "either"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What answers depend on beside the evaluator's settings."""
        names = ("tensor_parallel_size", "max_model_len", "dtype", "enforce_eager", "seed")
        return {"name": "vllm", "version": VERSION, **{name: getattr(self, name) for name in names}}

    def stage(self, asked: Asked) -> Stage:
        """Soups are poured in main memory: the GPUs are vLLM's."""
        return Stage(resolved_device="cpu", dtype=self.dtype, trust_remote_code=asked.trust_remote_code)

    def close(self) -> None:
        """End vLLM's processes."""
        self.running.close()

    def answer(self, asked: Asked, model: Served, items: Sequence[Item]) -> list[str]:
        """The texts, in the items' order.

        Raises:
            UserError: vLLM is absent or cannot load the model, or a prompt does not fit.
        """
        engine = self._with(model, asked.trust_remote_code)
        prompts = [render(model.tokenizer, item) for item in items]
        check_context(items, prompts, asked.max_new_tokens, engine.context)
        tokens = engine.generate(prompts, asked.max_new_tokens, asked.stop)
        return [cut(text, asked.stop) for text in model.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _with(self, model: Any, trust: bool) -> Vllm:
        """The engine with this soup in it."""
        state = self.running
        if state.engine is None or state.served != model.soup:
            state.served = None  # until the weights are all there
            by_folder = state.by_folder or self.weights == "reload"
            if by_folder or not self._transfer(model, trust):
                self._reload(model, trust)
            state.served = model.soup
        assert state.engine is not None
        return state.engine

    def _transfer(self, model: Any, trust: bool) -> bool:
        """Send the poured module's tensors; whether that could be done. With `weights=transfer` it must be."""
        state = self.running
        if state.engine is None:
            self._start(model.home, trust, transfer=True)
        assert state.engine is not None
        try:
            tensors = checkpoint_tensors(model.module, stored_names(model.home))
            if tensors is None:
                raise UserError("the module's tensors are not the checkpoint's")
            state.engine.send(tensors)
        except Exception as error:
            if self.weights == "transfer":
                raise UserError(f"engine.weights=transfer failed: {first_line(error)}; try reload") from error
            log.warning("vLLM's weight transfer does not serve (%s): soups go by folders", first_line(error))
            state.by_folder = True
            return False
        return True

    def _reload(self, model: Any, trust: bool) -> None:
        """Let the workers read the soup's folder; where they cannot, or its config is another, start anew with it."""
        state, folder = self.running, Path(model.folder)
        config = (folder / "config.json").read_text(encoding="utf-8")
        if state.engine is not None and state.in_place and config == state.config:
            try:
                state.engine.reload(folder)
                return
            except Exception as error:
                log.warning("vLLM takes no weights in place (%s): it starts anew for every soup", first_line(error))
                state.in_place = False
        state.close()
        self._start(folder, trust, transfer=False)

    def _start(self, folder: Path, trust: bool, transfer: bool) -> None:
        names = ("tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "dtype", "enforce_eager", "seed")
        settings = {**{name: getattr(self, name) for name in names}, "trust_remote_code": trust}
        self.running.engine = Vllm(folder, settings, transfer)
        self.running.config = (folder / "config.json").read_text(encoding="utf-8")
