"""What one does without a reader of sharded checkpoints, for `benchmarks/merge.py`: convert each of them, then merge.

    python benchmarks/merge_convert.py MERGEKIT OUT WEIGHTS HF_FOLDER SHARDED...

torch's `format_utils` gathers a sharded checkpoint into one file, which is written again as safetensors with the
configuration of the Hugging Face folder; mergekit averages the folders. They lie beside OUT and are removed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path


def convert(sharded: Path, like: Path, out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    gathered = out.with_suffix(".pt")
    module = "torch.distributed.checkpoint.format_utils"
    subprocess.run(
        [sys.executable, "-P", "-m", module, "dcp_to_torch", str(sharded), str(gathered)],
        check=True,
    )
    out.mkdir()
    state = torch.load(gathered, mmap=True)["model"]
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        out / "model.safetensors",
        {"format": "pt"},
    )
    shutil.copy(like / "config.json", out)
    gathered.unlink()


def main(mergekit: str, out: Path, weights: list[float], like: Path, *pool: Path) -> None:
    folders = [out.with_name(f"converted-{number}") for number in range(len(pool))]
    for sharded, folder in zip(pool, folders, strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        convert(sharded, like, folder)
    models = [
        {"model": str(f), "parameters": {"weight": w}}
        for f, w in zip(folders, weights, strict=True)
    ]
    table = {
        "merge_method": "linear",
        "models": models,
        "parameters": {"normalize": False},
        "dtype": "bfloat16",
    }
    config = out.with_name("converted.yml")
    config.write_text(json.dumps(table))  # JSON is YAML
    flags = [
        "--no-copy-tokenizer",
        "--no-write-model-card",
        "--quiet",
        "--lazy-unpickle",
        "--async-write",
    ]
    subprocess.run([mergekit, str(config), str(out), *flags], check=True)
    for folder in folders:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(
        sys.argv[1],
        Path(sys.argv[2]),
        [float(w) for w in sys.argv[3].split(",")],
        *map(Path, sys.argv[4:]),
    )
