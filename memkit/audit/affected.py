"""write_affected: the names of the keys that a finding affects, in a file, and the shell line that renews them."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from memkit.audit.finding import Finding
from memkit.audit.report import SOON_MS, AuditReport
from memkit.config import glob_expression
from memkit.connect import AnyClient, cli_command, escape_glob
from memkit.errors import MemkitError
from memkit.history.snapshots import open_source
from memkit.readonly.connection import KeyCommands, ReadOnlyConnection
from memkit.readonly.values import to_bytes
from memkit.render import counted, wrapped

RENEWALS_PER_S = 100
"""A redis-cli per key: a server has no noticeable load from 100 commands a second."""


@dataclass(slots=True)
class Affected:
    """What was written.

    Attributes:
        path: The file with one key name a line, readable by its owner only.
        keys: The number of names in it.
        soon: How many of them expire within five minutes.
        unprintable: Affected keys that are not in it, because their names contain a line end.
        field_ttls: Whether a finding's keys have no TTL to renew: their fields have TTLs of their own.
        password: Whether the server asks for one, which the lines do not contain.
        commands: Shell lines that renew the keys in the file; memkit does not run them.
    """

    path: Path
    keys: int = 0
    soon: int = 0
    unprintable: int = 0
    field_ttls: bool = False
    password: bool = False
    commands: list[str] = field(default_factory=list)

    def to_text(self) -> str:
        """Return the counts, and the shell lines on lines of their own."""
        text = f"affected: {counted(self.keys, 'key')} in {self.path}, {self.soon:,} with up to 5 minutes left"
        if self.unprintable:
            text += f"; {counted(self.unprintable, 'name')} with a line end were left out"
        if self.field_ttls:
            text += "; TTLs of hash fields are renewed by HEXPIRE, not by EXPIRE"
        if not self.commands:
            return wrapped(text)
        advice = f"to renew them, after the cause is fixed, review and run ({RENEWALS_PER_S} keys a second"
        advice += "; put the password into REDISCLI_AUTH):" if self.password else "):"
        return "\n".join([wrapped(text), wrapped(advice), *self.commands])


def write_affected(
    source: str | Path | AnyClient,
    report: AuditReport,
    path: str | Path,
    *,
    at: datetime | None = None,
    db: int | None = None,
) -> Affected:
    """Write the names of all affected keys to a file; read-only (SCAN and PTTL).

    A key is affected if it is under the prefix of a finding of too short TTLs and has at most the observed TTL left;
    not one that is no session, or of which another expectation states the TTL.

    Args:
        source: A Redis URL, a client or a file, as for ``audit``.
        report: What ``audit`` returned for it.
        path: A new file; it gets mode 0600, because key names are private.
        at: As for ``audit``.
        db: As for ``audit``.

    Raises:
        MemkitError: The file exists already, or cannot be written.
    """
    done = Affected(Path(path))
    left_out = [glob_expression(one) for one in report.ignored]
    findings = [one for one in report.findings if one.is_short and one.expected_ttl_s and one.observed_ttl_s]
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise MemkitError(f"cannot write {path}: {error.strerror}; give a new file") from None
    with os.fdopen(descriptor, "wb") as file, open_source(source, at=at, db=db) as target:
        url = source if isinstance(source, str) and not target.snapshot else ""
        client = cli_command(url, target.connections[0].name)
        if target.snapshot:
            client = f"redis-cli -u redis://HOST:PORT/{target.snapshot.database}"
        for number, finding in enumerate(findings):
            before, prefix = done.keys, to_bytes(finding.prefix or "")
            for connection in target.connections:
                for name, left_ms in _keys_with_ttl(connection, prefix, finding.longest_ms):
                    own = next((one.prefix for one in report.expectations if one.matches.fullmatch(name)), "")
                    about = [one for one in findings[: number + 1] if (one.prefix or "").startswith(own)]
                    # If an earlier finding is about the key too, the file has it.
                    if next((one for one in about if one.affects(name, left_ms)), None) is not finding:
                        continue
                    if any(one.fullmatch(name) for one in left_out):
                        continue
                    if b"\n" in name:
                        done.unprintable += 1
                        continue
                    file.write(name + b"\n")
                    done.keys += 1
                    done.soon += left_ms <= SOON_MS
            if done.keys > before:
                done.commands.append(_renewal(finding, report, client, done.path))
            else:  # a hash that ends with its last field has no TTL of its own
                done.field_ttls |= any(
                    one.kind == "hash" and finding.affects(one.key, one.ttl_at_last_access_ms) for one in report.keys
                )
        done.password = "@" in url
    return done


def _keys_with_ttl(connection: ReadOnlyConnection, prefix: bytes, bound_ms: float) -> Iterator[tuple[bytes, int]]:
    """Yield each key under a prefix with a remaining TTL up to a bound; a key may come twice, as from SCAN."""
    for names in connection.scan(escape_glob(prefix) + b"*"):
        ttls = connection.send(KeyCommands(names, ["pttl"])).take()
        for name, left_ms in zip(names, ttls, strict=True):
            if isinstance(left_ms, int) and 0 <= left_ms <= bound_ms:
                yield name, left_ms


def _renewal(finding: Finding, report: AuditReport, client: str, path: Path) -> str:
    """Return a shell line that sets the expected TTL of a finding's keys in the file, and never shortens one."""
    flavour, version = report.server["flavour"], str(report.server["version"])
    condition = " GT" if flavour == "valkey" or int(version.partition(".")[0]) >= 7 else ""
    return (
        f'while IFS= read -r key; do case "$key" in {shlex.quote(finding.prefix or "")}*) '
        f'{client} EXPIRE "$key" {round(finding.expected_ttl_s or 0)}{condition} </dev/null; '
        f"sleep {1 / RENEWALS_PER_S:g};; esac; done < {shlex.quote(str(path))}"
    )
