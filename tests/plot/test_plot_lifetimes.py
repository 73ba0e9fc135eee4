"""The figure of a session's lifetimes: what it concludes, in words, and that it draws what it concludes."""

from __future__ import annotations

import pytest

from memkit.formats.model import Problem
from memkit.inspect.report import KeyReport, SessionReport

plot = pytest.importorskip("memkit.plot.expiry")


def report(*keys: tuple[str, str, float | None]) -> SessionReport:
    found = tuple(KeyReport(name, "string", part, ttl_s, 100, 0, "raw") for name, part, ttl_s in keys)
    problems: tuple[Problem, ...] = ()
    return SessionReport("agno", "s$1$", (), found, problems, (), revealed=False)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([("a", "run", 1000.0), ("b", "run", 999.8)], "All 2 keys with a TTL expire together, in 16m 40s."),
        ([("a", "run", 604_800.0)], "The session expires, in 7d."),
        ([("a", "run", 60.0), ("b", "run", 999.8)],
         "1 of 2 keys expires in 1m, the last in 16m 40s: mixed TTLs."),
        ([("a", "run", None)], "No key has a TTL: the session remains until it is deleted or evicted."),
        ([("a", "run", 1000.0), ("b", "run", None)], "The session expires, in 16m 40s. 1 key has no TTL."),
        ([("a", "run", 1000.0), ("b", "shared index", None)], "The session expires, in 16m 40s."),
    ],
)  # fmt: skip
def test_the_figure_says_what_it_shows(keys: list[tuple[str, str, float | None]], says: str) -> None:
    figure = plot.show(plot.plot_lifetimes(report(*keys)))
    assert repr(figure) == f"Time left of the {len(keys)} keys of a session of agno. {says}"


def test_like_keys_share_a_line_and_an_early_one_stands_out() -> None:
    keys = [(f"run:{at}", "run", 1000.0 + at / 10) for at in range(40)]
    axes = plot.plot_lifetimes(report(*keys, ("agno:sessions:$x$" * 3, "primary", 5.0), ("i", "shared index", None)))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "primary  agno:sessions:$…sessions:$x$", "run  × 40", "shared index  i",
    ]  # fmt: skip
    assert [line.get_marker() for line in axes.lines] == ["v", "o", ">"]
    assert axes.get_xlabel() == "time left (log)"
    plot.show(axes)


def test_it_draws_where_it_is_told_to() -> None:
    from matplotlib import pyplot as plt

    _, axes = plt.subplots()
    assert plot.plot_lifetimes(report(("a", "run", 60.0)), ax=axes) is axes
    plt.close()
