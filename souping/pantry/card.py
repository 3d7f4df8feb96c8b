"""The pantry's README: what it is, how it was made, what it reached. Written by the training, never by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from souping.pantry import NOTE
from souping.pantry.items import make
from souping.pantry.tasks import CATEGORIES

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


def text(record: Mapping[str, Any]) -> str:
    """The card of a trained family; `record` is what `scores.json` holds."""
    return "\n".join([*_head(record), *_scores(record["scores"]), *_stages(record["stages"]), *_foot(record)]) + "\n"


def _head(record: Mapping[str, Any]) -> list[str]:
    shape, items = record["shape"], record["items"]
    layers, width = shape["num_hidden_layers"], shape["hidden_size"]
    return [
        "# The pantry",
        "",
        f"**{NOTE}.** Tiny models and generated items, made so that any machine can",
        "select, search and soup in about a minute. Nothing here says anything about real models or real leaderboards.",
        "",
        f"- Models: LlamaForCausalLM, {layers} layers of width {width}, about 0.49 M parameters, tied embeddings,",
        "  bfloat16; one token a word, bytes for everything else.",
        f"- Items: `items.jsonl`, {items['items_per_category']} of each of {len(CATEGORIES)} categories (seed "
        f"{items['seed']}); two or three questions about",
        "  the same functions are one group. No item was trained on.",
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


def _scores(scores: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = []
    for name, row in scores.items():
        cells = [f"{100 * value:.1f}" for value in (*(row[c] for c in CATEGORIES), sum(row.values()) / len(row))]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    header = f"| model | {' | '.join(CATEGORIES)} | mean |"
    return ["## Scores on development items, percent", "", header, "|---" * (len(CATEGORIES) + 2) + "|", *rows, ""]


def _stages(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for s in stages:
        mix = ", ".join(f"{name} {weight:g}" for name, weight in s["mix"].items())
        cells = [s["name"], s["parent"] or "random weights", s["seed"], s["steps"], s["batch"], s["rate"], mix]
        rows.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    header = "| model | from | seed | steps | batch | peak rate | mix of categories |"
    return ["## Training", "", header, "|---|---|---|---|---|---|---|", *rows, ""]


def _foot(record: Mapping[str, Any]) -> list[str]:
    number, seed = record["development"]["items_per_category"], record["development"]["seed"]
    return [
        f"The family was developed on {number} other items a category (seed {seed}); no item of `items.jsonl` was",
        "trained on. While the mixes were chosen its select and search folds were looked at; the choice never saw",
        "its report fold.",
        "`python -m souping.pantry` makes all of it again (`--out` for another folder; a killed training continues),",
        "`python -m souping.pantry items` the items alone. The numbers above are in `scores.json` too.",
    ]
