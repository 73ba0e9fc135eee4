"""The triage report: one audit of a live server as one HTML page for a ticket, and the tables of notebook 02.

The page loads nothing and shows no message, no password and no session's name.
"""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from importlib import resources
from pathlib import Path
from secrets import token_bytes
from string import Template
from typing import Any

from memkit.audit.finding import BOUND_TEXTS, Finding
from memkit.audit.report import AuditReport
from memkit.audit.run import audit
from memkit.audit.sampling import KeyFacts, Progress
from memkit.config import expected
from memkit.errors import MemkitError, PolicyError
from memkit.history.changes import time_of
from memkit.history.run import history
from memkit.notebook.demo import EXPECTATIONS, demo_server, load_incident
from memkit.readonly.values import to_name
from memkit.render import Table, ago, counted, duration, escaped, printable, utc_text

MAX_ROWS = 20
FIRST_ROWS = 5
"""The rows of affected sessions on the page's first screen."""


class ExpectationNeeded(PolicyError):
    """A server was given without an expected TTL, and none can be guessed."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()  # a notebook shows the question alone


def examine(url: str, expectations: Iterable[str] = ()) -> AuditReport:
    """Audit a live server, read-only.

    Args:
        url: A Redis URL.
        expectations: The expected TTLs, such as ``"chat:*=7d"``; none: those of the configuration file.

    Returns:
        The report.

    Raises:
        ExpectationNeeded: No expectation is given. The message lists the prefixes and TTLs that were found.
        PolicyError: An expectation is invalid.
    """
    expect = expected(expectations)
    report = audit(url, expect=expect)
    if not expect:
        found = "\n".join(f"  {one.message}" for one in report.seen)
        raise ExpectationNeeded(
            "Which TTL should these sessions have? Set expectations in the cell above, such as "
            f"['chat:*=7d'], or start with: memkit lab --url URL --expect 'chat:*=7d'\n\nFound on the server:\n{found}"
        )
    return report


def triage(
    url: str | None,
    *,
    expect: Sequence[str] = (),
    output: str | Path = "triage.html",
    at: datetime | None = None,
    db: int | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a server or a file, read-only, and write the report as one HTML file.

    Args:
        url: A Redis URL, or a file as for ``audit``; None: the demo incident on a private server.
        expect: The expected TTLs, such as ``"chat:*=7d"``; none: those of the configuration file.
        output: The file to write.
        at: A timezone-aware moment of an append-only directory; None: its end.
        db: The database of a file; None: 0, or the one with most keys if 0 has none.
        progress: Called with the number of checked keys and of all keys.

    Returns:
        The audit in the report.

    Raises:
        PolicyError: An expectation is invalid.
        MemkitError: The file cannot be written, or matplotlib is not installed.
    """
    expectations = expected(expect) if url or expect else []
    path = Path(output)
    if path.is_dir():
        raise MemkitError(f"{output} is a folder; give -o the name of a file, such as {path / 'triage.html'}")
    if url:
        report = audit(url, expect=expectations, at=at, db=db, progress=progress)
    else:
        with demo_server() as server:
            incident = load_incident(server)
            report = audit(incident.url, expect=expectations or expected(EXPECTATIONS), progress=progress)
    path.write_text(page(report), "utf-8")
    return report


def affected(report: AuditReport, *, reveal: bool = False, limit: int = MAX_ROWS) -> Table:
    """Return the sessions that expire first, as a table.

    Args:
        report: What ``audit`` returned.
        reveal: Show the keys' names. Otherwise they are hashed with a random key, so that the table can be passed on.
        limit: The number of rows.
    """
    shown = (one for one in report.sessions if one.deadline_ms is not None)
    volatile = sorted(shown, key=lambda one: one.deadline_ms or 0)
    salt = token_bytes(8)

    def row(one: KeyFacts) -> tuple[str, ...]:
        name = "#" + blake2b(one.key, key=salt, digest_size=4).hexdigest()
        if reveal:
            name = printable(to_name(one.key))
        expires_at: datetime = time_of(one.deadline_ms or 0)
        last_set = "unknown" if one.set_ms is None else duration(one.set_ms)
        return name, one.kind, duration(one.left_ms), last_set, f"{expires_at:%Y-%m-%d %H:%M:%S}"

    title = f"The sessions that expire first{'' if reveal else ', names hashed'}"
    columns = ("session", "type", "remaining TTL", "TTL last set", "expires at (UTC)")
    return Table(title, columns, [row(one) for one in volatile[:limit]], total=len(volatile))


def timeline(source: str, session: str) -> Any:
    """Return the timeline of one session from a record of the past; without one, print how to make it.

    Args:
        source: A recording, an append-only directory, or several RDB files with spaces between them; empty: none.
        session: The session's id or a key.

    Returns:
        A figure, as of ``plot.show``; None without a record.

    Raises:
        SourceError: The record cannot be read.
    """
    if not source:
        print("No record is given: memkit record URL -o incident.db makes one, and the server's own files are others.")
        return None
    from memkit import plot

    sources = [source] if Path(source).exists() else source.split()
    return plot.show(plot.plot_timeline(history(*sources, session=session)))


def server_table(report: AuditReport) -> Table:
    """Return what server was audited, as a table."""
    used, most = report.counters.get("used_memory"), report.counters.get("maxmemory")
    limit = f"limit {most:,} bytes" if most else "no limit"
    rows = [
        ("server", f"{report.server['flavour']} {report.server['version']}"),
        ("URL" if report.server["source"]["kind"] == "live" else "file", report.server["url"]),
        ("keys", f"{report.sample['of']:,}, {report.sample['keys']:,} checked"),
        ("memory", "not in the file" if used is None else f"{used:,} bytes, {limit}"),
        ("expected", ", ".join(report.expected) or "no TTL was given"),
    ]
    return Table("The server", ("property", "value"), rows)


def five_minutes_later(url: str) -> str:
    """Move the clock of a copy of the demo incident by five minutes and return what expired.

    Args:
        url: The Redis under investigation; empty: the notebook's demo. Nothing is done to any server but the copy.
    """
    from memkit.notebook import extension as notebook

    if url or not notebook.is_demo():
        return "This server is not the demo: its clock was not moved."
    with demo_server() as server:
        incident = load_incident(server)
        before = examine(incident.url, EXPECTATIONS)
        server.clock.shift("5m")
        after = examine(incident.url, EXPECTATIONS)
    remaining = {one.key for one in after.keys}
    sessions = {one.key for expectation in before.expectations for one in expectation.of(before.keys)}
    short = sum(finding.keys for finding in before.findings if finding.cause == "ttl_too_short")
    ended = f"{len(sessions - remaining):,} of {counted(len(sessions), 'session')}"
    return f"On a copy of the demo, five minutes later: {ended} expired; {short:,} had the short TTL."


# -- the page ----------------------------------------------------------------------------------------------------------


def page(report: AuditReport) -> str:
    """Return the report as one HTML page; MemkitError if matplotlib is not installed."""
    try:
        from memkit import plot
        from memkit.plot.style import DARK
    except ImportError:
        raise MemkitError("the report has figures; type: pip install 'redis-memkit[lab]'") from None
    template = Template((resources.files("memkit.notebook") / "triage.html").read_text("utf-8"))
    draws = (plot.plot_ttl_now, plot.plot_deadlines, plot.plot_future, plot.plot_ends)
    first, *others = (f"<figure>{plot.show(draw(report)).to_svg()}</figure>" for draw in draws)
    notes = [*(one.message for one in report.seen), *report.notes, report.proof_sentence()]
    return template.substitute(
        title=_html(report.verdict.sentence),
        status=report.findings[0].severity if report.verdict.status == "findings" else report.verdict.status,
        light="; ".join(f"--memkit-{colour[1:]}: {colour}" for colour in DARK),
        dark="; ".join(f"--memkit-{colour[1:]}: {dark}" for colour, dark in DARK.items()),
        numbers="".join(f"<div><dt>{name}</dt><dd>{_html(value)}</dd></div>" for name, value in _numbers(report)),
        figure=first,
        findings="".join(_finding(one, report.verdict.sentence) for one in report.findings) or "<p>No findings.</p>",
        affected=affected(report, limit=FIRST_ROWS).to_html(),
        figures="".join(others),
        tables=server_table(report).to_html(),
        notes=f"<ul>{''.join(f'<li>{_html(note)}</li>' for note in notes)}</ul>",
    )


def _numbers(report: AuditReport) -> Iterable[tuple[str, str]]:
    first = report.findings[0] if report.findings else None
    if report.affected_text:
        yield "affected", report.affected_text
    elif first and first.keys:
        yield "affected", f"{first.keys:,} of {counted(first.sampled, 'key')}"
    if first and first.expected_ttl_s is not None:
        yield "expected TTL", duration(first.expected_ttl_s * 1000)
        yield "observed TTL", duration(None if first.observed_ttl_s is None else first.observed_ttl_s * 1000)
    if first and first.since:
        since = utc_text(first.since, round_up=first.since_is == "upper bound")
        name = "until" if first.since_is == "until" else "since"
        yield name, f"{since} ({ago(first.since, report.at)}{BOUND_TEXTS.get(first.since_is or '', '')})"
    yield "checked", f"{report.sample['keys']:,} of {counted(report.sample['of'], 'key')}"
    yield "server", f"{report.server['flavour']} {report.server['version']}"
    yield "audited at", utc_text(report.at)


def _finding(finding: Finding, verdict: str) -> str:
    rows = [
        ("message", "" if finding.message == verdict else finding.message),
        ("confidence", finding.confidence),
        *(("evidence", one) for one in finding.evidence),
        ("next", finding.next),
    ]
    cells = "".join(f"<dt>{name}</dt><dd>{_html(value)}</dd>" for name, value in rows if value)
    scope = "the whole server" if finding.prefix is None else finding.prefix
    severity = finding.severity
    title = f'<span class="status {severity}">{severity}</span> <strong>{finding.cause}</strong> {escaped(scope)}'
    return f'{title}<dl class="finding">{cells}</dl>'


def _html(text: str) -> str:
    """Return text as HTML in which no time is broken over two lines."""
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+Z?", r"<time>\g<0></time>", escaped(text))
