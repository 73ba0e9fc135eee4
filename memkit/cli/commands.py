"""What each command does, what it takes from the environment, and its errors in one line."""

import argparse
import errno
import getpass
import io
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis

from memkit.config import expected
from memkit.connect import cli_command, redact
from memkit.errors import MemkitError, PolicyError
from memkit.policy import duration_ms
from memkit.readonly.values import to_bytes
from memkit.render import progress, wrapped
from memkit.server.launcher import RedisServer, ended_by_signals, modules_config

NO_VERDICT = 2
REDIS_ERRORS = (redis.RedisError, redis.exceptions.RedisClusterException)
"""RedisClusterException is not a RedisError in redis-py 8."""
URL_VARIABLES = ("MEMKIT_REDIS_URL", "REDIS_URL")
ADVICE = (
    (
        "noauth|wrongpass|invalid username-password|authentication required|without any password|invalid password",
        "check the user in the URL and the password, which REDISCLI_AUTH or --askpass can supply",
    ),
    (
        "noperm|no permissions",
        "use another user, or create the one that memkit audit URL --acl prints (to record: memkit record URL --acl)",
    ),
    ("(hostname|ip address) mismatch", "put a host name that its certificate is for into the URL"),
    ("certificate verify failed", "put ?ssl_ca_certs=FILE, the certificate of its authority, at the end of the URL"),
    (r"connecting to \S+:\d+\. no such file", "check the names of the certificate files in the URL"),
    ("db index|select is not allowed", "check the database number at the end of the URL; /0 always exists"),
    ("name or service|name resolution|nodename", "the host name is unknown: check it in the URL"),
    (
        "unknown command .sentinel",
        "this server is no Sentinel: give a Sentinel's port (26379 by default), or use redis:// instead of "
        "redis+sentinel://",
    ),
    ("^loading ", "wait until it has loaded its data; loading_eta_seconds in INFO persistence estimates how long"),
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
    password = getpass.getpass("Redis password: ") if askpass else os.environ.get("REDISCLI_AUTH")
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
    elif (
        url
        and "--acl" not in message
        and (isinstance(cause, redis.ConnectionError | redis.TimeoutError) or re.search("NOAUTH|NOPERM", str(cause)))
    ):
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
    advice = f"check that it is running and that the {'socket' if scheme == 'unix' else 'port'} is right"
    if isinstance(error, redis.TimeoutError):
        advice = "check whether the server is busy or a firewall blocks it"
    if scheme.startswith("rediss"):
        advice += "; if the port does not use TLS, use redis://"
    elif re.search("reset by peer|closed", message):
        advice += "; if the port uses TLS, use rediss://"
    return f"{advice}; try: {cli_command(url, server)} ping"


def _seconds(option: str, text: str) -> float:
    """Return a duration in seconds; PolicyError, which names the option, unless it is above zero."""
    with suppress(PolicyError):
        if (ms := duration_ms(text)) > 0:
            return ms / 1000
    raise PolicyError(f"{option} {text}: expected a time above zero, such as 30s, 10m or 2h")


def _lab(given: argparse.Namespace) -> int:
    from memkit.notebook.lab import run_lab

    folder = None if given.dir is None else Path(given.dir)
    return run_lab(directory=folder, port=given.port, browser=not given.no_browser, url=given.url, expect=given.expect)


def _server(given: argparse.Namespace) -> int:
    ended = ended_by_signals()
    with RedisServer(port=given.port, config=modules_config()) as server:
        print(server.url, flush=True)
        about = f"{server.flavour} {server.version} ({server.source}), private, without persistence"
        print(f"{about}; Ctrl-C stops it", file=sys.stderr)
        while server.running and not ended.wait(0.2):
            pass
        return 0 if ended.is_set() else _report_error(MemkitError("the server stopped unexpectedly"), None)


def _audit(given: argparse.Namespace) -> int:
    from memkit.audit.run import acl_rule, audit

    watch_s = 0.0 if given.watch is None else _seconds("--watch", given.watch)
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
    if given.affected is not None:
        from memkit.audit.affected import write_affected

        affected = write_affected(given.source, report, Path(given.affected), at=given.at, db=given.db)
        print(affected.to_text(), file=sys.stderr if given.json else None)
    return report.exit_code


def _print(report: Any, *, json: bool) -> None:
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(report.to_json() if json else report.to_text(color=color))


def _inspect(given: argparse.Namespace) -> int:
    from memkit.inspect import inspect_session

    expect = expected(given.expect)
    report = inspect_session(given.source, given.session, expect=expect, reveal=given.reveal, at=given.at, db=given.db)
    print(report.to_json() if given.json else report.to_text())
    return 1 if report.problems else 0


def _history(given: argparse.Namespace) -> int:
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
    from memkit.history.record import acl_rule, record

    expect = expected(given.expect)
    prefixes = [to_bytes(one.prefix) for one in expect]
    if given.acl:
        print(acl_rule(prefixes, replication=given.replication is not None))
        return 0
    if given.output is None:
        raise MemkitError("no file for the recording: give -o FILE.db")
    for_s = None if given.duration is None else _seconds("--for", given.duration)
    stop = threading.Event()

    def interrupt(*_: object) -> None:
        if stop.is_set():  # the second Ctrl-C: the server does not answer
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third one would interrupt Python's own end
            raise KeyboardInterrupt
        stop.set()

    def began(text: str) -> None:
        ended_by_signals(stop)
        signal.signal(signal.SIGINT, interrupt)
        print(f"memkit: {text}", file=sys.stderr, flush=True)

    done = record(
        given.source,
        Path(given.output),
        prefixes=prefixes,
        replication=given.replication,
        for_s=for_s,
        stop=stop,
        began=began,
    )
    print(f"{given.output}: {done}")
    return 0


def _triage(given: argparse.Namespace) -> int:
    from memkit.notebook.html_report import write_html_report

    with progress("auditing", "keys") as show:
        given_source = {"expect": given.expect, "at": given.at, "db": given.db}
        report = write_html_report(given.source, output=Path(given.output), progress=show, **given_source)
    print(f"{wrapped(report.verdict.sentence)}\nreport: {given.output}")
    return report.exit_code


def _conformance(given: argparse.Namespace) -> int:
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


COMMANDS = {
    "lab": _lab,
    "server": _server,
    "audit": _audit,
    "inspect": _inspect,
    "history": _history,
    "record": _record,
    "triage": _triage,
    "conformance": _conformance,
}


def run(given: argparse.Namespace) -> int:
    """Run a command and return its exit code.

    Args:
        given: The parsed command line; ``command`` is the command's name.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # None if it was closed
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every character
    option = "--affected" if "affected" in given else "-o"
    written = getattr(given, "affected", getattr(given, "output", None))
    file = None if written is None else Path(written)
    try:
        _complete(given)
        if file and not file.absolute().parent.is_dir():
            raise MemkitError(f"the folder {file.parent} does not exist; make it, or give {option} another file")
        if file and option == "--affected" and file.exists():
            raise MemkitError(f"cannot write {file}: File exists; give a new file")
        if file and not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
            raise MemkitError(f"{file} cannot be written; give {option} another file")
        return COMMANDS[given.command](given)
    except BrokenPipeError:
        # The reader closed the pipe; the interpreter's last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_VERDICT
    except (MemkitError, *REDIS_ERRORS, OSError) as error:
        if file and getattr(error, "errno", None) == errno.ENOSPC:
            error = MemkitError(f"{file} is not complete: no space left; delete it and give {option} another file")
        elif file and isinstance(error, OSError) and str(error.filename) == str(file):
            error = MemkitError(f"{file} cannot be written: {error.strerror}; give {option} another file")
        sources = getattr(given, "sources", [getattr(given, "source", getattr(given, "url", None))])
        urls = [one for one in sources if one and "://" in one]
        return _report_error(error, next(iter(urls), None))
