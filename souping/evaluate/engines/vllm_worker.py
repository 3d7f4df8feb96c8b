"""What vLLM's workers run for `engine=vllm`: they import this file by the name in `llm_arguments`."""

from __future__ import annotations

import math
import mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.v1.worker.gpu_worker import Worker

COLUMNS = 4
"""Columns of a packed weight that are compared."""


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

    def sample_weights(self: Worker) -> tuple[list[tuple[str, str, int]], bytes, list[str]]:
        """The members of `WeightSamples`, of this worker's part of the model, or of its adapter."""
        from souping.merge.loaded_weights import sample_weights

        if self.vllm_config.lora_config is not None:
            tensors = adapter_columns(self.model_runner.lora_manager._adapter_manager)
        else:
            model = self.model_runner.get_model()
            tensors = {**model.state_dict(), **packed_columns(model)}
        samples = sample_weights(tensors.items())
        return list(samples.tensors), samples.values.tobytes(), list(samples.unchecked)

    def unused_adapter_modules(self: Worker) -> list[str]:
        """Modules of the adapters that were loaded for which the model has no place."""
        manager = self.model_runner.lora_manager._adapter_manager
        unused = set[str]()
        for adapter in manager.list_adapters().values():
            unused |= adapter.loras.keys() - manager.modules.keys()
        return sorted(unused)


def packed_columns(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """{weight: some of its columns [columns, rows]} of linear layers whose weights are packed elsewhere, as on a CPU.

    The output for a unit vector is a column of the weight, without rounding.
    """
    import torch
    from vllm.model_executor.layers.linear import LinearBase

    packed = dict[str, torch.Tensor]()
    for name, layer in model.named_modules():
        if not isinstance(layer, LinearBase) or "weight" not in dict(layer.named_parameters()):
            continue
        if layer.weight.numel() or not layer.weight.is_floating_point():
            continue
        size = layer.input_size_per_partition
        columns = torch.arange(COLUMNS) * (size - 1) // (COLUMNS - 1)
        units = torch.zeros(COLUMNS, size, dtype=layer.weight.dtype, device=layer.weight.device)
        units[torch.arange(COLUMNS), columns] = 1
        with torch.inference_mode():
            packed[f"{name}.weight"] = layer.quant_method.apply(layer, units)
    return packed


def adapter_columns(manager: LoRAModelManager) -> dict[str, torch.Tensor]:
    """{module and slice: some columns of B A [rows, columns]} of linear layers, of the adapter in the first slot."""
    import torch

    columns = dict[str, torch.Tensor]()
    for name, module in manager.modules.items():
        # An embedding or a head has a tensor of another layout.
        if not isinstance(module.lora_a_stacked, tuple):
            continue
        pairs = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
        for number, (a, b) in enumerate(pairs):
            size = a.shape[-1]
            chosen = torch.arange(COLUMNS, device=a.device) * (size - 1) // (COLUMNS - 1)
            product = b[0, 0].float() @ a[0, 0][:, chosen].float()
            columns[f"{name} adapter {number}"] = product.to(a.dtype)
    return columns
