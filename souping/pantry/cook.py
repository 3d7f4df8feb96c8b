"""Trains the family: seeded, and resumable at any instant.

Each stage keeps a checkpoint (weights, optimiser, step) below `.cooking/` in the output folder, under a name that
depends on all settings; the data of a step depends on the stage's seed and the step alone, so that a continued
training sees what an uninterrupted one sees. Models appear in the output folder when the whole family is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from souping.core import digest
from souping.pantry import NOTE, card, items
from souping.pantry.recipes import BETAS, CLIP, DECAY, SHAPE, VOCABULARY_SEED, VOCABULARY_TASKS, Stage
from souping.pantry.tasks import CATEGORIES, MAKERS, Task
from souping.pantry.taste import taste
from souping.pantry.tokenizer import build

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEV_PER_CATEGORY = 60
EVERY = 100
"""Steps between checkpoints."""
IGNORED = -100
"""Label of positions without a loss (torch's convention)."""
Say = Callable[[str], None]


def cook(out: Path, stages: Sequence[Stage], dev: int = DEV_PER_CATEGORY, say: Say = print) -> None:
    """Train the stages, score them on development items, and only then put models, scores and card into `out`."""
    _no_bars()
    work = out / ".cooking" / digest([SHAPE, [asdict(stage) for stage in stages]])[:12]
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary()
    tasks = items.development(dev)
    held_out = frozenset(task.key for task in [*tasks, *items.make(items.SEED, items.PER_CATEGORY)])
    scores: dict[str, dict[str, float]] = {}
    for stage in stages:
        if not (work / stage.name).is_dir():
            write(train(stage, work, tokenizer, held_out, say), tokenizer, work / stage.name)
        scores[stage.name] = taste(load(work / stage.name), tokenizer, tasks)
        mean = sum(scores[stage.name].values()) / len(scores[stage.name])
        say(f"{stage.name}: {100 * mean:.1f} % on development items")
    record = summary(stages, scores, dev)
    (work / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (work / "README.md").write_text(card.text(record), encoding="utf-8")
    serve(work, out, [stage.name for stage in stages])


def _no_bars() -> None:
    """transformers draws a bar for each file it reads or writes, terminal or not."""
    from transformers import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def serve(work: Path, out: Path, names: Sequence[str]) -> None:
    """Move what was made to its place, over what was there before."""
    (out / "models").mkdir(exist_ok=True)
    for name in names:
        target = out / "models" / name
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(target)
        (work / name).rename(target)
    for name in ("scores.json", "README.md"):
        (work / name).replace(out / name)
    shutil.rmtree(out / ".cooking")


def vocabulary() -> PreTrainedTokenizerFast:
    """The family's tokenizer, from the words of generated tasks; always the same."""
    rng = Random(VOCABULARY_SEED)
    drawn = [MAKERS[CATEGORIES[i % len(CATEGORIES)]](rng, rng) for i in range(VOCABULARY_TASKS)]
    return build(text for task in drawn for text in (task.prompt, task.gold))


def train(
    stage: Stage, work: Path, tokenizer: PreTrainedTokenizerFast, held_out: frozenset[str], say: Say
) -> LlamaForCausalLM:
    """One stage from its parent's weights, or from where its checkpoint is."""
    import torch

    model = load(work / stage.parent) if stage.parent else fresh(stage.seed, len(tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.rate, betas=BETAS, weight_decay=DECAY)
    saved = work / f"{stage.name}.pt"
    step = resume(saved, model, optimiser)
    model.train()
    while step < stage.steps:
        ids, labels = encode(tokenizer, draw(stage, step, held_out))
        loss = learn(model, optimiser, ids, labels, rate_at(stage, step))
        step += 1
        if step % EVERY == 0 or step == stage.steps:
            keep(saved, model, optimiser, step)
            say(f"{stage.name}: step {step} of {stage.steps}, loss {loss:.3f}")
    return model


def fresh(seed: int, words: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=words, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPE)
    return LlamaForCausalLM(config)


def load(folder: Path) -> LlamaForCausalLM:
    """A model of the family in fp32."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def draw(stage: Stage, step: int, held_out: frozenset[str]) -> list[Task]:
    """The batch of a step: tasks from the stage's mix, none of them among the items."""
    rng = Random(f"{stage.seed} {step}")
    batch: list[Task] = []
    while len(batch) < stage.batch:
        name = rng.choices(CATEGORIES, stage.weights())[0]
        task = MAKERS[name](rng, rng)
        if task.key not in held_out:
            batch.append(task)
    return batch


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T], padded on the right, and labels [B, T] that hold the answers and IGNORED elsewhere."""
    import torch

    prompts = tokenizer([task.prompt for task in batch])["input_ids"]
    golds = tokenizer([task.gold for task in batch], add_special_tokens=False)["input_ids"]
    pairs = [(prompt, [*gold, tokenizer.eos_token_id]) for prompt, gold in zip(prompts, golds, strict=True)]
    width = max(len(prompt) + len(gold) for prompt, gold in pairs)
    ids = torch.full((len(batch), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(batch), width), IGNORED)
    for row, (prompt, gold) in enumerate(pairs):
        end = len(prompt) + len(gold)
        ids[row, :end] = torch.tensor(prompt + gold)
        labels[row, len(prompt) : end] = torch.tensor(gold)
    return ids, labels


def learn(model: LlamaForCausalLM, optimiser: Optimizer, ids: Tensor, labels: Tensor, rate: float) -> float:
    """One step of AdamW on the mean loss over answer tokens; only their logits are computed."""
    import torch

    for group in optimiser.param_groups:
        group["lr"] = rate
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def rate_at(stage: Stage, step: int) -> float:
    """Linear warm-up, then a linear fall to `last` of the peak at the final step."""
    fall = 1 - (1 - stage.last) * step / stage.steps
    return stage.rate * min(1.0, (step + 1) / stage.warmup) * fall


def resume(saved: Path, model: LlamaForCausalLM, optimiser: Optimizer) -> int:
    """Load a stage's checkpoint if there is one; the number of steps done."""
    import torch

    if not saved.is_file():
        return 0
    state = torch.load(saved, weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def keep(saved: Path, model: LlamaForCausalLM, optimiser: Optimizer, step: int) -> None:
    import torch

    partial = saved.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, partial)
    os.replace(partial, saved)


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model in bfloat16 as a Hugging Face folder, written beside and renamed."""
    import torch

    partial = folder.with_name(f".{folder.name}.part")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(partial)
    model.to(torch.bfloat16).save_pretrained(partial)  # type: ignore[arg-type]
    tokenizer.save_pretrained(partial)
    settings = json.loads((partial / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 and 5 both know
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    partial.rename(folder)


def summary(stages: Sequence[Stage], scores: dict[str, dict[str, float]], dev: int) -> dict[str, object]:
    """What `scores.json` holds: how each model was made and what it reached on development items."""
    return {
        "note": f"{NOTE}; fractions of 1 on development items; no choice saw items.jsonl's report fold",
        "shape": SHAPE,
        "development": {"seed": items.DEV_SEED, "items_per_category": dev},
        "items": {"seed": items.SEED, "items_per_category": items.PER_CATEGORY},
        "stages": [asdict(stage) for stage in stages],
        "scores": scores,
    }
