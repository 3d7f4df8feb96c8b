"""Figures of arXiv 2511.13254v1 that can be recomputed from published figures, compared with what the paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from souping.analysis.correlation import pearson
from souping.core import simplex
from souping.core.types import FloatArray, ScoreMatrix, texts
from souping.paper.published import TABLES, leaderboard, published, recipes, results, totals
from souping.paper.readings import SAME, selections

Verdict = Literal["agrees", "differs", "other models", "cannot be redone"]
DASH = "\N{EN DASH}"
ROUNDING = 0.02
"""How far a gain may lie from the printed one: totals and gains are printed to 0.01, some totals to 0.1."""
LIVE = {"live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24}
"""Items of BFCL v3's live files that have a column of their own."""
CORRUPT = "eng_spa"
"""For the five candidates this column of FLORES-36 repeats spa_eng."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A number that the paper prints, and what its published figures give for it."""

    of: str
    what: str
    paper: str
    ours: str
    verdict: Verdict
    note: str = ""
    section: str = ""
    """Name of the report's section that shows the same for the run; empty if the paper's own figures are enough."""


def findings(board: ScoreMatrix) -> list[Finding]:
    """All findings in the paper's order; `board` is the leaderboard of Figure 1."""
    return [*_figure1(board), *_selections(), *_weights(), *_gains(), _table3(), *_flores(), *_open()]


def _printed() -> dict[str, dict[str, str]]:
    return {row["key"]: row for row in published("printed.csv")}


def _compared(key: str, ours: str, agrees: bool, note: str = "") -> Finding:
    row = _printed()[key]
    verdict: Verdict = "agrees" if agrees else "differs"
    return Finding(of=row["of"], what=row["what"], paper=row["printed"], ours=ours, verdict=verdict, note=note)


def _figure1(board: ScoreMatrix) -> Iterator[Finding]:
    turns = [column for column, name in enumerate(board.categories) if name.startswith("multi_turn_")]
    among = pearson(board.values).rho[np.ix_(turns, turns)][np.triu_indices(len(turns), 1)]
    whole = board.models != leaderboard(None).models
    note = f"over {len(board.models)} {'models' if whole else 'shipped rows of 109'}"
    if among.size:
        low, high = among.min(), among.max()
        yield _compared(
            "multi_turn", f"{low:.2f} to {high:.2f}", round(low, 2) >= 0.96 and round(high, 2) <= 0.98, note
        )
    live = _live(board)
    if live is not None and "multi_turn_base" in board.categories:
        base = board.values[:, board.categories.index("multi_turn_base")]
        value = float(np.corrcoef(base, live[0])[0, 1])
        yield _compared("live", f"{value:.2f}", abs(value - 0.07) < 0.005, f"{note}; {live[1]}")


def _live(board: ScoreMatrix) -> tuple[FloatArray, str] | None:
    """Live Accuracy of every model: its own column, or what the columns of its files give."""
    if "live" in board.categories:
        return board.values[:, board.categories.index("live")], "the column Live Acc"
    if not set(LIVE) <= set(board.categories):
        return None
    columns = [board.categories.index(name) for name in LIVE]
    sizes = np.array([*LIVE.values()], dtype=float)
    return board.values[:, columns] @ (sizes / sizes.sum()), "live columns weighted by their items"


def _selections() -> Iterator[Finding]:
    for table in TABLES:
        if table.chosen:
            found = selections(table)
            ours, beside = texts(found, "stated"), str(found["beside"])
            verdict: Verdict = "agrees" if beside == SAME else "differs"
            yield Finding(
                of=table.title.partition(",")[0],
                what=f"ingredients ({table.title.partition(', ')[2]})",
                paper=", ".join(table.chosen),
                ours=", ".join(ours),
                verdict=verdict,
                note="" if verdict == "agrees" else f"the stated rule {beside}",
            )


def on_grid(weights: Sequence[float]) -> int:
    """Which point of the paper's grid these weights are, from 1; 0 when none."""
    points = [np.round(point, 9).tolist() for point in simplex.grid(len(weights))]
    wanted = np.round(weights, 9).tolist()
    return points.index(wanted) + 1 if wanted in points else 0


def _weights() -> Iterator[Finding]:
    for name, recipe in recipes().items():
        values = [*recipe.values()]
        place, whole = on_grid(values), len(simplex.grid(len(values)))
        yield Finding(
            of="Section 4.2.1",
            what=f"weights of {name}",
            paper=", ".join(f"{weight:g} {model}" for model, weight in recipe.items()),
            ours=f"point {place} of the {whole} of its grid" if place else "no point of its grid",
            verdict="agrees" if place else "differs",
        )
    yield Finding(
        of="Section 4.2.1",
        what="weights of an MGSM soup that scores 37.0",
        paper="0.05, 0.05, 0.9",
        ours="point of its grid" if on_grid([0.05, 0.05, 0.9]) else "no point of its grid",
        verdict="differs",
        note="the grid has steps of 0.1 from 0.1 to 0.9",
    )


def gains(benchmark: str, scale: str) -> dict[str, float]:
    """{"soce over uniform_all, relative": gain} for every two rows and both readings of a gain."""
    total, gain = totals(benchmark, scale), dict[str, float]()
    for better in ("soce", "uniform_selected"):
        for base in ("best candidate", "uniform_all", "uniform_selected"):
            if better != base:
                gain[f"{better} over {base}, points"] = total[better] - total[base]
                gain[f"{better} over {base}, relative"] = 100 * (total[better] / total[base] - 1)
    return gain


PRINTED_GAINS: Mapping[str, tuple[str, str, str]] = {
    "soce_70b": ("bfcl_v3", "70b", "soce over best candidate"),
    "uniform_70b": ("bfcl_v3", "70b", "soce over uniform_selected"),
    "soce_8b": ("bfcl_v3", "8b", "soce over best candidate"),
    "uniform_8b": ("bfcl_v3", "8b", "soce over uniform_selected"),
    "soce_mgsm": ("mgsm", "7b", "soce over best candidate"),
    "selected_infinitebench": ("infinitebench", "70b", "uniform_selected over uniform_all"),
    "soce_infinitebench": ("infinitebench", "70b", "soce over uniform_selected"),
    "elsewhere_infinitebench": ("infinitebench", "70b", "soce over best candidate"),
}
"""{key of printed.csv: benchmark, scale, what over what}."""


def _gains() -> Iterator[Finding]:
    for key, (benchmark, scale, what) in PRINTED_GAINS.items():
        computed = gains(benchmark, scale)
        points, relative = computed[f"{what}, points"], computed[f"{what}, relative"]
        printed = _printed()[key]["printed"]
        value = float(printed.rstrip(" %"))
        rounding = 0.5 * 10 ** -len(printed.rstrip(" %").partition(".")[2]) + ROUNDING / 2
        is_points, is_relative = abs(points - value) <= rounding, abs(relative - value) <= rounding
        note = "" if is_relative else "it is points, not percent" if is_points else _others(computed, value)
        yield _compared(key, f"{relative:.2f} %, {points:+.2f} points", is_relative, note)
    yield _mgsm_total()
    yield _compared("overall", "78.45, 72.04", False, "the leaderboard of 2025-06-14; the paper ran both again")
    yield _mgsm_singles()


def _others(computed: Mapping[str, float], value: float) -> str:
    """Which other two rows give a printed gain."""
    hits = [name for name, gain in computed.items() if abs(gain - value) <= ROUNDING]
    return f"it is {'; '.join(hits)}" if hits else "no two rows of the table give it"


def _means(rows: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """{model: mean of its columns} of a published table."""
    return {row["model"]: float(np.mean([float(v) for k, v in row.items() if k != "model"])) for row in rows}


def _mgsm_total() -> Finding:
    mean = _means(published("mgsm_soce.csv"))["SoCE"]
    same = abs(mean - totals("mgsm", "7b")["soce"]) < 0.06
    return _compared("total_mgsm", f"{mean:.2f}", same, "" if same else "the table and the figure disagree")


def _mgsm_singles() -> Finding:
    means, rows = _means(published("mgsm.csv")), results("mgsm", "7b")
    close = [abs(mean - float(rows[name]["score"])) < 0.06 for name, mean in means.items()]
    return Finding(
        of="Table 2a",
        what="totals of the four candidates; means of the ten languages of Figure 3b",
        paper=", ".join(rows[name]["score"] for name in means),
        ours=", ".join(f"{mean:.2f}" for mean in means.values()),
        verdict="agrees" if all(close) else "differs",
    )


def _table3() -> Finding:
    """The BFCL scores of Table 3's ingredients, against those of the soup's in Table 1b."""
    known = {float(row["score"]): name for name, row in results("bfcl_v3", "8b").items()}
    rows = [row for row in published("table3.csv") if not row["model"].startswith("soup")]
    names = [known.get(float(row["bfcl_v3"]), "") for row in rows]
    lacking = [row["model"] for row, name in zip(rows, names, strict=True) if not name]
    return Finding(
        of="Table 3",
        what=f"BFCL scores of {', '.join(row['model'] for row in rows)}; the same of Table 1b",
        paper=", ".join(row["bfcl_v3"] for row in rows),
        ours=", ".join(name or DASH for name in names),
        verdict="differs" if lacking else "agrees",
        note=f"no candidate of Table 1b has the score of {' and '.join(lacking)}" if lacking else "",
    )


def flores() -> dict[str, FloatArray]:
    """{model: BLEU of the 36 directions}, the soup last."""
    rows = [*published("flores36.csv"), *published("flores36_soce.csv")]
    return {row["model"]: np.array([float(v) for k, v in row.items() if k != "model"]) for row in rows}


def directions() -> list[str]:
    return [name for name in published("flores36_soce.csv")[0] if name != "model"]


def _flores() -> Iterator[Finding]:
    scores, names = flores(), directions()
    sound = np.array([name != CORRUPT for name in names])
    for key, models in (("candidates", [name for name in scores if name != "SoCE"]), ("soce_flores", ["SoCE"])):
        printed = [float(value) for value in _printed()[key]["printed"].split(", ")]
        means = [float(scores[model].mean()) for model in models]
        implied = [t * len(names) - scores[m][sound].sum() for t, m in zip(printed, models, strict=True)]
        agrees = all(abs(a - b) < 0.006 for a, b in zip(printed, means, strict=True))
        note = f"the means imply {', '.join(f'{v:.1f}' for v in implied)} for {CORRUPT}, printed are "
        note += ", ".join(f"{scores[m][~sound][0]:g}" for m in models)
        note = note if len(models) > 1 else f"{means[0] - printed[0]:.2f} below the mean of its own columns"
        yield _compared(key, ", ".join(f"{mean:.2f}" for mean in means), agrees, "" if agrees else note)
    yield _flores_gain(scores, sound)


def _flores_gain(scores: Mapping[str, FloatArray], sound: NDArray[np.bool_]) -> Finding:
    singles = [float(value) for value in _printed()["candidates"]["printed"].split(", ")]
    printed = float(_printed()["soce_flores"]["printed"]) - max(singles)
    soup, single = scores["SoCE"][sound], np.array([v[sound] for name, v in scores.items() if name != "SoCE"])
    best = single[int(single.mean(axis=1).argmax())]
    ours = float((soup - best).mean())
    return Finding(
        of="Table 5",
        what="gain of SoCE over the best candidate, BLEU",
        paper=f"{printed:.2f}",
        ours=f"{ours:.2f}",
        verdict="agrees" if abs(printed - ours) < 0.006 else "differs",
        note=f"over the {sound.sum()} directions without {CORRUPT}; above every candidate in "
        f"{(soup > single.max(axis=0)).sum()}, above the best one in {(soup > best).sum()}",
    )


OPEN = (
    ("Figure 2", "which panels are before and which after souping", "caption and text swap them, and the benchmarks"),
    ("Table 2b", "selection of infinite-Bench", "no candidate is named, no category printed"),
    ("Table 3", "HellaSwag, IFEval and BBH after souping", "it takes the models: sweeps/paper/table3.sh"),
)
"""(where in the paper, what, why no published figure gives it)."""


def _open() -> list[Finding]:
    return [
        Finding(of=of, what=what, paper="", ours="", verdict="cannot be redone", note=why) for of, what, why in OPEN
    ]
