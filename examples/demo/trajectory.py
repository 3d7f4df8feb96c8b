"""A training run to average: `python -m examples.demo trajectory [--base FOLDER]`.

transformers' Trainer goes on with the demo's base at a constant rate and saves twelve checkpoints. A branch from the
middle runs to the same step while its rate falls to 0. 2,000 held-out questions with their answers are written beside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.demo import items
from examples.demo.stages import BETAS, CLIP, DECAY, STAGES, TrainingStage
from examples.demo.tasks import Task
from examples.demo.train import draw, encode
from souping.core.files import write_atomically
from souping.evaluate.engines.transformers import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TEXT_SEED = 2_000_003
PER_CATEGORY = 250
CHECKPOINTS = 12
STEPS = 240
BATCH = 16
RATE = 1e-3
Batch = dict[str, Any]


def make(base: str, out: Path, steps: int, seed: int) -> str:
    """Train and write everything; the command that averages the run."""
    quiet_transformers()
    texts = items.make(TEXT_SEED, PER_CATEGORY)
    held_out = frozenset(task.key for task in texts)
    stage = replace(STAGES[0], seed=seed, steps=steps, batch=BATCH, rate=RATE)
    middle = steps // CHECKPOINTS * (CHECKPOINTS // 2)
    train(stage, base, out / "run", held_out)
    train(stage, base, out / "decayed", held_out, out / "run" / f"checkpoint-{middle}")
    write_texts(out / "texts.jsonl", texts)
    return (
        f"python -m souping +experiment=trajectory pool.path={out}/run benchmark.path={out}/texts.jsonl "
        f"pool.decayed={out}/decayed/checkpoint-{steps} evaluator.batch_size=128"
    )


def train(
    stage: TrainingStage,
    base: str,
    folder: Path,
    held_out: frozenset[str],
    branch: Path | None = None,
) -> None:
    """Train at the stage's constant rate; or a `branch` of such a run, whose rate falls linearly to 0."""
    import torch
    from transformers import Trainer, TrainingArguments

    model, tokenizer = loaded(base)
    begin = int(branch.name.rpartition("-")[2]) if branch else 0

    def rate(step: int) -> float:
        return (stage.steps - step) / (stage.steps - begin) if branch else 1.0

    class Batches(torch.utils.data.IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for step in range(begin, stage.steps):
                ids, labels = encode(tokenizer, draw(stage, step, held_out))
                yield {
                    "input_ids": ids,
                    "labels": labels,
                    "attention_mask": (ids != tokenizer.pad_token_id).long(),
                }

    class ScheduledTrainer(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, rate)
            return self.lr_scheduler

    settings = TrainingArguments(
        output_dir=str(folder), max_steps=stage.steps, learning_rate=stage.rate, seed=stage.seed,
        save_steps=stage.steps // CHECKPOINTS if branch is None else stage.steps, logging_steps=10,
        per_device_train_batch_size=1, adam_beta1=BETAS[0], adam_beta2=BETAS[1], weight_decay=DECAY,
        max_grad_norm=CLIP, use_cpu=not torch.cuda.is_available(), ignore_data_skip=True, report_to=[],
        include_num_input_tokens_seen=True, disable_tqdm=True,
    )  # fmt: skip
    ScheduledTrainer(
        model=model, args=settings, train_dataset=Batches(), data_collator=lambda batches: batches[0],
        processing_class=tokenizer,
    ).train(resume_from_checkpoint=str(branch) if branch else None)  # fmt: skip


def loaded(base: str) -> tuple[PreTrainedModel, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    tokenizer.pad_token_id = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    return model, tokenizer


def write_texts(path: Path, tasks: list[Task]) -> None:
    rows = [
        {
            "id": f"{task.category}_{n}",
            "source": task.category,
            "group": task.group,
            "prompt": task.prompt,
        }
        | {"answer": task.gold}
        for n, task in enumerate(tasks)
    ]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
