"""The command line. Exit codes: 0 nothing wrong, 1 findings, 2 no verdict: could not run, or too little to judge."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from memkit.errors import MemkitError

Command = Callable[[argparse.Namespace], int]
CANNOT = 2
REDIS_ERRORS = (redis.RedisError, redis.exceptions.RedisClusterException)
"""The latter is of no family in redis-py 8."""
ADVICE = (
    (
        "noauth|wrongpass|invalid username-password|authentication required|without any password|invalid password",
        "check the user and the password in the URL (redis://USER:PASSWORD@HOST, percent-encoded)",
    ),
    ("noperm|no permissions", "use another user, or create the one that memkit audit URL --acl prints"),
    ("db index|select is not allowed", "the number at the end of the URL is the database's; /0 is always there"),
    ("name or service|name resolution|nodename", "no such host is known here: check the name in the URL"),
    ("cluster mode is not enabled", "this is no cluster: redis:// instead of redis+cluster://"),
    (
        "no master found",
        "do the Sentinels of the URL answer, and know this name? try: redis-cli -p PORT sentinel masters",
    ),
)
"""What the server, or the way to it, said, and what to do about it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    given = _parser().parse_args(arguments)
    if "run" not in given:
        _parser().print_help(sys.stderr)
        return CANNOT
    try:
        return int(given.run(given))
    except BrokenPipeError:
        # Who read it has gone; the interpreter's own last flush must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CANNOT
    except (MemkitError, *REDIS_ERRORS, OSError) as error:
        return _cannot(error, getattr(given, "url", None))
    except KeyboardInterrupt:
        return 130


def _cannot(error: Exception, url: str | None) -> int:
    from memkit.connect import redact

    # memkit's own say nothing secret, and what they say of URLs is no URL.
    said = str(error) if isinstance(error, MemkitError) else redact(str(error))
    said = " ".join(said.partition(" : <redis")[0].split()) or type(error).__name__
    if url and isinstance(error, REDIS_ERRORS):
        said += f" (while talking to {redact(url)}); {_next_step(error, redact(url))}"
    print(f"memkit: {said}", file=sys.stderr)
    return CANNOT


def _next_step(error: Exception, url: str) -> str:
    """Return what to do about a server that could not be talked to; ``url`` is shown, so it has no password."""
    said = str(error).lower()
    for words, advice in ADVICE:
        if re.search(words, said):
            return advice
    scheme, _, rest = url.partition("://")
    ping = f"redis-cli -u '{scheme.partition('+')[0]}://{rest.partition(',')[0]}' ping"
    if scheme == "unix":
        ping = f"redis-cli -s {rest.rpartition('@')[2].partition('?')[0]} ping"
    if isinstance(error, redis.TimeoutError):
        return f"is it busy, or a firewall in between? try: {ping}"
    return f"is it running, and is this its {'socket' if scheme == 'unix' else 'port'}? try: {ping}"


def _parser() -> argparse.ArgumentParser:
    import memkit

    parser = argparse.ArgumentParser(
        prog="memkit",
        description="Does an LLM application's memory in Redis last as long as it was meant to?",
        epilog="Reading (audit, inspect, triage) never writes. Each command has its own -h with an example.",
    )
    parser.add_argument("--version", action="version", version=f"memkit {memkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_lab(commands)
    _add_server(commands)
    _add_audit(commands)
    _add_inspect(commands)
    _add_triage(commands)
    _add_conformance(commands)
    return parser


def _command(commands: Any, name: str, run: Command, summary: str, example: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ("" if summary.endswith("?") else "."),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run)
    return added


def _add_lab(commands: Any) -> None:
    lab = _command(
        commands,
        "lab",
        _lab,
        "open JupyterLab on the notebooks, with a private Redis and the demo incident",
        "memkit lab",
    )
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    lab.add_argument("--dir", type=Path, metavar="D", help="where the notebooks are, or are copied to")
    lab.add_argument("--port", type=int, metavar="N", help="JupyterLab's port (default: 8888 or the next free one)")
    lab.add_argument("--url", metavar="URL", help="investigate this Redis, read-only, instead of the demo incident")


def _add_server(commands: Any) -> None:
    server = _command(
        commands, "server", _server, "run a private Redis until Ctrl-C and print its URL", "memkit server --port 0"
    )
    server.add_argument(
        "--port", type=int, metavar="N", help="a loopback TCP port (0: any free one) beside the unix socket"
    )


def _add_audit(commands: Any) -> None:
    audit = _command(
        commands,
        "audit",
        _audit,
        "look, read-only, at a live Redis: which sessions die early, since when, and why",
        "memkit audit redis://localhost:6379/0 --expect 'chat:*=7d'",
    )
    audit.add_argument("url", metavar="URL")
    audit.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="PATTERN=TTL",
        help="how long keys are meant to live: 'chat:*=7d[,sliding|absolute][,jitter=10%%]'; may be repeated",
    )
    audit.add_argument("--expect-file", type=Path, metavar="FILE", help="expectations from a file, one a line")
    audit.add_argument("--full", action="store_true", help="every key instead of a sample, and checks that read values")
    audit.add_argument("--touch", action="store_true", help="let --full read values where that resets idle clocks")
    audit.add_argument(
        "--duty", type=float, default=0.25, metavar="F", help="share of time spent asking (default 0.25)"
    )
    audit.add_argument("--replica", metavar="URL", help="a replica, whose idle times are exact for keys that are read")
    audit.add_argument(
        "--acl", action="store_true", help="print the minimal ACL user to run under, and do nothing else"
    )
    audit.add_argument("--json", action="store_true", help="print one JSON object")


def _add_inspect(commands: Any) -> None:
    inspect = _command(
        commands,
        "inspect",
        _inspect,
        "show one session, whatever store wrote it: messages, keys, lifetimes, problems; read-only",
        "memkit inspect redis://localhost:6379/0 user-42",
    )
    inspect.add_argument("url", metavar="URL")
    inspect.add_argument("session", metavar="SESSION_OR_KEY")
    inspect.add_argument("--reveal", action="store_true", help="show message texts (private: not shown otherwise)")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")


def _add_triage(commands: Any) -> None:
    triage = _command(
        commands,
        "triage",
        _triage,
        "run the triage notebook and write its report, safe to attach to a ticket; without URL on the demo incident",
        "memkit triage redis://localhost:6379/0 --expect 'chat:*=7d' -o report.html",
    )
    triage.add_argument("url", nargs="?", metavar="URL")
    triage.add_argument("--expect", action="append", default=[], metavar="PATTERN=TTL", help="as for audit")
    triage.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("triage.html"),
        metavar="FILE",
        help="the report (default triage.html)",
    )


def _add_conformance(commands: Any) -> None:
    conformance = _command(
        commands,
        "conformance",
        _conformance,
        "run the conformance suite against a session store, on a private Redis with fault injection",
        "memkit conformance memkit.conformance.memkit_adapter:MemkitAdapter",
    )
    conformance.add_argument("adapter", metavar="ADAPTER", help="package.module:factory of a StoreAdapter")
    conformance.add_argument("--json", action="store_true", help="print one JSON object")


def _lab(given: argparse.Namespace) -> int:
    from memkit.notebook.lab import run_lab

    return run_lab(directory=given.dir, port=given.port, browser=not given.no_browser, url=given.url)


def _server(given: argparse.Namespace) -> int:
    from memkit.server import RedisServer

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: over.set())
    with RedisServer(port=given.port) as server:
        print(server.url, flush=True)
        print(
            f"{server.flavour} {server.version} ({server.source}), private, nothing persists; Ctrl-C ends it",
            file=sys.stderr,
        )
        while server.running and not over.wait(0.2):
            pass
        return 0 if over.is_set() else _cannot(MemkitError("the server ended by itself"), None)


def _audit(given: argparse.Namespace) -> int:
    from memkit.audit.run import acl_rule, audit
    from memkit.config import configured_expectations, parse_expectation, read_expectations

    expect = [parse_expectation(text) for text in given.expect]
    if given.expect_file:
        expect += read_expectations(given.expect_file)
    expect = expect or configured_expectations()
    if given.acl:
        print(acl_rule(expectation.prefix for expectation in expect))
        return 0
    with _progress("keys looked at") as progress:
        report = audit(
            given.url,
            expect=expect,
            full=given.full,
            duty=given.duty,
            replica=given.replica,
            touch=given.touch,
            progress=progress,
        )
    print(report.to_json() if given.json else report.to_text(color=_in_color()))
    return report.exit_code


def _in_color() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what draws a line of progress on a terminal's stderr; None where stderr is none."""
    if not sys.stderr.isatty():
        yield None
        return

    def draw(done: int, of: int) -> None:
        share = min(done / of, 1) if of else 1
        bar = "#" * round(30 * share)
        print(f"\r[{bar:<30}] {done:,} of {of:,} {what} ", end="", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _inspect(given: argparse.Namespace) -> int:
    from memkit.inspect import inspect_session

    report = inspect_session(given.url, given.session, reveal=given.reveal)
    print(report.to_json() if given.json else report.to_text())
    return 1 if report.problems else 0


def _triage(given: argparse.Namespace) -> int:
    from memkit.notebook.triage import triage

    if not given.output.absolute().parent.is_dir():
        raise MemkitError(f"there is no folder {given.output.parent} for the report; make it, or give -o another file")
    if sys.stderr.isatty():
        print("running the triage notebook, some 10 s …", end="", file=sys.stderr, flush=True)
    try:
        report = triage(given.url, expect=given.expect, output=given.output)
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(f"{report.sentence}\nreport: {report.path}")
    return report.exit_code


def _conformance(given: argparse.Namespace) -> int:
    from memkit.conformance.case import CaseResult
    from memkit.conformance.cases.all_cases import CASES
    from memkit.conformance.runner import run
    from memkit.render import progress

    done = 0
    with progress("running", "cases") as show:

        def on_case(_: CaseResult) -> None:
            nonlocal done
            done += 1
            show(done, len(CASES))

        result = run(given.adapter, on_case=on_case)
    print(result.to_json() if given.json else result.to_text(color=_in_color()))
    return result.exit_code
