"""How the analysis `parents` is shown: histograms of the categories in which soups beat their parents."""

from __future__ import annotations

from collections import Counter

from souping.core.types import elements, entries, number, part
from souping.report.drawing import COLOURS, INK, Drawing, canvas, figure
from souping.report.format import count, interval, percent
from souping.report.registry import register
from souping.report.tables import Row, Section, TableGrid, grid

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
    return Section("Do soups beat their parents?", (head, note), "parents", (_table(data),))


def _share(data: Row, key: str) -> str:
    told = part(data, key)
    around = interval(told.get("low"), told.get("high"))
    return f"{percent(told.get('share'))} % ({around}; by chance {percent(told.get('chance'))} %)"


def _table(data: Row) -> TableGrid:
    rows = [
        (
            count(row.get("parents")),
            count(row.get("soups")),
            percent(row.get("beats_all")),
            percent(row.get("chance_all")),
            percent(row.get("beats_one")),
            percent(row.get("chance_one")),
        )
        for row in entries(data, "parents")
    ]
    header = ("parents", "soups", "above all, %", "by chance, no ties", "above one, %", "by chance, no ties")
    return grid(header, rows, left=())


def draw(data: Row) -> Drawing | None:
    """Soups by the number of categories that they win."""
    soups, size = entries(data, "soups"), len(elements(data, "categories"))
    if not soups:
        return None
    from matplotlib.ticker import MaxNLocator

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
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handlelength=1.0, labelcolor=INK)
    alt = f"Histogram of the soups ({len(soups)}) by the number of categories in which they beat their parents."
    return Drawing("parents", made, alt)


register("parents", section, draw, folded=True)
