"""Sharded checkpoints written by torch itself from two ranks: `python -m tests.support.sharded OUT`.

A tiny Llama of two seeds, in every layout: `plain/SEED` is what `save_pretrained` writes of it.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def llama(seed: int, *, tie_word_embeddings: bool = False) -> LlamaForCausalLM:
    """A model whose sizes no two ranks can share evenly."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=13,
        hidden_size=6,
        intermediate_size=5,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=tie_word_embeddings,
    )
    return LlamaForCausalLM(config).bfloat16()


def write(rank: int, out: Path, port: int) -> None:
    """What one of two ranks writes."""
    import torch.distributed as dist

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2"
    )
    dist.init_process_group("gloo")
    for seed in (0, 1):
        if rank == 0:
            llama(seed).save_pretrained(out / "plain" / str(seed))
        fully_sharded(seed, rank, out)
        tensor_parallel(seed, out)
    if rank == 0:
        llama(2, tie_word_embeddings=True).save_pretrained(out / "plain" / "tied")
    wrapped(rank, out)
    dist.destroy_process_group()


def fully_sharded(seed: int, rank: int, out: Path) -> None:
    """FSDP2: DCP as Trainer places it, with the optimiser's state in the same files, and files by rank."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
    )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = llama(seed)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    model(torch.arange(4)[None]).logits.float().sum().backward()
    optimizer.step()
    state = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    more = {"train_state": torch.tensor(seed), "rng": {"seed": seed}}
    dcp.save(
        {**state, **more},
        checkpoint_id=out / "fsdp" / f"checkpoint-{10 + 10 * seed}" / "pytorch_model_fsdp_0",
    )
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=out / "model" / str(seed))
    folder = out / "ranks" / f"global_step_{seed}" / "actor"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / f"model_world_size_2_rank_{rank}.pt")


def tensor_parallel(seed: int, out: Path) -> None:
    """DTensors that are cut by rows or by columns: DCP, its safetensors by rank, and safetensors inside .distcp."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemWriter, HuggingFaceStorageWriter
    from torch.distributed.checkpoint.filesystem import SerializationFormat
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    state = {
        name: distribute_tensor(value, mesh, [Shard(value.dim() - 1)])
        for name, value in llama(seed).state_dict().items()
    }
    dcp.save(dict(state), checkpoint_id=out / "tp" / f"step-{seed}")
    dcp.save(
        dict(state),
        storage_writer=HuggingFaceStorageWriter(
            str(out / "shards" / str(seed)), save_distributed=True
        ),
    )
    inner = FileSystemWriter(
        out / "inner" / str(seed), serialization_format=SerializationFormat.SAFETENSORS
    )
    dcp.save(dict(state), storage_writer=inner)


def wrapped(rank: int, out: Path) -> None:
    """FSDP1 without a mesh (ShardedTensor), by rank; and a tied model, whose head DCP writes twice."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    tied = llama(2, tie_word_embeddings=True)
    dcp.save({"model": get_model_state_dict(tied)}, checkpoint_id=out / "tied")
    model = FullyShardedDataParallel(llama(0), device_id=torch.device("cpu"))
    folder = out / "fsdp1"
    folder.mkdir(parents=True, exist_ok=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        torch.save(model.state_dict(), folder / f"model_world_size_2_rank_{rank}.pt")


def main(out: Path) -> None:
    from torch.multiprocessing import spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(write, args=(out, port), nprocs=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
