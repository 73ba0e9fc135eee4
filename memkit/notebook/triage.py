"""The triage notebook as a report: run on a live server, read-only, and written as one HTML file for a ticket.

The file loads nothing, shows no message, no password and no name of a session.
"""

from __future__ import annotations

import html
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from secrets import token_bytes
from typing import Any

from memkit.audit.report import AuditReport
from memkit.audit.run import audit
from memkit.audit.sampling import KeyFacts
from memkit.config import parse_expectation
from memkit.connect import redact
from memkit.errors import MemkitError
from memkit.notebook.demo import demo_server, load_incident
from memkit.notebook.lab import notebooks
from memkit.observe.log import html_table
from memkit.readonly.values import to_name
from memkit.render import printable

NOTEBOOK = "02_incident_triage.ipynb"
MOST_ROWS = 20
WITHIN_S = 600
EXIT_CODES = {"healthy": 0, "no_data": 2}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #1a1a1a;
  background: #fff }}
table {{ border-collapse: collapse; margin: 1em 0 }} td, th {{ text-align: left; vertical-align: top; padding: 2px 10px;
  border-bottom: 1px solid #d9d9d9 }} caption {{ text-align: left; font-weight: bold }}
pre, code {{ white-space: pre-wrap; overflow-wrap: anywhere }} img {{ max-width: 100% }}
</style></head><body>
{body}
</body></html>
"""


@dataclass(frozen=True, slots=True)
class Triage:
    """A report that was written: the verdict of the audit in it, and what to exit with (0, 1 or 2)."""

    path: Path
    cause: str
    sentence: str

    @property
    def exit_code(self) -> int:
        """0: nothing wrong; 1: something is; 2: there was nothing to audit."""
        return EXIT_CODES.get(self.cause, 1)


def examine(url: str, expectations: Iterable[str] = ()) -> AuditReport:
    """Audit a server, read-only, against expectations as text (``"chat:*=7d"``)."""
    return audit(url, expect=[parse_expectation(text) for text in expectations])


def triage(url: str | None, *, expect: Sequence[str] = (), output: str | Path = "triage.html") -> Triage:
    """Run the triage notebook and write its report; without a URL, on the demo incident of a private server.

    Raises MemkitError when the notebook could not be run (the lab extra is missing, the server is not there).
    """
    for text in expect:
        parse_expectation(text)
    if Path(output).is_dir():
        raise MemkitError(f"{output} is a folder; give -o the name of the file, such as {Path(output) / 'triage.html'}")
    if url:
        examine(url, expect)  # what cannot be reached is said here in one line, not by a notebook's traceback
    expectations = list(expect) or ([] if url else ["chat:*=7d"])
    notebook = _run({"url": url or "", "expectations": expectations})
    cause, sentence = _verdict(notebook)
    page = PAGE.format(title=html.escape(f"memkit triage: {sentence}"), body=_body(notebook))
    Path(output).write_text(page, "utf-8")
    return Triage(Path(output), cause, sentence)


def _run(parameters: dict[str, Any]) -> Any:
    """Return the notebook with its outputs; what was run is kept nowhere, for its parameters hold the URL."""
    try:
        import logging

        import papermill
        from papermill.exceptions import PapermillExecutionError
    except ImportError:
        raise MemkitError("triage runs a notebook: pip install 'redis-memkit[lab]'") from None
    source = notebooks() / NOTEBOOK
    with tempfile.TemporaryDirectory() as folder:
        logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns that it cannot guess a parameter's type
        try:
            return papermill.execute_notebook(
                str(source),
                str(Path(folder) / NOTEBOOK),
                parameters=parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=folder,
                execution_timeout=WITHIN_S,
                extra_arguments=["--IPKernelApp.log_level=40"],
            )
        except PapermillExecutionError as error:
            said = redact(f"{error.ename}: {error.evalue}".splitlines()[0])
            raise MemkitError(f"the triage notebook stopped: {said}") from None


def _verdict(notebook: Any) -> tuple[str, str]:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = "".join(output.get("data", {}).get("text/plain", ""))
            found = re.fullmatch(r"<AuditReport (\w+): (.*)>", text, re.DOTALL)
            if found:
                return found[1], found[2]
    raise MemkitError("the triage notebook gave no verdict; is it the one that came with this memkit?")


def _body(notebook: Any) -> str:
    """Return the notebook's text and outputs as HTML, without its code, which holds the URL."""
    from nbconvert import HTMLExporter

    # Text, tables and images alone: a script in an output would load what it likes.
    order = ["text/html", "image/png", "text/plain"]
    make: Any = HTMLExporter
    exporter = make(template_name="basic", exclude_input=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = exporter.exclude_anchor_links = True
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data")
            if data:
                output["data"] = {kind: data[kind] for kind in order if kind in data}
        cell.get("attachments", {}).clear()
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"<script\b.*?</script\s*>", "", body, flags=re.DOTALL | re.IGNORECASE)
    # The other notebooks are not there where a ticket is read.
    return re.sub(r'<a href="[^"]*\.ipynb">(.*?)</a>', r"\1", body, flags=re.DOTALL)


# -- what the notebook shows -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Affected:
    """The sessions that die first, as a table; their names are hashed, with a key of this table's own.

    ``reveal`` shows the names, for ``memkit inspect``.
    """

    report: AuditReport
    reveal: bool = False
    salt: bytes = field(default_factory=lambda: token_bytes(8))

    TITLES = ("session", "type", "left", "last given", "dies at (UTC)")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows: at most MOST_ROWS, those with the least time left first."""
        meant = self.report.expectations
        own = {one.key: one for expectation in meant for one in expectation.of(self.report.keys)}
        shown = own.values() if meant else self.report.keys
        mortal = [one for one in shown if one.deadline_ms is not None]
        return [self._row(one) for one in sorted(mortal, key=lambda one: one.deadline_ms or 0)[:MOST_ROWS]]

    def _row(self, one: KeyFacts) -> tuple[str, ...]:
        from datetime import UTC, datetime

        hashed = "#" + blake2b(one.key, key=self.salt, digest_size=4).hexdigest()
        name = printable(to_name(one.key)) if self.reveal else hashed
        at = datetime.fromtimestamp((one.deadline_ms or 0) / 1000, UTC)
        return name, one.kind, clock_text(one.left_ms), clock_text(one.set_ms), f"{at:%Y-%m-%d %H:%M:%S}"

    def __repr__(self) -> str:
        return "\n".join("  ".join(row) for row in (self.TITLES, *self.rows))

    def _repr_html_(self) -> str:
        names = "" if self.reveal else ", names hashed"
        title = (
            f"The {len(self.rows)} sessions with the least time left{names}; last given: to a second, "
            "or less where it was read since"
        )
        return html_table(title, self.TITLES, self.rows)


@dataclass(frozen=True, slots=True)
class ServerCard:
    """What the server is, in a few rows."""

    report: AuditReport

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of each row."""
        report, counters = self.report, self.report.counters
        used, limit = counters.get("used_memory"), counters.get("maxmemory")
        return [
            ("server", f"{report.server['flavour']} {report.server['version']}"),
            ("at", report.server["url"]),
            ("keys", f"{report.sample['of']:,}, of which {report.sample['keys']:,} were looked at"),
            ("memory", f"{used or 0:,} bytes, {'no limit' if not limit else f'limit {limit:,} bytes'}"),
            ("expected", ", ".join(report.expected) or "nothing was said"),
        ]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {value}" for name, value in self.rows)

    def _repr_html_(self) -> str:
        return html_table("The server under investigation", ("what", "seen"), self.rows)


def five_minutes_later(url: str, expectations: Iterable[str]) -> str:
    """Say what five more minutes do to the demo: to a copy, whose clock is moved. About any other server, nothing."""
    from memkit.notebook import extension as notebook

    if url or not notebook.is_demo():
        return "This is your server: its clock is its own, and nothing was done."
    with demo_server() as server:
        copy = load_incident(server).url
        before = examine(copy, expectations)
        server.clock.shift("5m")
        after = examine(copy, expectations)
    meant = before.expectations
    left = {one.key for one in after.keys}
    there = {one.key for expectation in meant for one in expectation.of(before.keys)}
    return (
        f"On a copy of the demo, five minutes later: {len(there - left):,} of its {len(there):,} sessions are gone; "
        f"{sum(finding.keys for finding in before.findings if finding.cause == 'ttl_too_short'):,} were dying."
    )


def clock_text(ms: float | None) -> str:
    """Return a duration in its two largest units, such as ``2m 13s`` or ``6d 4h``: to be compared down a column."""
    if ms is None:
        return "unknown"
    grain = 3_600 if ms > 84_600_000 else 60 if ms > 3_570_000 else 1
    whole = round(ms / 1000 / grain) * grain
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("m", whole // 60 % 60), ("s", whole % 60))
    first = next((place for place, (_, count) in enumerate(units) if count), 3)
    return " ".join(f"{count}{unit}" for unit, count in units[first : first + 2])
