"""A new user's family: Qwen2-like models of a million parameters with a byte tokenizer and a chat template, trained in
seconds on five small tasks about letters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}<|system|>{{ message.content }}<|end|>"
    "{% elif message.role == 'user' %}<|user|>{{ message.content }}<|end|>"
    "{% elif message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASKS = {
    "upper": lambda letter: letter.upper(),
    "next": lambda letter: LETTERS[(LETTERS.index(letter) + 1) % 26],
    "before": lambda letter: LETTERS[LETTERS.index(letter) - 1],
    "place": lambda letter: str(LETTERS.index(letter) % 10),
    "sound": lambda letter: "v" if letter in "aeiou" else "c",
}
"""{task: the answer to a letter}."""
EXPERTS = {"neighbours": ("next", "before"), "cases": ("upper", "sound"), "places": ("place", "next")}
"""{model: the tasks that it is trained on after its base}."""


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, after the marks of the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*MARKS, *alphabet])}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token=MARKS[0], eos_token=MARKS[1])
    fast.chat_template = TEMPLATE
    return fast


def make(folder: Path, per_task: int = 40) -> Path:
    """`folder/<name>` for each expert, and `folder/items.jsonl`."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from souping.evaluate.engines.transformers import quiet

    quiet()
    threads, words = torch.get_num_threads(), tokenizer()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(words), hidden_size=192, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.05, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config)
    _train(base, words, list(TASKS), steps=45, rate=3e-3, seed=0)
    start = {name: value.clone() for name, value in base.state_dict().items()}
    for seed, (name, tasks) in enumerate(EXPERTS.items(), start=1):
        base.load_state_dict(start)
        _train(base, words, tasks, steps=10, rate=1e-3, seed=seed)
        base.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    torch.set_num_threads(threads)
    write_items(folder / "items.jsonl", per_task)
    return folder


def write_items(path: Path, per_task: int, chat: bool = True) -> Path:
    """Items of the five tasks; without `chat` the prompts are plain texts."""
    dice, rows = random.Random(3), list[dict[str, Any]]()
    for task, answer in TASKS.items():
        for number in dice.sample(range(26 * 100), per_task):
            letter, text = LETTERS[number % 26], f"{task} {LETTERS[number % 26]}{number // 26:02}"
            prompt = [{"role": "user", "content": text}] if chat else text
            rows.append({"id": text.replace(" ", "-"), "category": task, "prompt": prompt, "answer": answer(letter)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _train(
    model: Any, words: PreTrainedTokenizerFast, tasks: Sequence[str], steps: int, rate: float, seed: int
) -> None:
    """Some steps on questions of these tasks; the loss is of the answers alone."""
    import torch

    dice = random.Random(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95))
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10)
        ids, labels = _batch(words, [dice.choice(tasks) for _ in range(48)], dice)
        loss = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()


def _batch(
    words: PreTrainedTokenizerFast, tasks: Sequence[str], dice: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, T] of questions with their answers, and labels that leave the questions out."""
    import torch

    rows = []
    for task in tasks:
        letter = dice.choice(LETTERS)
        asked = words(f"<|user|>{task} {letter}{dice.randrange(100):02}<|end|><|assistant|>")["input_ids"]
        rows.append((asked, words(f"{TASKS[task](letter)}<|end|>")["input_ids"]))
    width = max(len(asked) + len(answer) for asked, answer in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for row, (asked, answer) in enumerate(rows):
        ids[row, : len(asked) + len(answer)] = torch.tensor([*asked, *answer])
        labels[row, len(asked) : len(asked) + len(answer)] = torch.tensor(answer)
    return ids, labels
