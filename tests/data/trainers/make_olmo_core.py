"""Checkpoints of OLMo-core 3.0.0, sharded by FSDP2 on two processes.

    pip install --no-deps ai2-olmo-core==3.0.0 dataclass-extensions bettermap importlib_resources cached_path
    pip install --no-deps google-api-core google-auth google-cloud-core google-cloud-storage google-crc32c \
        google-resumable-media proto-plus pyasn1 pyasn1_modules
    torchrun --nproc_per_node 2 make_olmo_core.py llama olmo2
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from olmo_core.distributed.checkpoint import save_model_and_optim_state
from olmo_core.nn.feed_forward import FeedForwardConfig
from olmo_core.nn.hf.convert import convert_state_to_hf
from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
from reference import SIZES, TOKENS, fill, packed, write
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig

KINDS = {"llama": {}, "olmo2": {"qk_norm": True, "block_name": TransformerBlockType.reordered_norm}}


def make(name: str, folder: Path) -> None:
    config = TransformerConfig.llama_like(
        d_model=32, vocab_size=51, n_layers=2, n_heads=4, n_kv_heads=2, rope_theta=10000,
        feed_forward=FeedForwardConfig(hidden_size=24, bias=False), **KINDS[name],
    )  # fmt: skip
    model = config.build(init_device="cpu")
    model.eval()
    fill(dict(model.named_parameters()))
    if dist.get_rank() == 0:
        with torch.no_grad():
            logits = model(TOKENS)
        kind = {"model_type": name, "architectures": [f"{name.capitalize()}ForCausalLM"]}
        export = convert_state_to_hf(
            AutoConfig.for_model(**SIZES, model_type=name), dict(model.state_dict())
        )
        write(folder, kind, export, logits)
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    save_model_and_optim_state(
        folder / "step10" / "model_and_optim", model, optimiser, save_overwrite=True
    )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[1:]:
        with packed(f"olmo_core_{name}") as folder:
            make(name, folder)
    dist.destroy_process_group()
