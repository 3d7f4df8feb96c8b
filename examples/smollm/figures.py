"""What the matrix shows: models by language, triples, and choices on some problems scored on others.

A choice is made again on many random divisions of the problems into those that select ingredients, those that a search
may see as well, and those that test. All values are bits per byte, means over languages: lower is better.

Shape legend: I items, C languages, M tunes, D draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from examples.smollm.matrix import BASE, Matrix
from examples.smollm.training import TUNES
from souping.analysis.correlation import pearson
from souping.core.scores import Mean
from souping.core.types import BoolArray, FloatArray, Names, ScoreMatrix
from souping.selection import SoCE, TopK

DRAWS = 200
SHARES = (0.2, 0.4)
"""Shares of the problems that select, and that select or search."""
OURS = "best candidate"


@dataclass(frozen=True, kw_only=True)
class View:
    """Means over the items of each language."""

    matrix: Matrix

    def by_language(self, scores: FloatArray, items: BoolArray) -> FloatArray:
        """Means of scores [I] over marked items [I], by language [C]."""
        languages = np.array(self.matrix.languages)
        names = dict.fromkeys(self.matrix.languages)
        return np.array([scores[items & (languages == name)].mean() for name in names])

    def mean(self, members: Sequence[str], items: BoolArray) -> float:
        """Mean over languages of a uniform soup's score."""
        return float(self.by_language(self.matrix.of(members), items).mean())

    def tunes(self, items: BoolArray) -> FloatArray:
        """Scores of the tunes by language [M, C]."""
        rows = [self.by_language(self.matrix.of([name]), items) for name in self.matrix.tunes]
        return np.array(rows)

    def soups(self, size: int) -> list[Names]:
        """Ingredients of all uniform soups of `size` tunes."""
        return [
            members
            for members in self.matrix.scores
            if len(members) == size and BASE not in members
        ]


def divisions(groups: Sequence[str], draws: int = DRAWS) -> Iterator[tuple[BoolArray, BoolArray]]:
    """(items that select [I], items that select or search [I]) of each draw; the groups stay whole."""
    names = np.array(list(dict.fromkeys(groups)))
    selecting, choosing = (round(share * len(names)) for share in SHARES)
    random = np.random.default_rng(0)
    for _ in range(draws):
        order = random.permutation(names)
        yield np.isin(groups, order[:selecting]), np.isin(groups, order[:choosing])


def choices(view: View, selecting: BoolArray, choosing: BoolArray) -> dict[str, float]:
    """Scores on the test items of what is chosen on the others; and the number of SoCE's ingredients."""
    testing = ~choosing
    known = view.tunes(selecting)
    # Selectors take scores of which higher is better.
    scores = ScoreMatrix(
        models=view.matrix.tunes,
        categories=tuple(dict.fromkeys(view.matrix.languages)),
        values=-known,
    )
    experts = SoCE(correlation=pearson, objective=Mean()).select(scores).ingredients
    size = len(experts)
    top = TopK(objective=Mean(), k=size).select(scores).ingredients
    chosen = view.tunes(choosing)
    order = [view.matrix.tunes[tune] for tune in chosen.mean(axis=1).argsort(kind="stable")]
    triples = view.soups(3)
    best_triple = min(triples, key=lambda members: view.mean(members, choosing))
    tested = view.tunes(testing)
    return {
        "number of experts": float(size),
        OURS: view.mean(order[:1], testing),
        "SoCE, uniform": view.mean(experts, testing),
        "top K, uniform": view.mean(top, testing),
        "random K, uniform": float(np.mean([view.mean(s, testing) for s in view.soups(size)])),
        "best triple": view.mean(best_triple, testing),
        "random triple": float(np.mean([view.mean(s, testing) for s in triples])),
        "greedy soup": view.mean(greedy(view, order, choosing), testing),
        "all five": view.mean(view.matrix.tunes, testing),
        "router by language": float(
            tested[chosen.argmin(axis=0), np.arange(tested.shape[1])].mean()
        ),
    }


def greedy(view: View, order: Sequence[str], items: BoolArray) -> list[str]:
    """The greedy soup (Wortsman et al. 2022, recipe 1), best tunes first."""
    members = [order[0]]
    for name in order[1:]:
        if view.mean([*members, name], items) <= view.mean(members, items):
            members.append(name)
    return members


# ------------------------------------------------------------ tables


def page(matrix: Matrix, draws: int = DRAWS) -> str:
    """The tables in Markdown."""
    view = View(matrix=matrix)
    return "\n".join([*_models(view), "", *_triples(view), "", *_choices(view, draws)]) + "\n"


def _models(view: View) -> list[str]:
    """Each model in its own languages, in those that no tune learned, and in all."""
    matrix = view.matrix
    everything = np.ones(len(matrix.ids), dtype=bool)
    names = list(dict.fromkeys(matrix.languages))
    learned = {language for tune in TUNES for language in tune.languages}
    fresh = np.array([name not in learned for name in names])
    base = view.by_language(matrix.scores[(BASE,)], everything)
    lines = [
        "| model | own languages | the base there | languages that no tune learned | all |",
        "| --- | ---: | ---: | ---: | ---: |",
        f"| {BASE} | | | {base[fresh].mean():.3f} | {base.mean():.3f} |",
    ]
    for tune in TUNES:
        own = np.array([name in tune.languages for name in names])
        scores = view.by_language(matrix.of([tune.name]), everything)
        lines.append(
            f"| {tune.name} | {scores[own].mean():.3f} | {base[own].mean():.3f} "
            f"| {scores[fresh].mean():.3f} | {scores.mean():.3f} |"
        )
    scores = view.by_language(matrix.of(matrix.tunes), everything)
    lines.append(f"| uniform soup of all | | | {scores[fresh].mean():.3f} | {scores.mean():.3f} |")
    return lines


def _triples(view: View) -> list[str]:
    """The uniform soups of three, best first."""
    everything = np.ones(len(view.matrix.ids), dtype=bool)
    rows = sorted((view.mean(members, everything), members) for members in view.soups(3))
    lines = ["| triple | all |", "| --- | ---: |"]
    return [*lines, *(f"| {', '.join(members)} | {value:.3f} |" for value, members in rows)]


def _choices(view: View, draws: int) -> list[str]:
    """Each choice on the test items, minus the best candidate; means and 95 % of the draws."""
    rows = [choices(view, *division) for division in divisions(view.matrix.groups, draws)]
    lines = [
        f"SoCE chose {np.mean([row['number of experts'] for row in rows]):.1f} tunes on average.",
        "",
        "| chosen | bits per byte | minus the best candidate | in 95 % of the draws |",
        "| --- | ---: | ---: | ---: |",
    ]
    best = np.array([row[OURS] for row in rows])
    for name in list(rows[0])[1:]:
        values = np.array([row[name] for row in rows])
        low, high = np.quantile(values - best, (0.025, 0.975))
        lines.append(
            f"| {name} | {values.mean():.3f} | {(values - best).mean():+.3f} | {low:+.3f} to {high:+.3f} |"
        )
    return lines
