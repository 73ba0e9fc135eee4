"""A figure of the conformance matrix: which store failed which case."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from memkit.conformance.matrix import Matrix
from memkit.plot.style import GREEN, GREY, INK, STYLE, VERMILLION

LOOKS: dict[str, dict[str, Any]] = {
    "passed": {"marker": "o", "color": GREEN, "markersize": 6, "label": "passed"},
    "failed": {"marker": "X", "color": VERMILLION, "markersize": 9, "label": "failed"},
    "skipped": {
        "marker": "_",
        "color": GREY,
        "markersize": 8,
        "label": "not asked, or not judged; the answer says why",
    },
}


def plot_matrix(matrix: Matrix, ax: Axes | None = None) -> Axes:
    """Draw a row a case and a column a store: a dot passed, a cross failed, a dash was not asked."""
    cases = [row[0] for row in matrix.rows]
    if ax is None:
        from matplotlib import pyplot as plt

        with mpl.rc_context(STYLE):
            ax = plt.subplots(figsize=(2.6 + 0.62 * len(matrix.stores), 1.8 + 0.24 * len(cases)), layout="constrained")[
                1
            ]
    for outcome, look in LOOKS.items():
        places = [
            (column, row)
            for column, answer in enumerate(matrix.stores)
            for row, case in enumerate(cases)
            if matrix.outcome(answer["store"], case) == outcome
        ]
        ax.plot([column for column, _ in places], [row for _, row in places], linestyle="", **look)
    _frame(ax, cases, [f"{one['store']} {one['version']}" for one in matrix.stores])
    ax.set_label(_conclusion(matrix, len(cases)))
    return ax


def _frame(ax: Axes, cases: list[str], stores: list[str]) -> None:
    ax.set(xlim=(-0.6, len(stores) - 0.4), ylim=(len(cases) - 0.4, -0.6), yticks=range(len(cases)), yticklabels=cases)
    ax.set_xticks(range(len(stores)), stores, rotation=50, ha="left", rotation_mode="anchor", color=INK)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, colors=INK)
    ax.grid(visible=True, color="#ececec", lw=0.8)
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=1, frameon=False, labelcolor=INK)


def _conclusion(matrix: Matrix, cases: int) -> str:
    counts = {one["store"]: len(matrix.failures(one["store"])) for one in matrix.stores}
    told = ", ".join(f"{store} {count}" for store, count in sorted(counts.items(), key=lambda pair: pair[1]))
    return f"Cases failed, of {cases}, by store: {told}."
