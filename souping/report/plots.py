"""Forest plot of paired differences, bars a category, correlation heatmap. Fractions in, percent shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from souping.report import texts
from souping.report.drawing import COLOURS, DARK, INK, Drawing, canvas, figure
from souping.report.steadiness import around, at
from souping.report.tables import Report, categories, entries, opponent, part


def forest(report: Report) -> Drawing | None:
    """Soup minus each other row: the point, its 95 % interval, and the line of no difference."""
    found = [c for c in entries(report, "comparisons") if texts.number(c.get("difference")) is not None]
    if not found:
        return None
    kinds = {row.get("name"): str(row.get("kind")) for row in reversed(texts.in_order(entries(report, "rows")))}
    titles: dict[str, str] = {}
    with canvas():
        made, axes = figure(8.6, 0.7 + 0.42 * len(found))
        axes.axvline(0, color=INK, linewidth=1.0)
        for i, comparison in enumerate(found):
            _whisker(
                axes, i, comparison, COLOURS.get(comparison.get("kind") or kinds.get(comparison.get("b"), ""), INK)
            )
            titles[f"pair{i}"] = _pair_title(comparison)
        axes.set_yticks(range(len(found)), [_pair_label(report, c) for c in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.set_xlabel("soup minus the other, points (95 % interval)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _values_beside(axes, found)
    alt = "Forest plot of paired differences, soup minus each other row: " + "; ".join(titles.values())
    return Drawing("forest", made, alt, "Right of the line the soup is better. Same items, paired by group.", titles)


def _whisker(axes: Any, y: int, comparison: Mapping[str, Any], colour: str) -> None:
    middle = 100 * float(comparison["difference"])
    ends = [texts.number(comparison.get(key)) for key in ("low", "high")]
    if None not in ends:
        axes.plot([100 * float(e or 0) for e in ends], [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([middle], [y], "o", color=colour, markersize=7.5, markeredgecolor="white", gid=f"pair{y}")


def _pair_label(report: Report, comparison: Mapping[str, Any]) -> str:
    name, roles = texts.short(comparison.get("b"), 34), texts.short(opponent(report, comparison), 46)
    return f"{name}\n{roles}" if roles else name


def _pair_title(comparison: Mapping[str, Any]) -> str:
    around_it = texts.interval(comparison.get("low"), comparison.get("high"), sign=True)
    return (
        f"{texts.clean(comparison.get('b'))}: {texts.percent(comparison.get('difference'), sign=True)} points"
        f" ({around_it or 'no interval'}), p {texts.p_value(comparison.get('p_value'))}"
    )


def _values_beside(axes: Any, found: Sequence[Mapping[str, Any]]) -> None:
    """The number itself, right of the axes, so that nobody has to read it off."""
    for i, comparison in enumerate(found):
        shown = (
            texts.percent(comparison.get("difference"), sign=True),
            f"p {texts.p_value(comparison.get('p_value'))}",
        )
        for text, x, side in zip(shown, (1.07, 1.10), ("right", "left"), strict=True):
            axes.text(x, i, text, transform=axes.get_yaxis_transform(), va="center", ha=side, fontsize=8.5)


def bars(report: Report) -> Drawing | None:
    """Each category: soup, best single, the category's expert and the uniform soups, with 95 % intervals."""
    names, series = categories(report), _series(report)
    if not names or not series:
        return None
    titles: dict[str, str] = {}
    with canvas():
        made, axes = figure(8.6, 1.0 + 0.15 * sum(len(_present(series, name)) + 1 for name in names))
        middles, top = [], 0.0
        for c, name in enumerate(names):
            present = _present(series, name)
            middles.append(top + (len(present) - 1) / 2)
            for s, (label, colour, scores) in enumerate(present):
                _bar(axes, top + s, scores[name], colour, f"bar{c}-{s}")
                titles[f"bar{c}-{s}"] = f"{label}, {texts.clean(name)}: {texts.with_interval(scores[name])}"
            top += len(present) + 1
        _bars_axes(axes, middles, [texts.short(name) for name in names], top)
        _legend(axes, [(label, colour) for label, colour, _ in series])
    alt = f"Bars of the score in each of {len(names)} categories for {texts.listed([label for label, _, _ in series])}."
    return Drawing("bars", made, f"{alt} The table of scores has the numbers.", "", titles)


Series = Sequence[tuple[str, str, Mapping[str, Any]]]
"""(label, colour, {category: score}) of each kind of bar."""


def _present(series: Series, category: str) -> Series:
    """The bars that a category has: not every category has an expert."""
    return [one for one in series if texts.number(part(one[2], category).get("mean")) is not None]


def _bars_axes(axes: Any, middles: Sequence[float], names: Sequence[str], bottom: float) -> None:
    axes.set_yticks(middles, names)
    axes.set_ylim(bottom - 0.7, -0.9)
    axes.set_xlim(0, 100)
    axes.set_xlabel("correct on the report fold, % (95 % interval)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _series(report: Report) -> Series:
    """The experts' series takes each category from its own expert."""
    rows = {str(row.get("kind")): row for row in reversed(entries(report, "rows"))}
    by_name = {row.get("name"): row.get("scores") or {} for row in entries(report, "rows")}
    series = [
        (_series_label(kind, rows[kind]), COLOURS[kind], rows[kind].get("scores") or {})
        for kind in ("soup", "best_single", "uniform_selected", "uniform_topk", "uniform_all")
        if kind in rows
    ]
    chosen = part(part(report, "selection"), "experts")
    own = {c: by_name[name][c] for c, name in chosen.items() if c in by_name.get(name, {})}
    if own and series and set(chosen.values()) != {rows.get("best_single", {}).get("name")}:
        series.insert(min(2, len(series)), ("expert of the category", COLOURS["ingredient"], own))
    return series


def _series_label(kind: str, row: Mapping[str, Any]) -> str:
    return f"best single: {texts.short(row.get('name'), 20)}" if kind == "best_single" else texts.kind_label(kind)


def _bar(axes: Any, y: float, score: Mapping[str, Any], colour: str, gid: str) -> None:
    axes.barh(y, 100 * float(score["mean"]), height=0.86, color=colour)[0].set_gid(gid)
    ends = [texts.number(score.get(key)) for key in ("low", "high")]
    if None not in ends:
        axes.plot([100 * float(e or 0) for e in ends], [y, y], color=INK, linewidth=0.9, alpha=0.8)


def _legend(axes: Any, entries_shown: Sequence[tuple[str, str]]) -> None:
    """Above the axes, in rows of three."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in entries_shown]
    columns = min(3, len(handles))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, handlelength=1.0)


def heatmap(report: Report) -> Drawing | None:
    """Correlation of every two categories over models; low-correlation categories are marked on the axes."""
    found = part(part(report, "selection"), "correlation")
    names, matrix = list(found.get("categories") or []), found.get("matrix")
    if len(names) < 2 or not matrix:
        return None
    titles: dict[str, str] = {}
    with canvas():
        side = max(2.6, 0.52 * len(names))
        made, axes = figure(side + 1.4, side)
        for i, row in enumerate(names):
            for j, column in enumerate(names):
                _cell(axes, i, j, texts.number(at(matrix, i, j)))
                span = around(at(found.get("low"), i, j), at(found.get("high"), i, j))
                titles[f"cell{i}-{j}"] = (
                    f"{texts.clean(row)} and {texts.clean(column)}: rho {_value(matrix, i, j)}, {span}"
                )
        _heatmap_axes(axes, names, set(part(report, "selection").get("low_correlation") or ()))
        _colourbar(made, axes)
    alt = (
        f"Heatmap of the correlation between {len(names)} categories; the table below it has every value and interval."
    )
    return Drawing("heatmap", made, alt, "Bold with a dot: low-correlation categories.", titles)


def _value(matrix: Any, i: int, j: int) -> str:
    return texts.rho(at(matrix, i, j))


def _shade(value: float | None) -> Any:
    from matplotlib import colormaps

    return "#e9ebee" if value is None else colormaps["RdBu_r"]((value + 1) / 2)


def _cell(axes: Any, i: int, j: int, value: float | None) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_shade(value), edgecolor="white", gid=f"cell{i}-{j}"))
    ink = "white" if value is not None and abs(value) > 0.62 else DARK
    axes.text(j, i, texts.rho(value), ha="center", va="center", fontsize=7.5, color=ink)


def _heatmap_axes(axes: Any, names: Sequence[str], low: set[str]) -> None:
    labels = [f"{'● ' if name in low else ''}{texts.short(name, 24)}" for name in names]
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_yticks(range(len(names)), labels)
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", rotation_mode="anchor")
    for name, tick_x, tick_y in zip(names, axes.get_xticklabels(), axes.get_yticklabels(), strict=True):
        if name in low:
            tick_x.set_fontweight("bold")
            tick_y.set_fontweight("bold")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _colourbar(made: Any, axes: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = made.colorbar(ScalarMappable(Normalize(-1, 1), "RdBu_r"), ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("correlation over models")
    bar.outline.set_visible(False)
