"""Models of transformers under FSDP2 on two processes: rank files of verl 0.9.1, and DCP below an app's own prefix.

pip install --no-deps verl==0.9.1 tensordict==0.10.0 pyvers codetiming orjson cloudpickle pylatexenc torchdata
torchrun --nproc_per_node 2 make_sharded.py verl_llama verl_qwen3_moe dcp_mixtral
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from reference import SIZES, TOKENS, fill, packed, write
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

EXPERTS = {
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
}
HUB: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        **EXPERTS,
    },
    "mixtral": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
    },
}


def save_verl(
    model: PreTrainedModel, folder: Path, kind: dict[str, object], logits: torch.Tensor
) -> None:
    """By verl's manager; the export is that of its merger, which writes bfloat16."""
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    actor = folder / "global_step_10" / "actor"
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    manager = FSDPCheckpointManager(
        model, processing_class=words, checkpoint_config={"save_contents": ["model"]}
    )
    manager.save_checkpoint(str(actor), global_step=10)
    if dist.get_rank() == 0:
        merged = folder / "merged"
        settings = {
            "operation": "merge",
            "backend": "fsdp",
            "local_dir": str(actor),
            "target_dir": str(merged),
        }
        FSDPModelMerger(
            ModelMergerConfig(**settings, hf_model_config_path=str(actor / "huggingface"))
        ).merge_and_save()
        export = load_file(merged / "model.safetensors")
        write(folder, kind, {name: tensor.float() for name, tensor in export.items()}, logits)
        shutil.rmtree(merged)


def save_dcp(
    model: PreTrainedModel, folder: Path, kind: dict[str, object], logits: torch.Tensor
) -> None:
    """Model and optimiser below an app's name; the export is what `save_pretrained` wrote before."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = {
        "model": get_model_state_dict(model),
        "optim": get_optimizer_state_dict(model, optimiser),
    }
    dcp.save({"app": state}, checkpoint_id=folder / "step-10")
    if dist.get_rank() == 0:
        write(folder, kind, load_file(folder / "hub" / "model.safetensors"), logits)
        shutil.rmtree(folder / "hub")


def make(tool: str, name: str, folder: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SIZES | HUB[name])).eval()
    fill(dict(model.named_parameters()))
    with torch.no_grad():
        logits = model(TOKENS).logits
    if tool == "dcp" and dist.get_rank() == 0:
        model.save_pretrained(folder / "hub")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    {"verl": save_verl, "dcp": save_dcp}[tool](model, folder, HUB[name], logits)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for case in sys.argv[1:]:
        tool, _, name = case.partition("_")
        with packed(case) as folder:
            make(tool, name, folder)
    dist.destroy_process_group()
