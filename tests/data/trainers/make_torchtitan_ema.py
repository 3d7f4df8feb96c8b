"""A checkpoint of torchtitan with an EMA of the weights in its optimiser state, sharded by FSDP2 on two processes.

torchtitan keeps an EMA since pull request 3985 (August 2026), which no release on PyPI has yet: put a checkout of it
on PYTHONPATH. Its `scripts/checkpoint_conversion/convert_to_hf.py` exports the weights and, with `--ema_output`, the
EMA; `export.json` and `ema.json` are the digests of both. It cannot export the EMA of a fused attention layer (its
parameters are not those of its state dict): for `fused`, torchtitan's own state dict of a model with the EMA as its
weights is exported.

pip install --no-deps spmd_types tyro torchdata torch_checkpointing einops triton
PYTHONPATH=TORCHTITAN torchrun --nproc_per_node 2 make_torchtitan_ema.py plain fused
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torchtitan
from reference import SIZES, digests, fill, packed
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torchtitan.components.checkpoint import ModelWrapper
from torchtitan.components.ema import EMAOptimizersContainer
from torchtitan.components.optimizer import default_adamw
from torchtitan.models import llama3
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm

INIT = {"weight": torch.nn.init.ones_}


def model_config(fuse_qkv: bool) -> Any:
    layers = llama3._build_llama3_layers(
        n_layers=2,
        dim=32,
        n_heads=4,
        n_kv_heads=2,
        hidden_dim=24,
        rope=ComplexRoPE.Config(dim=8, max_seq_len=64, theta=10000.0),
        attn_backend="flex",
        fuse_qkv=fuse_qkv,
    )
    return llama3.Llama3Model.Config(
        dim=32,
        vocab_size=51,
        tok_embeddings=Embedding.Config(num_embeddings=51, embedding_dim=32, param_init=INIT),
        norm=RMSNorm.Config(normalized_shape=32, param_init=INIT, eps=1e-5),
        lm_head=Linear.Config(in_features=32, out_features=51, param_init=INIT),
        layers=layers,
    )


def train(model: torch.nn.Module, ema: EMAOptimizersContainer, optimizers: Any) -> None:
    """Two steps of AdamW, after each of which the EMA follows, as the trainer's hook does."""
    for step in (1, 2):
        for parameter in model.parameters():
            parameter.grad = torch.sign(parameter.detach())
        optimizers.step()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16())  # so that the file can be compressed
        ema.step(step)


def export(step_folder: Path, config: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(weights, EMA) as torchtitan's own script converts them."""
    sys.path.insert(0, str(Path(torchtitan.__file__).parents[1] / "scripts/checkpoint_conversion"))
    import convert_to_hf

    spec = SimpleNamespace(model=config, state_dict_adapter=llama3.Llama3StateDictAdapter)
    llama3.model_registry = lambda _flavor: spec
    with tempfile.TemporaryDirectory() as out:
        main = Path(out) / "main"
        average = Path(out) / "ema"
        convert_to_hf.convert_to_hf(
            step_folder, main, "llama3", "tiny", None, "float32", ema_output=average
        )
        files = [sorted(folder.glob("*.safetensors")) for folder in (main, average)]
        (weights,), (averaged,) = files
        return load_file(weights), load_file(averaged)


def export_fused(step_folder: Path, config: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(weights, EMA) of the state dict of a model that has them as parameters."""
    import torch.distributed.checkpoint as dcp

    model = config.build()
    adapter = llama3.Llama3StateDictAdapter(config, None)
    state = ModelWrapper(model).state_dict()
    dcp.load(state, checkpoint_id=step_folder)
    model.load_state_dict(state)
    weights = {name: tensor.clone() for name, tensor in adapter.to_hf(dict(state)).items()}
    averages = {
        f"ema_optimizer.state.{name}.ema_params": torch.empty_like(parameter.detach())
        for name, parameter in model.named_parameters()
    }
    dcp.load(averages, checkpoint_id=step_folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(averages[f"ema_optimizer.state.{name}.ema_params"])
    return weights, adapter.to_hf(ModelWrapper(model).state_dict())


def make(fuse_qkv: bool, folder: Path) -> None:
    model = model_config(fuse_qkv).build()
    fill(dict(model.named_parameters()))
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    adamw = default_adamw(lr=0.125)
    adamw.implementation = "for-loop"
    optimizers = adamw.build(model_parts=[model])
    ema = EMAOptimizersContainer.Config(enable=True, decay=0.5).build(model_parts=[model])
    train(model, ema, optimizers)
    # As its CheckpointManager saves: the model's tensors at the top, the rest below their keys.
    states = {
        **ModelWrapper(model).state_dict(),
        "optimizer": optimizers,
        "ema_optimizer": ema,
        "train_state": {"step": torch.tensor(10)},
    }
    save(states, checkpoint_id=folder / "step-10")
    dist.barrier()
    if dist.get_rank() == 0:
        hub = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
        (folder / "config.json").write_text(json.dumps(SIZES | hub, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "export":
        kind, place = sys.argv[2:]
        exported = {"plain": export, "fused": export_fused}[kind]
        weights, averaged = exported(Path(place) / "step-10", model_config(kind == "fused"))
        digests(Path(place) / "export.json", weights)
        digests(Path(place) / "ema.json", averaged)
        sys.exit()
    import subprocess

    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        with packed(f"torchtitan_ema_{name}") as folder:
            make(name == "fused", folder)
            if dist.get_rank() == 0:  # alone: the script saves with whatever group there is
                command = [sys.executable, __file__, "export", name, str(folder)]
                subprocess.run(command, check=True)
    dist.destroy_process_group()
