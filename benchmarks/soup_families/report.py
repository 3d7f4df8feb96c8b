"""The report: every figure is computed from the families' matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.leaderboard_data import Board
from benchmarks.soup_families.correlating import low_share, permuted_share
from benchmarks.soup_families.design import FACTORS
from benchmarks.soup_families.inference import (
    ALPHA,
    Sample,
    above,
    effects,
    holm,
    rank_correlation,
    sample,
    within,
)
from benchmarks.soup_families.predicting import PREDICTORS
from benchmarks.soup_families.study import PARTS, Families, Row, usable

CONFIRMATORY = 32
MARGIN = 0.5
SHARE_MARGIN = 10.0
PRIMARY = {
    "a": "experts - top",
    "b": "experts - random",
    "c": "default - experts",
    "d": "low - low permuted",
}
HYPOTHESES = {
    "a": f"SoCE's K - top K: within {MARGIN:g} points",
    "b": "SoCE's K - mean of all subsets of that size: above 0",
    "c": f"searched - uniform weights: above -{MARGIN:g} points",
    "d": f"low-correlation categories - permuted columns: within {SHARE_MARGIN:g} percentage points",
}
PILOT_DEVIATIONS = {"a": 0.68, "b": 0.79, "c": 1.13, "d": 4.4}
GAINS = {
    "default - best": "default: SoCE, adaptive search",
    "greedy - best": "greedy soup",
    "all - best": "uniform soup of all tunes",
    "experts - best": "uniform soup of SoCE's ingredients",
    "best of top - best": "best point of the top K's grid",
    "top 1 to 8 - best": "best of top 1 to 8, uniform",
    "selector=all - best": "`selector=all`, adaptive search",
    "router - best": "router by category",
}
NOTES = {
    "scale 0.75": "scale 0.75 - uniform",
    "scale 1.25": "scale 1.25 - uniform",
    "scale 1.5": "scale 1.5 - uniform",
    "ties": "TIES (density 0.2 or 0.5, chosen on the items to choose with) - uniform",
    "layers": "weights by block - weights by model, the best of 12 each",
    "percentile of experts": "percentile of SoCE's K among the subsets of that size",
    "percentile of top": "percentile of the top K among them",
}


def p_values(families: Families) -> dict[str, float]:
    """p-values of the primary hypotheses, before Holm's adjustment."""
    return {
        "a": within(families[PRIMARY["a"]], MARGIN),
        "b": above(families[PRIMARY["b"]], 0.0),
        "c": above(families[PRIMARY["c"]], -MARGIN),
        "d": within(families[PRIMARY["d"]], SHARE_MARGIN),
    }


def page(all_rows: Sequence[Row], boards: Sequence[Board], date: str) -> str:
    """The whole report; of the confirmatory families nothing is shown before there are all."""
    lines = [f"# When a soup helps: families of tiny models, {date}", ""]
    lines += stored(all_rows)
    for part in PARTS:
        count = sum(row.part == part for row in all_rows)
        families = usable(all_rows, part)
        if part == "confirmatory" and 0 < count < CONFIRMATORY:
            lines += ["", f"{count} of {CONFIRMATORY} confirmatory families: no figures before all"]
        elif families.rows:
            lines += ["", f"## {part.capitalize()}: {len(families.rows)} families", ""]
            lines += primary(families, decides=part == "confirmatory")
            lines += ["", *gains(families), "", *factors(families), "", *prediction(families)]
            lines += ["", *before_the_test(families), "", *notes(families)]
    lines += ["", *leaderboards(boards)]
    return "\n".join(lines) + "\n"


def stored(all_rows: Sequence[Row]) -> Iterator[str]:
    """How many families there are, what they took, and which have failed."""
    yield "| part | families | CPU minutes each | MB |"
    yield "|---|---|---|---|"
    for part in PARTS:
        own = [row for row in all_rows if row.part == part]
        minutes = [(row.facts.train_seconds + row.facts.score_seconds) / 60 for row in own]
        size = sum(row.bytes for row in own) / 1e6
        if own:
            yield f"| {part} | {len(own)} | {np.mean(minutes):.1f} | {size:.2f} |"
    yield ""
    failed = [f"{row.facts.name} ({row.failure})" for row in all_rows if row.failure]
    yield f"Failed: {', '.join(failed) or 'none'}. All values are points on the 3,000 items for the test."


def cells(found: Sample) -> str:
    """Mean and 95 % interval as two cells."""
    return f"{found.mean:+.2f} | {interval(found)}"


def interval(found: Sample) -> str:
    """The 95 % interval; one family has none."""
    if not math.isfinite(found.low):
        return "no interval"
    return f"{found.low:+.2f} to {found.high:+.2f}"


def primary(families: Families, decides: bool) -> Iterator[str]:
    """The four hypotheses; only the confirmatory families decide."""
    yield "| | hypothesis | mean | 95 % interval | s.d. (pilot) | p | Holm | |"
    yield "|---|---|---|---|---|---|---|---|"
    tests = dict.fromkeys(PRIMARY, " | | ")
    if decides:
        tests = verdicts(p_values(families))
    for key, value in PRIMARY.items():
        found = sample(families[value])
        deviations = f"{found.deviation:.2f} ({PILOT_DEVIATIONS[key]:.2f})"
        yield f"| {key} | {HYPOTHESES[key]} | {cells(found)} | {deviations} | {tests[key]} |"
    below = families["default - best"] < -MARGIN
    yield ""
    yield (
        f"With (c): the searched soup is more than {MARGIN:g} points below the best candidate in "
        f"{below.sum()} of {len(below)} families. A claim is shown if its p is at most {ALPHA:g} after Holm."
    )


def verdicts(raw: Mapping[str, float]) -> dict[str, str]:
    """Cells of each hypothesis: p, p after Holm, and whether the claim is shown."""
    found = {}
    for key, adjusted in holm(raw).items():
        verdict = "not shown"
        if adjusted <= ALPHA:
            verdict = "shown"
        found[key] = f"{_p(raw[key])} | {_p(adjusted)} | {verdict}"
    return found


def _p(value: float) -> str:
    """A p-value with four decimals."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def gains(families: Families) -> Iterator[str]:
    """What a user gets, compared with the best candidate."""
    yield f"| minus the best candidate | mean | 95 % interval | below by more than {MARGIN:g} | worst |"
    yield "|---|---|---|---|---|"
    for name, words in GAINS.items():
        values = families[name]
        yield (
            f"| {words} | {cells(sample(values))} | {(values < -MARGIN).sum()} of {len(values)} "
            f"| {values.min():+.1f} |"
        )


def factors(families: Families) -> Iterator[str]:
    """Main effects of the design on the default's gain; nothing where too few families were trained for them."""
    found = effects(families.levels, families["default - best"])
    if not found:
        return
    yield "| factor: gain at + minus gain at - | mean | 95 % interval |"
    yield "|---|---|---|"
    for (name, words), effect in zip(FACTORS.items(), found, strict=True):
        yield f"| {name}: {words} | {cells(effect)} |"


def prediction(families: Families) -> Iterator[str]:
    """Rank correlations of the default's gain with what was known before the test."""
    yield "| predictor of the default's gain, from the items to choose with | rank correlation | 95 % interval |"
    yield "|---|---|---|"
    gain = families["default - best"]
    for name in PREDICTORS:
        yield f"| {name} | {cells(rank_correlation(families[name], gain))} |"
    trap = rank_correlation(families["lead on the test"], gain)
    yield f"| lead on the test itself (shares its noise with the gain: not a predictor) | {cells(trap)} |"


def before_the_test(families: Families) -> Iterator[str]:
    """The paper's procedure, and consistency."""
    yield "| all on the same items, and consistency | mean | 95 % interval |"
    yield "|---|---|---|"
    table = {
        "reported gain": "gain of the paper's procedure as it reports it (250 items)",
        "true gain": "the same soup's gain on the test",
        "reported gain - true gain": "reported minus true",
        "|rho| of soups - |rho| of tunes": "mean absolute correlation of two categories: soups minus tunes",
        "|rho| of soups - |rho| of mixtures": "soups minus mixtures of the ingredients' answers",
    }
    for name, words in table.items():
        yield f"| {words} | {cells(sample(families[name]))} |"


def notes(families: Families) -> Iterator[str]:
    """One line each."""
    for name, words in NOTES.items():
        found = sample(families[name])
        yield f"- {words}: {found.mean:+.2f} ({interval(found)})"
    for level, words in ((-1, "five"), (1, "ten")):
        chosen = families.levels[:, list(FACTORS).index("ten")] == level
        if chosen.any():
            low = families["low"][chosen].mean()
            chance = families["low permuted"][chosen].mean()
            yield f"- low-correlation categories of {words}: {low:.0f} %, with permuted columns {chance:.0f} %"


def leaderboards(boards: Sequence[Board]) -> Iterator[str]:
    """SoCE's rule on leaderboards, beside permuted columns."""
    yield "## Low-correlation categories of leaderboards"
    yield ""
    yield "| table | models | categories | low-correlation | columns permuted |"
    yield "|---|---|---|---|---|"
    for board in boards:
        yield (
            f"| {board.name} | {len(board.models)} | {len(board.categories)} | {low_share(board.means):.0f} % "
            f"| {permuted_share(board.means, 0, permutations=500):.0f} % |"
        )
