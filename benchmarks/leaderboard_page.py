"""The findings of `leaderboards.py` in words and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np

from benchmarks.leaderboard_data import MISSING_LIMIT, Board
from benchmarks.leaderboard_measures import FEWEST_FAMILIES, Estimate, Subsets
from souping.core.text import DASH, listed, minus

Rows = Sequence[Sequence[str]]
OPEN = "not estimable"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Numbers of a board; `missing` is the share of missing answers by model, None where it is not known."""

    board: Board
    pairs: dict[Subsets, dict[str, Estimate]]
    weakest: tuple[str, str]
    experts: dict[str, Estimate]
    missing: dict[str, float] | None

    @property
    def sparse(self) -> list[str]:
        """Models of which many answers are missing."""
        return [name for name, share in (self.missing or {}).items() if share > MISSING_LIMIT]

    @property
    def name(self) -> str:
        families = len(set(self.board.families))
        word = "family" if families == 1 else "families"
        return f"{self.board.name}: {len(self.board.models)} models, {families} {word}"


def percent(estimate: Estimate | None, least: float = 0.0, sign: bool = False) -> str:
    """A share in percent with its interval, cut off at 100 % and at `least`: -1 for a difference of shares."""
    if estimate is None or not np.isfinite(estimate.value):
        return DASH
    pattern = "{:+.1f}" if sign else "{:.1f}"
    value = _figure(pattern, 100 * estimate.value)
    if not np.isfinite(estimate.low):
        return value
    low = _figure(pattern, 100 * max(least, estimate.low))
    high = _figure(pattern, 100 * min(1.0, estimate.high))
    return f"{value} [{low}, {high}]"


def _figure(pattern: str, value: float) -> str:
    # adding zero makes a zero of a rounded minus zero
    return minus(pattern.format(round(value, 1) + 0.0))


def plain(estimate: Estimate) -> str:
    """A number that is no share, with its interval."""
    if not np.isfinite(estimate.value):
        return DASH
    if not np.isfinite(estimate.low):
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{max(0.0, estimate.low):.1f}, {estimate.high:.1f}]"


def chance(numbers: dict[str, Estimate], key: str = "chance") -> str:
    """Mean of the simulated boards, and the middle 95 % of them."""
    if key not in numbers:
        return DASH
    middle = Estimate(
        value=numbers[key].value,
        low=numbers[f"{key} low"].value,
        high=numbers[f"{key} high"].value,
    )
    return percent(middle)


def table(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


PAIR_HEADER = (
    "leaderboard",
    "models",
    "range, points",
    "−0.2 < rho < 0.2, %",
    "by chance, %",
    "difference",
    "rho < 0.2, %",
    "by chance, %",
    "difference",
    "disattenuated, %",
    "pairs estimable, %",
)
EXPERT_HEADER = (
    "leaderboard",
    "a choice exists, %",
    "same with other items, %",
    "same without another model, %",
    "same by clusters, %",
    "same as the best overall, %",
    "experts",
    "experts by clusters",
)


def pair_row(measured: Measured, subsets: Subsets) -> list[str]:
    numbers = measured.pairs[subsets]
    return [
        measured.name,
        subsets.name,
        plain(numbers["range"]),
        percent(numbers["absolute"]),
        chance(numbers),
        percent(numbers.get("excess"), least=-1.0, sign=True),
        percent(numbers["signed"]),
        chance(numbers, "signed chance"),
        percent(numbers.get("signed excess"), least=-1.0, sign=True),
        percent(numbers.get("disattenuated")),
        percent(numbers.get("estimable")),
    ]


def pair_table(boards: Sequence[Measured]) -> str:
    rows = []
    for measured in boards:
        for subsets in measured.pairs:
            rows.append(pair_row(measured, subsets))
    return table(PAIR_HEADER, rows)


def expert_table(boards: Sequence[Measured]) -> str:
    rows = []
    for measured in boards:
        numbers = measured.experts
        if not numbers:
            continue
        shares = [
            "selects",
            "same with other items",
            "same without another model",
            "same by clusters",
            "same as the best overall",
        ]
        row = [measured.name, *(percent(numbers[name]) for name in shares)]
        row += [plain(numbers[name]) for name in ("experts", "clusters' experts")]
        rows.append(row)
    return table(EXPERT_HEADER, rows)


# ------------------------------------------------------------ sentences


def beside_chance(excess: Estimate) -> str:
    """What the interval of a difference to chance allows to say."""
    if not np.isfinite(excess.low):
        return f"whether weakly correlated pairs are more frequent than by chance is {OPEN}"
    if excess.low > 0:
        return "weakly correlated pairs are more frequent than by chance"
    if excess.high < 0:
        return "weakly correlated pairs are less frequent than by chance"
    return "weakly correlated pairs are not shown to differ from chance"


def neighbour_sentence(measured: Measured) -> str:
    numbers = next(iter(measured.pairs.values()))
    return (
        f"**{measured.board.name}: {beside_chance(numbers['excess'])}.** Among five neighbours by score, "
        f"{percent(numbers['absolute'])} % of the pairs of categories have a correlation between −0.2 and 0.2. "
        f"With one ability per model and one difficulty per item it would be {chance(numbers)} %, a difference of "
        f"{percent(numbers['excess'], least=-1.0, sign=True)} points. Below 0.2, negative ones included, are "
        f"{percent(numbers['signed'])} %, a difference of "
        f"{percent(numbers['signed excess'], least=-1.0, sign=True)} points."
    )


def range_sentence(measured: Measured) -> str:
    subsets = next(subsets for subsets in measured.pairs if not subsets.size)
    numbers = measured.pairs[subsets]
    neighbours = next(iter(measured.pairs.values()))
    smallest = numbers["smallest"]
    limits = ""
    if np.isfinite(smallest.low):
        limits = f" [{max(0.0, smallest.low):.2f}, {min(1.0, smallest.high):.2f}]"
    count = len(measured.board.categories)
    return (
        f"**The range of ability decides ({measured.board.name}).** Over all {len(measured.board.models)} models, "
        f"{numbers['range'].value:.0f} points apart, {numbers['most'].value:.0f} of {count * (count - 1) // 2} pairs "
        f"are between −0.2 and 0.2; the smallest absolute correlation is {smallest.value:.2f}{limits} "
        f"({' and '.join(measured.weakest)}). In a window of five neighbours, {neighbours['range'].value:.1f} points "
        f"apart on average, it is {neighbours['fewest'].value:.0f} to {neighbours['most'].value:.0f} pairs."
    )


def expert_sentence(measured: Measured) -> str:
    numbers = measured.experts
    if not np.isfinite(numbers["experts"].value):
        return f"**No experts ({measured.board.name}).** Among five neighbours, no categories are weakly correlated."
    return (
        f"**Experts change with the items ({measured.board.name}).** With other items of the same categories, the same "
        f"experts are selected in {percent(numbers['same with other items'])} % of the draws. Without one of the "
        f"models that were not selected, the same experts remain in {percent(numbers['same without another model'])} % "
        f"of the cases. Clusters of categories select the same experts in {percent(numbers['same by clusters'])} % of "
        f"the windows, and simply as many of the best models overall are the same in "
        f"{percent(numbers['same as the best overall'])} %."
    )


def missing_sentence(measured: Measured, remaining: Measured | None) -> str:
    """What is known of missing answers; `remaining` is the board without the models that lack many."""
    name = measured.board.name
    limit = f"{100 * MISSING_LIMIT:.0f} %"
    if measured.missing is None:
        return (
            f"**Missing answers ({name}) are unknown here.** They count as wrong, and only the answer files tell which "
            "they are."
        )
    most = max(measured.missing, key=measured.missing.__getitem__)
    share = f"{100 * measured.missing[most]:.1f} % ({most})"
    if not measured.sparse:
        return (
            f"**Few answers are missing ({name}).** No model lacks more than {limit} of them, as far as the score "
            f"files show; the most are {share}."
        )
    text = (
        f"**Many answers are missing ({name}).** They count as wrong. {len(measured.sparse)} of "
        f"{len(measured.board.models)} models lack more than {limit} of them, at most {share}: "
        f"{listed(measured.sparse, 40)}."
    )
    if remaining is None:
        return f"{text} Too few models remain."
    numbers = next(iter(remaining.pairs.values()))
    return (
        f"{text} Among five neighbours of the {len(remaining.board.models)} others, "
        f"{percent(numbers['absolute'])} % of the pairs are between −0.2 and 0.2, by chance {chance(numbers)} %; "
        f"{beside_chance(numbers['excess'])}."
    )


def paper_sentence(paper: Sequence[Measured]) -> str:
    parts = []
    for measured in paper:
        (numbers,) = measured.pairs.values()
        by_chance = "chance cannot be computed, because its scores are no shares of items"
        if "chance" in numbers:
            by_chance = f"by chance {chance(numbers)} %"
        share = percent(numbers["absolute"])
        parts.append(f"{measured.board.name.removesuffix(' (paper)')} {share} % ({by_chance})")
    return (
        f"**The paper's own tables cannot tell.** Pairs between −0.2 and 0.2: {'; '.join(parts)}. They have four to "
        f"nine models of fewer than {FEWEST_FAMILIES} families, so a difference to chance is {OPEN}."
    )


def sentences(real: Sequence[Measured], paper: Sequence[Measured]) -> list[str]:
    """The findings. First what speaks against the premise that weak correlations show lasting specialists."""
    remaining = {}
    boards: dict[str, Measured] = {}
    for measured in real:
        name = measured.board.name
        if name in boards:
            remaining[name] = measured
        else:
            boards[name] = measured
    ordered = sorted(boards.values(), key=_excess)
    texts = [neighbour_sentence(measured) for measured in ordered]
    texts += [expert_sentence(measured) for measured in ordered]
    for measured in sorted(ordered, key=lambda measured: not measured.sparse):
        texts.append(missing_sentence(measured, remaining.get(measured.board.name)))
    texts += [range_sentence(measured) for measured in ordered]
    return [*texts, paper_sentence(paper)]


def _excess(measured: Measured) -> float:
    """Weakly correlated pairs among neighbours beyond chance."""
    return next(iter(measured.pairs.values()))["excess"].value


INTRODUCTION = """This page is written by `python -m benchmarks.leaderboards` ([data](#do-it-again)).

**A leaderboard says nothing on whether a soup helps.** Its models have no common base, so most of them cannot be
averaged, and none of them was. The questions here come before: do categories correlate weakly, is that more than
chance, and would the same experts be selected again?
"""

EXPLANATION = """## How to read the tables

- **Pairs.** Pearson's correlation of two categories over the models of a subset. The threshold of 0.2 is the paper's.
  A row is the mean over all subsets of its kind: `5, neighbours` are five models that follow each other by score.
  `every 2nd` and `every 4th` skip some, so the range grows but the number of models does not.
  `rho < 0.2` is beside the paper's rule because two abilities among models of equal score make correlations near −1,
  which are not weak.
- **By chance.** Boards simulated with one ability per model and one difficulty per item (a Rasch model, fitted to the
  leaderboard): the same models, range, items and subsets, but no specialists. In brackets are the middle 95 % of the
  simulated boards. The paper's tables have no items, so their categories have one difficulty each.
- **Disattenuated.** The same share for correlations without the noise of the items, among the pairs that have one.
- **Intervals** are 95 % intervals from leaving out one family of models at a time (by name: who tuned them, or their
  line), because models of one family are alike and subsets overlap. With fewer than eight families there is none: not
  estimable. There is also none where leaving out a family changes nothing. No constant was tuned on these leaderboards.
- **Experts.** The paper's rule on five neighbours. "Other items" draws the items of each category again, with
  replacement. "Without another model" leaves out a model that was not selected. Clusters are `selector=soce_cluster`
  with the same threshold. "Best overall" takes as many models by their mean score.
"""

AGAIN = """## Do it again

```bash
python -m benchmarks.leaderboards --mmlu-pro MMLU-Pro/eval_results --bfcl-v1 BFCL-Result/2024-08-11/score
```

MMLU-Pro is [TIGER-AI-Lab/MMLU-Pro](https://github.com/TIGER-AI-Lab/MMLU-Pro) at commit f418b11, BFCL v1 is
[HuanzhiMao/BFCL-Result](https://github.com/HuanzhiMao/BFCL-Result) at commit b4adfc9. Without options, the script uses
the paper's tables alone, which are part of souping.
"""


def results(real: Sequence[Measured], paper: Sequence[Measured], date: str) -> str:
    """The page for benchmarks/results: findings, tables, and how to read them."""
    findings = [
        fill(f"- {text}", 118, subsequent_indent="  ", break_on_hyphens=False)
        for text in sentences(real, paper)
    ]
    parts = [
        f"# What leaderboards say about weakly correlated categories, {date}\n",
        INTRODUCTION,
        "## Findings, the most surprising first\n",
        "\n".join(findings) + "\n",
        "## Pairs of categories\n",
        pair_table([*real, *paper]),
    ]
    if real:
        parts += ["## Experts among five neighbours\n", expert_table(real)]
    return "\n".join([*parts, EXPLANATION, AGAIN])
