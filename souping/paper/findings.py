"""Figures of arXiv 2511.13254v1 that can be recomputed from published ones, compared with what the paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from souping.analysis.correlation import pearson
from souping.core.text import DASH
from souping.core.types import BoolArray, FloatArray
from souping.paper.published import (
    CORRUPT,
    PAPER_TABLES,
    columns,
    directions,
    flores,
    leaderboard,
    published,
    published_results,
    recipes,
    totals,
)
from souping.paper.readings import PAPERS_SELECTION, STATED, difference
from souping.search.points import weight_grid

FindingVerdict = Literal["agrees", "differs", "cannot be redone"]
"""Verdict of a `Finding`"""
PRINTED_ROUNDING = 0.02
"""How far a gain may lie from the printed one: totals and gains are printed to 0.01, some totals to 0.1."""
LIVE_COLUMN_ITEMS = {
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}
"""Items of BFCL v3's live files that have a column of their own."""


@dataclass(frozen=True)
class Finding:
    """A number that the paper prints, and what its published figures give for it."""

    of: str
    """table or figure"""
    what: str
    """what the number is"""
    paper: str
    """the paper's number"""
    ours: str
    """ours"""
    verdict: str
    """a `FindingVerdict`"""
    note: str = ""
    """remark"""


def findings() -> list[Finding]:
    """All findings in the paper's order."""
    return [
        *_figure1(),
        *_selections(),
        *_weights(),
        *_gains(),
        _table3(),
        *_flores(),
        *OPEN_FINDINGS,
    ]


def _printed() -> dict[str, dict[str, str]]:
    """{key: its row} of printed.csv, the numbers that the paper prints."""
    return {row["key"]: row for row in published("printed.csv")}


def _printed_means(key: str) -> list[float]:
    """The numbers of a row of printed.csv, one a model."""
    return [float(value) for value in _printed()[key]["printed"].split(", ")]


def _finding(of: str, what: str, paper: str, ours: str, agrees: bool, note: str = "") -> Finding:
    return Finding(of, what, paper, ours, "agrees" if agrees else "differs", note)


def _compared(key: str, ours: str, agrees: bool, note: str = "") -> Finding:
    """Our number, as it is shown, for the row `key` of printed.csv, beside the printed number."""
    row = _printed()[key]
    return _finding(row["of"], row["what"], row["printed"], ours, agrees, note)


def _figure1() -> Iterator[Finding]:
    """Correlations of Figure 1: between the multi-turn categories, and of multi_turn_base with the live ones."""
    board = leaderboard()
    note = f"over {len(board.models)} shipped rows of 109"
    turns = [place for place, name in enumerate(board.categories) if name.startswith("multi_turn_")]
    rho = pearson(board.values).rho[np.ix_(turns, turns)]
    rho_of_pairs = rho[np.triu_indices(len(turns), k=1)]
    low = rho_of_pairs.min()
    high = rho_of_pairs.max()
    # The paper prints 0.96 to 0.98.
    agrees = round(low, 2) >= 0.96 and round(high, 2) <= 0.98
    yield _compared("multi_turn", f"{low:.2f} to {high:.2f}", agrees, note)

    column = dict(zip(board.categories, board.values.T, strict=True))
    live = np.sum([size * column[name] for name, size in LIVE_COLUMN_ITEMS.items()], axis=0)
    value = float(np.corrcoef(column["multi_turn_base"], live)[0, 1])
    note = f"{note}; live columns weighted by their items"
    # The paper prints 0.07.
    yield _compared("live", f"{value:.2f}", abs(value - 0.07) < 0.005, note)


def _selections() -> Iterator[Finding]:
    """The ingredients of each table by the stated rule, beside those that the paper chose."""
    for table in PAPER_TABLES:
        chosen = table.chosen
        # The paper does not name its choice.
        if not chosen:
            continue
        of, _, name = table.title.partition(", ")
        ingredients = STATED.select(table.scores).ingredients
        beside = difference(ingredients, chosen)
        note = "" if beside == PAPERS_SELECTION else f"the stated rule {beside}"
        what = f"ingredients ({name})"
        yield _finding(of, what, ", ".join(chosen), ", ".join(ingredients), not note, note)


def on_grid(weights: Sequence[float]) -> int:
    """Number of the point of the paper's grid that these weights are, from 1 on; 0 if they are no point of it."""
    # Rounded, because equal decimals may differ as floats.
    points = [np.round(point, 9).tolist() for point in weight_grid(len(weights))]
    target = np.round(weights, 9).tolist()
    return points.index(target) + 1 if target in points else 0


def _weights() -> Iterator[Finding]:
    """Whether the published weights are points of the grid that the paper searches."""
    for name, recipe in recipes().items():
        place = on_grid([*recipe.values()])
        size = len(weight_grid(len(recipe)))
        paper = ", ".join(f"{weight:g} {model}" for model, weight in recipe.items())
        ours = f"point {place} of the {size} of its grid" if place else "no point of its grid"
        yield _finding("Section 4.2.1", f"weights of {name}", paper, ours, bool(place))
    # MGSM's weights, as the paper prints them.
    place = on_grid([0.05, 0.05, 0.9])
    ours = "point of its grid" if place else "no point of its grid"
    note = "the grid has steps of 0.1 from 0.1 to 0.9"
    yield _compared("weights_mgsm", ours, bool(place), note)


def gains(benchmark: str, scale: str) -> dict[str, float]:
    """{"soce over uniform_all, relative": gain} for every two rows of results.csv, in points and relative in percent.

    `scale` is the size of the models.
    """
    total = totals(benchmark, scale)
    computed: dict[str, float] = {}
    for better in ("soce", "uniform_selected"):
        for base in ("best candidate", "uniform_all", "uniform_selected"):
            if better != base:
                ratio = total[better] / total[base]
                computed[f"{better} over {base}, points"] = total[better] - total[base]
                computed[f"{better} over {base}, relative"] = 100 * (ratio - 1)
    return computed


def _gains() -> Iterator[Finding]:
    """The gains and totals of Tables 1 and 2."""
    for row in published("printed.csv"):
        if row["gain"]:
            yield _gain(row)
    yield _mgsm_total()
    yield _compared(
        "overall",
        "78.45, 72.04",
        agrees=False,
        note="the leaderboard of 2025-06-14; the paper ran both again",
    )
    yield _mgsm_singles()


def _gain(row: Mapping[str, str]) -> Finding:
    """A gain that the paper prints in percent; some of them are points, or between other rows."""
    computed = gains(row["benchmark"], row["scale"])
    points = computed[f"{row['gain']}, points"]
    relative = computed[f"{row['gain']}, relative"]
    printed = row["printed"].rstrip(" %")
    value = float(printed)
    # Half a unit of the last printed digit, and the rounding of the totals.
    decimals = len(printed.partition(".")[2])
    rounding = 0.5 * 10**-decimals + PRINTED_ROUNDING / 2
    agrees = abs(relative - value) <= rounding
    note = ""
    if not agrees:
        note = _rows_with_gain(computed, value)
        if abs(points - value) <= rounding:
            note = "it is points, not percent"
    return _compared(row["key"], f"{relative:.2f} %, {points:+.2f} points", agrees, note)


def _rows_with_gain(computed: Mapping[str, float], value: float) -> str:
    """Which other two rows give a printed gain."""
    rows = [name for name, gain in computed.items() if abs(gain - value) <= PRINTED_ROUNDING]
    return f"it is {'; '.join(rows)}" if rows else "no two rows of the table give it"


def _mgsm_total() -> Finding:
    """The soup's total on MGSM: the mean of its ten languages against the printed total."""
    mean = float(columns("mgsm_soce.csv")["SoCE"].mean())
    ours = f"{mean:.2f}"
    # The total is printed to 0.1.
    agrees = abs(mean - totals("mgsm", "7b")["soce"]) < 0.06
    note = "" if agrees else "the table and the figure disagree"
    return _compared("total_mgsm", ours, agrees, note)


def _mgsm_singles() -> Finding:
    """The candidates' totals on MGSM against the means of their ten languages."""
    rows = published_results("mgsm", "7b")
    means = {name: row.mean() for name, row in columns("mgsm.csv").items()}
    # Totals are printed to 0.1.
    agrees = all(abs(mean - float(rows[name]["score"])) < 0.06 for name, mean in means.items())
    paper = ", ".join(rows[name]["score"] for name in means)
    ours = ", ".join(f"{mean:.2f}" for mean in means.values())
    what = "totals of the four candidates; means of the ten languages of Figure 3b"
    return _finding("Table 2a", what, paper, ours, agrees)


def _table3() -> Finding:
    """The BFCL scores of Table 3's ingredients, and which candidates of Table 1b have these scores."""
    name_of = {
        float(row["score"]): name for name, row in published_results("bfcl_v3", "8b").items()
    }
    models = []
    scores = []
    names = []
    lacking = []
    for row in published("table3.csv"):
        if row["model"].startswith("soup"):
            continue
        name = name_of.get(float(row["bfcl_v3"]), "")
        models.append(row["model"])
        scores.append(row["bfcl_v3"])
        names.append(name or DASH)
        if not name:
            lacking.append(row["model"])
    what = f"BFCL scores of {', '.join(models)}; the same of Table 1b"
    note = ""
    if lacking:
        note = f"no candidate of Table 1b has the score of {' and '.join(lacking)}"
    return _finding("Table 3", what, ", ".join(scores), ", ".join(names), not lacking, note)


def _flores() -> Iterator[Finding]:
    """Means and gain on FLORES-36. All directions but the corrupt one are `sound` [36]."""
    scores = flores()
    sound = np.array([name != CORRUPT for name in directions()])
    yield _flores_means("candidates", [name for name in scores if name != "SoCE"], sound)
    yield _flores_means("soce_flores", ["SoCE"], sound)
    yield _flores_gain(scores, sound)


def _flores_means(key: str, models: Sequence[str], sound: BoolArray) -> Finding:
    """Printed means of models (the row `key` of printed.csv) against the means of their scores in all directions.

    `sound` [36] is false for the corrupt column.
    """
    scores = flores()
    printed = _printed_means(key)
    means = [float(scores[model].mean()) for model in models]
    ours = ", ".join(f"{mean:.2f}" for mean in means)
    # Means are printed to 0.01.
    if np.abs(np.subtract(printed, means)).max() < 0.006:
        return _compared(key, ours, agrees=True)
    if len(models) == 1:
        note = f"{means[0] - printed[0]:.2f} below the mean of its own columns"
        return _compared(key, ours, agrees=False, note=note)

    # What the corrupt column must be for the printed mean.
    implied = []
    for model, mean in zip(models, printed, strict=True):
        implied.append(f"{mean * len(sound) - scores[model][sound].sum():.1f}")
    corrupt = ", ".join(f"{scores[model][~sound][0]:g}" for model in models)
    note = f"the means imply {', '.join(implied)} for {CORRUPT}, printed are {corrupt}"
    return _compared(key, ours, agrees=False, note=note)


def _flores_gain(scores: Mapping[str, FloatArray], sound: BoolArray) -> Finding:
    """The soup's gain over the best candidate on FLORES-36, over the `sound` directions only."""
    # The paper prints the two means; the gain is their difference.
    (printed_soup,) = _printed_means("soce_flores")
    printed = printed_soup - max(_printed_means("candidates"))
    soup = scores["SoCE"][sound]
    singles = np.array([values[sound] for name, values in scores.items() if name != "SoCE"])
    best = singles[int(singles.mean(axis=1).argmax())]
    gain = float((soup - best).mean())
    above_all = (soup > singles.max(axis=0)).sum()
    above_best = (soup > best).sum()
    note = (
        f"over the {sound.sum()} directions without {CORRUPT}; above every candidate in {above_all}, above the best "
        f"one in {above_best}"
    )
    what = "gain of SoCE over the best candidate, BLEU"
    agrees = abs(printed - gain) < 0.006
    return _finding("Table 5", what, f"{printed:.2f}", f"{gain:.2f}", agrees, note)


def _open(of: str, what: str, reason: str) -> Finding:
    """A number that cannot be recomputed, and why."""
    return Finding(of, what, "", "", "cannot be redone", reason)


OPEN_FINDINGS = (
    _open(
        "Figure 2",
        "which panels are before and which after",
        "caption and text swap them, and the benchmarks",
    ),
    _open(
        "Table 2b",
        "selection of infinite-Bench",
        "no candidate is named, no category printed",
    ),
    _open(
        "Table 3",
        "HellaSwag, IFEval and BBH after souping",
        "it takes the models: sweeps/paper/table3.sh",
    ),
)
