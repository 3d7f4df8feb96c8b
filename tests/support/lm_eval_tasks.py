"""Tasks of our own for lm-evaluation-harness: YAML and JSON files on disk, in the tiny family's words."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ("salt", "leek", "rice", "milk", "plum", "corn", "beet", "figs")


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Questions with four choices of one to three words, a topic and a passage that two questions share."""
    dice = random.Random(seed)
    found = []
    for number in range(count):
        choices = [" ".join(dice.sample(WORDS, dice.randint(1, 3))) for _ in range(4)]
        found.append(
            {
                "question": f"{dice.choice(WORDS)} {dice.randrange(1000)} and {dice.choice(WORDS)}?",
                "choices": choices,
                "answer": dice.randrange(4),
                "text": choices[0],
                "topic": ("soup", "stew")[number % 2],
                "passage": number // 2,
            }
        )
    return found


def put(folder: Path, name: str, data: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """A task's YAML and its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(list(data)))
    files = f"dataset_kwargs: {{data_files: {{test: {folder / name}.json}}}}"
    head = [f"task: {name}", "dataset_path: json", files, "test_split: test"]
    (folder / f"{name}.yaml").write_text("\n".join([*head, *lines]) + "\n")


CHOICE = [
    "output_type: multiple_choice",
    'doc_to_text: "{{question}}"',
    "doc_to_choice: choices",
    "doc_to_target: answer",
    "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "metadata: {version: 1.0}",
]
WRITE = [
    "output_type: generate_until",
    'doc_to_text: "{{question}}"',
    'doc_to_target: "{{text}}"',
    "generation_kwargs:",
    '  until: ["?"]',
    "  max_gen_toks: 5",
    "metric_list:",
    "  - metric: exact_match",
    "    aggregation: mean",
    "    higher_is_better: true",
    "metadata: {version: 2.0}",
]
TRANSLATE = [*WRITE[:6], "metric_list: [{metric: bleu}, {metric: chrf}, {metric: ter}]"]
ROLL = [
    "output_type: loglikelihood_rolling",
    'doc_to_text: ""',
    'doc_to_target: "{{question}}"',
    "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]",
]
LAST = [
    "output_type: loglikelihood",
    'doc_to_text: "{{question}}"',
    'doc_to_target: " {{text}}"',
    "metric_list: [{metric: perplexity}, {metric: acc}]",
]


def make(folder: Path, count: int = 12) -> Path:
    """Tasks pick, pick2 (a group `picks`, tag `chosen`), shots (few-shot), write and translate."""
    put(folder, "pick", rows(count, 1), ["tag: chosen", *CHOICE])
    put(folder, "pick2", rows(count, 2), ["tag: chosen", *CHOICE])
    (folder / "picks.yaml").write_text("group: picks\ntask:\n  - pick\n  - pick2\n")
    put(folder, "shots", rows(count, 3), ["num_fewshot: 2", "fewshot_split: test", *CHOICE])
    put(folder, "write", rows(count, 4), WRITE)
    put(folder, "translate", rows(count, 5), TRANSLATE)
    put(folder, "roll", rows(count, 6), ROLL)
    put(folder, "last", rows(count, 7), LAST)
    return folder


def from_family(folder: Path, items: Path) -> Path:
    """The tiny family's items as one task, `red_green_blue`, with their category and group as columns."""
    data = [json.loads(line) for line in items.read_text().splitlines()]
    lines = [
        "output_type: generate_until",
        'doc_to_text: "{{prompt}}"',
        'doc_to_target: "{{answer}}"',
        "generation_kwargs: {until: [], max_gen_toks: 4}",
        "metric_list: [{metric: exact_match}, {metric: chrf}]",
    ]
    put(folder, "red_green_blue", data, lines)
    return folder
