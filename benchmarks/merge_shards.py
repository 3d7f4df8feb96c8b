"""Checkpoints as training writes them, for `benchmarks/merge.py`: by torch's own `dcp.save` from two gloo ranks.

    python benchmarks/merge_shards.py HF_FOLDER OUT [rows|columns]

The ranks hold rows of each tensor, as FSDP shards, or columns, as tensor parallelism may. Names and values are those of
the Hugging Face folder.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def write(rank: int, source: Path, out: Path, cut: str, port: int) -> None:
    """What one of two ranks writes."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from safetensors.torch import load_file
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2"
    )
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    state = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, value in load_file(file).items():
            dim = 0 if cut == "rows" else value.dim() - 1
            local = torch.chunk(value, 2, dim)[rank].contiguous()
            state[name] = DTensor.from_local(
                local, mesh, [Shard(dim)], shape=value.shape, stride=value.stride()
            )
    dcp.save({"model": state}, checkpoint_id=out)
    dist.destroy_process_group()


def main(source: Path, out: Path, cut: str = "rows") -> None:
    from torch.multiprocessing import spawn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(write, args=(source, out, cut, port), nprocs=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
