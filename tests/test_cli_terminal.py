"""The command line on a terminal: progress while it works, nothing left of it afterwards, colour, and Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis
from servers import every_server, start

from memkit.cli import main
from memkit.server import RedisServer


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with start(list(every_server())[-1]) as server, server.client() as client:
        for number in range(600):
            client.set(f"chat:{number}", "{}", ex=300)
        yield server


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Return the exit code and what a terminal was sent."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "memkit", *arguments], stdout=theirs, stderr=theirs, env={**plain, **environment}
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
            if not part:
                break
            said += part
    os.close(ours)
    return process.returncode, said.decode()


def test_progress_is_drawn_and_wiped_and_the_report_is_in_colour(server: RedisServer) -> None:
    code, said = on_a_terminal("audit", server.url, "--expect", "chat:*=7d", "--duty", "1")
    assert code == 1
    drawn, wiped, report = said.rpartition("\r\033[K")
    assert wiped
    assert "600 of 600 keys looked at" in drawn
    assert "looked at" not in report.splitlines()[0]
    assert "\033[" in report


def test_no_color_means_none(server: RedisServer) -> None:
    _, said = on_a_terminal("audit", server.url, "--expect", "chat:*=7d", "--duty", "1", NO_COLOR="1")
    assert "\033[" not in said.rpartition("\r\033[K")[2]


def test_an_error_on_a_terminal_leaves_no_progress_beside_it() -> None:
    code, said = on_a_terminal("conformance", "no_such_module:Store")
    assert code == 2
    assert said.rpartition("\r\033[K")[2].startswith("memkit: no_such_module:Store")


def test_ctrl_c_is_exit_130_without_a_traceback(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("memkit.inspect.inspect_session", interrupted)
    assert main(["inspect", server.url, "chat:1"]) == 130


def test_a_private_server_that_dies_is_an_error_and_one_that_is_ended_is_none() -> None:
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
            said = process.stderr.read()
            assert process.wait(120) == code
        assert ("memkit: the server ended by itself" in said) == (code == 2)
        assert "Traceback" not in said
