"""The command line on a terminal: progress while it works, nothing left of it afterwards, colour, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from servers import every_server, start

from memkit.audit.report import INDENT
from memkit.cli import main
from memkit.server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start(list(every_server())[-1]) as server, server.client() as client:
        with client.pipeline(transaction=False) as pipe:
            for number in range(3_000):
                pipe.set(f"chat:{number}", "{}", ex=300)
            pipe.execute()
        yield server


def on_a_terminal(*arguments: str, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Return the exit code and what a terminal was sent."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    with subprocess.Popen(
        [sys.executable, "-m", "memkit", *arguments], stdout=theirs, stderr=theirs, env={**plain, **environment}
    ) as process:
        os.close(theirs)
        printed = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux reports that the other end is closed
                break
            if not part:
                break
            printed += part
    os.close(ours)
    return process.returncode, printed.decode()


def test_progress_is_removed_and_report_is_coloured(server: RedisServer) -> None:
    code, printed = on_a_terminal("audit", server.url, "--expect", "chat:*=7d", "--full", "--duty", "0.002")
    assert code == 1
    drawn, removed, report = printed.partition("\x1b[")
    assert removed
    assert "auditing" in drawn
    assert "keys/s" in drawn
    assert drawn.endswith("\r")  # the line was overwritten with spaces
    assert "auditing" not in report


def test_no_color_is_respected(server: RedisServer) -> None:
    _, printed = on_a_terminal("audit", server.url, "--expect", "chat:*=7d", "--duty", "1", NO_COLOR="1")
    assert "\033[" not in printed


@pytest.mark.parametrize(("columns", "widest"), [(20, 40), (40, 40), (60, 60), (200, 80)])
def test_report_has_width_of_terminal(server: RedisServer, columns: int, widest: int) -> None:
    expect = ("--expect", "chat:*=7d", "--duty", "1")
    _, printed = on_a_terminal("audit", server.url, *expect, columns=columns, NO_COLOR="1")
    lines = printed[printed.index("critical") :].splitlines()
    assert [line for line in lines if len(line) > widest and len(line.split()[-1]) <= widest - INDENT] == []
    assert max(map(len, lines)) > widest - 8


def test_wide_table_has_a_cell_a_line(server: RedisServer) -> None:
    tables = [on_a_terminal("inspect", server.url, "chat:1", columns=columns)[1] for columns in (30, 100)]
    lines = [[line.split() for line in table.splitlines()] for table in tables]
    assert ["key", "chat:1"] in lines[0]
    assert "TTL" in [line[0] for line in lines[0] if line]
    assert ["key", "type", "part", "TTL", "idle", "bytes", "encoding"] in lines[1]


def test_report_without_terminal_has_80_columns(server: RedisServer) -> None:
    command = [sys.executable, "-m", "memkit", "audit", server.url, "--expect", "chat:*=7d"]
    report = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"}).stdout
    assert 70 < max(map(len, report.splitlines())) <= 80


def test_an_error_on_a_terminal_is_one_line() -> None:
    code, printed = on_a_terminal("conformance", "no_such_module:Store")
    assert code == 2
    assert printed.strip().startswith("memkit: no_such_module:Store")
    assert len(printed.splitlines()) == 1


def test_ctrl_c_exits_with_130(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memkit.inspect.inspect_session", interrupted)
    assert main(["inspect", server.url, "chat:1"]) == 130


@pytest.mark.parametrize("module", ["argparse", "memkit.cli.commands", "redis"])
def test_ctrl_c_during_imports_is_no_traceback(module: str) -> None:
    script = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
class Interrupts:
    def find_spec(self, name, *_):
        if name == "MODULE":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
from memkit.cli import main
sys.exit(main(["audit", "redis://127.0.0.1:1"]))
"""
    done = subprocess.run([sys.executable, "-c", script.replace("MODULE", module)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_before_a_recording_begins(server: RedisServer, tmp_path: Path) -> None:
    script = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
from memkit.cli import main
import memkit.history.record
sys.modules["memkit.history.record"]._Recorder.begin = lambda recorder: os.kill(os.getpid(), signal.SIGINT)
sys.exit(main(["record", *sys.argv[1:]]))
"""
    command = [sys.executable, "-c", script, server.url, "-o", str(tmp_path / "incident.db")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
    assert not list(tmp_path.iterdir())


def test_second_ctrl_c_ends_a_recording_at_once(server: RedisServer, tmp_path: Path) -> None:
    recording = str(tmp_path / "incident.db")
    command = [sys.executable, "-m", "memkit", "record", server.url, "-o", recording]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert "recording" in process.stderr.readline()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(2_000):  # the third and later ones find it ending
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.01)
                    break
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert process.wait(120) == 130
        assert process.stderr.read() == ""
    assert main(["history", recording]) == 0


def test_a_server_that_crashes_is_an_error() -> None:
    for number, code in ((signal.SIGKILL, 2), (None, 0)):
        with subprocess.Popen(
            [sys.executable, "-m", "memkit", "server"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stderr
            url = process.stdout.readline().strip()
            if number:
                with redis.Redis.from_url(url) as client:
                    os.kill(client.info("server")["process_id"], number)
            else:
                process.send_signal(signal.SIGINT)
            printed = process.stderr.read()
            assert process.wait(120) == code
        assert ("memkit: the server stopped unexpectedly" in printed) == (code == 2)
        assert "Traceback" not in printed
