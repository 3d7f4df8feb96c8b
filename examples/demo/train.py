"""Training of the demo's models: the same weights from the same seeds, scored on development items.

The data of a step depends on the stage's seed and the number of the step alone. A model appears in `models/` when its
training is complete; a second call keeps the models that are there and trains the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from examples.demo import items
from examples.demo.stages import BETAS, CLIP, DECAY, SHAPE, TrainingStage
from examples.demo.tasks import CATEGORIES, MAKERS, Task
from examples.demo.tokenizer import vocabulary
from souping.core.types import Json, UserError
from souping.demo import NOTE
from souping.evaluate.engines.transformers import quiet_transformers
from souping.evaluate.scoring import score

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TUNED = "the family was tuned on splits as they were cut before 2026-11-25, so some of today's test split was seen"
SETTINGS = "stage.json"
EVERY = 100
"""Steps between lines of progress."""
IGNORED = -100
"""Label of positions without a loss (torch's convention)."""
BATCH = 128
LONGEST = 48
Say = Callable[[str], None]


def train_family(out: Path, stages: Sequence[TrainingStage], dev: int, say: Say = print) -> None:
    """Train every stage into `out/models` and write `out/scores.json`; `dev` is the number of items per category.

    Raises:
        UserError: a model in `out` was trained with other settings.
    """
    quiet_transformers()
    tokenizer = vocabulary()
    models = out / "models"
    tasks = items.development(dev)
    held_out = frozenset(task.key for task in [*tasks, *items.make(items.SEED, items.PER_CATEGORY)])
    scores: dict[str, dict[str, float]] = {}
    for stage in stages:
        if not finished(stage, models):
            write_model(
                train(stage, models, tokenizer, held_out, say),
                tokenizer,
                models / stage.name,
                settings(stage),
            )
        scores[stage.name] = category_scores(load(models / stage.name), tokenizer, tasks)
        mean = sum(scores[stage.name].values()) / len(scores[stage.name])
        say(f"{stage.name}: {100 * mean:.1f} % on development items")
    (out / "scores.json").write_text(
        json.dumps(summary(stages, scores, dev), indent=1) + "\n", encoding="utf-8"
    )


def settings(stage: TrainingStage) -> str:
    """Everything that decides a model's weights beside its parent, as JSON."""
    return json.dumps({"shape": SHAPE, "stage": asdict(stage)}, indent=1) + "\n"


def finished(stage: TrainingStage, models: Path) -> bool:
    """Whether the stage's model exists.

    Raises:
        UserError: it was trained with other settings.
    """
    folder = models / stage.name
    if not folder.exists():
        return False
    file = folder / SETTINGS
    if not file.is_file() or file.read_text(encoding="utf-8") != settings(stage):
        raise UserError(f"{folder}: trained with other settings; delete it or choose another --out")
    return True


def train(
    stage: TrainingStage,
    models: Path,
    tokenizer: PreTrainedTokenizerFast,
    held_out: frozenset[str],
    say: Say,
) -> LlamaForCausalLM:
    """The stage's model, trained from its parent in `models` or from random weights."""
    import torch

    model = load(models / stage.parent) if stage.parent else fresh(stage.seed, len(tokenizer))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=stage.rate, betas=BETAS, weight_decay=DECAY
    )
    model.train()
    for step in range(stage.steps):
        ids, labels = encode(tokenizer, draw(stage, step, held_out))
        loss = learn(model, optimiser, ids, labels, rate_at(stage, step))
        if (step + 1) % EVERY == 0 or step + 1 == stage.steps:
            say(f"{stage.name}: step {step + 1} of {stage.steps}, loss {loss:.3f}")
    return model


def fresh(seed: int, words: int) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    make_config: Callable[..., LlamaConfig] = LlamaConfig
    return LlamaForCausalLM(
        make_config(vocab_size=words, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPE)
    )


def load(folder: Path) -> LlamaForCausalLM:
    """A model of the family in fp32."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)


def draw(stage: TrainingStage, step: int, held_out: frozenset[str]) -> list[Task]:
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
    pairs = [
        (prompt, [*gold, tokenizer.eos_token_id])
        for prompt, gold in zip(prompts, golds, strict=True)
    ]
    width = max(len(prompt) + len(gold) for prompt, gold in pairs)
    ids = torch.full((len(batch), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(batch), width), IGNORED)
    for row, (prompt, gold) in enumerate(pairs):
        end = len(prompt) + len(gold)
        ids[row, :end] = torch.tensor(prompt + gold)
        labels[row, len(prompt) : end] = torch.tensor(gold)
    return ids, labels


def learn(
    model: LlamaForCausalLM, optimiser: Optimizer, ids: Tensor, labels: Tensor, rate: float
) -> float:
    """One step of AdamW on the mean loss over answer tokens; logits are computed for these tokens only."""
    import torch

    for group in optimiser.param_groups:
        group["lr"] = rate
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def rate_at(stage: TrainingStage, step: int) -> float:
    """Linear warm-up, then a linear fall to `last` of the peak at the final step."""
    fall = 1 - (1 - stage.last) * step / stage.steps
    return stage.rate * min(1.0, (step + 1) / stage.warmup) * fall


def write_model(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, record: str = ""
) -> None:
    """Write the model in bfloat16 as a Hugging Face folder, complete or not at all."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    model.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    config = json.loads((partial / "tokenizer_config.json").read_text(encoding="utf-8"))
    # a name that transformers 4 and 5 both know
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (partial / "tokenizer_config.json").write_text(
        json.dumps(config, indent=1) + "\n", encoding="utf-8"
    )
    if record:
        (partial / SETTINGS).write_text(record, encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    partial.rename(folder)


def summary(
    stages: Sequence[TrainingStage], scores: Mapping[str, Mapping[str, float]], dev: int
) -> dict[str, Json]:
    """Content of `scores.json`: how each model was made and what it reached on development items."""
    return {
        "note": f"{NOTE}; fractions of 1 on development items; no item was trained on; {TUNED}",
        "shape": SHAPE,
        "development": {"seed": items.DEV_SEED, "items_per_category": dev},
        "items": {"seed": items.SEED, "items_per_category": items.PER_CATEGORY},
        "stages": [asdict(stage) for stage in stages],
        "scores": scores,
    }


def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """The model's greedy continuation of each prompt, in the prompts' order."""
    import torch

    written = [""] * len(prompts)
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
        texts = tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for i, text in zip(chunk, texts, strict=True):
            written[i] = text
    return written


def category_scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]
) -> dict[str, float]:
    """Mean score of each category, fractions of 1 with four decimals."""
    asked = items.as_items(tasks)
    outputs = answers(model, tokenizer, [task.prompt for task in tasks])
    scores: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for item, output in zip(asked, outputs, strict=True):
        scores[item.category].append(score(item, output))
    return {name: round(sum(values) / len(values), 4) for name, values in scores.items() if values}
