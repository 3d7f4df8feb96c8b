"""Figures of a report, as SVG inside HTML and as PNG: differences, correlation heatmap, search landscape.

Equal figures are equal bytes: matplotlib without pyplot, backends or dates.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray
from souping.core.unit import Unit
from souping.report.cells import TableCell
from souping.report.content import Matrix, PairedDifference, Report, TrialRow
from souping.report.format import clean, four_digits, in_words, p_value, rho, short
from souping.report.tables import compared, confidence_of, ingredients

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

# Text and lines, grid lines, and what is hollow: they follow the page's colours in HTML.
INK = "#1f2329"
FAINT = "#d5dae0"
PAPER = "#ffffff"
# Text on light and on dark cells, which does not.
DARK = "#111214"
LIGHT = "#fdfdfd"

PHONE = 362
"""Pixels that a figure has on a phone of 390."""
LEAST_TEXT = 9.0
"""Pixels of the smallest text that can be read: a figure does not shrink further, but scrolls."""
UNDATED = dict.fromkeys(("Date", "Creator", "Format", "Type"))
COLOURS: Mapping[str, str] = {
    "soup": "#d55e00",
    "uniform_selected": "#009e73",
    "uniform_topk": "#cc79a7",
    "uniform_all": "#56b4e9",
    "router": "#e69f00",
    "best_candidate": "#0072b2",
    "ingredient": "#8a8f98",
    "candidate": "#b6bac1",
}
"""One colour per kind of row: the Okabe-Ito palette, told apart by colour-blind readers."""

SETTINGS: Mapping[str, str | float | bool] = {
    "svg.hashsalt": "souping",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """Figure with its alternative text and its caption; `name` is the stem of its file, and unique in a page."""

    name: str
    figure: Figure
    alt: str
    caption: str = ""

    def svg(self) -> str:
        """The figure as an `<svg>` element to stand inside HTML, with the page's text colours and at most its width."""
        with canvas():
            stream = io.StringIO()
            self.figure.savefig(
                stream, format="svg", bbox_inches="tight", pad_inches=0.06, metadata=UNDATED
            )
        head, body = re.findall(r"(<svg[^>]*>)(.*)", _page_colours(stream.getvalue()), re.DOTALL)[0]
        # Several figures stand in one page, where each id must be unique.
        body = re.sub(r'\bid="', f'id="{self.name}-', body)
        body = body.replace("url(#", f"url(#{self.name}-")
        body = body.replace('href="#', f'href="#{self.name}-')
        view = re.findall(r'viewBox="[\d. -]+"', head)[0]
        # A point is 4/3 pixels.
        pixels = float(re.findall(r'width="([\d.]+)pt"', head)[0]) * 4 / 3
        # Matplotlib before 3.10 writes `font: 700 6.5px ...`.
        sizes = re.findall(r"font(?:-size)?: (?:\w+ )*?([\d.]+)px", body)
        smallest = min(map(float, sizes)) * 4 / 3
        least = math.ceil(pixels * LEAST_TEXT / smallest)
        size = f"max-width:{pixels:.0f}px;min-width:{least}px"
        wide = ' class="wide"' if least > PHONE else ""
        label = html.escape(self.alt, quote=True)
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return (
            f'<svg {spaces} {view}{wide} role="img" aria-label="{label}" style="{size}">'
            f"{body.rstrip()}"
        )

    def png(self, dpi: int = 144) -> bytes:
        """The figure as a PNG file on white, for places that show no SVG."""
        with canvas():
            stream = io.BytesIO()
            undated = {"Software": None}
            self.figure.savefig(
                stream,
                format="png",
                dpi=dpi,
                bbox_inches="tight",
                pad_inches=0.1,
                metadata=undated,
                facecolor="white",
            )
        return stream.getvalue()


def _page_colours(svg: str) -> str:
    """An SVG whose lines and text have the page's text colour and whose grid its border colour: a dark page is
    readable too."""
    # What remains of matplotlib's metadata is of no use in a page.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = (
        svg.replace(INK, "currentColor").replace(FAINT, "var(--line)").replace(PAPER, "var(--page)")
    )
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")


@contextmanager
def canvas() -> Iterator[None]:
    """While the block runs, matplotlib has the settings of our figures instead of those of the user's matplotlibrc.

    There is no warning of a glyph that the font lacks: the browser will show it in one of the reader's fonts.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]  # it lists its keys as literals
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def scale(low: float, high: float, colours: str) -> ScalarMappable:
    """The mapping of values from `low` to `high` to `colours`, one of matplotlib's colour maps."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), colours)


def colour_bar(plot: Figure, axes: Axes, mappable: ScalarMappable, label: str) -> None:
    """Add a colour bar beside the axes, which says what their colours mean."""
    bar = plot.colorbar(mappable, ax=axes, shrink=0.75, pad=0.04)
    bar.set_label(label)
    bar.outline.set_visible(False)


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, and its only axes (call it inside `canvas`)."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(width, height))
    return plot, plot.subplots()


def forest(report: Report) -> Drawing | None:
    """Soup minus each other model: the point, its interval, and the line of no difference."""
    unit = report.unit
    models = []
    pairs = []
    for model, pair in compared(report):
        if pair.difference is not None:
            models.append(model)
            pairs.append(pair)
    if not pairs:
        return None
    labels = [_model_label(model.cell) for model in models]
    colours = [COLOURS.get(model.row.kind, INK) for model in models]
    columns = {
        unit.heading("score"): [unit.score(model.row.objective.mean) for model in models],
        "difference": [unit.score(pair.difference, sign=True) for pair in pairs],
        "p": [p_value(pair.p_shown) for pair in pairs],
    }
    below = f"soup minus the other, {unit.name} ({confidence_of(pairs)} interval)"
    filled = [True] * len(pairs)
    plot = _differences(unit, pairs, labels, colours, below, columns, filled)
    alt = f"Forest plot: the soup minus each of {len(pairs)} other models."
    return Drawing("forest", plot, alt, f"{unit.better_side} of the line the soup is better.")


def category_gains(report: Report) -> Drawing | None:
    """Soup minus best candidate, category by category, the largest gain first; significant ones have full dots."""
    unit = report.unit
    categories = report.losses.categories if report.losses else ()
    pairs = [pair for pair in categories if pair.difference is not None]
    if not pairs or report.losses is None:
        return None
    pairs.sort(key=lambda pair: -unit.gain(pair.difference))
    against = clean(report.losses.against)
    labels = [short(pair.category) for pair in pairs]
    colours = [_winner_colour(unit, pair) for pair in pairs]
    columns = {"difference": [unit.score(pair.difference, sign=True) for pair in pairs]}
    below = f"soup minus {short(against, 40)}, {unit.name}"
    filled = [pair.verdict in ("higher", "lower") for pair in pairs]
    plot = _differences(unit, pairs, labels, colours, below, columns, filled)
    whiskers = f"{confidence_of(pairs)} intervals that hold for all categories at once"
    caption = (
        f"Orange: the soup is ahead; blue: {against} is. "
        f"Full dots: more than chance explains; whiskers are {whiskers}."
    )
    alt = f"Differences of the soup to {against} in {len(pairs)} categories."
    return Drawing("categories", plot, alt, caption)


def _differences(
    unit: Unit,
    pairs: Sequence[PairedDifference],
    labels: Sequence[str],
    colours: Sequence[str],
    below: str,
    columns: Mapping[str, Sequence[str]],
    filled: Sequence[bool],
) -> Figure:
    """A chart of a row per pair: a point with its interval below its label, and to the right `columns` {heading: cell
    per pair}. It is narrow enough for a phone.

    `labels`, `colours` and `filled` (else the point is a ring) are per pair too; `below` is the label of the
    horizontal axis.
    """
    with canvas():
        plot, axes = figure(3.3, 0.7 + 0.42 * len(pairs))
        axes.axvline(0, color=INK, linewidth=1.0)
        for y, (pair, colour) in enumerate(zip(pairs, colours, strict=True)):
            _whisker(axes, unit, pair, y, colour, ring=not filled[y])
            # Lines do not run through the label.
            axes.text(
                0, y - 0.4, labels[y], transform=axes.get_yaxis_transform(), va="center",
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0},
            )  # fmt: skip
        # The labels stand in the chart already.
        name_rows(axes, [""] * len(pairs), below)
        for place, (heading, column) in enumerate(columns.items()):
            x = 1.22 + 0.32 * place
            _column_text(axes, x, -0.9, heading, "bold")
            for y, text in enumerate(column):
                _column_text(axes, x, y, text, "normal")
    return plot


def _whisker(
    axes: Axes, unit: Unit, pair: PairedDifference, y: int, colour: str, ring: bool
) -> None:
    """Draw a known difference as a dot or a ring in row `y`, with a line for its interval if both limits are known."""
    values = (pair.difference, pair.low, pair.high)
    middle, *limits = [unit.scale * value for value in values if value is not None]
    if len(limits) == 2:
        axes.plot(limits, [y, y], color=colour, linewidth=2.2, solid_capstyle="round", zorder=2)
    face = colour
    edge = PAPER
    if ring:
        face = PAPER
        edge = colour
    axes.plot(
        [middle], [y], "o", color=colour, markersize=7.5, markerfacecolor=face,
        markeredgecolor=edge, markeredgewidth=1.4, zorder=3,
    )  # fmt: skip


def _column_text(axes: Axes, x: float, y: float, text: str, weight: str) -> None:
    """Write a cell beside the chart: `x` is a share of the chart's width, `y` a row, `weight` the font's weight."""
    place = axes.get_yaxis_transform()
    axes.text(x, y, text, transform=place, va="center", ha="right", fontweight=weight)


def name_rows(axes: Axes, labels: Sequence[str], below: str) -> None:
    """Label the rows of a chart from the top down, and with `below` its horizontal axis."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlabel(below)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _model_label(cell: TableCell) -> str:
    """The name of a model, shortened, and its roles."""
    return ", ".join(filter(None, [short(cell.text, 26), short(cell.sub, 46)]))


def _winner_colour(unit: Unit, pair: PairedDifference) -> str:
    """The colour of the better of soup and best candidate; grey if they are equal but for rounding."""
    gain = round(unit.gain(pair.difference), 12)
    if gain > 0:
        return COLOURS["soup"]
    if gain < 0:
        return COLOURS["best_candidate"]
    return COLOURS["ingredient"]


def heatmap(report: Report) -> Drawing | None:
    """Correlation of every two categories over models, low-correlation ones marked; None if it was not computed."""
    selection = report.selection
    if selection is None or selection.correlation is None:
        return None
    caption = "Bold with a dot: low-correlation categories."
    table = selection.correlation
    marked = selection.low_correlation
    return correlations("heatmap", table.categories, table.matrix, marked, caption)


def correlations(
    name: str, names: Sequence[str], matrix: Matrix, marked: Sequence[str], caption: str
) -> Drawing | None:
    """A heatmap of the correlations of `names` [N] over models; `marked` names stand out. None if N < 2."""
    if len(names) < 2 or not matrix:
        return None
    with canvas():
        side = max(2.6, 0.52 * len(names))
        plot, axes = figure(side + 1.4, side)
        labels = [("● " if name in marked else "") + short(name, 24) for name in names]
        heat_panel(axes, matrix, labels, size=7.5)
        axes.set_yticks(range(len(names)), labels)
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            for tick, category in zip(ticks, names, strict=True):
                tick.set_fontweight("bold" if category in marked else "normal")
        colour_bar(plot, axes, scale(-1, 1, "RdBu_r"), "correlation over models")
    alt = f"Heatmap of the correlation between {len(names)} categories."
    return Drawing(name, plot, alt, caption)


def heat_panel(axes: Axes, matrix: Matrix, labels: Sequence[str], size: float) -> None:
    """Draw a square matrix of correlations as colours; on them numbers of this font size, or none if it is 0."""
    values = np.array(matrix, dtype=float)
    axes.set_facecolor("#e9ebee")
    axes.pcolormesh(
        range(len(values)),
        range(len(values)),
        values,
        cmap="RdBu_r",
        vmin=-1,
        vmax=1,
        edgecolors=PAPER,
    )
    if size:
        for (i, j), value in np.ndenumerate(values):
            # Both ends of the colour map are dark.
            ink = LIGHT if abs(value) > 0.62 else DARK
            axes.text(j, i, rho(value), ha="center", va="center", fontsize=size, color=ink)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.set_xticks(range(len(values)), labels, rotation=40, ha="right", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def landscape(report: Report, trials: Sequence[TrialRow]) -> Drawing | None:
    """Scores of the trials over their weights; None for one ingredient or fewer than two trials.

    Two ingredients give a curve over the first one's weight, three a triangle, more a scatter plot over the
    distance from the chosen weights.
    """
    unit = report.unit
    tried = [trial for trial in trials if trial.objective is not None]
    names = ingredients(report, tried)
    if len(names) < 2 or len(tried) < 2:
        return None
    weights = np.zeros((len(tried), len(names)))  # [N, K]
    for number, trial in enumerate(tried):
        # A cell of trials.csv may be empty.
        weights[number] = [trial.weights.get(name) or 0.0 for name in names]
    values = np.array([unit.scale * (trial.objective or 0.0) for trial in tried])
    soup = report.recipe.id if report.recipe else None
    best = int(np.argmax(unit.inner(values)))
    # The soup of a finished run; before it is written, the best trial.
    chosen = next((i for i, trial in enumerate(tried) if trial.recipe_id == soup), best)
    label = f"overall score on the search split, {unit.symbol}"
    with canvas():
        if len(names) == 2:
            plot, _ = curve(weights[:, 0], values, chosen, weight_axis(names), label)
        elif len(names) == 3:
            low = float(values.min())
            high = float(values.max())
            if high == low:
                # A colour scale needs two ends.
                high = low + 1
            shades = scale(low, high, unit.colours("viridis"))
            label += " (ring: chosen soup)"
            plot = triangle(names, weights, values, weights[chosen], shades, label)
        else:
            # Half the L1 distance: the share of the weight that is elsewhere.
            distance = np.abs(weights - weights[chosen]).sum(axis=1) / 2
            below = "distance from the chosen weights"
            plot, _ = curve(distance, values, chosen, below, label, marks="o")
    pairs = zip(names, weights[best], strict=True)
    mixture = ", ".join(f"{clean(name)} {four_digits(share)}" for name, share in pairs)
    alt = f"Search landscape: {len(tried)} trials over the weights of {in_words(names)}. Best: {mixture}"
    return Drawing("landscape", plot, alt)


def ring(axes: Axes, x: float, y: float, size: float) -> None:
    """Mark the chosen soup at (x, y) by a ring around its point, whose size is `size`."""
    axes.plot(
        [x],
        [y],
        "o",
        markersize=size + 7,
        fillstyle="none",
        color=COLOURS["soup"],
        markeredgewidth=2.2,
    )


def weight_axis(names: Sequence[str]) -> str:
    """Label of the axis of the first of two ingredients' weights."""
    return f"weight of {short(names[0], 40)} (the rest: {short(names[1], 40)})"


def curve(
    across: FloatArray, values: FloatArray, chosen: int, below: str, beside: str, marks: str = "o-"
) -> tuple[Figure, Axes]:
    """Values [N] over `across` [N], with a ring around the one at index `chosen`.

    `below` and `beside` label the axes; `marks` is matplotlib's format: points, joined by default.
    """
    plot, axes = figure(5.2, 3.0)
    order = np.argsort(across, kind="stable")
    axes.plot(
        across[order],
        values[order],
        marks,
        color=COLOURS["best_candidate"],
        markersize=5.0,
        linewidth=1.0,
    )
    ring(axes, across[chosen], values[chosen], size=5.0)
    axes.set_xlabel(below)
    axes.set_ylabel(beside)
    return plot, axes


CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
"""(x, y) of the three ingredients: an equilateral triangle."""


def triangle(
    names: Sequence[str],
    weights: FloatArray,
    values: FloatArray,
    chosen: FloatArray,
    shades: ScalarMappable,
    label: str,
    rims: Sequence[str] = (),
) -> Figure:
    """Barycentric plot of weights [N, 3]: corners are the ingredients, colours the values [N], the ring `chosen` [3].

    `label` is the label of the colour bar; `rims` [N] are colours around the points, by default thin and dark.
    """
    plot, axes = figure(6.2, 3.7)
    outline = np.vstack([CORNERS, CORNERS[:1]])
    axes.plot(outline[:, 0], outline[:, 1], color=INK, linewidth=1.0, zorder=0.5)
    # Shares of the sum of the weights, which need not be 1 (`optimiser.scales`).
    x, y = (weights @ CORNERS / weights.sum(axis=1, keepdims=True)).T
    # Many points are drawn smaller, so that they do not cover each other.
    size = 12.0
    if len(values) > 80:
        size = 7.0
    edges = rims or INK
    width = 1.3 if rims else 0.4
    axes.scatter(
        x, y, c=shades.to_rgba(values), s=size**2, edgecolors=edges, linewidths=width, zorder=2
    )
    place = chosen @ CORNERS / chosen.sum()
    ring(axes, place[0], place[1], size)
    # The names stand below the two lower corners and above the upper one.
    for name, (x, y), shift in zip(names, CORNERS, (-0.09, -0.09, 0.08), strict=True):
        axes.text(
            x, y + shift, short(name, 30), ha="center", va="center", fontsize=10, fontweight="bold"
        )
    axes.set_aspect("equal")
    axes.set_axis_off()
    colour_bar(plot, axes, shades, label)
    return plot
