"""The HTML report of ``memkit triage``: one audit of a live server or a file as one page for a ticket.

The page loads nothing and shows no message, no password and no session's name.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from memkit.audit.finding import Finding
from memkit.audit.report import AuditReport
from memkit.audit.run import audit
from memkit.audit.sampling import Progress
from memkit.config import expected
from memkit.errors import MemkitError
from memkit.notebook.demo import EXPECTATIONS, demo_server, load_incident
from memkit.notebook.triage import affected, server_table
from memkit.render import counted, duration, escaped, utc_text

FIRST_ROWS = 5
"""The rows of affected sessions on the page's first screen."""


def write_html_report(
    url: str | None,
    *,
    expect: Sequence[str] = (),
    output: str | Path = "triage.html",
    at: datetime | None = None,
    db: int | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a server or a file, read-only, write the report as one HTML file (``memkit triage``), and return it.

    Args:
        url: A Redis URL, or a file as for ``audit``; None: the demo incident on a private server.
        expect: The expected TTLs, such as ``"chat:*=7d"``; none: those of the configuration file.
        output: The file to write.
        at: A timezone-aware moment of an append-only directory; None: its end.
        db: The database of a file; None: 0, or the one with most keys if 0 has none.
        progress: Called with the number of checked keys and of all keys.

    Raises:
        PolicyError: An expectation is invalid.
        MemkitError: The file cannot be written, or matplotlib is not installed.
    """
    expectations = expected(expect) if url or expect else []
    path = Path(output)
    if path.is_dir():
        raise MemkitError(f"{output} is a folder; give -o the name of a file, such as {path / 'triage.html'}")
    _figures()
    if url:
        report = audit(url, expect=expectations, at=at, db=db, progress=progress)
    else:
        with demo_server() as server:
            incident = load_incident(server)
            report = audit(incident.url, expect=expectations or expected(EXPECTATIONS), progress=progress)
    path.write_text(page(report), "utf-8")
    return report


def _figures() -> Sequence[Callable[[AuditReport], Any]]:
    """Return the functions that draw the figures; MemkitError if matplotlib is not installed."""
    try:
        from memkit import plot
    except ImportError:
        raise MemkitError("the report has figures; type: pip install 'redis-memkit[lab]'") from None
    return plot.plot_ttl_now, plot.plot_deadlines, plot.plot_future, plot.plot_ends


def page(report: AuditReport) -> str:
    """Return the report as one HTML page; MemkitError if matplotlib is not installed."""
    draws = _figures()
    from memkit.plot.style import DARK, show

    template = Template((resources.files("memkit.notebook") / "html_report.html").read_text("utf-8"))
    first, *others = (f"<figure>{show(draw(report)).to_svg()}</figure>" for draw in draws)
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
        yield "affected keys", first.keys_text
    if first and first.expected_ttl_s is not None:
        yield "expected TTL", duration(first.expected_ttl_s * 1000)
        yield "observed TTL", duration(None if first.observed_ttl_s is None else first.observed_ttl_s * 1000)
    if first:
        yield from report.since_rows(first)
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
    scope = "the whole server" if finding.prefix is None else f"{finding.prefix}*"
    severity = finding.severity
    title = f'<span class="status {severity}">{severity}</span> <strong>{finding.cause}</strong> {escaped(scope)}'
    return f'{title}<dl class="finding">{cells}</dl>'


def _html(text: str) -> str:
    """Return text as HTML in which no time is broken over two lines."""
    return re.sub(r"\d{4}-\d\d-\d\d[T ][\d:]+Z?", r"<time>\g<0></time>", escaped(text))
