"""The selections of Tables 1a, 1b and 2a again, from the published figures, beside what the paper selected.

    python sweeps/paper/selection.py [--markdown]

Source: arXiv 2511.13254v1. The rule is Algorithm 1 (|rho| < 0.2 by Pearson, ties to the better overall); the other
readings are those that the paper's prose leaves open: signed correlations, other ties, wider thresholds. Nothing is
bent to agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from tables import DATA, Found, published, show

from souping.analysis import correlation
from souping.core.objectives import Mean
from souping.core.scores import ScoreMatrix, read_table
from souping.core.types import Selection, UserError
from souping.selection.selectors import SoCE, ranking

Sign = Literal["absolute", "signed"]
Ties = Literal["overall", "all", "first"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read the rule; the defaults are Algorithm 1."""

    threshold: float = 0.2
    sign: Sign = "absolute"
    ties: Ties = "overall"

    def select(self, scores: ScoreMatrix) -> Selection:
        rule = SoCE(
            correlation=correlation.pearson,
            objective=Mean(),
            threshold=self.threshold,
            sign=self.sign,
            ties=self.ties,
        )
        return rule.select(scores)

    def __str__(self) -> str:
        bars = "|rho|" if self.sign == "absolute" else "rho"
        return f"{bars} < {self.threshold:g}, ties={self.ties}"


SAME = "the paper's"
STATED = Reading()
READINGS = (
    STATED,
    Reading(ties="all"),
    Reading(ties="first"),
    Reading(threshold=0.3),
    Reading(threshold=0.3, ties="all"),
    Reading(threshold=0.5),
    Reading(sign="signed"),
    Reading(sign="signed", ties="all"),
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A table of the paper: its score table, its rows in results.csv, and the ingredients it names."""

    title: str
    file: str
    benchmark: str
    scale: str

    @property
    def scores(self) -> ScoreMatrix:
        return read_table(DATA / self.file)

    @property
    def totals(self) -> dict[str, float]:
        """{model: published total, percent}, the candidates only."""
        rows = [r for r in published("results.csv") if (r["benchmark"], r["scale"]) == (self.benchmark, self.scale)]
        return {r["row"]: float(r["score"]) for r in rows if r["role"] in ("ingredient", "candidate")}

    @property
    def chosen(self) -> tuple[str, ...]:
        """What the paper selected, in the order of the score table."""
        rows = [r for r in published("results.csv") if (r["benchmark"], r["scale"]) == (self.benchmark, self.scale)]
        names = {r["row"] for r in rows if r["role"] == "ingredient"}
        return tuple(name for name in self.scores.models if name in names)

    @property
    def command(self) -> str:
        """The same selection by the stated rule through the command line."""
        return (
            f"python -m souping scores=table scores.path=souping/examples/paper/{self.file} stop_after=select "
            f"pool.candidates='[{','.join(self.scores.models)}]'"
        )


TABLES = (
    Published(title="Table 1a, BFCL 70B", file="bfcl_70b.csv", benchmark="bfcl_v3", scale="70b"),
    Published(title="Table 1b, BFCL 8B", file="bfcl_8b.csv", benchmark="bfcl_v3", scale="8b"),
    Published(title="Table 2a, MGSM 7B", file="mgsm.csv", benchmark="mgsm", scale="7b"),
)


def difference(found: Sequence[str], chosen: Sequence[str]) -> str:
    """How a selection differs from the paper's, in words."""
    more = [f"adds {name}" for name in found if name not in chosen]
    less = [f"lacks {name}" for name in chosen if name not in found]
    return ", ".join(more + less) or SAME


def pieces(scores: ScoreMatrix, sign: Sign, ties: Ties) -> list[tuple[float, float, tuple[str, ...]]]:
    """(above, up to, ingredients): what each threshold selects. Selections change only where a correlation lies."""
    rho = correlation.pearson(scores.values).rho[np.triu_indices(len(scores.categories), 1)]
    edges = [float(v) for v in np.unique(np.abs(rho) if sign == "absolute" else rho)]
    found: list[tuple[float, float, tuple[str, ...]]] = []
    for low, high in zip(edges, [*edges[1:], 1.0], strict=True):
        if high <= low:
            continue
        names = Reading(threshold=(low + high) / 2, sign=sign, ties=ties).select(scores).ingredients
        if found and found[-1][2] == names:
            found[-1] = (found[-1][0], high, names)
        else:
            found.append((low, high, names))
    return found


def rows(table: Published) -> list[list[str]]:
    """One row a reading, then the best K by overall score, which need no correlation."""
    scores, chosen = table.scores, table.chosen
    lines = []
    for reading in READINGS:
        try:
            selection = reading.select(scores)
        except UserError:
            lines.append([str(reading), f"0 of {len(scores.categories)}", "none", "no category is below the threshold"])
            continue
        names = selection.ingredients
        low = f"{len(selection.low_correlation)} of {len(scores.categories)}"
        lines.append([str(reading), low, ", ".join(names), difference(names, chosen)])
    size = len(chosen)
    by_mean = ranking(scores, Mean())[:size]
    by_total = sorted(table.totals, key=lambda name: -table.totals[name])[:size]
    for label, top in (("mean of the columns", by_mean), ("published total", by_total)):
        lines.append([f"top {size} by {label}", "-", ", ".join(top), difference(top, chosen)])
    return lines


def sentences(table: Published) -> list[str]:
    """What comes out, beside what the paper chose."""
    scores, chosen = table.scores, table.chosen
    found = STATED.select(scores)
    names, low = found.ingredients, found.low_correlation
    low_edge, high_edge, _ = next(p for p in pieces(scores, "absolute", "overall") if p[0] < STATED.threshold <= p[1])
    says = [
        f"The paper selected {', '.join(chosen)}.",
        f"The stated rule selects {', '.join(names)}: {_against(names, chosen)}.",
        *(f"{name} is the best candidate in {', '.join(_won(found, name))}." for name in names if name not in chosen),
    ]
    if len(names) == 1:
        says.append(f"One expert for all low-correlation categories ({', '.join(low)}): nothing to soup.")
    if len(low) == len(scores.categories):
        says.append("Every category counts as low-correlation, so the rule takes the winner of each.")
    says.append(f"That selection holds for thresholds above {low_edge:.3f} up to {high_edge:.3f}.")
    says.append(_where(scores, chosen))
    says.append(f"By the command line: `{table.command}`")
    return says


def _against(found: Sequence[str], chosen: Sequence[str]) -> str:
    words = difference(found, chosen)
    return "the paper's own" if words == SAME else f"beside the paper it {words.replace(', ', ' and ')}"


def _won(selection: Selection, name: str) -> list[str]:
    return [category for category, expert in selection.experts.items() if expert == name]


def _where(scores: ScoreMatrix, chosen: tuple[str, ...]) -> str:
    """All readings and thresholds that give the paper's own selection."""
    spans = [
        f"{sign}, ties={ties}: {low:.3f} < threshold <= {high:.3f}"
        for sign in get_args(Sign)
        for ties in get_args(Ties)
        for low, high, names in pieces(scores, sign, ties)
        if set(names) == set(chosen)
    ]
    if not spans:
        return (
            "No threshold of any reading (absolute or signed, ties overall, all or first) gives the paper's selection."
        )
    return "The paper's selection comes from " + "; ".join(spans) + "."


def findings() -> list[Found]:
    """The three tables."""
    columns = ("reading", "low categories", "ingredients", "beside the paper")
    return [Found(title=t.title, columns=columns, rows=tuple(rows(t)), says=tuple(sentences(t))) for t in TABLES]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print Markdown, not a drawn table")
    show(findings(), parser.parse_args(arguments).markdown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
