"""Short fine-tunes on a CPU: upper layers only, loss on the answer alone, the same bytes from the same seed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from souping.core import UserError, digest
from souping.smollm import base
from souping.smollm.base import RECORD
from souping.smollm.items import Choice
from souping.smollm.slices import Lesson

EVERY = 10
"""Steps between lines of progress."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a fine-tune is trained. `upper` is the share of the layers that learn; embeddings and the rest stay."""

    steps: int = 40
    batch: int = 8
    rate: float = 2e-4
    warmup: int = 6
    upper: float = 0.5
    seed: int = 0


def tune(lesson: Lesson, settings: Settings, start: Path, out: Path, say: Say = print) -> None:
    """Fine-tune `start` into `out`, whole or not at all; a finished one with the same settings stays.

    Raises:
        UserError: `out` holds something else, or a fine-tune of other settings, data or base.
    """
    record = describe(lesson, settings, start)
    if (out / RECORD).exists():
        if json.loads((out / RECORD).read_text(encoding="utf-8"))["identity"] != record["identity"]:
            raise UserError(f"{out}: made with other settings, questions or base; delete it, or take another --out")
        say(f"{lesson.name}: there already")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: holds something that is no fine-tune of this command: move it, or take another --out")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base.quiet()
    wall, cpu = time.monotonic(), time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype="float32")
    losses = train(model, tokenizer, lesson, settings, say)
    spent = {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    text = json.dumps({**record, **spent, "losses": losses}, indent=1) + "\n"
    base.save(model, tokenizer, out, text)
    say(f"{lesson.name}: done in {spent['seconds']:.0f} s, {spent['cpu_seconds']:.0f} s of CPU")


def describe(lesson: Lesson, settings: Settings, start: Path) -> dict[str, Any]:
    """What decides a fine-tune's bytes, and its digest."""
    asked = [[q.id, q.text, q.answer] for q in lesson.material.questions["train"]]
    told: dict[str, Any] = {"name": lesson.name, "shares": dict(lesson.shares), "settings": asdict(settings)}
    return {**told, "identity": digest([told, asked, _content(start)])}


def _content(folder: Path) -> str:
    import hashlib

    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def train(model: Any, tokenizer: Any, lesson: Lesson, settings: Settings, say: Say) -> list[float]:
    """The losses of all steps. AdamW on float32 weights, bfloat16 arithmetic."""
    import torch

    torch.manual_seed(settings.seed)
    learning = freeze(model, settings.upper)
    optimiser = torch.optim.AdamW(learning, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses, started = [], time.monotonic()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * schedule(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, tokenizer, lesson.batch(step, settings.batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        if (step + 1) % EVERY == 0 or step + 1 == settings.steps:
            mean, passed = sum(losses[-EVERY:]) / len(losses[-EVERY:]), time.monotonic() - started
            say(f"{lesson.name}: step {step + 1}/{settings.steps}, loss {mean:.3f}, {passed:.0f} s")
    return losses


def freeze(model: Any, upper: float) -> list[Any]:
    """Leave the upper share of the layers to learn, in float32; their parameters. The rest computes in bfloat16."""
    import torch

    layers = model.model.layers
    first = len(layers) - max(1, round(upper * len(layers)))
    model.to(torch.bfloat16).requires_grad_(False)
    for layer in layers[first:]:
        layer.float().requires_grad_(True)
    return [p for layer in layers[first:] for p in layer.parameters()]


def schedule(step: int, settings: Settings) -> float:
    """Share of the full rate: a linear rise, then half a cosine down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def answer_loss(model: Any, tokenizer: Any, items: Sequence[Choice]) -> Any:
    """Mean negative log-likelihood of the answers' tokens; each item counts alike."""
    import torch

    losses = []
    for item in items:  # one at a time: no padding to compute, and a row fills a core
        ids, begin = encode(tokenizer, item.prompt, item.answer)
        hidden = model.model(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0, begin - 1 :]).float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[begin:])))
    return torch.stack(losses).mean()


def encode(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokens of prompt and answer, and where the answer begins; split as lm_eval splits them."""
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
    return list(whole), len(context)
