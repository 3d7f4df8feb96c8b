"""How the analysis `consistency` is shown: two heatmaps side by side, candidates and soups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from souping.core.types import elements, number, part, texts
from souping.report.drawing import Drawing, canvas
from souping.report.experts import around, at
from souping.report.format import clean, count, in_words, rho, short
from souping.report.plots import heat_axes, heat_cell
from souping.report.registry import register
from souping.report.tables import Row, Section, grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POPULATIONS = {"before": "candidates", "after": "soups of the search"}
NULLS = {
    "independent": ("mixtures, independent draws", "every soup draws a parent for each group of items by itself"),
    "shared": ("mixtures, one draw per group", "one random number per group of items decides the parent for all soups"),
    "exact": ("exact mixtures", "every item scores the weighted mean of its parents' scores"),
}
"""{null: (its name, what a soup is under it)}, the weakest correlation first."""


def section(data: Row) -> Section:
    after, nulls = part(data, "after"), part(data, "nulls")
    places = {key: _place(number(after.get("mean")), part(nulls, key)) for key in NULLS}
    head = (
        f"Mean |{clean(data.get('metric'))} rho| of two categories: {_mean(part(data, 'before'))} over "
        f"{count(part(data, 'before').get('models'))} candidates, {_mean(after)} over {count(after.get('models'))} "
        "soups of the search."
    )
    told = in_words([f"{places[key]} {name} ({rho(part(nulls, key).get('mean'))})" for key, (name, _) in NULLS.items()])
    agree = "" if len(set(places.values())) == 1 else " The answer depends on which mixture is meant."
    against = f"Soups of few parents correlate by mixing alone. The soups are {told}.{agree}"
    left_out = texts(data, "left_out")
    notes = [clean(part(data, "before").get("note"))]
    if left_out:
        notes.append(f"Left out, as all candidates or all soups score the same: {in_words(left_out)}.")
    rows = [(name, count(part(data, key).get("models")), rho(part(data, key).get("mean")), _limits(part(data, key)), "")
            for key, name in POPULATIONS.items()]  # fmt: skip
    rows += [(name, count(after.get("models")), rho(part(nulls, key).get("mean")), _limits(part(nulls, key)), meaning)
             for key, (name, meaning) in NULLS.items()]  # fmt: skip
    table = grid(("population", "models", "mean |rho|", "95 %", "what it is"), rows, left=(0, 4))
    return Section("Do categories move together?", (head, against, *filter(None, notes)), "consistency", (table,))


def _place(value: float | None, null: Row) -> str:
    low, high = number(null.get("low")), number(null.get("high"))
    if value is None or low is None or high is None:
        return "not comparable to"
    return "above" if value > high + 1e-9 else "below" if value < low - 1e-9 else "within"


def _mean(told: Row) -> str:
    return f"{rho(told.get('mean'))} ({_limits(told)})"


def _limits(told: Row) -> str:
    return around(told.get("low"), told.get("high"))


def draw(data: Row) -> Drawing | None:
    """Both correlation matrices on one scale."""
    from matplotlib.figure import Figure

    names, titles = [clean(name) for name in elements(data, "categories")], dict[str, str]()
    with canvas():
        side = max(2.4, 0.42 * len(names))
        made = Figure(figsize=(2.04 * side, side))
        panels = made.subplots(1, 2, sharey=True)
        for axes, (key, name) in zip(panels, POPULATIONS.items(), strict=True):
            told = part(data, key)
            axes.set_title(f"{count(told.get('models'))} {name}: mean |rho| {rho(told.get('mean'))}", fontsize=9)
            titles |= _panel(axes, key, names, told)
        panels[0].set_yticks(range(len(names)), [short(name, 24) for name in names])
        made.subplots_adjust(wspace=0.05)
    means = " and ".join(f"{rho(part(data, key).get('mean'))} over the {name}" for key, name in POPULATIONS.items())
    alt = f"Heatmaps of the correlation of every two of {len(names)} categories; the mean size is {means}."
    return Drawing("consistency", made, alt, "Left: candidates. Right: soups. Grey: no correlation exists.", titles)


def _panel(axes: Axes, key: str, names: Sequence[str], told: Row) -> dict[str, str]:
    """One matrix, a cell a pair; what hovering over a cell says."""
    titles, size = dict[str, str](), 6.5 if len(names) <= 12 else 0
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            value, gid = number(at(told.get("matrix"), i, j)), f"{key}{i}-{j}"
            heat_cell(axes, (i, j), value, gid, size)
            titles[gid] = f"{row} and {column}: rho {rho(value)}"
    heat_axes(axes, [short(name, 24) for name in names])
    return titles


register("consistency", section, draw, folded=True)
