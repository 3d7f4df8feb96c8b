"""Training of the pantry's family: seeded, resumable at any instant, with its tokenizer, its scores and its card.

Each stage keeps a checkpoint (weights, optimiser, step) below `.cooking/` in the output folder, under a name that
depends on all settings; the data of a step depends on the stage's seed and the step alone, so that a continued
training sees what an uninterrupted one sees. Models appear in the output folder when the whole family is done.

The tokenizer has one token a word, and bytes for everything else. A word that follows a space is the common case and
carries the space (`MARK + word`); a word that is glued to a symbol says so on the symbol (`="` + GLUE). So `to Paris`
and `"Paris"` hold the same token, which makes copying from the question into a call easy to learn, and decoding still
gives the text back exactly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from souping.core.types import Json, digest, entries, number, part
from souping.evaluate.engines.transformers import quiet
from souping.evaluate.scoring import score
from souping.examples.pantry import NOTE, items
from souping.examples.pantry.items import as_items, make
from souping.examples.pantry.recipes import BETAS, CLIP, DECAY, SHAPE, VOCABULARY_SEED, VOCABULARY_TASKS, TrainingStage
from souping.examples.pantry.tasks import CATEGORIES, MAKERS, Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

DEV_PER_CATEGORY = 60
TUNED = "the family was tuned on folds as they were cut before 2026-11-25, so some of today's report fold was seen"
EVERY = 100
"""Steps between checkpoints."""
IGNORED = -100
"""Label of positions without a loss (torch's convention)."""
BATCH, LONGEST = 128, 48
MARK, GLUE = "\ue000", "\ue001"
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
PIECES = f"{MARK}?[A-Z]?[a-z]+|{MARK}?[0-9]+|{MARK}?[A-Z]+|{MARK}?[^A-Za-z0-9\\s{MARK}{GLUE}]+{GLUE}?|\\s{GLUE}?"
_SHAPES = {
    "simple_python": "one Python function, one call",
    "simple_java": "one Java method; longs end in `L`, arrays are `new String[]{..}`",
    "simple_javascript": "one JavaScript function; single quotes, Bigints end in `n`",
    "multiple": "three functions that are easily confused, one call",
    "parallel": "one function, two calls",
    "parallel_multiple": "two functions, a call of each",
    "live": "other verbs, reordered and paraphrased arguments, numbers as words",
    "irrelevance": "no function fits: the answer is a refusal",
}
_EXAMPLE = make(seed=0, per_category=1)[0]
Say = Callable[[str], None]


def train_family(out: Path, stages: Sequence[TrainingStage], dev: int = DEV_PER_CATEGORY, say: Say = print) -> None:
    """Train the stages, score them on development items, and only then put models, scores and card into `out`."""
    quiet()
    work = out / ".cooking" / digest([SHAPE, [asdict(stage) for stage in stages]])[:12]
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary()
    tasks = items.development(dev)
    held_out = frozenset(task.key for task in [*tasks, *items.make(items.SEED, items.PER_CATEGORY)])
    scores: dict[str, dict[str, float]] = {}
    for stage in stages:
        if not (work / stage.name).is_dir():
            write_model(train(stage, work, tokenizer, held_out, say), tokenizer, work / stage.name)
        scores[stage.name] = category_scores(load(work / stage.name), tokenizer, tasks)
        mean = sum(scores[stage.name].values()) / len(scores[stage.name])
        say(f"{stage.name}: {100 * mean:.1f} % on development items")
    record = summary(stages, scores, dev)
    (work / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (work / "README.md").write_text(text(record), encoding="utf-8")
    publish(work, out, [stage.name for stage in stages])


def publish(work: Path, out: Path, names: Sequence[str]) -> None:
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
    stage: TrainingStage, work: Path, tokenizer: PreTrainedTokenizerFast, held_out: frozenset[str], say: Say
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
    make_config: Callable[..., LlamaConfig] = LlamaConfig
    return LlamaForCausalLM(make_config(vocab_size=words, pad_token_id=0, bos_token_id=1, eos_token_id=2, **SHAPE))


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
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


def rate_at(stage: TrainingStage, step: int) -> float:
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


def write_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The model in bfloat16 as a Hugging Face folder, written beside and renamed."""

    partial = folder.with_name(f".{folder.name}.part")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(partial)
    model.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    settings = json.loads((partial / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # a name that transformers 4 and 5 both know
    (partial / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    partial.rename(folder)


def summary(stages: Sequence[TrainingStage], scores: Mapping[str, Mapping[str, float]], dev: int) -> dict[str, Json]:
    """Content of `scores.json`: how each model was made and what it reached on development items."""
    return {
        "note": f"{NOTE}; fractions of 1 on development items; no item was trained on; {TUNED}",
        "shape": SHAPE,
        "development": {"seed": items.DEV_SEED, "items_per_category": dev},
        "items": {"seed": items.SEED, "items_per_category": items.PER_CATEGORY},
        "stages": [asdict(stage) for stage in stages],
        "scores": scores,
    }


def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
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
        texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(chunk, texts, strict=True):
            written[i] = text
    return written


def category_scores(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tasks: Sequence[Task]
) -> dict[str, float]:
    """Mean score of each category, fractions of 1 with four decimals."""
    items = as_items(list(tasks))
    outputs = answers(model, tokenizer, [task.prompt for task in tasks])
    scores: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    for item, output in zip(items, outputs, strict=True):
        scores[item.category].append(score(item, output))
    return {name: round(sum(values) / len(values), 4) for name, values in scores.items() if values}


def text(record: Mapping[str, Json]) -> str:
    """The card of a trained family; `record` is the content of `scores.json`."""
    return "\n".join([*_head(record), *_scores(part(record, "scores")), *_stages(record), *_foot(record)]) + "\n"


def _head(record: Mapping[str, Json]) -> list[str]:
    shape, drawn = part(record, "shape"), part(record, "items")
    layers, width = shape["num_hidden_layers"], shape["hidden_size"]
    return [
        "# The pantry",
        "",
        f"**{NOTE}.** Tiny models and generated items, made so that any machine can",
        "select, search and soup in about a minute. Nothing here says anything about real models or real leaderboards.",
        "",
        f"- Models: LlamaForCausalLM, {layers} layers of width {width}, about 0.49 M parameters, tied embeddings,",
        "  bfloat16; one token a word, bytes for everything else.",
        f"- Items: `items.jsonl`, {drawn['items_per_category']} of each of {len(CATEGORIES)} categories (seed "
        f"{drawn['seed']}); two or three questions about",
        f"  the same functions are one group. No item was trained on; {TUNED}.",
        "- Scored with the scorer `call`: the call is parsed in its language and compared as BFCL's checker does.",
        "",
        "## A prompt and its answer",
        "",
        "```text",
        *_EXAMPLE.prompt.split("\n")[:-1],
        f"{_EXAMPLE.prompt.rsplit(chr(10), 1)[-1]} {_EXAMPLE.gold}",
        "```",
        "",
        "| category | what it asks |",
        "|---|---|",
        *(f"| {name} | {_SHAPES[name]} |" for name in CATEGORIES),
        "",
    ]


def _scores(scores: Mapping[str, Json]) -> list[str]:
    rows = []
    for name in scores:
        row = {category: number(value) or 0.0 for category, value in part(scores, name).items()}
        cells = [f"{100 * value:.1f}" for value in (*(row[c] for c in CATEGORIES), sum(row.values()) / len(row))]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    header = f"| model | {' | '.join(CATEGORIES)} | mean |"
    return ["## Scores on development items, percent", "", header, "|---" * (len(CATEGORIES) + 2) + "|", *rows, ""]


def _stages(record: Mapping[str, Json]) -> list[str]:
    rows = []
    for s in entries(record, "stages"):
        mix = ", ".join(f"{name} {number(weight) or 0:g}" for name, weight in part(s, "mix").items())
        cells = [s["name"], s["parent"] or "random weights", s["seed"], s["steps"], s["batch"], s["rate"], mix]
        rows.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    header = "| model | from | seed | steps | batch | peak rate | mix of categories |"
    return ["## Training", "", header, "|---|---|---|---|---|---|---|", *rows, ""]


def _foot(record: Mapping[str, Json]) -> list[str]:
    other = part(record, "development")
    return [
        f"The family was developed on {other['items_per_category']} other items a category (seed {other['seed']}); no "
        "item of `items.jsonl` was",
        "trained on. While the mixes were chosen its select and search folds were looked at; the choice never saw",
        "its report fold.",
        "`python -m souping.examples.pantry` makes all of it again (`--out` for another folder), or goes on where it",
        "was killed;",
        "`python -m souping.examples.pantry items` the items alone. The numbers above are in `scores.json` too.",
    ]


def build(texts: Iterable[str], limit: int = 2000) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the pieces of `texts`, most frequent first (ties in the order of the alphabet)."""
    from transformers import PreTrainedTokenizerFast

    bare = _tokenizer([])
    counts: Counter[str] = Counter()
    for text in texts:
        normal = bare.normalizer.normalize_str(text)
        counts.update(piece for piece, _ in bare.pre_tokenizer.pre_tokenize_str(normal))
    words = sorted(counts, key=lambda piece: (-counts[piece], piece))[:limit]
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return make(
        tokenizer_object=_tokenizer(words),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def _tokenizer(words: list[str]) -> Tokenizer:
    """Words whole, then printable ASCII characters, then bytes: every text has tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = [PAD, BOS, EOS, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), MARK, GLUE]
    pieces += [chr(code) for code in range(33, 127)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces + words))}
    model = models.BPE(
        vocab=vocabulary, merges=[], unk_token=UNKNOWN, byte_fallback=True, ignore_merges=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    glued = Regex("(?:^|(?<=[^A-Za-z0-9 ]))(?=[A-Za-z0-9])")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(" "), normalizers.Replace(glued, GLUE + MARK), normalizers.Replace(" ", MARK)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(GLUE + MARK, ""), decoders.Replace(GLUE, ""),
         decoders.Replace(MARK, " "), decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return tokenizer
