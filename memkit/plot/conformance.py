"""plot_matrix: which library failed which conformance case."""

from typing import Any

from matplotlib.axes import Axes

from memkit.conformance.matrix import Matrix
from memkit.plot.style import GREEN, GREY, INK, VERMILLION, own_axes

MARKERS: dict[str, dict[str, Any]] = {
    "passed": {"marker": "o", "color": GREEN, "markersize": 5, "label": "passed"},
    "failed": {"marker": "X", "color": VERMILLION, "markersize": 8, "label": "failed"},
    "skipped": {"marker": "_", "color": GREY, "markersize": 8, "label": "skipped: not claimed, or too slow to judge"},
}


def plot_matrix(matrix: Matrix, ax: Axes | None = None) -> Axes:
    """Draw a row for each case and a column for each store.

    Args:
        matrix: The results.
        ax: Axes to draw on; new ones by default.

    Returns:
        The axes; their label states how many cases each store failed.
    """
    cases = matrix.cases
    ax = own_axes(ax, (2.5 + 0.55 * len(matrix.stores), 1.8 + 0.21 * len(cases)))
    for outcome, marker in MARKERS.items():
        places = [
            (column, row)
            for column, result in enumerate(matrix.stores)
            for row, case in enumerate(cases)
            if matrix.outcome(result["store"], case) == outcome
        ]
        ax.plot([column for column, _ in places], [row for _, row in places], linestyle="", **marker)
    stores = [f"{result['store']} {result['version']}" for result in matrix.stores]
    ax.set(xlim=(-0.6, len(stores) - 0.4), ylim=(len(cases) - 0.4, -0.6), yticks=range(len(cases)), yticklabels=cases)
    ax.set_xticks(range(len(stores)), stores, rotation=50, ha="left", rotation_mode="anchor", color=INK)
    ax.xaxis.tick_top()
    ax.tick_params(length=0, colors=INK)
    for spine in ax.spines.values():
        spine.set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.01), ncols=3, frameon=False, labelcolor=INK)
    counts = {result["store"]: len(matrix.failures(result["store"])) for result in matrix.stores}
    failed = ", ".join(f"{store} {count}" for store, count in sorted(counts.items(), key=lambda pair: pair[1]))
    ax.set_label(f"Cases failed, of {len(cases)}, by store: {failed}.")
    return ax
