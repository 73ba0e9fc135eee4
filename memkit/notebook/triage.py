"""The tables and the question of notebook 02: which sessions of a live server are affected, since when and why."""

from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any

import redis

from memkit.audit.report import AuditReport
from memkit.audit.run import audit
from memkit.audit.sampling import KeyFacts
from memkit.config import Expect, expected
from memkit.connect import redact
from memkit.errors import MemkitError, PolicyError
from memkit.history.changes import time_of
from memkit.history.run import history
from memkit.notebook.demo import EXPECTATIONS, demo_server, load_incident
from memkit.readonly.values import to_name
from memkit.render import Table, counted, duration, printable

MAX_ROWS = 20


class NotAudited(MemkitError):
    """The audit could not run; a notebook shows the message alone, without the traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


class ExpectationNeeded(NotAudited, PolicyError):
    """A server was given without an expected TTL, and none can be guessed."""


def examine(url: str, expectations: Expect = ()) -> AuditReport:
    """Return the audit of a live server, read-only.

    Args:
        url: A Redis URL.
        expectations: The expected TTLs, such as ``"chat:*=7d"``; none: those of the configuration file.

    Raises:
        ExpectationNeeded: No expectation is given. The message lists the prefixes and TTLs that were found.
        NotAudited: The server cannot be reached or refuses, or an expectation is invalid.
    """
    try:
        expect = expected(expectations)
        report = audit(url, expect=expect)
    except (MemkitError, redis.RedisError) as error:
        message = str(error) if isinstance(error, MemkitError) else redact(str(error))
        raise NotAudited(f"{redact(url)} cannot be audited: {message}") from error
    if not expect:
        found = "\n".join(f"  {one.message}" for one in report.seen)
        raise ExpectationNeeded(
            "Which TTL should these sessions have? Set expectations in the cell above, such as "
            f"['chat:*=7d'], or start with: memkit lab --url URL --expect 'chat:*=7d'\n\nFound on the server:\n{found}"
        )
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
        last_set = "unknown" if one.ttl_at_last_access_ms is None else duration(one.ttl_at_last_access_ms)
        return name, one.kind, duration(one.left_ms), last_set, f"{expires_at:%Y-%m-%d %H:%M:%S}"

    title = f"The sessions that expire first{'' if reveal else ', names hashed'}"
    columns = ("session", "type", "remaining TTL", "TTL last set", "expires at (UTC)")
    return Table(title, columns, [row(one) for one in volatile[:limit]], total=len(volatile))


def timeline(source: str, session: str) -> Any:
    """Return the figure of one session's timeline from a record of the past; without one, print how to make it.

    Args:
        source: A recording, an append-only directory, or several RDB files with spaces between them; empty: none.
        session: The session's id or a key.

    Raises:
        SourceError: The record cannot be read.
    """
    if not source:
        print("No record was given. memkit record URL -o incident.db makes one; RDB files or an AOF directory also do.")
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
    sessions = {one.key for expectation in before.expectations for one in expectation.matching(before.keys)}
    short = sum(finding.keys for finding in before.findings if finding.cause == "ttl_too_short")
    ended = f"{len(sessions - remaining):,} of {counted(len(sessions), 'session')}"
    return f"On a copy of the demo, five minutes later: {ended} expired; {short:,} had the short TTL."
