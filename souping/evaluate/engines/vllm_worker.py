"""What vLLM's workers run for `engine=vllm`: they import this file by the name in `llm_arguments`."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.worker.gpu_worker import Worker


class SoupWorker:
    """Methods that a worker of vLLM gets."""

    def open_for_soups(self: Worker) -> None:
        """Let weight updates come by main memory of this machine, where vLLM's own come by a GPU's.

        vLLM does so by itself with `weight_transfer_config`, but for that setting it also leaves out some kernels.
        """
        from vllm.config.weight_transfer import WeightTransferConfig
        from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine

        transfer = IPCWeightTransferEngine(
            WeightTransferConfig(), self.vllm_config, self.device, self.model_runner.get_model()
        )
        transfer.update_info_cls = dict
        transfer.receive_weights = self.load_mapped
        self.weight_transfer_engine = transfer

    def load_mapped(self: Worker, update_info: dict[str, Any]) -> None:
        """Load the tensors that `Vllm.load_soup` describes."""
        import torch
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        with open(update_info["path"], "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        weights = []
        # A layer keeps its tensors, and they the memory, until it has all of them.
        for name, dtype, shape, offset in update_info["tensors"]:
            # torch's dtype of that name
            flat = torch.frombuffer(
                memory, dtype=getattr(torch, dtype), count=math.prod(shape), offset=offset
            )
            weights.append((name, flat.view(shape)))
        with disable_mtp_completeness_check():
            self.model_runner.get_model().load_weights(weights)
