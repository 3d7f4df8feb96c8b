"""A training run to average: `python -m examples.pantry.trajectory [--base FOLDER]`.

transformers' Trainer trains on the pantry's tasks at a constant rate and saves twelve checkpoints. A branch from the
middle runs to the same step while its rate falls to 0. 2,000 held-out questions with their answers are written beside.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples import exit_status
from examples.pantry import items
from examples.pantry.stages import BETAS, CLIP, DECAY, STAGES, TrainingStage
from examples.pantry.tasks import Task
from examples.pantry.tokenizer import vocabulary
from examples.pantry.train import draw, encode, fresh
from souping.core.files import write_atomically
from souping.core.text import positive
from souping.evaluate.engines.transformers import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT_SEED, PER_CATEGORY = 2_000_003, 250
CHECKPOINTS = 12
Batch = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.pantry.trajectory", description=__doc__)
    parser.add_argument("--base", help="model folder or Hub name (default: random weights of the pantry's shape)")
    parser.add_argument("--out", type=Path, default=Path("outputs/trajectory"), help="default: outputs/trajectory")
    parser.add_argument("--steps", type=positive, default=720, help="steps of training (default: 720)")
    parser.add_argument("--rate", type=float, default=STAGES[0].rate, help=f"default: {STAGES[0].rate}")
    parser.add_argument("--seed", type=int, default=11, help="seed of the weights and of the data (default: 11)")
    parser.add_argument("--threads", type=positive, default=1, help="threads of torch (default: 1)")
    return exit_status(make, parser.parse_args())


def make(options: argparse.Namespace) -> None:
    import torch

    quiet()
    torch.set_num_threads(options.threads)
    texts = items.make(TEXT_SEED, PER_CATEGORY)
    held_out = frozenset(task.key for task in texts)
    stage = replace(STAGES[0], name="run", seed=options.seed, steps=options.steps, rate=options.rate)
    middle = options.steps // CHECKPOINTS * (CHECKPOINTS // 2)
    train(stage, options.base, options.out / "run", held_out)
    train(stage, options.base, options.out / "decayed", held_out, options.out / "run" / f"checkpoint-{middle}")
    write_texts(options.out / "texts.jsonl", texts)
    out = options.out
    print(
        f"python -m souping +experiment=trajectory pool.path={out}/run benchmark.path={out}/texts.jsonl "
        f"pool.decayed={out}/decayed/checkpoint-{options.steps}"
    )


def train(
    stage: TrainingStage, base: str | None, folder: Path, held_out: frozenset[str], branch: Path | None = None
) -> None:
    """Train at the stage's constant rate; or a `branch` of such a run, whose rate falls linearly to 0."""
    import torch
    from transformers import Trainer, TrainingArguments

    model, tokenizer = loaded(stage.seed, base)
    begin = int(branch.name.rpartition("-")[2]) if branch else 0

    def rate(step: int) -> float:
        fall = (stage.steps - step) / (stage.steps - begin) if branch else 1.0
        return min(1.0, (step + 1) / stage.warmup) * fall

    class Batches(torch.utils.data.IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for step in range(begin, stage.steps):
                ids, labels = encode(tokenizer, draw(stage, step, held_out))
                yield {"input_ids": ids, "labels": labels, "attention_mask": (ids != tokenizer.pad_token_id).long()}

    class ScheduledTrainer(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
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


def loaded(seed: int, base: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if base is None:
        tokenizer = vocabulary()
        return fresh(seed, len(tokenizer)), tokenizer
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tokenizer


def write_texts(path: Path, tasks: list[Task]) -> None:
    rows = [
        {"id": f"{task.category}_{n}", "source": task.category, "group": task.group, "prompt": task.prompt}
        | {"answer": task.gold}
        for n, task in enumerate(tasks)
    ]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


if __name__ == "__main__":
    sys.exit(main())
