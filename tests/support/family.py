"""A family of random tiny Llamas and items whose answers are what its members say: a real pipeline in seconds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.types import Item, Json
from tests.support.models import HeldModel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

NAMES = ("ant", "bee", "cat", "dog")
CATEGORIES = {"red": (5, 3, 1, 1), "green": (1, 2, 5, 2), "blue": (2, 1, 1, 4)}
"""How often each member is right in each category."""


def save_tokenizer(folder: Path) -> None:
    """ASCII bytes as tokens, all else unknown: any text encodes, and what is decoded is text again."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # how ByteLevel writes them
    space = "\u0120"
    newline = "\u010a"
    alphabet = [chr(code) for code in range(33, 127)] + [space, newline]
    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    fast.save_pretrained(folder)


def save_model(
    folder: Path, seed: int, base: LlamaForCausalLM | None = None, **changes: Json
) -> LlamaForCausalLM:
    """A Llama of about 14,000 parameters in bfloat16: the base plus noise of its own seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from souping.evaluate.engines.transformers import quiet_transformers

    quiet_transformers()
    sizes = {"vocab_size": 100, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 128}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    settings = {**sizes, **tokens, "tie_word_embeddings": True, **changes}
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.15 if base is None else 0.03
            start = 0.0 if base is None else base.state_dict()[name].float()
            if parameter.ndim > 1:
                parameter.copy_(start + scale * torch.randn(parameter.shape))
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(folder)
    return model


def answers(folder: Path, prompts: list[str]) -> list[str]:
    """What the model of a folder answers to each prompt."""
    from souping.evaluate.engines.transformers import load_module, load_tokenizer
    from souping.evaluate.generate import LocalEvaluator

    evaluator = LocalEvaluator(max_new_tokens=4, batch_size=50, threads=1, device="cpu")
    module = load_module(folder, evaluator.hosting.module_settings())
    served = HeldModel(module=module, tokenizer=load_tokenizer(folder), folder=folder)
    items = [Item(id=str(i), category="c", prompt=p, answer="") for i, p in enumerate(prompts)]
    return [record.output for record in evaluator.evaluate(served, items)]


def make(folder: Path, per_category: int = 60) -> Path:
    """`folder/<name>` for each member, and `folder/items.jsonl`."""
    base = save_model(folder / "base", seed=0)
    for seed, name in enumerate(NAMES, start=1):
        save_model(folder / name, seed, base)
    dice = random.Random(7)
    rows: list[dict[str, Any]] = [
        {
            "id": f"{c}-{i}",
            "category": c,
            "group": f"{c}-{i // 2}",
            "prompt": f"{c} {dice.randrange(10**6)}:",
        }
        for c in CATEGORIES
        for i in range(per_category)
    ]
    prompts = [row["prompt"] for row in rows]
    said = {name: answers(folder / name, prompts) for name in NAMES}
    for i, row in enumerate(rows):
        member = dice.choices(NAMES, CATEGORIES[row["category"]])[0]
        row["answer"] = said[member][i] or "?"
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
