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
    """Methods that vLLM adds to each of its workers, so `self` is the worker."""

    def open_for_soups(self: Worker) -> None:
        """Let this worker take weight updates from main memory, by `load_mapped`, instead of a GPU's memory.

        vLLM's own setting for weight updates, `weight_transfer_config`, would also switch off some kernels.
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
        """Load a chunk of weights: `tensors` (name, dtype, shape, offset in bytes) in the memory at `path`."""
        import torch
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        with open(update_info["path"], "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        weights = []
        # Nothing is copied here: tensors that vLLM keeps until a layer is complete also keep the memory.
        for name, dtype, shape, offset in update_info["tensors"]:
            # torch's dtype of that name
            flat = torch.frombuffer(
                memory, dtype=getattr(torch, dtype), count=math.prod(shape), offset=offset
            )
            weights.append((name, flat.view(shape)))
        # Models with multi-token prediction refuse weights that are not complete, as those of a chunk.
        with disable_mtp_completeness_check():
            self.model_runner.get_model().load_weights(weights)

    def sample_weights(self: Worker) -> tuple[list[tuple[str, str, int]], bytes, list[str]]:
        """The fields of `WeightSamples`, the values as bytes, of this worker's part of the model, or of its adapter."""
        from souping.merge.loaded_weights import sample_weights

        if self.vllm_config.lora_config is not None:
            tensors = adapter_columns(self.model_runner.lora_manager._adapter_manager)
        else:
            model = self.model_runner.get_model()
            tensors = {**model.state_dict(), **packed_columns(model)}
        samples = sample_weights(tensors.items())
        return list(samples.tensors), samples.values.tobytes(), list(samples.unchecked)

    def unused_adapter_modules(self: Worker) -> list[str]:
        """Modules of the loaded adapters that the model does not have, or that vLLM does not adapt."""
        manager = self.model_runner.lora_manager._adapter_manager
        unused = set[str]()
        for adapter in manager.list_adapters().values():
            unused |= adapter.loras.keys() - manager.modules.keys()
        return sorted(unused)


def packed_columns(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """{name of a weight: some of its columns [columns, rows]} of linear layers whose weights vLLM has packed.

    Its build for CPUs packs weights and leaves the parameter empty. The layer's output for a unit vector is a column of
    the weight, without rounding.
    """
    import torch
    from vllm.model_executor.layers.linear import LinearBase

    packed = dict[str, torch.Tensor]()
    for name, layer in model.named_modules():
        if not isinstance(layer, LinearBase) or "weight" not in dict(layer.named_parameters()):
            continue
        # Not packed, or quantised.
        if layer.weight.numel() or not layer.weight.is_floating_point():
            continue
        size = layer.input_size_per_partition
        # Evenly spaced, from the first to the last.
        columns = torch.arange(COLUMNS) * (size - 1) // (COLUMNS - 1)
        units = torch.zeros(COLUMNS, size, dtype=layer.weight.dtype, device=layer.weight.device)
        units[torch.arange(COLUMNS), columns] = 1
        with torch.inference_mode():
            packed[f"{name}.weight"] = layer.quant_method.apply(layer, units)
    return packed


def adapter_columns(manager: LoRAModelManager) -> dict[str, torch.Tensor]:
    """{"MODULE adapter SLICE": some columns of B A [rows, columns]} of the linear layers that an adapter changes.

    vLLM fuses layers, so a module has several slices, and holds adapters in slots, of which the first is used.
    """
    import torch

    columns = dict[str, torch.Tensor]()
    for name, module in manager.modules.items():
        # An embedding or a head has a tensor of another layout.
        if not isinstance(module.lora_a_stacked, tuple):
            continue
        pairs = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
        # A is [slots, 1, rank, inputs], B is [slots, 1, outputs, rank].
        for number, (a, b) in enumerate(pairs):
            size = a.shape[-1]
            chosen = torch.arange(COLUMNS, device=a.device) * (size - 1) // (COLUMNS - 1)
            product = b[0, 0].float() @ a[0, 0][:, chosen].float()
            columns[f"{name} adapter {number}"] = product.to(a.dtype)
    return columns
