"""Answers of a run's models side by side: the lines of its samples, and how `souping show` prints them."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.files import regular, unpacked_limit
from souping.core.parsing import read_json
from souping.core.text import first_line, human
from souping.core.types import JsonObject, UserError, frozen
from souping.core.unit import Unit
from souping.report.format import clean

if TYPE_CHECKING:
    from rich.console import Console

SAMPLES_FILE = "samples.jsonl.gz"
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""Escape of half a surrogate pair in JSON."""
SHOWN_ANSWER_CHARS = 4000
"""Characters of an answer that are shown; of a longer one both ends."""


@frozen
class SampleAnswers:
    """A model's answers to an item."""

    score: float | None  # in the unit of the run
    outcome: str  # `finished`, `truncated` or `unanswered`, the worst of several
    reason: str  # why there is no answer
    filtered_resps: tuple[str, ...]  # texts of the answers

    def text(self) -> str:
        """The answers as one text, numbered if there are several."""
        answers = self.filtered_resps
        if not any(answers):
            reason = f": {self.reason}" if self.reason else ""
            return f"(no text{reason})"
        if len(answers) == 1:
            return answers[0]
        return "\n".join(f"{n}. {text}" for n, text in enumerate(answers, start=1))


@frozen
class Sample:
    """A line of a run's samples: an item with its answers."""

    item: str  # id
    category: str
    split: str
    prompt_hash: str
    target: Any  # reference answer
    arguments: tuple[tuple[Any, ...], ...]  # of the requests; the first of the first is the prompt
    models: Mapping[str, SampleAnswers]  # {model: its answers}

    def score(self, name: str) -> float | None:
        """A model's score, None if it was not evaluated on the item."""
        if name not in self.models:
            return None
        return self.models[name].score


def read_samples(path: Path) -> Iterator[JsonObject]:
    """The lines of a run's samples.

    Raises:
        UserError: the file is absent or damaged.
    """
    try:
        with gzip.open(regular(path)) as file:
            limit = unpacked_limit(path)
            # One byte beyond the limit shows that there is too much.
            while line := file.readline(limit + 1):
                limit -= len(line)
                if limit < 0:
                    raise ValueError(f"{human(path.stat().st_size)} unpack to too much")
                yield _sample_row(line.decode())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent}: no {path.name}: name the directory of a run that evaluated items"
        ) from None
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {first_line(error)}") from error


def _sample_row(line: str) -> JsonObject:
    """The object of a line (ValueError: it is none, or holds half a character, which no run writes)."""
    row = read_json(line)
    if not isinstance(row, dict):
        raise ValueError("a line is not an object")
    if SURROGATE.search(line):
        # Encoding raises the ValueError if the other half of the pair is missing.
        json.dumps(row, ensure_ascii=False).encode()
    return row


def changed_items(
    unit: Unit, samples: Iterable[Sample], base: str, soup: str, better: bool
) -> Iterator[Sample]:
    """The items that model `soup` answers better than model `base`, or (`better=False`) worse."""
    for sample in samples:
        new = sample.score(soup)
        old = sample.score(base)
        if new is None or old is None:
            continue
        gain = unit.gain(new) - unit.gain(old)
        if (better and gain > 0) or (not better and gain < 0):
            yield sample


def show_sample(unit: Unit, console: Console, sample: Sample, names: Sequence[str]) -> None:
    """Print an item: its prompt as the model saw it, its reference, and these models' answers side by side."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    title = f"{sample.item} ({sample.category}, split {sample.split})"
    console.print(Text(clean(title), style="bold"))
    prompt = ""
    # In an edited file the request, or its arguments, may be missing.
    if any(sample.arguments[:1]):
        prompt = str(sample.arguments[0][0])
    reference = sample.target
    if not isinstance(reference, str):
        reference = json.dumps(reference, ensure_ascii=False)
    for label, text in (("prompt", prompt), ("reference", reference)):
        line = Text(f"{label}: ", style="dim").append(_short(text), style="")
        console.print(line, soft_wrap=False)
    table = Table(box=SIMPLE_HEAD)
    answers = []
    for name in names:
        if name not in sample.models:
            continue
        model = sample.models[name]
        # One decimal less than a mean has: the score of a single item is often 0 or 1.
        head = f"{name}: {unit.score(model.score, more=-1)} {unit.symbol}"
        if model.outcome != "finished":
            head += f", {model.outcome}"
        table.add_column(Text(clean(head)), overflow="fold", ratio=1)
        answers.append(Text(_short(model.text())))
    table.add_row(*answers)
    console.print(table)


def _short(text: str) -> str:
    """A text without control characters; of one longer than `SHOWN_ANSWER_CHARS`, both ends."""
    lines = "\n".join(clean(line) for line in text.split("\n"))
    if len(lines) <= SHOWN_ANSWER_CHARS:
        return lines
    half = SHOWN_ANSWER_CHARS // 2
    return (
        f"{lines[:half]}\n... {len(lines) - SHOWN_ANSWER_CHARS:,} characters ...\n{lines[-half:]}"
    )
