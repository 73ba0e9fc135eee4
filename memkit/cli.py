"""The command line. Exit codes: 0 nothing wrong, 1 findings, 2 no verdict: could not run, or too little to judge."""

import argparse
import errno
import getpass
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import redis

import memkit
from memkit.config import expected
from memkit.connect import cli_command, redact
from memkit.errors import MemkitError
from memkit.policy import duration_ms, ttl_ms
from memkit.readonly.values import to_bytes
from memkit.render import COLUMNS, progress, wrapped
from memkit.server.launcher import RedisServer, ended_by_signals, modules_config

Command = Callable[[argparse.Namespace], int]
NO_VERDICT, INTERRUPTED = 2, 130
REDIS_ERRORS = (redis.RedisError, redis.exceptions.RedisClusterException)
"""RedisClusterException is not a RedisError in redis-py 8."""
FILES = ", an RDB file, a directory of RDB files (one for each shard) or an append-only directory"
URL_VARIABLES = ("MEMKIT_REDIS_URL", "REDIS_URL")
PASSWORD_VARIABLE = "REDISCLI_AUTH"  # noqa: S105  # the name of redis-cli's own variable
ASKPASS = f"ask for the password (or set the variable {PASSWORD_VARIABLE})"
ADVICE = (
    (
        "noauth|wrongpass|invalid username-password|authentication required|without any password|invalid password",
        "check the user in the URL and the password, which REDISCLI_AUTH or --askpass can supply",
    ),
    ("noperm|no permissions", "use another user, or create the one that memkit audit URL --acl prints"),
    ("db index|select is not allowed", "check the database number at the end of the URL; /0 always exists"),
    ("name or service|name resolution|nodename", "the host name is unknown: check it in the URL"),
    (
        "unknown command .sentinel",
        "this server is no Sentinel: give a Sentinel's port (26379 by default), or use redis:// instead of "
        "redis+sentinel://",
    ),
    ("^busy ", "a script blocks it: wait until that has ended, and look for it in redis-cli SLOWLOG GET"),
    (
        "^masterdown",
        "this replica has no connection to its primary and does not answer (replica-serve-stale-data no): read from "
        "another server",
    ),
    ("^clusterdown", "no server has some of the cluster's slots: redis-cli --cluster check HOST:PORT names them"),
    ("cluster mode is not enabled", "this server is not a cluster: use redis:// instead of redis+cluster://"),
    (
        "no master found",
        "check the addresses of the Sentinels and the service name; try: redis-cli -p PORT sentinel masters",
    ),
)
"""What an error message contains, and what to do about it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (None: that of ``sys.argv``) and return its exit code."""
    given = _parser().parse_args(arguments)
    if "run" not in given:
        _parser().print_help(sys.stderr)
        return NO_VERDICT
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # None if it was closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character
    file, option = getattr(given, "affected", None), "--affected"
    if file is None:
        file, option = getattr(given, "output", None), "-o"
    try:
        _complete(given)
        if file and not file.absolute().parent.is_dir():
            raise MemkitError(f"the folder {file.parent} does not exist; make it, or give {option} another file")
        return int(given.run(given))
    except BrokenPipeError:
        # The reader closed the pipe; the interpreter's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_VERDICT
    except (MemkitError, *REDIS_ERRORS, OSError) as error:
        if file and getattr(error, "errno", None) == errno.ENOSPC:
            error = MemkitError(f"{file} is not complete: no space left; delete it and give {option} another file")
        sources = getattr(given, "sources", [getattr(given, "source", getattr(given, "url", None))])
        urls = [one for one in sources if one and "://" in one]
        return _report_error(error, next(iter(urls), None))
    except KeyboardInterrupt:
        return INTERRUPTED


def _complete(given: argparse.Namespace) -> None:
    """Fill in the URL and the password from the environment, and parse the moment."""
    if "source" in given:
        given.source = given.source or next(filter(None, map(os.environ.get, URL_VARIABLES)), None)
        if given.source:
            given.source = _with_password(given.source, askpass=given.askpass)
        elif given.source_required and not getattr(given, "acl", False):
            missing = "SOURCE before SESSION_OR_KEY" if "session" in given else "Redis URL"
            raise MemkitError(f"no {missing}: give one, or set {' or '.join(URL_VARIABLES)} to a Redis URL")
    if getattr(given, "at", None):
        from memkit.history.sources import parse_moment

        given.at = parse_moment(given.at)


def _with_password(url: str, *, askpass: bool) -> str:
    """Return a URL with the password from the environment or the keyboard, if it has none."""
    password = getpass.getpass("Redis password: ") if askpass else os.environ.get(PASSWORD_VARIABLE)
    scheme, separator, rest = url.partition("://")
    user, _, place = rest.rpartition("@")
    if not password or not separator or ":" in user:
        return url
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"


def _report_error(error: Exception, url: str | None) -> int:
    # memkit's own messages contain no password, and redact() would change texts that only look like URLs.
    message = str(error) if isinstance(error, MemkitError) else redact(str(error))
    message = " ".join(message.partition(" : <redis")[0].split()) or type(error).__name__
    cause: Any = error.__cause__
    if url and isinstance(error, REDIS_ERRORS):
        message += f" (server: {redact(url)}); {_advice(error, redact(url))}"
    elif url and (isinstance(cause, redis.ConnectionError | redis.TimeoutError) or "NOAUTH" in str(cause)):
        message = f"{message.removesuffix('.')}; {_advice(cause, redact(url))}"
    print(f"memkit: {message}", file=sys.stderr)
    return NO_VERDICT


def _advice(error: Exception, url: str) -> str:
    """Return what to do if a server cannot be reached or refuses; ``url`` has no password, because it is printed."""
    message = str(error).lower()
    for words, advice in ADVICE:
        if re.search(words, message):
            return advice
    scheme, _, rest = url.partition("://")
    server = re.split("[,?]", rest.rpartition("@")[2])[0] + ("/0" if scheme == "unix" else "")
    failed = re.search(r"connecting to (\S+:\d+)", message)
    if failed and failed[1] not in server:  # another server of a cluster
        server = failed[1]
    ping = f"{cli_command(url, server)} ping"
    if isinstance(error, redis.TimeoutError):
        return f"check whether the server is busy or a firewall blocks it; try: {ping}"
    return f"check that it is running and that the {'socket' if scheme == 'unix' else 'port'} is right; try: {ping}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage."""
        self.exit(NO_VERDICT, f"{self.prog}: {message}; see {self.prog} -h\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="memkit",
        description=wrapped(
            "Test, audit and explain LLM session memory in Redis: whether sessions exist as long as their configured "
            "TTL, and why one did not.",
            columns=COLUMNS - 2,
        ),
        epilog="Commands marked read-only never write. Each command has -h with an example.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"memkit {memkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    adding = (_add_lab, _add_server, _add_audit, _add_inspect, _add_history, _add_record, _add_triage, _add_conformance)
    for add in adding:
        add(commands)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    columns = min(COLUMNS, shutil.get_terminal_size().columns)
    return argparse.RawDescriptionHelpFormatter(prog, width=columns - 2)


def _command(
    commands: Any, run: Command, example: str, *, source: str = "", expect: bool = False, json: bool = False
) -> argparse.ArgumentParser:
    """Add a command with the options that commands share: its name is the function's, its summary the docstring's.

    ``source`` is the name of its first argument, SOURCE (a Redis URL or files) or URL; empty: it has none.
    """
    name = run.__name__.removeprefix("_")
    summary = run.__doc__ or name
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary[0].lower() + summary[1:].removesuffix("."),
        description=wrapped(summary, columns=COLUMNS - 2),
        epilog=f"example:\n  memkit {name} {example}",
        formatter_class=_formatter,
    )
    added.set_defaults(run=run, source_required=True)
    if source:
        sources = f"a Redis URL{FILES if source == 'SOURCE' else ''}"
        default = f"the variable {' or '.join(URL_VARIABLES)}"
        added.add_argument("source", nargs="?", metavar=source, help=f"{sources} (default: {default})")
        added.add_argument("--askpass", action="store_true", help=ASKPASS)
    if source == "SOURCE":
        at = "read an append-only directory as of this time, such as 2026-11-28T02:17:03Z"
        added.add_argument("--at", metavar="TIME", help=at)
        file_db = "the database of a file (default: 0, or the one with most keys if 0 has none)"
        added.add_argument("--db", type=int, metavar="N", help=file_db)
    if expect:
        added.add_argument(
            "--expect",
            action="append",
            default=[],
            metavar="PATTERN=TTL",
            help="the expected TTL of keys, such as 'chat:*=7d', with [,sliding|absolute][,jitter=10%%]; may be "
            "repeated (default: [tool.memkit.expect] in pyproject.toml, or memkit.toml). sliding (the default): every "
            "write renews the TTL; absolute: only the first write sets it; jitter: how much a TTL may differ",
        )
    if json:
        added.add_argument("--json", action="store_true", help="print one JSON object")
    return added


def _add_lab(commands: Any) -> None:
    lab = _command(commands, _lab, "--url redis://localhost:6379/0 --expect 'chat:*=7d'", expect=True)
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    lab.add_argument("--dir", type=Path, metavar="D", help="the notebooks' folder; missing ones are copied there")
    lab.add_argument("--port", type=int, metavar="N", help="JupyterLab's port (default: 8888 or the next free one)")
    lab.add_argument("--url", metavar="URL", help="investigate this Redis, read-only, instead of the demo incident")


def _add_server(commands: Any) -> None:
    server = _command(commands, _server, "--port 0")
    server.add_argument("--port", type=int, metavar="N", help="also listen on this loopback TCP port (0: any free one)")


def _add_audit(commands: Any) -> None:
    example = "redis://localhost:6379/0 --expect 'chat:*=7d'"
    add = _command(commands, _audit, example, source="SOURCE", expect=True, json=True).add_argument
    add("--full", action="store_true", help="scan every key, check a fair sample of up to 40,000, and read values")
    add("--affected", type=Path, metavar="FILE", help="write the names of the affected keys to FILE (implies --full)")
    add("--touch", action="store_true", help="let --full read values even if that resets idle times")
    add("--duty", type=float, default=0.25, metavar="F", help="share of the time spent querying (default: 0.25)")
    add("--watch", metavar="T", help="look again after T (30s, 5m) and measure the TTL of renewals")
    replica = "read the keys from this replica: reads by clients on the primary do not reset its idle times"
    add("--replica", metavar="URL", help=replica)
    add("--acl", action="store_true", help="print the ACL user that an audit needs, and do nothing else")


def _add_inspect(commands: Any) -> None:
    example = "redis://localhost:6379/0 user-42 --expect 'chat:*=7d'"
    inspect = _command(commands, _inspect, example, source="SOURCE", expect=True, json=True)
    inspect.add_argument("session", metavar="SESSION_OR_KEY", help="a session id or a key's name")
    inspect.add_argument("--reveal", action="store_true", help="show message texts, which are private")


def _add_history(commands: Any) -> None:
    history = _command(commands, _history, "/var/lib/redis/appendonlydir user-42", expect=True, json=True)
    history.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="an append-only directory, a recording, two or more RDB files, or a replica's URL with --replication; "
        "the last argument may be a session id or a key's name",
    )
    history.add_argument("--since", metavar="T", help="leave out events before this time, such as 2026-11-28T02:00:00Z")
    _add_replication(history, "read the replication backlog of a replica")
    history.add_argument("--askpass", action="store_true", help=ASKPASS)


def _add_record(commands: Any) -> None:
    example = "redis://localhost:6379/0 -o incident.db --expect 'chat:*=7d'"
    record = _command(commands, _record, example, source="URL", expect=True)
    record.add_argument("-o", "--output", type=Path, metavar="FILE.db", help="the recording, a new file")
    _add_replication(record, "read the replication stream of a replica, which shows commands")
    record.add_argument("--for", dest="duration", metavar="10m", help="how long to record (default: until Ctrl-C)")
    record.add_argument("--acl", action="store_true", help="print the ACL user that it needs, and do nothing else")


def _add_replication(command: argparse.ArgumentParser, what: str) -> None:
    primary = "with =primary, that of a primary, which then lists memkit as a replica"
    choices = ["replica", "primary"]
    command.add_argument("--replication", nargs="?", const="replica", choices=choices, help=f"{what}; {primary}")


def _add_triage(commands: Any) -> None:
    example = "redis://localhost:6379/0 --expect 'chat:*=7d' -o report.html"
    triage = _command(commands, _triage, example, source="SOURCE", expect=True)
    triage.set_defaults(source_required=False)
    about = "the report (default: triage.html)"
    triage.add_argument("-o", "--output", type=Path, default=Path("triage.html"), metavar="FILE", help=about)


def _add_conformance(commands: Any) -> None:
    conformance = _command(commands, _conformance, "memkit.conformance.memkit_adapter:MemkitAdapter", json=True)
    conformance.add_argument("adapter", metavar="ADAPTER", help="package.module:factory of a StoreAdapter")


def _lab(given: argparse.Namespace) -> int:
    """Open JupyterLab with the notebooks, a private Redis and the demo incident."""
    from memkit.notebook.lab import run_lab

    return run_lab(
        directory=given.dir, port=given.port, browser=not given.no_browser, url=given.url, expect=given.expect
    )


def _server(given: argparse.Namespace) -> int:
    """Run a private Redis until Ctrl-C and print its URL."""
    ended = ended_by_signals()
    with RedisServer(port=given.port, config=modules_config()) as server:
        print(server.url, flush=True)
        about = f"{server.flavour} {server.version} ({server.source}), private, without persistence"
        print(f"{about}; Ctrl-C stops it", file=sys.stderr)
        while server.running and not ended.wait(0.2):
            pass
        return 0 if ended.is_set() else _report_error(MemkitError("the server stopped unexpectedly"), None)


def _audit(given: argparse.Namespace) -> int:
    """Find sessions that expire too early, since when and why (read-only)."""
    from memkit.audit.run import acl_rule, audit

    watch_s = duration_ms(given.watch) / 1000 if given.watch else 0.0
    expect = expected(given.expect)
    if given.acl:
        print(acl_rule(expectation.prefix for expectation in expect))
        return 0
    with progress("auditing", "keys") as show:
        report = audit(
            given.source,
            expect=expect,
            full=given.full or given.affected is not None,
            duty=given.duty,
            replica=given.replica,
            touch=given.touch,
            watch_s=watch_s,
            at=given.at,
            db=given.db,
            progress=show,
        )
    _print(report, json=given.json)
    if given.affected:
        from memkit.audit.affected import write_affected

        affected = write_affected(given.source, report, given.affected, at=given.at, db=given.db)
        print(affected.to_text(), file=sys.stderr if given.json else None)
    return report.exit_code


def _print(report: Any, *, json: bool) -> None:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(report.to_json() if json else report.to_text(color=color))


def _inspect(given: argparse.Namespace) -> int:
    """Show one session of any known store: messages, keys, TTLs, problems (read-only)."""
    from memkit.inspect import inspect_session

    expect = expected(given.expect)
    report = inspect_session(given.source, given.session, expect=expect, reveal=given.reveal, at=given.at, db=given.db)
    print(report.to_json() if given.json else report.to_text())
    return 1 if report.problems else 0


def _history(given: argparse.Namespace) -> int:
    """Show what happened to a session, or to the keys under each prefix, and when TTLs changed (read-only)."""
    from memkit.history import history
    from memkit.history.sources import is_source, parse_moment

    *sources, last = given.sources
    session = None if not sources or is_source(last) else last
    sources = sources if session is not None else given.sources
    urls = [_with_password(one, askpass=given.askpass) if "://" in one else one for one in sources]
    expect = expected(given.expect)
    since = None if given.since is None else parse_moment(given.since)
    if given.replication == "primary":
        print("memkit: the primary lists this connection as a replica until it is closed", file=sys.stderr)
    with progress("reading", "bytes") as show:
        found = history(
            *urls, session=session, expect=expect, since=since, replication=given.replication, progress=show
        )
    print(found.to_json() if given.json else found.to_text())
    return 0


def _record(given: argparse.Namespace) -> int:
    """Record what happens to keys on a live Redis, for memkit history (read-only)."""
    from memkit.history.record import acl_rule, record

    expect = expected(given.expect)
    prefixes = [to_bytes(one.prefix) for one in expect]
    if given.acl:
        print(acl_rule(prefixes, replication=given.replication is not None))
        return 0
    if given.output is None:
        raise MemkitError("no file for the recording: give -o FILE.db")
    for_s = None if given.duration is None else ttl_ms(given.duration) / 1_000
    done = record(
        given.source,
        given.output,
        prefixes=prefixes,
        replication=given.replication,
        for_s=for_s,
        stop=ended_by_signals(),
        began=lambda text: print(f"memkit: {text}", file=sys.stderr, flush=True),
    )
    print(f"{given.output}: {done}")
    return 0


def _triage(given: argparse.Namespace) -> int:
    """Audit a Redis, or the demo incident without a source, and write the report as one HTML file (read-only)."""
    from memkit.notebook.html_report import write_html_report

    with progress("auditing", "keys") as show:
        given_source = {"expect": given.expect, "at": given.at, "db": given.db}
        report = write_html_report(given.source, output=given.output, progress=show, **given_source)
    print(f"{wrapped(report.verdict.sentence)}\nreport: {given.output}")
    return report.exit_code


def _conformance(given: argparse.Namespace) -> int:
    """Run the conformance suite against a session store, on a private Redis with fault injection."""
    from memkit.conformance.case import CaseResult
    from memkit.conformance.cases.all_cases import CASES
    from memkit.conformance.runner import run

    finished: list[CaseResult] = []
    with progress("running", "cases") as show:

        def on_case(result: CaseResult) -> None:
            finished.append(result)
            show(len(finished), len(CASES))

        result = run(given.adapter, on_case=on_case)
    _print(result, json=given.json)
    return result.exit_code
