"""Short fine-tunes on a CPU: upper layers only, loss on the solution alone, the same bytes from the same seed.

A tune learns from solutions in a few languages. It fails if it is hardly better than the base on development problems
in these languages; then it is trained again at half the rate, once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from examples.smollm.problems import Problems, Solution
from examples.smollm.scoring import bits_per_byte, solution_item
from souping.core.folders import staged
from souping.core.json_fields import entries
from souping.core.types import JsonObject, UserError, digest
from souping.evaluate.engines.transformers import quiet_transformers
from souping.evaluate.loss import passage

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

EVERY = 10
"""Steps between lines of progress."""
RECORD = "tune.json"
SMALLEST_GAIN = 0.02
"""Share of the base's bits per byte that a tune has to save in its languages."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A fine-tune: its languages, each as often as the others, and its number of steps."""

    name: str
    languages: tuple[str, ...]
    steps: int


TUNES = (
    Tune(name="smol_web", languages=("javascript", "typescript", "php"), steps=120),
    Tune(name="smol_systems", languages=("c", "cpp", "rust"), steps=120),
    Tune(name="smol_script", languages=("python", "ruby", "bash"), steps=80),
    Tune(name="smol_managed", languages=("java", "scala", "csharp"), steps=80),
    Tune(name="smol_popular", languages=("python", "java", "javascript"), steps=40),
)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Numbers of a training. `upper` is the share of the layers that learn; embeddings and the rest stay."""

    batch: int = 8
    rate: float = 2e-4
    warmup: int = 6
    upper: float = 0.5
    seed: int = 0


def make(
    tune: Tune, problems: Problems, settings: TrainingSettings, base: Path, out: Path
) -> JsonObject:
    """The record of a tune in the folder `out`, trained unless it is there; at half the rate if it fails.

    Raises:
        UserError: `out` holds something else, or a tune of other settings, problems or base.
    """
    identity = _identity(tune, problems, settings, base)
    if (out / RECORD).exists():
        record: JsonObject = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record["identity"] != identity:
            raise UserError(
                f"{out}: made with other settings, problems or base; delete it, or take another --work"
            )
        return record
    quiet_transformers()
    attempts = list[JsonObject]()
    with staged(out) as stage:
        for rate in (settings.rate, settings.rate / 2):
            attempts.append(_attempt(tune, problems, replace(settings, rate=rate), base, stage))
            if not _fails(attempts[-1]):
                break
        record = {
            **asdict(tune),
            "settings": asdict(settings),
            "identity": identity,
            "attempts": attempts,
        }
        (stage / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def _attempt(
    tune: Tune, problems: Problems, settings: TrainingSettings, base: Path, out: Path
) -> JsonObject:
    """Train a tune into a folder, and what is known of it: its rate, what it saves, CPU seconds and losses."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    started = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    model = LlamaForCausalLM.from_pretrained(base, dtype="float32", trust_remote_code=False)
    losses = train(model, tokenizer, batches(tune, problems, settings), tune, settings)
    seconds = round(time.process_time() - started, 1)
    model.bfloat16().save_pretrained(out)  # type: ignore[arg-type]  # wrapped in transformers
    tokenizer.save_pretrained(out)
    own = [s for s in problems.parts["development"] if s.language in tune.languages]
    before = sum(bits_per_byte({"base": base}, own))
    gain = 1 - sum(bits_per_byte({tune.name: out}, own)) / before
    print(
        f"{tune.name}: {seconds:.0f} s of CPU, saves {gain:.1%} in its languages",
        flush=True,
    )
    return {"rate": settings.rate, "gain": gain, "cpu_seconds": seconds, "losses": losses}


def has_failed(record: JsonObject) -> bool:
    """Whether the last training of a tune saves too little in its languages."""
    return _fails(entries(record, "attempts")[-1])


def _fails(attempt: JsonObject) -> bool:
    return not float(str(attempt["gain"])) >= SMALLEST_GAIN


def _identity(tune: Tune, problems: Problems, settings: TrainingSettings, base: Path) -> str:
    """Digest of what decides a tune's bytes."""
    import hashlib

    weights = hashlib.sha256()
    for path in sorted(base.glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    lessons = [[solution.id, solution.request, solution.code] for solution in pool(tune, problems)]
    return digest([asdict(tune), asdict(settings), lessons, weights.hexdigest()])


def pool(tune: Tune, problems: Problems) -> list[Solution]:
    """The solutions that a tune learns from."""
    return [s for s in problems.parts["training"] if s.language in tune.languages]


def batches(tune: Tune, problems: Problems, settings: TrainingSettings) -> Iterator[list[Solution]]:
    """Batches without end: a language is drawn for each solution, and its solutions come in shuffled rounds."""
    random = Random(f"{tune.name} {settings.seed}")
    of_language = {language: list[Solution]() for language in tune.languages}
    waiting = {language: list[Solution]() for language in tune.languages}
    for solution in pool(tune, problems):
        of_language[solution.language].append(solution)
    while True:
        batch = list[Solution]()
        while len(batch) < settings.batch:
            language = random.choice(tune.languages)
            if not waiting[language]:
                solutions = of_language[language]
                waiting[language] = random.sample(solutions, len(solutions))
            batch.append(waiting[language].pop())
        yield batch


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Iterator[list[Solution]],
    tune: Tune,
    settings: TrainingSettings,
) -> list[float]:
    """The losses of all steps. AdamW on float32 weights, bfloat16 arithmetic, one thread."""
    import torch

    # Sums in another order are other numbers: one thread gives the same bytes on every run.
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    learning = freeze(model, settings.upper)
    optimiser = torch.optim.AdamW(learning, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses = list[float]()
    started = time.monotonic()
    for step in range(tune.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * schedule(step, tune.steps, settings.warmup)
        with torch.autocast("cpu", torch.bfloat16):
            loss = solution_loss(model, tokenizer, next(lessons))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        if (step + 1) % EVERY == 0 or step + 1 == tune.steps:
            latest = losses[-EVERY:]
            mean = sum(latest) / len(latest)
            passed = time.monotonic() - started
            print(
                f"{tune.name}: step {step + 1}/{tune.steps}, loss {mean:.3f}, {passed:.0f} s",
                flush=True,
            )
    return losses


def freeze(model: LlamaForCausalLM, upper: float) -> list[Parameter]:
    """Leave the upper share of the layers to learn, in float32; their parameters. The rest computes in bfloat16."""
    layers = model.model.layers
    first = len(layers) - max(1, round(upper * len(layers)))
    model.bfloat16().requires_grad_(False)
    learning: list[Parameter] = []
    for layer in layers[first:]:
        layer.float().requires_grad_(True)
        learning += layer.parameters()
    return learning


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the full rate: a linear rise, then half a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def solution_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, solutions: Sequence[Solution]
) -> Tensor:
    """Mean negative log-likelihood of a token of the solutions, as `evaluator=loss` reads them.

    Each solution counts alike.
    """
    import torch

    losses = []
    for solution in solutions:  # one at a time: no padding to compute, and a row fills a core
        tokens = passage(tokenizer, solution_item(solution))
        ids = [*tokens.before, *tokens.scored]
        hidden = model.model(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0, len(tokens.before) - 1 :]).float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(tokens.scored)))
    return torch.stack(losses).mean()
