"""The commands, their options and their help. It imports little, so that help is fast."""

import argparse
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

import memkit

COLUMNS = 80
WRONG_USE = 2
FILES = ", an RDB file, a directory of RDB files (one for each shard) or an append-only directory"
SUMMARIES = {
    "lab": "Open JupyterLab with the notebooks, a private Redis and the demo incident.",
    "server": "Run a private Redis until Ctrl-C and print its URL.",
    "audit": "Find sessions that expire too early, since when and why (read-only).",
    "inspect": "Show one session of any known store: messages, keys, TTLs, problems (read-only).",
    "history": "Show what happened to a session, or to the keys under each prefix, and when TTLs changed (read-only).",
    "record": "Record what happens to keys on a live Redis, for memkit history (read-only).",
    "triage": "Audit a Redis, or without one the demo incident, and write the report as an HTML file (read-only).",
    "conformance": "Run the conformance suite against a session store, on a private Redis with fault injection.",
}
ASKPASS = "ask for the password (or set the variable REDISCLI_AUTH)"


class _Parser(argparse.ArgumentParser):
    example = ""

    def format_help(self) -> str:
        """Return the help with the example, which is not wrapped: it can be pasted."""
        return super().format_help() + self.example

    def error(self, message: str) -> NoReturn:
        """Print one line, without the usage."""
        self.exit(WRONG_USE, f"{self.prog}: {message}; see {self.prog} -h\n")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of ``memkit`` with all commands."""
    parser = _Parser(
        prog="memkit",
        description="Test, audit and explain LLM session memory in Redis: whether sessions exist as long as their "
        "configured TTL, and why one did not.",
        epilog="Commands marked read-only never write. Each command has -h with an example.",
        formatter_class=_formatter,
    )
    parser.add_argument("--version", action="version", version=f"memkit {memkit.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    adding = (_add_lab, _add_server, _add_audit, _add_inspect, _add_history, _add_record, _add_triage, _add_conformance)
    for add in adding:
        add(commands)
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line (None: that of ``sys.argv``).

    argparse leaves over what stands behind an option if all that stands before it is enough: the session, for example.
    """
    given, more = parser.parse_known_args(arguments)
    if more and not any(one.startswith("-") for one in more):
        if given.command == "history":
            given.sources += more
            more = []
        elif given.command == "inspect" and given.source is None and len(more) == 1:
            given.source, given.session = given.session, *more
            more = []
    if more:
        command = " ".join(filter(None, (parser.prog, given.command)))
        parser.exit(WRONG_USE, f"{command}: unrecognized arguments: {' '.join(more)}; see {command} -h\n")
    return given


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=min(COLUMNS, shutil.get_terminal_size().columns) - 2)


def _command(
    commands: Any, name: str, example: str, *, source: str = "", expect: bool = False, json: bool = False
) -> _Parser:
    """Add a command with the options that commands share.

    ``source`` is the name of its first argument, SOURCE (a Redis URL or files) or URL; empty: it has none.
    """
    summary = SUMMARIES[name]
    about = summary[0].lower() + summary[1:].removesuffix(".")
    added: _Parser = commands.add_parser(name, help=about, description=summary, formatter_class=_formatter)
    added.example = f"\nexample:\n  memkit {name} {example}\n"
    added.set_defaults(source_required=True)
    if source:
        sources = f"a Redis URL{FILES if source == 'SOURCE' else ''}"
        default = "the variable MEMKIT_REDIS_URL or REDIS_URL"
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
    lab = _command(commands, "lab", "--url redis://localhost:6379/0 --expect 'chat:*=7d'", expect=True)
    lab.add_argument("--no-browser", action="store_true", help="print the address instead of opening a browser")
    lab.add_argument("--dir", metavar="D", help="the notebooks' folder; missing ones are copied there")
    lab.add_argument("--port", type=int, metavar="N", help="JupyterLab's port (default: 8888 or the next free one)")
    lab.add_argument("--url", metavar="URL", help="investigate this Redis, read-only, instead of the demo incident")


def _add_server(commands: Any) -> None:
    server = _command(commands, "server", "--port 0")
    server.add_argument("--port", type=int, metavar="N", help="also listen on this loopback TCP port (0: any free one)")


def _add_audit(commands: Any) -> None:
    example = "redis://localhost:6379/0 --expect 'chat:*=7d'"
    add = _command(commands, "audit", example, source="SOURCE", expect=True, json=True).add_argument
    add("--full", action="store_true", help="scan every key, check a fair sample of up to 40,000, and read values")
    add("--affected", metavar="FILE", help="write the names of the affected keys to FILE (implies --full)")
    add("--touch", action="store_true", help="let --full read values even if that resets idle times")
    add("--duty", type=float, default=0.25, metavar="F", help="share of the time spent querying (default: 0.25)")
    add("--watch", metavar="T", help="look again after T (30s, 5m) and measure the TTL of renewals")
    replica = "read the keys from this replica: reads by clients on the primary do not reset its idle times"
    add("--replica", metavar="URL", help=replica)
    add("--acl", action="store_true", help="print the ACL user that an audit needs, and do nothing else")


def _add_inspect(commands: Any) -> None:
    example = "redis://localhost:6379/0 user-42 --expect 'chat:*=7d'"
    inspect = _command(commands, "inspect", example, source="SOURCE", expect=True, json=True)
    inspect.add_argument("session", metavar="SESSION_OR_KEY", help="a session id or a key's name")
    inspect.add_argument("--reveal", action="store_true", help="show message texts, which are private")


def _add_history(commands: Any) -> None:
    history = _command(commands, "history", "/var/lib/redis/appendonlydir user-42", expect=True, json=True)
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
    record = _command(commands, "record", example, source="URL", expect=True)
    record.add_argument("-o", "--output", metavar="FILE.db", help="the recording, a new file")
    _add_replication(record, "read the replication stream of a replica, which shows commands")
    record.add_argument("--for", dest="duration", metavar="10m", help="how long to record (default: until Ctrl-C)")
    record.add_argument("--acl", action="store_true", help="print the ACL user that it needs, and do nothing else")


def _add_replication(command: argparse.ArgumentParser, what: str) -> None:
    primary = "with =primary, that of a primary, which then lists memkit as a replica"
    choices = ["replica", "primary"]
    command.add_argument("--replication", nargs="?", const="replica", choices=choices, help=f"{what}; {primary}")


def _add_triage(commands: Any) -> None:
    example = "redis://localhost:6379/0 --expect 'chat:*=7d' -o report.html"
    triage = _command(commands, "triage", example, source="SOURCE", expect=True)
    triage.set_defaults(source_required=False)
    about = "the report (default: triage.html)"
    triage.add_argument("-o", "--output", default="triage.html", metavar="FILE", help=about)


def _add_conformance(commands: Any) -> None:
    conformance = _command(commands, "conformance", "memkit.conformance.memkit_adapter:MemkitAdapter", json=True)
    conformance.add_argument("adapter", metavar="ADAPTER", help="package.module:factory of a StoreAdapter")
