"""What vLLM's workers run for `engine=vllm`: they import this file by the name in `llm_arguments`."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from typing import Any

import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check


class MemoryTransfer(IPCWeightTransferEngine):  # type: ignore[misc]
    """vLLM's weight updates between processes of one machine, with main memory instead of a GPU's."""

    update_info_cls = dict

    def receive_weights(self, update_info: Mapping[str, Any]) -> None:
        """Load the tensors that `Vllm.pour` describes."""
        with open(update_info["path"], "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        weights = list[tuple[str, torch.Tensor]]()
        # A layer keeps its tensors, and they the memory, until it has all of them.
        for name, dtype, shape, offset in update_info["tensors"]:
            kind = getattr(torch, dtype)  # torch's
            flat = torch.frombuffer(memory, dtype=kind, count=math.prod(shape), offset=offset)
            weights.append((name, flat.view(shape)))
        with disable_mtp_completeness_check():
            self.model.load_weights(weights)


class SoupWorker:
    """Methods that a worker of vLLM gets."""

    def open_for_soups(self: Any) -> None:
        """Let weight updates come by memory.

        vLLM does so by itself with `weight_transfer_config`, but for that setting it also leaves out some kernels.
        """
        self.weight_transfer_engine = MemoryTransfer(
            WeightTransferConfig(), self.vllm_config, self.device, self.model_runner.get_model()
        )
