"""Accuracy on development items, with torch alone: to look at while settings are chosen, never at test items."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from souping.smollm import base
from souping.smollm.items import Choice
from souping.smollm.tune import encode


def taste(folder: Path, items: Sequence[Choice]) -> dict[str, float]:
    """{category: share of items whose likeliest choice is right}."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base.quiet()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=base.DTYPE)  # in evaluation mode already
    hits: dict[str, list[bool]] = {}
    with torch.inference_mode():
        for item in items:
            scores = likelihoods(model, tokenizer, item)
            hits.setdefault(item.category, []).append(scores.index(max(scores)) == item.label)
    return {category: sum(right) / len(right) for category, right in hits.items()}


def likelihoods(model: Any, tokenizer: Any, item: Choice) -> list[float]:
    """Log-likelihood of each choice after the prompt, which is read once."""
    import torch
    from transformers import DynamicCache

    rows = [encode(tokenizer, item.prompt, choice) for choice in item.choices]
    begin = rows[0][1]
    cache, taken = DynamicCache(), inspect.signature(model.model.forward).parameters
    name = "cache" if "cache" in taken else "past_key_values"  # as transformers named it before 5.24
    model.model(torch.tensor([rows[0][0][: begin - 1]]), **{name: cache})
    cache.batch_repeat_interleave(len(rows))
    width = max(len(ids) for ids, _ in rows)
    tails = torch.tensor([ids[begin - 1 :] + [0] * (width - len(ids)) for ids, _ in rows])
    hidden = model.model(tails, **{name: cache}).last_hidden_state
    logs = model.lm_head(hidden).float().log_softmax(-1)
    return [sum(logs[row, i, token].item() for i, token in enumerate(ids[begin:])) for row, (ids, _) in enumerate(rows)]
