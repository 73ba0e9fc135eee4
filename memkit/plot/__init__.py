"""Figures: every function takes ``ax=None`` and returns Axes; ``show(ax)`` displays it with alt text."""

from memkit.plot.audit import plot_deadlines, plot_ends, plot_future, plot_ttl_now
from memkit.plot.conformance import plot_matrix
from memkit.plot.expiry import plot_expiry, plot_lateness, plot_survival
from memkit.plot.history import plot_timeline
from memkit.plot.session import plot_lifetimes
from memkit.plot.style import Figure, alt_text, show

__all__ = [
    "Figure",
    "alt_text",
    "plot_deadlines",
    "plot_ends",
    "plot_expiry",
    "plot_future",
    "plot_lateness",
    "plot_lifetimes",
    "plot_matrix",
    "plot_survival",
    "plot_timeline",
    "plot_ttl_now",
    "show",
]
