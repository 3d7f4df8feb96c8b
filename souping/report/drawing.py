"""A figure that stands in a page: how all of them look, and the forms they take (SVG inside HTML, PNG).

They come out byte for byte the same: matplotlib without pyplot, backends or dates.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#1f2329", "#d5dae0", "#ffffff"
"""Text and lines, grid lines, and what is hollow: they follow the page's colours in HTML."""
DARK, LIGHT = "#111214", "#fdfdfd"
"""Text on light and on dark cells, which does not."""

UNDATED = dict.fromkeys(("Date", "Creator", "Format", "Type"))
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
            self.figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.06, metadata=UNDATED)
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


def _page_colours(svg: str) -> str:
    """Ink becomes the page's text colour and the grid its border colour, so that a dark page is readable too."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace(FAINT, "var(--line)").replace(PAPER, "var(--page)")
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


def scale(low: float, high: float, colours: str) -> ScalarMappable:
    """Values as the colours of one of matplotlib's maps."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(low, high), colours)


def colour_bar(
    made: Figure, axes: Axes, mappable: ScalarMappable, label: str, pad: float = 0.04, shrink: float = 0.75
) -> None:
    """The bar beside axes that says what their colours are."""
    bar = made.colorbar(mappable, ax=axes, shrink=shrink, pad=pad)
    bar.set_label(label)
    bar.outline.set_visible(False)


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of inches and its only axes (call it inside `canvas`)."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height))
    return made, made.subplots()
