"""Figures of a report: forest plot of differences, bars, correlation heatmap, search landscape.

They look alike and come out byte for byte the same: matplotlib without pyplot, backends or dates. Fractions in, percent
shown.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray, Json, entries, number, part, texts
from souping.report.format import (
    clean,
    count,
    in_order,
    in_words,
    interval,
    kind_label,
    level,
    p_of,
    percent,
    rho,
    short,
    weight,
    with_interval,
)
from souping.report.tables import Report, Row, around, at, categories, ingredients, opponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

INK, FAINT, DARK = "#1f2329", "#d5dae0", "#111214"
"""Text and lines, grid lines (both follow the page's colours in HTML), and text on light cells, which does not."""

COLOURS: Mapping[str, str] = {
    "soup": "#d55e00",
    "uniform_selected": "#009e73",
    "uniform_topk": "#cc79a7",
    "uniform_all": "#56b4e9",
    "best_single": "#0072b2",
    "ingredient": "#8a8f98",
    "candidate": "#b6bac1",
}
"""One colour a kind of row: the Okabe-Ito palette, told apart by colour-blind readers."""

SETTINGS: Mapping[str, Mapping[str, str | float | bool]] = {
    "svg": {"hashsalt": "souping", "fonttype": "none"},
    "text": {"parse_math": False, "color": INK},
    "font": {"family": "DejaVu Sans", "size": 9.0},
    "axes": {
        "edgecolor": INK,
        "labelcolor": INK,
        "grid": True,
        "axisbelow": True,
        "unicode_minus": True,
        "facecolor": "none",
    },
    "axes.spines": {"top": False, "right": False},
    "xtick": {"color": INK},
    "ytick": {"color": INK},
    "grid": {"color": FAINT, "linewidth": 0.6},
    "legend": {"frameon": False},
    "figure": {"facecolor": "none"},
}
HOVER_LIMIT = 600
"""Above so many trials, points carry no hover text: the page would grow by megabytes."""
Series = Sequence[tuple[str, str, Row]]
"""(label, colour, {category: score}) of each kind of bar."""


@dataclass(frozen=True)
class Drawing:
    """Figure with its alternative text; `titles` maps the gid of an artist to what hovering over it says."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""
    titles: Mapping[str, str] = field(default_factory=dict)

    def svg(self) -> str:
        """An `<svg>` element to stand inside HTML: own ids, the page's text colours, alternative text, hover titles."""
        with canvas():
            stream = io.StringIO()
            self.figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.06, metadata=_undated())
        text = stream.getvalue()
        return self._titled(self._own_ids(_page_colours(text[text.index("<svg") :].rstrip())))

    def png(self, dpi: int = 144) -> bytes:
        """The same picture on white, for places that show no SVG."""
        with canvas():
            stream = io.BytesIO()
            undated = {"Software": None}
            self.figure.savefig(
                stream, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.1, metadata=undated, facecolor="white"
            )
        return stream.getvalue()

    def _own_ids(self, svg: str) -> str:
        """Ids are unique in a page, and several figures stand in one."""
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = svg.replace("url(#", f"url(#{self.name}-").replace('href="#', f'href="#{self.name}-')
        return svg

    def _titled(self, svg: str) -> str:
        for gid, title in self.titles.items():
            group = f'<g id="{self.name}-{gid}">'
            svg = svg.replace(group, f"{group}<title>{html.escape(title)}</title>", 1)
        view = re.search(r'viewBox="[\d. -]+"', svg)
        width = re.search(r'width="([\d.]+)pt"', svg)
        full = f"{float(width[1]) * 4 / 3:.0f}px" if width else "100%"
        size = f' style="max-width:{full};min-width:min(620px,{full})"'
        label = html.escape(self.alt, quote=True)
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        head = f'<svg {spaces} {view[0] if view else ""} role="img" aria-label="{label}"{size}>'
        return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)


def _undated() -> dict[str, None]:
    return {"Date": None, "Creator": None, "Format": None, "Type": None}


def _page_colours(svg: str) -> str:
    """Ink becomes the page's text colour and the grid its border colour, so that a dark page is readable too."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)")
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


@contextmanager
def canvas() -> Iterator[None]:
    """The look of every figure, whatever the user's own matplotlibrc says.

    A glyph that the font lacks is the business of the reader's fonts, not a warning.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        for group, values in SETTINGS.items():
            matplotlib.rc(group, **values)  # type: ignore[arg-type]  # it lists its groups as literals
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of inches and its only axes (call it inside `canvas`)."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    return made, made.subplots()


def forest(report: Report) -> Drawing | None:
    """Soup minus each other row: the point, its interval, and the line of no difference."""
    compared = [c for c in entries(report, "comparisons") if number(c.get("difference")) is not None]
    if not compared:
        return None
    kinds = {row.get("name"): str(row.get("kind")) for row in reversed(in_order(entries(report, "rows")))}
    titles: dict[str, str] = {}
    with canvas():
        made, axes = figure(8.6, 0.7 + 0.42 * len(compared))
        axes.axvline(0, color=INK, linewidth=1.0)
        for i, comparison in enumerate(compared):
            kind = str(comparison.get("kind") or kinds.get(comparison.get("b"), ""))
            _whisker(axes, i, comparison, COLOURS.get(kind, INK))
            titles[f"pair{i}"] = _pair_title(comparison)
        axes.set_yticks(range(len(compared)), [_pair_label(report, c) for c in compared])
        axes.set_ylim(len(compared) - 0.4, -0.6)
        axes.set_xlabel(f"soup minus the other, points ({level(compared[0])} interval)")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        _values_beside(axes, compared)
    alt = "Forest plot of paired differences, soup minus each other row: " + "; ".join(titles.values())
    return Drawing("forest", made, alt, "Right of the line the soup is better. Same items, paired by group.", titles)


def _whisker(axes: Axes, y: int, comparison: Row, colour: str) -> None:
    middle, ends = 100 * (number(comparison["difference"]) or 0.0), _ends(comparison)
    if ends:
        axes.plot(ends, [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
    axes.plot([middle], [y], "o", color=colour, markersize=7.5, markeredgecolor="white", gid=f"pair{y}")


def _ends(score: Row) -> list[float]:
    """The interval's limits in percent, empty where there is none."""
    limits = [number(score.get(key)) for key in ("low", "high")]
    known = [100 * limit for limit in limits if limit is not None]
    return known if len(known) == len(limits) else []


def _pair_label(report: Report, comparison: Row) -> str:
    name, roles = short(comparison.get("b"), 34), short(opponent(report, comparison), 46)
    return f"{name}\n{roles}" if roles else name


def _pair_title(comparison: Row) -> str:
    around_it = interval(comparison.get("low"), comparison.get("high"), sign=True)
    return (
        f"{clean(comparison.get('b'))}: {percent(comparison.get('difference'), sign=True)} points"
        f" ({around_it or 'no interval'}), p {p_of(comparison)}"
    )


def _values_beside(axes: Axes, compared: Sequence[Row]) -> None:
    """The number itself, right of the axes, so that nobody has to read it off."""
    for i, comparison in enumerate(compared):
        shown = (
            percent(comparison.get("difference"), sign=True),
            f"p {p_of(comparison)}",
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
                _bar(axes, top + s, part(scores, name), colour, f"bar{c}-{s}")
                titles[f"bar{c}-{s}"] = f"{label}, {clean(name)}: {with_interval(scores[name])}"
            top += len(present) + 1
        _bars_axes(axes, middles, [short(name) for name in names], top)
        _legend(axes, [(label, colour) for label, colour, _ in series])
    alt = f"Bars of the score in each of {len(names)} categories for {in_words([label for label, _, _ in series])}."
    return Drawing("bars", made, f"{alt} The table of scores has the numbers.", "", titles)


def _present(series: Series, category: str) -> Series:
    """The bars that a category has: not every category has an expert."""
    return [one for one in series if number(part(one[2], category).get("mean")) is not None]


def _bars_axes(axes: Axes, middles: Sequence[float], names: Sequence[str], bottom: float) -> None:
    axes.set_yticks(middles, names)
    axes.set_ylim(bottom - 0.7, -0.9)
    axes.set_xlim(0, 100)
    axes.set_xlabel("correct on the report fold, % (95 % interval)")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _series(report: Report) -> Series:
    """The experts' series takes each category from its own expert."""
    rows = {str(row.get("kind")): row for row in reversed(entries(report, "rows"))}
    by_name = {row.get("name"): part(row, "scores") for row in entries(report, "rows")}
    series = [
        (_series_label(kind, rows[kind]), COLOURS[kind], part(rows[kind], "scores"))
        for kind in ("soup", "best_single", "uniform_selected", "uniform_topk", "uniform_all")
        if kind in rows
    ]
    chosen = part(part(report, "selection"), "experts")
    own = {c: by_name[name][c] for c, name in chosen.items() if c in by_name.get(name, {})}
    if own and series and set(chosen.values()) != {rows.get("best_single", {}).get("name")}:
        series.insert(min(2, len(series)), ("expert of the category", COLOURS["ingredient"], own))
    return series


def _series_label(kind: str, row: Row) -> str:
    return f"best single: {short(row.get('name'), 20)}" if kind == "best_single" else kind_label(kind)


def _bar(axes: Axes, y: float, score: Row, colour: str, gid: str) -> None:
    axes.barh(y, 100 * (number(score["mean"]) or 0.0), height=0.86, color=colour)[0].set_gid(gid)
    if ends := _ends(score):
        axes.plot(ends, [y, y], color=INK, linewidth=0.9, alpha=0.8)


def _legend(axes: Axes, shown: Sequence[tuple[str, str]]) -> None:
    """Above the axes, in rows of three."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in shown]
    columns = min(3, len(handles))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, handlelength=1.0)


def heatmap(report: Report) -> Drawing | None:
    """Correlation of every two categories over models; low-correlation categories are marked on the axes."""
    known = part(part(report, "selection"), "correlation")
    names, matrix = texts(known, "categories"), known.get("matrix")
    if len(names) < 2 or not matrix:
        return None
    titles: dict[str, str] = {}
    with canvas():
        side = max(2.6, 0.52 * len(names))
        made, axes = figure(side + 1.4, side)
        for i, row in enumerate(names):
            for j, column in enumerate(names):
                _cell(axes, i, j, number(at(matrix, i, j)))
                span = around(at(known.get("low"), i, j), at(known.get("high"), i, j))
                titles[f"cell{i}-{j}"] = f"{clean(row)} and {clean(column)}: rho {_value(matrix, i, j)}, {span}"
        _heatmap_axes(axes, names, set(texts(part(report, "selection"), "low_correlation")))
        _colourbar(made, axes)
    alt = (
        f"Heatmap of the correlation between {len(names)} categories; the table below it has every value and interval."
    )
    return Drawing("heatmap", made, alt, "Bold with a dot: low-correlation categories.", titles)


def _value(matrix: Json, i: int, j: int) -> str:
    return rho(at(matrix, i, j))


def _shade(value: float | None) -> str | tuple[float, float, float, float]:
    from matplotlib import colormaps

    return "#e9ebee" if value is None else colormaps["RdBu_r"]((value + 1) / 2)


def _cell(axes: Axes, i: int, j: int, value: float | None) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=_shade(value), edgecolor="white", gid=f"cell{i}-{j}"))
    ink = "white" if value is not None and abs(value) > 0.62 else DARK
    axes.text(j, i, rho(value), ha="center", va="center", fontsize=7.5, color=ink)


def _heatmap_axes(axes: Axes, names: Sequence[str], low: set[str]) -> None:
    labels = [f"{'● ' if name in low else ''}{short(name, 24)}" for name in names]
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


def _colourbar(made: Figure, axes: Axes) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = made.colorbar(ScalarMappable(Normalize(-1, 1), "RdBu_r"), ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("correlation over models")
    bar.outline.set_visible(False)


def landscape(report: Report, trials: Sequence[Row]) -> Drawing | None:
    """The picture that fits K; nothing for one ingredient or fewer than two trials."""
    tried = [trial for trial in trials if number(trial.get("objective")) is not None]
    names = ingredients(report, tried)
    if len(names) < 2 or len(tried) < 2:
        return None
    weights = np.array([[number(part(t, "weights").get(n)) or 0.0 for n in names] for t in tried])
    values = np.array([100 * (number(t["objective"]) or 0.0) for t in tried])
    titles = {f"trial{i}": _title(t, names, w) for i, (t, w) in enumerate(zip(tried, weights, strict=True))}
    draw = {2: _line, 3: _triangle}.get(len(names), _curves)
    with canvas():
        made = draw(names, weights, values)
    alt = f"Search landscape: {len(tried)} trials over the weights of {in_words(names)}. Best: "
    best = titles[f"trial{int(np.argmax(values))}"]
    return Drawing("landscape", made, alt + best, "", titles if len(tried) <= HOVER_LIMIT else {})


def _title(trial: Row, names: Sequence[str], weights: FloatArray) -> str:
    shown = ", ".join(f"{clean(n)} {weight(w)}" for n, w in zip(names, weights, strict=True))
    return f"trial {count(trial.get('number'))}: {percent(trial.get('objective'), digits=2)} % ({shown})"


def _points(axes: Axes, x: FloatArray, y: FloatArray, colours: Sequence[str] | FloatArray, size: float) -> None:
    """One marker a trial, the best drawn last by its own function; each with the gid that hover text looks for."""
    for i in range(len(x)):
        axes.plot(
            [x[i]], [y[i]], "o", color=colours[i], markersize=size, markeredgecolor=INK, markeredgewidth=0.4,
            gid=f"trial{i}", clip_on=False,
        )  # fmt: skip


def _ring(axes: Axes, x: float, y: float, size: float) -> None:
    axes.plot([x], [y], "o", markersize=size + 7, fillstyle="none", color=COLOURS["soup"], markeredgewidth=2.2)


def _scale(values: FloatArray) -> tuple[FloatArray, ScalarMappable]:
    """(a colour for each value, the mappable for its bar)."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    low, high = float(values.min()), float(values.max())
    mappable = ScalarMappable(Normalize(low, high if high > low else low + 1), "viridis")
    return mappable.to_rgba(values), mappable


def _line(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Figure:
    made, axes = figure(8.2, 3.6)
    order = np.argsort(weights[:, 0], kind="stable")
    axes.plot(weights[order, 0], values[order], color=COLOURS["ingredient"], linewidth=1.0, zorder=1)
    _points(axes, weights[:, 0], values, [COLOURS["best_single"]] * len(values), 6.5)
    best = int(np.argmax(values))
    _ring(axes, weights[best, 0], values[best], 6.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(f"weight of {short(names[0], 40)} (the rest: {short(names[1], 40)})")
    axes.set_ylabel("search objective, %")
    return made


def _triangle(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Figure:
    """Barycentric plot: corners are the ingredients, the colour is the objective, the ring is the best trial."""
    made, axes = figure(8.2, 5.6)
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    _frame(axes, corners)
    spots = weights @ corners / weights.sum(axis=1, keepdims=True)
    colours, mappable = _scale(values)
    size = 12.0 if len(values) <= 80 else 7.0
    _points(axes, spots[:, 0], spots[:, 1], colours, size)
    best = int(np.argmax(values))
    _ring(axes, spots[best, 0], spots[best, 1], size)
    places = [
        (-0.03, -0.06, "left", "top"),
        (1.03, -0.06, "right", "top"),
        (0.5, math.sqrt(3) / 2 + 0.05, "center", "bottom"),
    ]
    for name, (x, y, across, along) in zip(names, places, strict=True):
        axes.text(x, y, short(name, 30), ha=across, va=along, fontsize=10, fontweight="bold")
    bar = made.colorbar(mappable, ax=axes, shrink=0.75, pad=0.04)
    bar.set_label("search objective, % (ring: best trial)")
    bar.outline.set_visible(False)
    return made


def _frame(axes: Axes, corners: FloatArray) -> None:
    """The triangle and its lines of weight 0.2, 0.4, 0.6 and 0.8."""
    loop = np.vstack([corners, corners[:1]])
    for share in (0.2, 0.4, 0.6, 0.8):
        for i in range(3):
            a, b, c = corners[i], corners[(i + 1) % 3], corners[(i + 2) % 3]
            ends = np.array([share * a + (1 - share) * b, share * a + (1 - share) * c])
            axes.plot(ends[:, 0], ends[:, 1], color=FAINT, linewidth=0.8, zorder=0)
    axes.plot(loop[:, 0], loop[:, 1], color=INK, linewidth=1.0, zorder=0.5)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _curves(names: Sequence[str], weights: FloatArray, values: FloatArray) -> Figure:
    """More than three ingredients: best so far by trial, and the objective against the distance from the best."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9.2, 3.8))
    left, right = made.subplots(1, 2, sharey=True)
    steps = np.arange(1, len(values) + 1)
    best = int(np.argmax(values))
    distance = np.abs(weights - weights[best]).sum(axis=1) / 2
    left.plot(steps, values, "o", color=COLOURS["ingredient"], markersize=4)
    left.step(steps, np.maximum.accumulate(values), where="post", color=COLOURS["soup"], linewidth=2.0)
    left.set_xlabel("trial (line: best so far)")
    left.set_ylabel("search objective, %")
    left.xaxis.get_major_locator().set_params(integer=True)
    _points(right, distance, values, [COLOURS["best_single"]] * len(values), 5.5)
    _ring(right, 0.0, values[best], 5.5)
    right.set_xlabel(f"share of the {len(names)} weights moved from the best trial's")
    made.subplots_adjust(wspace=0.08)
    return made
