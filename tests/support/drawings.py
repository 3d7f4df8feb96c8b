"""What a drawing shows, as numbers: bars, lines, legends and colours of matplotlib's axes, with their types."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from souping.core.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle


def bars(axes: Axes) -> list[Rectangle]:
    """All bars, in the order in which they were drawn; anything else that has an area fails."""
    from matplotlib.patches import Rectangle

    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(found) == len(axes.patches)
    return found


def line(drawn: Line2D) -> tuple[list[float], list[float]]:
    """Coordinates of its points: across, upright."""
    x, y = drawn.get_xdata(), drawn.get_ydata()
    return np.asarray(x, float).tolist(), np.asarray(y, float).tolist()


def segments(lines: Collection) -> list[FloatArray]:
    """Ends of each of its lines [2, 2]."""
    from matplotlib.collections import LineCollection

    assert isinstance(lines, LineCollection)
    return lines.get_segments()


def faces(points: Collection) -> FloatArray:
    """Colours of its points [N, 4]: red, green, blue, opacity."""
    from matplotlib.colors import to_rgba_array

    return to_rgba_array(points.get_facecolor())


def rims(points: Collection) -> FloatArray:
    """Colours of its points' outlines [N, 4]."""
    from matplotlib.colors import to_rgba_array

    return to_rgba_array(points.get_edgecolor())


def legend(axes: Axes) -> tuple[list[str], tuple[float, float]]:
    """Its texts, and the lower left corner that it is anchored to, as shares of the axes' sides.

    A sample of a colour is as long as a letter is high.
    """
    found = axes.get_legend()
    assert found is not None
    assert found.handlelength == 1
    box = found.get_bbox_to_anchor().transformed(axes.transAxes.inverted())
    return [text.get_text() for text in found.get_texts()], (box.x0, box.y0)
