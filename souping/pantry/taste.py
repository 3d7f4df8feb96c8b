"""Answers of a model to tasks, by greedy generation, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from souping.pantry.items import as_items
from souping.pantry.tasks import CATEGORIES, Task
from souping.scorers import score

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BATCH, LONGEST = 128, 48


def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """The model's greedy continuation of each prompt, in the prompts' order."""
    import torch

    found = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    model.train(False)
    for start in range(0, len(order), BATCH):
        chunk = order[start : start + BATCH]
        inputs = tokenizer([prompts[i] for i in chunk], padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=LONGEST,
                do_sample=False,
            )
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            found[i] = text
    return found


def taste(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]) -> dict[str, float]:
    """Mean score of each category, fractions of 1 with four decimals."""
    items = as_items(list(tasks))
    outputs = answers(model, tokenizer, [task.prompt for task in tasks])
    scores: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for item, output in zip(items, outputs, strict=True):
        scores[item.category].append(score(item, output))
    return {name: round(sum(values) / len(values), 4) for name, values in scores.items() if values}
