"""Verified drafts beside plain decoding, on SmolLM2-135M and long answers: a search's soups one after another.

`python benchmarks/drafts.py` takes the fine-tunes that `python -m souping.examples.smollm` makes. Every soup is asked
the same items twice in turn, plainly and with the answers of the soups before it as drafts (nearest first). Where an
answer differs, the gap of the two likeliest tokens at that place is shown; so it is for plain decoding in batches of
other sizes (A/A). Stopped at any time, it goes on from its state.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from souping.core.protocols import Served
from souping.core.types import Draft, Item, Record
from souping.evaluate.engines.transformers import TransformersEngine, load_module, load_tokenizer
from souping.evaluate.generate import LocalEvaluator
from souping.evaluate.templates import render
from souping.pipeline.executors import TOGETHER

TASKS = (
    "Explain in a few paragraphs how {} works.",
    "Write a short story about {}.",
    "List ten facts about {}.",
    "Give step by step instructions for {}.",
)
THINGS = (
    "a bicycle", "sorting numbers", "baking bread", "the water cycle", "a library", "growing tomatoes", "a lighthouse",
    "a chess opening", "a thermometer", "learning to swim", "a market", "folding paper", "a violin", "bees",
    "planning a journey", "a volcano", "a compass", "making cheese", "the tides", "a printing press", "keeping a diary",
    "a sundial", "repairing a shoe", "a telescope", "rivers", "a bakery", "riding a horse", "snow", "a bridge",
    "learning a language", "clay pots", "an orchestra",
)  # fmt: skip
SOUPS = (
    (0.4, 0.3, 0.3), (0.5, 0.3, 0.2), (0.5, 0.2, 0.3), (0.6, 0.2, 0.2), (0.4, 0.4, 0.2), (0.3, 0.4, 0.3),
    (0.6, 0.3, 0.1), (0.5, 0.4, 0.1), (0.7, 0.2, 0.1), (0.4, 0.2, 0.4),
)  # fmt: skip
"""Neighbours on the grid of step 0.1, as a search asks for them."""
SIZES = (8, 16, 32)
SHORT = 64
"""Tokens of an answer where batch sizes are compared."""


class Soup(Served):
    """Poured soup."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._module = load_module(folder, LocalEvaluator(device="cpu").module_settings())
        self._tokenizer = load_tokenizer(folder)

    module = property(lambda self: self._module)
    tokenizer = property(lambda self: self._tokenizer)
    ends = ()


def main() -> None:
    options = parser().parse_args()
    state = json.loads(options.state.read_text()) if options.state.exists() else {"answers": {}, "times": {}}
    items = [
        Item(id=f"q{n}", category="c", prompt=({"role": "user", "content": task.format(thing)},), answer="")
        for n, (thing, task) in enumerate(itertools.product(THINGS[: options.things], TASKS))
    ]
    evaluator = LocalEvaluator(batch_size=options.batch, max_new_tokens=options.tokens, threads=1, device="cpu")
    started = time.monotonic()
    names = sorted(folder for folder in options.models.iterdir() if (folder / "tune.json").exists())[:3]
    states = [load_module(folder, evaluator.module_settings()).state_dict() for folder in names]
    soup = Soup(names[0])
    points = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), *SOUPS[: options.soups]]
    steps = [("plain", weights) for weights in points[:3]]
    steps += [(kind, weights) for weights in points[3:] for kind in ("drafted", "plain")]
    steps += [("sizes", points[3])]
    for kind, weights in steps:
        key = f"{kind} {weights}"
        if key in state["times"] or time.monotonic() - started > options.seconds:
            continue
        pour(soup, states, weights)
        if kind == "sizes":
            state["times"][key] = sizes(soup, evaluator, items, state)
        else:
            asked = items[:: len(items) // options.items][: options.items]
            records, seconds = ask(kind, soup, evaluator, asked, near(state, weights))
            state["times"][key] = seconds
            state["answers"][key] = {r.item: [list(r.tokens), r.prompt_key, r.accepted] for r in records}
        options.state.write_text(json.dumps(state))
        print(key, state["times"][key], flush=True)
    table(state, soup, states, items)


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(description=__doc__)
    own.add_argument("--models", type=Path, default=Path("outputs/smollm/models"))
    own.add_argument("--state", type=Path, default=Path("drafts-state.json"))
    own.add_argument("--items", type=int, default=16)
    own.add_argument("--things", type=int, default=8, help="what the questions are about, four of each")
    own.add_argument("--batch", type=int, default=8)
    own.add_argument("--tokens", type=int, default=200)
    own.add_argument("--soups", type=int, default=10)
    own.add_argument("--seconds", type=float, default=1e9, help="begin nothing after so long")
    return own


def pour(soup: Soup, states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]) -> None:
    with torch.no_grad():
        for name, tensor in soup.module.state_dict().items():
            tensor.copy_(sum(w * one[name] for w, one in zip(weights, states, strict=True)))


def near(state: Mapping[str, Any], weights: Sequence[float]) -> list[Mapping[str, Any]]:
    """Answers of what was asked before, the nearest by weights first."""
    before = []
    for key, answers in state["answers"].items():
        other = json.loads(key.split(" ", 1)[1].replace("(", "[").replace(")", "]"))
        single = 1.0 in other
        if other != list(weights) and single == key.startswith("plain"):
            before.append((sum(abs(a - b) for a, b in zip(weights, other, strict=True)), answers))
    return [answers for _, answers in sorted(before, key=lambda pair: pair[0])]


def ask(
    kind: str, soup: Soup, evaluator: LocalEvaluator, items: Sequence[Item], before: Sequence[Mapping[str, Any]]
) -> tuple[list[Record], float]:
    """Records and seconds: plain batches one after another, drafts of up to eight batches at once, as a search does."""
    started, records = time.perf_counter(), []
    blocks = evaluator.batches(items)
    if kind == "plain":
        for block in blocks:
            records += evaluator.evaluate(soup, block)
        return records, time.perf_counter() - started
    for first in range(0, len(blocks), TOGETHER):
        together = [item for block in blocks[first : first + TOGETHER] for item in block]
        drafts = [
            list(dict.fromkeys(Draft(tokens=tuple(one[item.id][0]), prompt_key=one[item.id][1]) for one in before))[:6]
            for item in together
        ]
        records += evaluator.verify(soup, together, 0, drafts)
    return records, time.perf_counter() - started


def sizes(soup: Soup, evaluator: LocalEvaluator, items: Sequence[Item], state: dict[str, Any]) -> dict[str, float]:
    """Seconds of plain decoding at several batch sizes, all items, short answers."""
    found = {}
    for size in SIZES:
        short = replace(evaluator, batch_size=size, max_new_tokens=SHORT, engine=TransformersEngine())
        records, found[str(size)] = ask("plain", soup, short, items, [])
        state.setdefault("short", {})[str(size)] = {r.item: list(r.tokens) for r in records}
    return found


def gap(soup: Soup, item: Item, tokens: Sequence[int]) -> float:
    """Difference of the two largest logits behind a prompt and these tokens."""
    with torch.inference_mode():
        ids = torch.tensor([[*render(soup.tokenizer, item), *tokens]])
        first, second = soup.module(ids).logits[0, -1].topk(2).values.tolist()
    return first - second


def flips(
    soup: Soup, items: Mapping[str, Item], one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]
) -> list[float]:
    """Gaps of the two likeliest tokens where answers first differ."""
    found = []
    for name, tokens in one.items():
        place = next((n for n, (a, b) in enumerate(zip(tokens, other[name], strict=False)) if a != b), None)
        if place is not None:
            found.append(gap(soup, items[name], tokens[:place]))
    return found


def table(state: Mapping[str, Any], soup: Soup, states: Sequence[Any], items: Sequence[Item]) -> None:
    by_id, times = {item.id: item for item in items}, state["times"]
    ratios, differ, answered = [], [], 0
    print("\n| soup | plain, s | drafted, s | ratio | tokens from drafts | whole answers | differ |")
    print("|---|---|---|---|---|---|---|")
    for weights in SOUPS:
        plain, drafted = f"plain {weights}", f"drafted {weights}"
        if plain not in times or drafted not in times:
            continue
        ours = state["answers"][drafted]
        total, taken = sum(len(a[0]) for a in ours.values()), sum(a[2] for a in ours.values())
        pour(soup, states, weights)
        gaps = flips(soup, by_id, *({k: a[0] for k, a in state["answers"][key].items()} for key in (plain, drafted)))
        ratios.append(times[plain] / times[drafted])
        differ += gaps
        answered += len(ours)
        whole = sum(len(a[0]) == a[2] for a in ours.values())
        print(
            f"| {weights} | {times[plain]:.1f} | {times[drafted]:.1f} | {ratios[-1]:.2f} | {taken / total:.0%} | "
            f"{whole} of {len(ours)} | {len(gaps)} |"
        )
    if ratios:
        print(f"\nmedian ratio {statistics.median(ratios):.2f}, {len(differ)} of {answered} answers differ")
        print("gaps of logits where they differ:", [f"{value:.1e}" for value in differ])
    key = f"sizes {SOUPS[0]}"
    if key in times:
        pour(soup, states, SOUPS[0])
        print(f"plain, {len(items)} answers of {SHORT} tokens, s by batch size: {times[key]}")
        aa = [flips(soup, by_id, state["short"]["8"], state["short"][str(size)]) for size in SIZES[1:]]
        print("A/A, batch 8 against others: answers that differ", [len(one) for one in aa], "gaps", aa)


if __name__ == "__main__":
    main()
