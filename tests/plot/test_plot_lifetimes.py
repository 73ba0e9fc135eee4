"""The figure of a session's remaining TTLs: its conclusion and its lines."""

from __future__ import annotations

import pytest

from memkit.formats.model import Problem
from memkit.inspect.report import KeyReport, SessionReport
from memkit.render import counted

plot = pytest.importorskip("memkit.plot")


def report(*keys: tuple[str, str, float | None]) -> SessionReport:
    found = tuple(KeyReport(name, "string", part, ttl_s, 100, 0, "raw") for name, part, ttl_s in keys)
    problems: tuple[Problem, ...] = ()
    return SessionReport("agno", "s$1$", (), found, problems, (), revealed=False)


@pytest.mark.parametrize(
    ("keys", "conclusion"),
    [
        ([("a", "run", 1000.0), ("b", "run", 999.8)], "All 2 keys with a TTL expire together, in 16m 40s."),
        ([("a", "run", 604_800.0)], "The session expires, in 7d."),
        ([("a", "run", 60.0), ("b", "run", 999.8)],
         "1 of 2 keys expires in 1m, the last in 16m 40s: the session will be partly expired."),
        ([("a", "run", None)], "No key has a TTL: the session never expires."),
        ([("a", "run", 1000.0), ("b", "run", None)], "The session expires, in 16m 40s. 1 key has no TTL."),
        ([("a", "run", 1000.0), ("b", "shared index", None)], "The session expires, in 16m 40s."),
    ],
)  # fmt: skip
def test_the_alt_text_ends_with_the_conclusion(keys: list[tuple[str, str, float | None]], conclusion: str) -> None:
    figure = plot.show(plot.plot_lifetimes(report(*keys)))
    assert repr(figure) == f"Remaining TTL of {counted(len(keys), 'key')} of one session of agno. {conclusion}"


def test_similar_keys_share_a_line() -> None:
    keys = [(f"run:{at}", "run", 1000.0 + at / 10) for at in range(40)]
    axes = plot.plot_lifetimes(report(*keys, ("agno:sessions:$x$" * 3, "primary", 5.0), ("i", "shared index", None)))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "primary  agno:sessions:$…sessions:$x$", "run  × 40", "shared index  i",
    ]  # fmt: skip
    assert [line.get_marker() for line in axes.lines] == ["v", "o", ">"]
    assert axes.get_xlabel() == "remaining TTL (log)"
    plot.show(axes)


def test_session_ttls_are_drawn_on_given_axes() -> None:
    from matplotlib import pyplot as plt

    _, axes = plt.subplots()
    assert plot.plot_lifetimes(report(("a", "run", 60.0)), ax=axes) is axes
    plt.close()
