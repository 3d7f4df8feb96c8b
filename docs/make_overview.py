"""Draw a picture for docs/reading-a-report.md: `python docs/make_overview.py RUN_DIR docs/images/overview.png`.

Left: the response surface of three ingredients. Right: the soup minus every other model on the test split.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.core.fields import load_json
from souping.core.json_fields import list_at, part, texts
from souping.core.unit import Unit
from souping.report.content import Report, RowDifference
from souping.report.format import ROW_KINDS
from souping.report.plots import COLOURS, CORNERS, FAINT, INK, PAPER, Drawing, canvas, ring, scale
from souping.report.run_files import read_report
from souping.report.tables import JsonRow, ShownModel, compared

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (10.4, 3.7)
"""Inches; the page shows it about 830 pixels wide, where 10 points are 11 pixels."""


def draw(report: Report, surface: JsonRow) -> Drawing:
    from matplotlib.figure import Figure

    with canvas():
        made = Figure(figsize=SIZE)
        left, right = made.subplots(1, 2, width_ratios=(1.0, 1.15))
        soups(left, report.unit, surface)
        differences(right, report.unit, compared(report))
        made.tight_layout(w_pad=2.5)
        for axes, title in (
            (left, "Search: soups of three ingredients"),
            (right, "Test split"),
        ):
            made.text(axes.get_position().x0, 0.99, title, fontsize=11, fontweight="bold")
    return Drawing("overview", made, "")


def soups(axes: Axes, unit: Unit, data: JsonRow) -> None:
    """What the search's model says of every soup, minus the uniform soup."""
    weights, chosen = (np.array(list_at(data, key), dtype=float) for key in ("weights", "chosen"))
    low, value, high = (
        unit.scale * np.array(part(data, "objective")[key]) for key in ("low", "difference", "high")
    )
    reach = float(np.abs(value).max())
    shades = scale(-reach, reach, unit.colours("RdBu"))
    rims = [INK if sure else FAINT for sure in (low > 0) | (high < 0)]
    x, y = (weights @ CORNERS).T
    axes.fill(*CORNERS.T, facecolor="none", edgecolor=INK, linewidth=1.0)
    axes.scatter(x, y, c=shades.to_rgba(value), s=95, edgecolors=rims, linewidths=1.3, zorder=2)
    ring(axes, *(chosen @ CORNERS), 10)
    for name, (across, up), shift in zip(
        texts(data, "ingredients"), CORNERS, (-0.12, -0.12, 0.1), strict=True
    ):
        axes.text(across, up + shift, name, ha="center", va="center", fontsize=10)
    outline = "ring: chosen soup; dark outline: 95 % interval excludes 0"
    axes.text(0.5, -0.3, outline, ha="center", va="center", fontsize=9)
    axes.set_aspect("equal")
    axes.set_axis_off()
    bar = axes.figure.colorbar(shades, ax=axes, shrink=0.8, pad=0.06)
    bar.set_label(f"score minus uniform soup ({unit.name})", fontsize=10)
    bar.outline.set_visible(False)


def differences(axes: Axes, unit: Unit, pairs: list[tuple[ShownModel, RowDifference]]) -> None:
    labels = []
    for place, (model, pair) in enumerate(pairs):
        kind = model.row.kind
        limits = [unit.scale * (limit or 0.0) for limit in (pair.low, pair.high)]
        axes.plot(
            limits, [place, place], color=COLOURS[kind], linewidth=2.4, solid_capstyle="round"
        )
        middle = unit.scale * (pair.difference or 0.0)
        axes.plot([middle], [place], "o", color=COLOURS[kind], markersize=8, markeredgecolor=PAPER)
        name = model.row.name
        labels.append(
            f"{name} (best candidate)" if kind == "best_candidate" else ROW_KINDS.get(name, name)
        )
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(labels)), labels, fontsize=10)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"chosen soup minus the model ({unit.name}, 95 % interval)", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    report = read_report(options.run / "report.json")
    assert report.comparisons, "the run opened no test split"
    analyses = part(load_json(options.run / "report.json", dict[str, Any]), "analyses")
    options.out.write_bytes(draw(report, part(analyses, "surface")).png())


if __name__ == "__main__":
    main()
