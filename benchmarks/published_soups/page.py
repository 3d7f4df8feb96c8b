"""The results page: findings first, then tables, each with what it cannot show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

from benchmarks.published_soups.clip_page import (
    accuracy_table,
    control_table,
    models_above,
    top_k_table,
)
from benchmarks.published_soups.clip_soups import CHOSEN_ON, ClipSoups, sampling_error
from benchmarks.published_soups.gains import Gains, SparseMerge, Transfer, by_ladder, over_ladders
from benchmarks.published_soups.gains_page import (
    below,
    best,
    by_neighbours,
    compliance_table,
    gains_table,
    given_away_by_ladder,
    half,
    interval,
    mean_of,
    points,
    router,
    search_table,
    sparse_table,
    table,
    transfer_table,
)
from benchmarks.published_soups.recorded_search import Regret, SearchedPath

CODING = "coding"
SAFETY = "safety"


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that is measured; `cliffs` by items a category."""

    gains: Sequence[Gains]
    compliance: Sequence[Gains]  # safety alone, with harmless requests as one more benchmark
    transfers: Sequence[Transfer]
    sparse: Sequence[SparseMerge]
    searched: Sequence[SearchedPath]
    cliffs: Mapping[int, Sequence[Regret]]
    clip: ClipSoups
    draws: int
    date: str


def page(results: Results) -> str:
    """The page for benchmarks/results."""
    findings = "\n".join(_wrapped(f"- {finding}", "  ") for finding in _findings(results))
    parts = [
        f"# Soups that others trained, {results.date}",
        INTRODUCTION,
        "## Findings",
        findings,
        "## Soup minus the better of its two models (Merge to Learn)",
        gains_table(results.gains).rstrip(),
        GAINS,
        "### Safety, with harmless requests counted",
        compliance_table(results.compliance).rstrip(),
        COMPLIANCE,
        "### Weight chosen on dev, read on TEST (science)",
        transfer_table(results.transfers).rstrip(),
        TRANSFER,
        "### TIES and DARE",
        sparse_table(results.sparse).rstrip(),
        SPARSE,
        "## What the adaptive search gives away on these paths",
        search_table(results.searched, results.cliffs).rstrip(),
        SEARCH.format(draws=results.draws),
        "## 72 CLIP fine-tunes",
        accuracy_table(results.clip).rstrip(),
        CLIP.format(error=sampling_error()),
        "Mean over the six tests, minus the best model:",
        control_table(results.clip).rstrip(),
        CONTROLS,
        f"The k best models on {CHOSEN_ON}; ImageNet, minus the best model:",
        top_k_table(results.clip).rstrip(),
        "## What repeats a pilot with tiny models",
        _pilot_table(results).rstrip(),
        PILOT,
        AGAIN,
    ]
    return "\n\n".join(parts)


def _findings(results: Results) -> list[str]:
    return [
        *_gain_findings(results),
        _clip_finding(results.clip),
        _search_finding(results.searched),
    ]


def _gain_findings(results: Results) -> list[str]:
    gains = results.gains
    by = {name: points(mean_of(gains, best, name)) for name in ("science", SAFETY, CODING)}
    wise_ft = points(mean_of(gains, half, CODING, "WiSE-FT"))
    ahead = points(mean_of(gains, router) - mean_of(gains, best))
    compliant = [points(mean_of(results.compliance, value)) for value in (best, router)]
    dev, test = np.mean([(each.dev, each.test) for each in results.transfers], axis=0).tolist()
    return [
        "**With the best weight, the soup minus the better of its two models is "
        f"{interval(over_ladders(by_ladder(gains, best)))} points** (four ladders, 95 % interval). "
        f"The interval is wide because ladders differ: safety {by[SAFETY]}, science {by['science']}, "
        f"coding {by[CODING]}. {below(gains, best)} soups are more than half a point below the "
        "better model.",
        f"**With .5/.5 it is {interval(over_ladders(by_ladder(gains, half)))}, and "
        f"{below(gains, half)} soups are more than half a point below.** Halfway between a model "
        f"and its own continued training (WiSE-FT), coding has {wise_ft}.",
        f"**A router between the two models beats the soup in {_router_wins(gains)} of {len(gains)} "
        f"pairs**, by {ahead} points on average. If safety counts harmless requests too, the soup "
        f"has {compliant[0]} and the router {compliant[1]}.",
        f"**A weight that was chosen on dev keeps its gain on TEST**: {points(dev)} on dev and "
        f"{points(test)} on TEST (science, the only domain with both).",
    ]


def _clip_finding(clip: ClipSoups) -> str:
    uniform = clip.soups["uniform"]
    beside_router = points(float(uniform.mean() - clip.router.mean()))
    count = len(clip.models)
    return (
        f"**The uniform soup of all {count} CLIP models minus the best model is "
        f"{points(clip.minus_best(uniform))} points, and minus a router {beside_router}**, although "
        f"the router knows the best model of each test. {models_above(clip, 'uniform')} of the "
        f"{count} models are above the soup. On ImageNet alone it has "
        f"{points(float(uniform[0] - clip.best[0]))}."
    )


def _search_finding(searched: Sequence[SearchedPath]) -> str:
    clauses = []
    for items in sorted({each.items for each in searched}):
        given_away = given_away_by_ladder([each for each in searched if each.items == items])
        clauses.append(
            f"{points(over_ladders(given_away).value)} points with {items} items a category "
            f"({points(float(np.mean(given_away[SAFETY])))} in safety)"
        )
    return f"**The adaptive search gives away, against the full grid,** {' and '.join(clauses)}."


def _router_wins(gains: Sequence[Gains]) -> int:
    return sum(gain.router > gain.best for gain in gains)


def _pilot_table(results: Results) -> str:
    gains = results.gains
    clip = results.clip
    uniform = clip.soups["uniform"]
    searched = mean_of(gains, best) - mean_of(gains, half)
    sparse = [each.best for each in results.sparse if each.method == "TIES"]
    stretched = clip.scaled(1.2, "mean").mean() - clip.scaled(1, "mean").mean()
    uniform_gain = points(clip.minus_best(uniform))
    rows = [
        [
            "searched soup − best candidate",
            "+1.5 (s.e. .3)",
            f"{points(mean_of(gains, best))} ({points(mean_of(gains, by_neighbours))} chosen by neighbours)",
            "yes in sign",
        ],
        [
            "soups clearly below it, searched and not",
            "0 and 4 of 32",
            f"{below(gains, best)} and {below(gains, half)}",
            "yes",
        ],
        ["best weight − equal weights", "+.3 (s.e. .2)", points(searched), "larger here"],
        [
            "router − best candidate",
            "+3.3 (s.e. .6)",
            f"{points(mean_of(gains, router))}; CLIP {points(clip.minus_best(clip.router))}",
            "yes",
        ],
        [
            "router above the soup",
            "yes",
            f"in {_router_wins(gains)} of {len(gains)}; CLIP no",
            "not with 72 models",
        ],
        [
            "uniform soup of all clearly below the best",
            "7 of 32",
            f"CLIP {uniform_gain}",
            "not with 72 models",
        ],
        ["stretched − plain", "−.3", f"{points(float(stretched))} (CLIP, 1.2)", "yes"],
        ["TIES − linear", "−.9", f"{points(min(sparse))} to {points(max(sparse))}", "no: either sign"],
    ]  # fmt: skip
    return table(["", "pilot", "here", "repeats"], rows)


def _wrapped(text: str, indent: str) -> str:
    return fill(text, 120, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


INTRODUCTION = """Two published data sets: 80 Llama-2-7B models and 857 merges of them (Merge to Learn), and 72 CLIP
models with soups of them. This page is written by `python -m benchmarks.published_soups` ([data](#do-it-again)).
All figures are points out of 100.

**Neither data set has answers to single items.** So no test of one soup against one model is possible, and weights,
best models and routers were chosen on the scores that are shown, except where a line says otherwise."""

GAINS = """The score is the mean of two averages, as the authors compute them: five general benchmarks, and the
domain. Every ladder has five pairs: the same general model, and a specialist trained on five nested amounts of data.
*Linear* averages the general model and a specialist trained from the base. *WiSE-FT* averages the general model with
its own continued training. *Task arithmetic* adds a multiple of what training changed; its .5 is half of that change.

- **best weight**: the best of nine (task arithmetic: ten) weights, chosen on these scores, so it is too high.
  **chosen by its neighbours**: the weight whose two neighbours score best, so its own luck chose nothing.
- **router**: general questions to the model that is better at them, domain questions likewise.
- **Intervals** (95 %, Student's t) take a ladder as one observation: amounts are nested, methods share their models.
  Even the four are not independent: they share one base, and both coding ladders share their linear specialists.
- Cannot show: the error of one score. The smallest benchmarks have 164 (HumanEval+) and 200 items (GSM)."""

COMPLIANCE = """The safety benchmarks reward a model that refuses everything. Here XSTest's harmless requests are a
fourth one. A router between the two models sends all safety questions to one of them; the soup refuses harmful requests
and still answers harmless ones. Cannot show: one ladder, so there is no interval."""

TRANSFER = """Mean over the five amounts. The better parent was chosen on dev too. General benchmarks have no TEST
column, so that half of the score is the same in both. Cannot show: one ladder, so there is no interval, and TEST and
dev come from the same benchmarks."""

SPARSE = """The largest specialists of science and of coding. Cannot show: two pairs, one run of each variant, and
DARE's random masks were drawn once."""

SEARCH = """`optimiser=adaptive` as a run uses it, on the eleven points of each path, until it stops by itself. Each
benchmark is a category with as many items as the first column says. **Right and wrong answers are drawn from the
published scores**, {draws} times a path: half of an item's luck is shared by both models, the other half changes along
the path as the weights do. `search` and `full grid` are points below the best of the eleven, by the published scores;
`given away` is their difference, `cost` the share of the grid's items that was answered.

Cannot show: how alike neighbouring soups truly answer. The published scores count as the truth, with their own noise.
The last row of each block are made-up paths on which a domain jumps beside one end and the general score falls. The
surrogate's short length was chosen on such paths and on no published one
([before and after](search-2026-12-02.md))."""

CLIP = """Cannot show: paired errors. The images of one model alone give a standard error of at most {error:.2f} points
for the mean; two models share the images, so their difference has less. Both *chosen there* rows are too high. Two of
the 72 files are the same model (`model_4`, `model_5`)."""

CONTROLS = """`model_0` is where training began. Shrinking costs little down to .8 and stretching to 1.2 costs what it
does in the pilot. With each weight taken from a model drawn at random, the soup keeps the models' mean only in
expectation, and loses the gain: averaging is what helps, not mixing. (With the sign of the mean, a mean is itself.)"""

PILOT = """The pilot had 32 families of 0.1 million parameters, made before this page. Clearly below: by more than half
a point."""

AGAIN = """## Do it again

```bash
python -m benchmarks.published_soups RESULTS.csv CLIP_FOLDER --out PAGE.md --data FOLDER
```

`RESULTS.csv` is `results/consistent_mix/results.csv` of
[jacob-morrison/modular-adaptation](https://github.com/jacob-morrison/modular-adaptation), commit 109a0ae, Apache-2.0.
`CLIP_FOLDER` holds `individual_model_results.jsonl`, `greedy_soup_results.jsonl` and `uniform_soup_results.jsonl` of
[mlfoundations/model-soups](https://github.com/mlfoundations/model-soups), commit d5398f1, MIT, and
`results/random_merge.jsonl` and `results/mean_vs_random.json` of its fork
[sbdzdz/model-soups](https://github.com/sbdzdz/model-soups), commit a85f694, MIT. The script takes about three minutes
of one core. `--data` writes [published-soups-gains.csv](published-soups-gains.csv) and
[published-soups-clip.csv](published-soups-clip.csv), to draw from.

In the CSV file, zeros in the columns of coding are runs that were not made, and five rows of WiSE-FT with all weight
on the specialist (general model with code) have the scores of another model; the script reads the model's own row.
"""
