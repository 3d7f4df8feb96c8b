"""Figures of arXiv 2511.13254v1 that can be recomputed from published ones, compared with what the paper prints.

The published figures are the CSV files in this folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from souping.analysis.correlation import pearson
from souping.core.scores import Mean, read_table
from souping.core.text import DASH
from souping.core.types import (
    BoolArray,
    FloatArray,
    Json,
    JsonObject,
    Names,
    ScoreMatrix,
    Selection,
    UserError,
    frozen,
)
from souping.search.points import grid
from souping.selection import SoCE, SoCECluster

DATA = Path(__file__).resolve().parent


def published(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of published figures."""
    with (DATA / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@frozen
class PaperTable:
    """Score table from which the paper's selection can be recomputed; without `benchmark` the paper names no choice."""

    title: str
    file: str
    benchmark: str = ""
    scale: str = ""

    @property
    def scores(self) -> ScoreMatrix:
        return read_table(DATA / self.file)

    @property
    def chosen(self) -> Names:
        """What the paper selected, in the order of the score table."""
        rows = results(self.benchmark, self.scale)
        return tuple(
            name for name in self.scores.models if rows.get(name, {}).get("role") == "ingredient"
        )

    @property
    def command(self) -> str:
        """The same selection by the stated rule through the command line."""
        return (
            f"python -m souping scores=table 'scores.path=${{data:paper/{self.file}}}' stop_after=select "
            f"pool.candidates='[{','.join(self.scores.models)}]'"
        )


PAPER_TABLES = (
    PaperTable(title="Table 1a, BFCL 70B", file="bfcl_70b.csv", benchmark="bfcl_v3", scale="70b"),
    PaperTable(title="Table 1b, BFCL 8B", file="bfcl_8b.csv", benchmark="bfcl_v3", scale="8b"),
    PaperTable(title="Table 2a, MGSM 7B", file="mgsm.csv", benchmark="mgsm", scale="7b"),
    PaperTable(title="Table 5, FLORES-36", file="flores36_selection.csv"),
)


def results(benchmark: str, scale: str) -> dict[str, dict[str, str]]:
    """{row: its line of results.csv}."""
    rows = published("results.csv")
    return {
        row["row"]: row for row in rows if (row["benchmark"], row["scale"]) == (benchmark, scale)
    }


def totals(benchmark: str, scale: str) -> dict[str, float]:
    """{row: percent} of a benchmark in results.csv, with its `best candidate`."""
    rows = results(benchmark, scale)
    single = [
        float(row["score"]) for row in rows.values() if row["role"] in ("ingredient", "candidate")
    ]
    return {
        **{name: float(row["score"]) for name, row in rows.items()},
        "best candidate": max(single),
    }


def recipes() -> dict[str, dict[str, float]]:
    """{experiment: {model: weight}} as published."""
    found: dict[str, dict[str, float]] = {}
    for row in published("recipes.csv"):
        found.setdefault(row["experiment"], {})[row["model"]] = float(row["weight"])
    return found


def leaderboard() -> ScoreMatrix:
    """The rows of the leaderboard that the paper prints: those of its 8B and 70B candidates."""
    parts = [table.scores for table in PAPER_TABLES[:2]]
    names = tuple(name for part in parts for name in part.models)
    values = np.vstack([part.values for part in parts])
    return ScoreMatrix(models=names, categories=parts[0].categories, values=values, published=True)


# ------------------------------------------------------------ comparison

Sign = Literal["absolute", "signed"]
Ties = Literal["overall", "all", "first"]
FindingVerdict = Literal["agrees", "differs", "cannot be redone"]
"""Of a `Finding`."""
PAPERS_SELECTION = "the paper's"
CLUSTERS = "one expert per cluster (the abstract; selector=soce_cluster)"
PRINTED_ROUNDING = 0.02
"""How far a gain may lie from the printed one: totals and gains are printed to 0.01, some totals to 0.1."""
LIVE_COLUMN_ITEMS = {
    "live_simple": 258,
    "live_multiple": 1053,
    "live_parallel": 16,
    "live_parallel_multiple": 24,
}
"""Items of BFCL v3's live files that have a column of their own."""
CORRUPT = "eng_spa"
"""For the five candidates this column of FLORES-36 repeats spa_eng."""


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
    """a `Verdict`"""
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
    return {row["key"]: row for row in published("printed.csv")}


def _finding(of: str, what: str, paper: str, ours: str, agrees: bool, note: str = "") -> Finding:
    return Finding(of, what, paper, ours, "agrees" if agrees else "differs", note)


def _compared(key: str, ours: str, agrees: bool, note: str = "") -> Finding:
    row = _printed()[key]
    return _finding(row["of"], row["what"], row["printed"], ours, agrees, note)


def _figure1() -> Iterator[Finding]:
    board = leaderboard()
    note = f"over {len(board.models)} shipped rows of 109"
    column = dict(zip(board.categories, board.values.T, strict=True))
    turns = [place for place, name in enumerate(board.categories) if name.startswith("multi_turn_")]
    among = pearson(board.values).rho[np.ix_(turns, turns)][np.triu_indices(len(turns), 1)]
    low = among.min()
    high = among.max()
    agrees = round(low, 2) >= 0.96 and round(high, 2) <= 0.98
    yield _compared("multi_turn", f"{low:.2f} to {high:.2f}", agrees, note)
    live = np.sum([size * column[name] for name, size in LIVE_COLUMN_ITEMS.items()], axis=0)
    value = float(np.corrcoef(column["multi_turn_base"], live)[0, 1])
    yield _compared(
        "live",
        f"{value:.2f}",
        abs(value - 0.07) < 0.005,
        f"{note}; live columns weighted by their items",
    )


def _selections() -> Iterator[Finding]:
    for table in (table for table in PAPER_TABLES if table.chosen):
        of, _, name = table.title.partition(", ")
        ours = STATED.select(table.scores).ingredients
        beside = difference(ours, table.chosen)
        note = "" if beside == PAPERS_SELECTION else f"the stated rule {beside}"
        yield _finding(
            of, f"ingredients ({name})", ", ".join(table.chosen), ", ".join(ours), not note, note
        )


def on_grid(weights: Sequence[float]) -> int:
    """Which point of the paper's grid these weights are, from 1; 0 when none."""
    points = [np.round(point, 9).tolist() for point in grid(len(weights))]
    wanted = np.round(weights, 9).tolist()
    return points.index(wanted) + 1 if wanted in points else 0


def _weights() -> Iterator[Finding]:
    for name, recipe in recipes().items():
        place = on_grid([*recipe.values()])
        size = len(grid(len(recipe)))
        paper = ", ".join(f"{weight:g} {model}" for model, weight in recipe.items())
        ours = f"point {place} of the {size} of its grid" if place else "no point of its grid"
        yield _finding("Section 4.2.1", f"weights of {name}", paper, ours, bool(place))
    ours = "point of its grid" if on_grid([0.05, 0.05, 0.9]) else "no point of its grid"
    yield _compared("weights_mgsm", ours, False, "the grid has steps of 0.1 from 0.1 to 0.9")


def gains(benchmark: str, scale: str) -> dict[str, float]:
    """{"soce over uniform_all, relative": gain} for every two rows and both readings of a gain."""
    total = totals(benchmark, scale)
    gain = dict[str, float]()
    for better in ("soce", "uniform_selected"):
        for base in ("best candidate", "uniform_all", "uniform_selected"):
            if better != base:
                gain[f"{better} over {base}, points"] = total[better] - total[base]
                gain[f"{better} over {base}, relative"] = 100 * (total[better] / total[base] - 1)
    return gain


def _gains() -> Iterator[Finding]:
    for row in (row for row in published("printed.csv") if row["gain"]):
        computed = gains(row["benchmark"], row["scale"])
        printed = row["printed"]
        points = computed[f"{row['gain']}, points"]
        relative = computed[f"{row['gain']}, relative"]
        value = float(printed.rstrip(" %"))
        rounding = 0.5 * 10 ** -len(printed.rstrip(" %").partition(".")[2]) + PRINTED_ROUNDING / 2
        is_points = abs(points - value) <= rounding
        is_relative = abs(relative - value) <= rounding
        note = (
            ""
            if is_relative
            else "it is points, not percent"
            if is_points
            else _others(computed, value)
        )
        yield _compared(row["key"], f"{relative:.2f} %, {points:+.2f} points", is_relative, note)
    yield _mgsm_total()
    yield _compared(
        "overall", "78.45, 72.04", False, "the leaderboard of 2025-06-14; the paper ran both again"
    )
    yield _mgsm_singles()


def _others(computed: Mapping[str, float], value: float) -> str:
    """Which other two rows give a printed gain."""
    hits = [name for name, gain in computed.items() if abs(gain - value) <= PRINTED_ROUNDING]
    return f"it is {'; '.join(hits)}" if hits else "no two rows of the table give it"


def columns(*names: str) -> dict[str, FloatArray]:
    """{model: its columns} of published tables."""
    rows = [row for name in names for row in published(name)]
    return {
        row["model"]: np.array([float(v) for k, v in row.items() if k != "model"]) for row in rows
    }


def _mgsm_total() -> Finding:
    mean = float(columns("mgsm_soce.csv")["SoCE"].mean())
    same = abs(mean - totals("mgsm", "7b")["soce"]) < 0.06
    return _compared(
        "total_mgsm", f"{mean:.2f}", same, "" if same else "the table and the figure disagree"
    )


def _mgsm_singles() -> Finding:
    means = {name: row.mean() for name, row in columns("mgsm.csv").items()}
    rows = results("mgsm", "7b")
    close = all(abs(mean - float(rows[name]["score"])) < 0.06 for name, mean in means.items())
    paper = ", ".join(rows[name]["score"] for name in means)
    ours = ", ".join(f"{m:.2f}" for m in means.values())
    what = "totals of the four candidates; means of the ten languages of Figure 3b"
    return _finding("Table 2a", what, paper, ours, close)


def _table3() -> Finding:
    """The BFCL scores of Table 3's ingredients, against those of the soup's in Table 1b."""
    known = {float(row["score"]): name for name, row in results("bfcl_v3", "8b").items()}
    rows = [row for row in published("table3.csv") if not row["model"].startswith("soup")]
    names = [known.get(float(row["bfcl_v3"]), "") for row in rows]
    lacking = [row["model"] for row, name in zip(rows, names, strict=True) if not name]
    what = f"BFCL scores of {', '.join(row['model'] for row in rows)}; the same of Table 1b"
    paper = ", ".join(row["bfcl_v3"] for row in rows)
    ours = ", ".join(name or DASH for name in names)
    note = f"no candidate of Table 1b has the score of {' and '.join(lacking)}" if lacking else ""
    return _finding("Table 3", what, paper, ours, not lacking, note)


def flores() -> dict[str, FloatArray]:
    """{model: BLEU of the 36 directions}, the soup last."""
    return columns("flores36.csv", "flores36_soce.csv")


def directions() -> list[str]:
    return [name for name in published("flores36_soce.csv")[0] if name != "model"]


def _flores() -> Iterator[Finding]:
    scores = flores()
    names = directions()
    sound = np.array([name != CORRUPT for name in names])
    for key, models in (
        ("candidates", [name for name in scores if name != "SoCE"]),
        ("soce_flores", ["SoCE"]),
    ):
        printed = [float(value) for value in _printed()[key]["printed"].split(", ")]
        means = [float(scores[model].mean()) for model in models]
        implied = [
            t * len(names) - scores[m][sound].sum() for t, m in zip(printed, models, strict=True)
        ]
        agrees = all(abs(a - b) < 0.006 for a, b in zip(printed, means, strict=True))
        note = (
            f"the means imply {', '.join(f'{v:.1f}' for v in implied)} for {CORRUPT}, printed are "
        )
        note += ", ".join(f"{scores[m][~sound][0]:g}" for m in models)
        note = (
            note
            if len(models) > 1
            else f"{means[0] - printed[0]:.2f} below the mean of its own columns"
        )
        yield _compared(
            key, ", ".join(f"{mean:.2f}" for mean in means), agrees, "" if agrees else note
        )
    yield _flores_gain(scores, sound)


def _flores_gain(scores: Mapping[str, FloatArray], sound: BoolArray) -> Finding:
    singles = [float(value) for value in _printed()["candidates"]["printed"].split(", ")]
    printed = float(_printed()["soce_flores"]["printed"]) - max(singles)
    soup = scores["SoCE"][sound]
    single = np.array([v[sound] for name, v in scores.items() if name != "SoCE"])
    best = single[int(single.mean(axis=1).argmax())]
    ours = float((soup - best).mean())
    note = (
        f"over the {sound.sum()} directions without {CORRUPT}; above every candidate in "
        f"{(soup > single.max(axis=0)).sum()}, above the best one in {(soup > best).sum()}"
    )
    what = "gain of SoCE over the best candidate, BLEU"
    agrees = abs(printed - ours) < 0.006
    return _finding("Table 5", what, f"{printed:.2f}", f"{ours:.2f}", agrees, note)


OPEN_FINDINGS = tuple(
    Finding(of, what, "", "", "cannot be redone", reason)
    for of, what, reason in (
        (
            "Figure 2",
            "which panels are before and which after",
            "caption and text swap them, and the benchmarks",
        ),
        ("Table 2b", "selection of infinite-Bench", "no candidate is named, no category printed"),
        (
            "Table 3",
            "HellaSwag, IFEval and BBH after souping",
            "it takes the models: sweeps/paper/table3.sh",
        ),
    )
)


# Readings of the selection rule. The stated rule is Algorithm 1: |rho| < 0.2 by Pearson, ties to the better overall.
# The paper's prose leaves others open: signed correlations, other ties, wider thresholds, one expert per cluster.


def reading(threshold: float = 0.2, sign: Sign = "absolute", ties: Ties = "overall") -> SoCE:
    """One way to read the rule; the defaults are Algorithm 1."""
    return SoCE(
        correlation=pearson,
        objective=Mean(),
        threshold=threshold,
        sign=sign,
        ties=ties,
        otherwise="error",
    )


STATED = reading()
READINGS = {
    "|rho| < 0.2, ties=overall": STATED,
    "|rho| < 0.2, ties=all": reading(ties="all"),
    "|rho| < 0.2, ties=first": reading(ties="first"),
    "|rho| < 0.3, ties=overall": reading(0.3),
    "|rho| < 0.3, ties=all": reading(0.3, ties="all"),
    "|rho| < 0.5, ties=overall": reading(0.5),
    "rho < 0.2, ties=overall": reading(sign="signed"),
    "rho < 0.2, ties=all": reading(sign="signed", ties="all"),
}


def difference(found: Sequence[str], chosen: Sequence[str]) -> str:
    """How a selection differs from the paper's, in words; empty if the paper names none."""
    if not chosen:
        return ""
    more = [f"adds {name}" for name in found if name not in chosen]
    less = [f"lacks {name}" for name in chosen if name not in found]
    return ", ".join(more + less) or PAPERS_SELECTION


def spans(
    scores: ScoreMatrix, sign: Sign, ties: Ties
) -> list[tuple[float, float, tuple[str, ...]]]:
    """(above, up to, ingredients) of every threshold; the selection changes only at the value of a correlation."""
    rho = pearson(scores.values).rho[np.triu_indices(len(scores.categories), 1)]
    edges = [float(v) for v in np.unique(np.abs(rho) if sign == "absolute" else rho)]
    found: list[tuple[float, float, tuple[str, ...]]] = []
    for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
        if high <= low:
            continue
        names = reading((low + high) / 2, sign, ties).select(scores).ingredients
        if found and found[-1][2] == names:
            found[-1] = (found[-1][0], high, names)
        else:
            found.append((low, high, names))
    return found


def selections(table: PaperTable) -> JsonObject:
    """Selection of every reading from one table, compared with the paper's own choice."""
    scores = table.scores
    chosen = table.chosen
    stated = STATED.select(scores)
    return {
        "title": table.title,
        "paper": list(chosen),
        "stated": list(stated.ingredients),
        "beside": difference(stated.ingredients, chosen),
        "readings": _readings(table),
        "thresholds": [
            {
                "above": low,
                "to": high,
                "ingredients": list(names),
                "beside": difference(names, chosen),
            }
            for low, high, names in spans(scores, "absolute", "overall")
        ],
        "notes": [*_notes(stated, chosen), *([_where(scores, chosen)] if chosen else [])],
        "command": table.command,
    }


def _readings(table: PaperTable) -> list[Json]:
    """One row for all readings that select the same ingredients."""
    scores = table.scores
    rules = dict[Names, list[str]]()
    for rule, selector in READINGS.items():
        names: Names = ()
        with suppress(UserError):  # no category is below the threshold
            names = selector.select(scores).ingredients
        rules.setdefault(names, []).append(rule)
    clusters = SoCECluster(correlation=pearson, objective=Mean()).select(scores).ingredients
    rules.setdefault(clusters, []).append(CLUSTERS)
    return [
        {
            "ingredients": list(names),
            "beside": difference(names, table.chosen)
            if names
            else "no category is below the threshold",
            "rules": list(same),
        }
        for names, same in rules.items()
    ]


def _notes(stated: Selection, chosen: Sequence[str]) -> list[str]:
    """Remarks on the selection by the stated rule."""
    low = stated.low_correlation
    names = stated.ingredients
    notes = []
    for name in names if chosen else ():
        won = [category for category, expert in stated.experts.items() if expert == name]
        if name not in chosen:
            notes.append(f"{name} is the best candidate in {', '.join(won)}.")
    if len(names) == 1:
        notes.append(
            f"One expert for all low-correlation categories ({', '.join(low)}): nothing to soup."
        )
    if len(low) == len(stated.categories):
        notes.append(
            "Every category counts as low-correlation, so the rule takes the winner of each."
        )
    return notes


def _where(scores: ScoreMatrix, chosen: Names) -> str:
    """Readings and thresholds that give the paper's own selection, in words."""
    found = [
        f"{sign}, ties={ties}: {low:.3f} < threshold <= {high:.3f}"
        for sign in get_args(Sign)
        for ties in get_args(Ties)
        for low, high, names in spans(scores, sign, ties)
        if set(names) == set(chosen)
    ]
    if not found:
        return "No threshold of any reading (absolute or signed, ties overall, all or first) gives the paper's choice."
    return "The paper's choice comes from " + "; ".join(found) + "."
