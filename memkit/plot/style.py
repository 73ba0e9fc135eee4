"""The look of every figure: colours, time axes, titles, and ``show``, which follows JupyterLab's light or dark theme.

The palette is Okabe and Ito's; markers and line styles carry the same information as colours.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from memkit.render import duration, escaped

PAPER, INK, GREY, PALE, GRID, SHADE = "#ffffff", "#1a1a1a", "#6e6e6e", "#d9d9d9", "#ececec", "#f6f1ee"
RUST = "#a84600"
BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
DARK = {
    PAPER: "var(--jp-layout-color0, #111111)",
    INK: "#e8e8e8",
    GREY: "#a8a8a8",
    PALE: "#4a4a4a",
    GRID: "#333333",
    SHADE: "#2a211c",
    RUST: "#ffa066",
    BLUE: "#3fa7e6",
    VERMILLION: "#ff7f32",
    GREEN: "#2fc79a",
}
"""The colours on a dark background; the others have enough contrast on both."""
LINES: Sequence[Any] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (2, 1)))
STYLE: Any = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "text.color": INK,
    "axes.labelcolor": INK,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.hashsalt": "memkit",
    "svg.fonttype": "path",
}
LEGEND: Any = {"framealpha": 0.85, "edgecolor": "none", "facecolor": PAPER, "fontsize": 9, "labelcolor": INK}
TICKS_S = (0.001, 0.01, 0.1, 1, 10, 60, 600, 3_600, 21_600, 86_400, 604_800, 2_592_000, 31_536_000)
THEMES = (
    ".memkit-figure{margin:0;background:var(--memkit-ffffff);display:table}"
    ".memkit-figure svg{max-width:100%;height:auto}"
    + f".memkit-figure{{{';'.join(f'--memkit-{colour[1:]}:{colour}' for colour in DARK)}}}"
    + 'body[data-jp-theme-light="false"] .memkit-figure,.memkit-dark .memkit-figure'
    + f"{{{';'.join(f'--memkit-{colour[1:]}:{dark}' for colour, dark in DARK.items())}}}"
)
"""A style sheet for figures: JupyterLab sets ``data-jp-theme-light`` on the page's body."""


def alt_text(ax: Axes) -> str:
    """Return the content and the conclusion of a figure that one of memkit's functions has drawn, as text."""
    return str(ax.get_label())


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure for a notebook or a page; its text form is the alt text.

    Attributes:
        svg: The figure as an SVG file with a white background.
        alt: The alt text.
    """

    svg: bytes
    alt: str

    def to_svg(self) -> str:
        """Return the figure as an SVG element, its colours being the variables of ``THEMES``."""
        svg = self.svg.decode()
        svg = svg[svg.index("<svg") :]
        # Several figures share a page, and their ids must differ.
        own = sha256(self.svg).hexdigest()[:8]
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", svg)
        svg = re.sub("|".join(DARK), lambda match: f"var(--memkit-{match[0][1:]}, {match[0]})", svg)
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{escaped(self.alt)}" ', 1)

    def _repr_html_(self) -> str:
        return f'<style>{THEMES}</style><figure class="memkit-figure">{self.to_svg()}</figure>'

    def __repr__(self) -> str:
        return self.alt


def show(ax: Axes) -> Figure:
    """Render a figure for a notebook, with alt text; the same data gives the same bytes.

    The figure is closed in pyplot, so that a notebook does not show it a second time.

    Args:
        ax: Axes that one of memkit's functions has drawn on. Everything else in their figure is rendered too.

    Returns:
        The figure, which a notebook displays in the colours of JupyterLab's theme.
    """
    from matplotlib import pyplot as plt

    figure: Any = ax.figure
    alt = " ".join(filter(None, (alt_text(one) for one in figure.axes if not alt_text(one).startswith("<"))))
    with mpl.rc_context(STYLE):
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
    return Figure(out.getvalue(), alt)


def own_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the axes to draw on, in memkit's style: those given, or a new figure's of a size in inches."""
    if ax is None:
        from matplotlib import pyplot as plt

        with mpl.rc_context(STYLE):
            ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.figure.set_facecolor(PAPER)
    ax.set_facecolor(PAPER)
    ax.tick_params(colors=INK, which="both")
    for name, spine in ax.spines.items():
        spine.set_color(GREY)
        spine.set_visible(name in ("left", "bottom"))
    ax.grid(visible=True, color=GRID, lw=0.8)
    ax.set_axisbelow(True)
    return ax


def time_axis(axis: Any) -> None:
    """Make an axis of seconds logarithmic, with ticks at 1s, 1m, 1h, 1d and so on."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(TICKS_S))
    axis.set_major_formatter(FuncFormatter(lambda seconds, _: duration(seconds * 1000)))
    axis.set_minor_locator(NullLocator())


def count_axis(axis: Any) -> None:
    """Give an axis of counts whole ticks with thousands separators."""
    axis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def finish(ax: Axes, conclusion: str, source: str, *, alt: str) -> Axes:
    """Set the title to the conclusion, and the alt text; the line under the title, small, names the source."""
    title = "\n".join(textwrap.wrap(conclusion, 62, break_on_hyphens=False))
    ax.set_title(f"{title}\n", loc="left", fontsize=11.5, fontweight="bold", color=INK)
    ax.text(0, 1.012, source, transform=ax.transAxes, fontsize=9, color=GREY, va="bottom")
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.set_label(alt)
    return ax
