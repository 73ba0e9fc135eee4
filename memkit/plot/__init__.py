"""Figures: every function takes ``ax=None`` and returns Axes; ``show(ax)`` displays it with alt text."""

from memkit.plot.audit import plot_deadlines, plot_expired_and_evicted, plot_keys_without_writes, plot_remaining_ttls
from memkit.plot.conformance import plot_matrix
from memkit.plot.expiry import plot_expiry, plot_lateness, plot_survival
from memkit.plot.history import plot_timeline
from memkit.plot.session import plot_session_ttls
from memkit.plot.style import Figure, alt_text, show

__all__ = [
    "Figure",
    "alt_text",
    "plot_deadlines",
    "plot_expired_and_evicted",
    "plot_expiry",
    "plot_keys_without_writes",
    "plot_lateness",
    "plot_matrix",
    "plot_remaining_ttls",
    "plot_session_ttls",
    "plot_survival",
    "plot_timeline",
    "show",
]
