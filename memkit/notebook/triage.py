"""The triage report: one audit of a live server as one HTML page for a ticket, and the tables of notebook 02.

The page loads nothing and shows no message, no password and no session's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import TYPE_CHECKING

from memkit.audit.expectations import parse_expectation
from memkit.audit.finding import Finding
from memkit.audit.report import AuditReport
from memkit.audit.run import audit
from memkit.audit.sampling import KeyFacts, Progress
from memkit.errors import MemkitError, PolicyError
from memkit.notebook.demo import demo_server, load_incident
from memkit.readonly.values import to_name
from memkit.render import Table, counted, duration, escaped, printable, utc_text

if TYPE_CHECKING:
    from memkit.plot import Figure

MAX_ROWS = 20
FIRST_ROWS = 5
"""The rows of affected sessions on the page's first screen."""


@dataclass(frozen=True, slots=True)
class Triage:
    """A written report.

    Attributes:
        path: The HTML file.
        report: The audit in it.
    """

    path: Path
    report: AuditReport


class ExpectationNeeded(PolicyError):
    """A server was given without an expected TTL, and none can be guessed."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()  # a notebook shows the question alone


def examine(url: str, expectations: Iterable[str] = ()) -> AuditReport:
    """Audit a live server, read-only.

    Args:
        url: A Redis URL.
        expectations: The expected TTLs, such as ``"chat:*=7d"``.

    Returns:
        The report.

    Raises:
        ExpectationNeeded: No expectation is given. The message lists the prefixes and TTLs that were found.
        PolicyError: An expectation is invalid.
    """
    expected = [parse_expectation(text) for text in expectations]
    report = audit(url, expect=expected)
    if not expected:
        found = "\n".join(f"  {one.says}" for one in report.seen)
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
    progress: Progress | None = None,
) -> Triage:
    """Audit a live server, read-only, and write the report as one HTML file.

    Args:
        url: A Redis URL; None: the demo incident on a private server.
        expect: The expected TTLs, such as ``"chat:*=7d"``.
        output: The file to write.
        progress: Called with the number of checked keys and of all keys.

    Returns:
        The report and its path.

    Raises:
        PolicyError: An expectation is invalid.
        MemkitError: The file cannot be written, or matplotlib is not installed.
    """
    expected = [parse_expectation(text) for text in expect]
    path = Path(output)
    if path.is_dir():
        raise MemkitError(f"{output} is a folder; give -o the name of a file, such as {path / 'triage.html'}")
    if url:
        report = audit(url, expect=expected, progress=progress)
    else:
        with demo_server() as server:
            incident = load_incident(server)
            demo = [parse_expectation(text) for text in incident.expectations]
            report = audit(incident.url, expect=expected or demo, progress=progress)
    path.write_text(page(report), "utf-8")
    return Triage(path, report)


def affected(report: AuditReport, *, reveal: bool = False, limit: int = MAX_ROWS) -> Table:
    """Return the sessions that expire first, as a table.

    Args:
        report: What ``audit`` returned.
        reveal: Show the keys' names. Otherwise they are hashed with a random key, so that the table can be passed on.
        limit: The number of rows.
    """
    expected = [parse_expectation(text) for text in report.expectations]
    matching = {one.key: one for expectation in expected for one in expectation.of(report.keys)}
    shown = matching.values() if expected else report.keys
    volatile = sorted((one for one in shown if one.deadline_ms is not None), key=lambda one: one.deadline_ms or 0)
    salt = token_bytes(8)

    def row(one: KeyFacts) -> tuple[str, ...]:
        name = "#" + blake2b(one.key, key=salt, digest_size=4).hexdigest()
        if reveal:
            name = printable(to_name(one.key))
        expires_at = datetime.fromtimestamp((one.deadline_ms or 0) / 1000, UTC)
        last_set = "unknown" if one.set_ms is None else duration(one.set_ms)
        return name, one.kind, duration(one.left_ms), last_set, f"{expires_at:%Y-%m-%d %H:%M:%S}"

    title = f"The sessions that expire first{'' if reveal else ', names hashed'}"
    columns = ("session", "type", "remaining TTL", "TTL last set", "expires at (UTC)")
    return Table(title, columns, [row(one) for one in volatile[:limit]], total=len(volatile))


def server_table(report: AuditReport) -> Table:
    """Return what server was audited, as a table.

    Args:
        report: What ``audit`` returned.
    """
    used, limit = report.counters.get("used_memory"), report.counters.get("maxmemory")
    rows = [
        ("server", f"{report.server['flavour']} {report.server['version']}"),
        ("URL", report.server["url"]),
        ("keys", f"{report.sample['of']:,}, {report.sample['keys']:,} checked"),
        ("memory", f"{used or 0:,} bytes, {f'limit {limit:,} bytes' if limit else 'no limit'}"),
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
        before = examine(incident.url, incident.expectations)
        server.clock.shift("5m")
        after = examine(incident.url, incident.expectations)
    expected = [parse_expectation(text) for text in before.expectations]
    remaining = {one.key for one in after.keys}
    sessions = {one.key for expectation in expected for one in expectation.of(before.keys)}
    short = sum(finding.keys for finding in before.findings if finding.cause == "ttl_too_short")
    return (
        f"On a copy of the demo, five minutes later: {len(sessions - remaining):,} of {counted(len(sessions), 'session')} "
        f"expired; {short:,} had the short TTL."
    )


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>memkit triage: {title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --text: #1a1a1a; --muted: #5c5c5c; --line: #d9d9d9; --paper: #fff; --card: #f4f4f2;
  --critical: #b3261e; --warning: #8a5a00; --healthy: #00694d; --info: #005a8f; {light} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --text: #e8e8e8; --muted: #a8a8a8; --line: #3d3d3d;
  --paper: #111; --card: #1e1e1e; --critical: #ff8a80; --warning: #ffc14d; --healthy: #4fd8a8; --info: #74c0fc; {dark}
}} }}
* {{ box-sizing: border-box }}
body {{ font: 14px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 0 auto; padding: 1rem; color: var(--text);
  background: var(--paper); overflow-wrap: anywhere }}
h1 {{ font-size: 1.3rem; line-height: 1.3; margin: .2rem 0 .8rem }} h2 {{ font-size: 1rem; margin: 1rem 0 .4rem }}
.critical {{ color: var(--critical) }} .warning {{ color: var(--warning) }} .healthy {{ color: var(--healthy) }}
.info {{ color: var(--info) }} .muted {{ color: var(--muted) }} .status {{ font-weight: bold; text-transform: uppercase }}
.numbers {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .5rem; margin: 0 }}
.numbers div {{ background: var(--card); padding: .4rem .7rem }} .numbers dt {{ color: var(--muted) }}
.numbers dd {{ margin: 0; font-size: 1.1rem; font-weight: bold }}
.first {{ display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 4fr); gap: 0 1.5rem; align-items: start }}
@media (max-width: 55rem) {{ .first {{ grid-template-columns: minmax(0, 1fr) }} }}
figure {{ margin: .8rem 0; break-inside: avoid }} svg {{ max-width: 100%; height: auto; display: block }}
dl.finding {{ display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .1rem .8rem; margin: .2rem 0 .8rem }}
dl.finding dt {{ color: var(--muted) }} dl.finding dd {{ margin: 0 }}
table {{ border-collapse: collapse; width: 100%; margin: .8rem 0 }} caption {{ font-weight: bold }}
td, th {{ vertical-align: top; padding: 2px 8px 2px 0; border-bottom: 1px solid var(--line) }}
tr, dl {{ break-inside: avoid }}
@media (max-width: 30rem) {{ body {{ padding: .6rem; font-size: 13px }} td, th {{ padding-right: 5px }} }}
</style></head><body>
<header><div class="status {status}">{status}</div><h1>{title}</h1></header>
<dl class="numbers">{numbers}</dl>
<main>
<div class="first"><div>{figure}</div><section><h2>Findings</h2>{findings}</section></div>
{affected}
<h2>Details</h2>
{figures}
{tables}
{notes}
</main></body></html>
"""


def page(report: AuditReport) -> str:
    """Return the report as one HTML page.

    Args:
        report: What ``audit`` returned.

    Raises:
        MemkitError: matplotlib is not installed.
    """
    try:
        from memkit import plot
        from memkit.plot.style import DARK
    except ImportError:
        raise MemkitError("the report has figures; type: pip install 'redis-memkit[lab]'") from None
    notes = [*(one.says for one in report.seen), *report.notes, report.proof_sentence()]
    return PAGE.format(
        title=escaped(report.verdict.sentence),
        status=report.findings[0].severity if report.findings else "healthy",
        light="; ".join(f"--memkit-{colour[1:]}: {colour}" for colour in DARK),
        dark="; ".join(f"--memkit-{colour[1:]}: {dark}" for colour, dark in DARK.items()),
        numbers="".join(f"<div><dt>{name}</dt><dd>{escaped(value)}</dd></div>" for name, value in _numbers(report)),
        figure=_figure(plot.show(plot.plot_ttl_now(report))),
        findings="".join(map(_finding, report.findings)) or "<p>No findings.</p>",
        affected=affected(report, limit=FIRST_ROWS).to_html(),
        figures="".join(
            _figure(plot.show(draw(report))) for draw in (plot.plot_deadlines, plot.plot_future, plot.plot_ends)
        ),
        tables=server_table(report).to_html(),
        notes=f"<ul>{''.join(f'<li>{escaped(note)}</li>' for note in notes)}</ul>",
    )


def _numbers(report: AuditReport) -> Iterable[tuple[str, str]]:
    first = report.findings[0] if report.findings else None
    if first and first.keys:
        yield "affected", f"{first.keys:,} of {counted(first.sampled, 'key')}"
    if first and first.expected_ttl_s is not None:
        yield "expected TTL", duration(first.expected_ttl_s * 1000)
        yield "observed TTL", duration(None if first.observed_ttl_s is None else first.observed_ttl_s * 1000)
    if first and first.since:
        yield f"since ({first.since_is})", utc_text(first.since, round_up=first.since_is == "upper bound")
    yield "checked", f"{report.sample['keys']:,} of {counted(report.sample['of'], 'key')}"
    yield "server", f"{report.server['flavour']} {report.server['version']}"
    yield "audited at", utc_text(report.at)


def _finding(finding: Finding) -> str:
    rows = [
        ("message", finding.sentence),
        ("confidence", finding.confidence),
        *(("evidence", one) for one in finding.evidence),
        ("next", finding.next),
    ]
    cells = "".join(f"<dt>{name}</dt><dd>{escaped(value)}</dd>" for name, value in rows if value)
    scope = "the whole server" if finding.prefix is None else finding.prefix
    severity = finding.severity
    title = f'<span class="status {severity}">{severity}</span> <strong>{finding.cause}</strong> {escaped(scope)}'
    return f'{title}<dl class="finding">{cells}</dl>'


def _figure(figure: Figure) -> str:
    return f"<figure>{figure.to_svg()}</figure>"
