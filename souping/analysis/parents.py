"""Wins over parents: in how many categories a soup is above both of its parents, and above at least one (`parents`).

Figure 5 of arXiv 2511.13254 counts this over a population of soups; here it is every soup of the search. By chance, if
a soup and its K parents were equally good, it is above all of them in 1 / (K + 1) of the categories and above at least
one in K / (K + 1): 1/3 and 2/3 for two parents. Equal scores make both rarer, so that the chance is counted from the
scores themselves: of every category's K + 1 scores each is as likely to be the soup's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from souping.analysis import ALONE, Analysis, Draws, NotEstimableError, RunScores
from souping.analysis.correlation import Z95
from souping.analysis.stability import GroupSums
from souping.core.fields import component
from souping.core.types import FloatArray, Json, ScoreMatrix, elements, entries, number, part
from souping.report.format import count, percent, percent_interval
from souping.report.plots import COLOURS, INK, Drawing, canvas, figure
from souping.report.sections import DISPLAYS, Display
from souping.report.tables import Row, Section

TIE = 1e-12
"""Means that differ by less are equal: only the order of a sum tells them apart."""
SALT = 0x9A4E


@component
class Parents(Analysis):
    """Categories in which each soup of the search beats all, and at least one, of its parents.

    Intervals of the shares: +- 1.96 standard errors by `draws` bootstrap draws of the search fold's groups.
    """

    draws: Draws = 400

    def analyse(self, run: RunScores) -> dict[str, Json]:
        soups = [soup for soup in run.mixtures() if all(run.single(p).id in run.search for p in soup.ingredients)]
        if not soups:
            raise NotEstimableError(too_few(run, 1))
        names = list(dict.fromkeys(parent for soup in soups for parent in soup.ingredients))
        rows = {run.single(name).id: run.search[run.single(name).id] for name in names}
        scores = ScoreMatrix.from_items(rows | {soup.id: run.search[soup.id] for soup in soups})
        order = {name: scores.models.index(run.single(name).id) for name in names}
        parents = [[order[name] for name in soup.ingredients] for soup in soups]
        place = [scores.models.index(soup.id) for soup in soups]
        drawn = GroupSums.of(scores).draws(self.draws, np.random.default_rng(SALT))
        wins = _wins(scores.values[None], place, parents)[:, 0]
        counted = [{"beats_all": int(a), "beats_one": int(b)} for a, b in wins.sum(axis=-1).T]
        return {
            "fold": "search",
            "categories": list(scores.categories),
            "soups": [
                {"recipe_id": soup.id, "weights": dict(zip(soup.ingredients, soup.weights, strict=True)), **counts}
                for soup, counts in zip(soups, counted, strict=True)
            ],
            **_shares(wins, _wins(drawn, place, parents), _chances(scores.values, place, parents)),
        }


def too_few(run: RunScores, needed: int) -> str:
    """How many soups answered the whole search fold, and how to have more."""
    whole = len(run.mixtures())
    if len(run.soups.ingredients) < 2:
        return ALONE
    head = f"{whole} soup{'' if whole == 1 else 's'} of the search answered its whole fold; it takes {needed}"
    return f"{head}: use optimiser=grid, or optimiser=nevergrad with few ingredients"


def _wins(values: FloatArray, soups: Sequence[int], parents: Sequence[Sequence[int]]) -> FloatArray:
    """values [D, M, C] -> whether each soup is above all, and above at least one of its parents, [2, D, S, C]."""
    out = np.zeros((2, len(values), len(soups), values.shape[2]))
    for place, (soup, others) in enumerate(zip(soups, parents, strict=True)):
        above = values[:, [soup]] > values[:, others] + TIE
        out[:, :, place] = above.all(axis=1), above.any(axis=1)
    return out


def _chances(values: FloatArray, soups: Sequence[int], parents: Sequence[Sequence[int]]) -> FloatArray:
    """values [M, C] -> chance of both wins in each category, were the soup any one of its family, [2, S, C]."""
    out = np.zeros((2, len(soups), values.shape[1]))
    for place, (soup, others) in enumerate(zip(soups, parents, strict=True)):
        family = values[[soup, *others]]
        top = family >= family.max(axis=0) - TIE
        out[0, place] = (top.sum(axis=0) == 1) / len(family)
        out[1, place] = (family > family.min(axis=0) + TIE).sum(axis=0) / len(family)
    return out


def _shares(wins: FloatArray, drawn: FloatArray, chances: FloatArray) -> dict[str, Json]:
    """The share of (soup, category) pairs that are wins, its interval, and the share by chance."""
    shares: dict[str, Json] = {}
    for place, key in enumerate(("beats_all", "beats_one")):
        share, chance = float(wins[place].mean()), float(chances[place].mean())
        margin = Z95 * float(drawn[place].mean(axis=(1, 2)).std(ddof=1))
        shares[key] = {
            "share": share, "low": max(0.0, share - margin), "high": min(1.0, share + margin), "chance": chance
        }  # fmt: skip
    return shares


# How it is shown

KINDS = {"beats_all": "above all parents", "beats_one": "above at least one"}


def section(data: Row) -> Section:
    soups, categories = entries(data, "soups"), elements(data, "categories")
    head = (
        f"Each soup of the search ({count(len(soups))}) against its own parents in {count(len(categories))} categories "
        f"of the search fold: {_share(data, 'beats_all')} {KINDS['beats_all']}, {_share(data, 'beats_one')} "
        f"{KINDS['beats_one']}."
    )
    note = (
        "By chance: were a soup and its parents equally good, any of their scores might be the soup's; 1/3 and 2/3 for "
        "two parents where no two scores are equal. A mere mixture of its parents' scores is never above all, always "
        "above one."
    )
    return Section("Do soups beat their parents?", (head, note), "parents")


def _share(data: Row, key: str) -> str:
    found = part(data, key)
    around = percent_interval(found.get("low"), found.get("high"))
    return f"{percent(found.get('share'))} % ({around}; by chance {percent(found.get('chance'))} %)"


def draw(data: Row) -> Drawing | None:
    """Soups by the number of categories that they win."""
    soups, size = entries(data, "soups"), len(elements(data, "categories"))
    with canvas():
        made, axes = figure(8.2, 2.5)
        for shift, (key, colour) in enumerate((("beats_one", "uniform_all"), ("beats_all", "soup"))):
            counts = Counter(int(number(soup.get(key)) or 0) for soup in soups)
            places = [n + 0.4 * (0.5 - shift) for n in range(size + 1)]
            axes.bar(places, [counts[n] for n in range(size + 1)], 0.38, color=COLOURS[colour], label=KINDS[key])
            chance = number(part(data, key).get("chance")) or 0.0
            axes.axvline(chance * size, color=COLOURS[colour], linewidth=1.4, linestyle="--")
        axes.set_xticks(range(size + 1))
        axes.set_xlabel("categories of the search fold (dashed: the mean by chance)")
        axes.set_ylabel("soups")
        axes.grid(axis="x", visible=False)
        axes.locator_params(axis="y", integer=True)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handlelength=1.0, labelcolor=INK)
    alt = f"Histogram of the soups ({len(soups)}) by the number of categories in which they beat their parents."
    return Drawing("parents", made, alt)


DISPLAYS["parents"] = Display(section, (draw,), folded=True)
