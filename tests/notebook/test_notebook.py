"""``%load_ext memkit`` in a real kernel."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jupyter_client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from nbval_run import own_jupyter
from processes import assert_gone
from servers import LANES, every_server
from test_connect import bare_server
from waiting import WITHIN_S, wait_for

from memkit.notebook import extension as notebook
from memkit.server import RedisServer

GREEN = """%%ipytest
def test_a_week(memory_store, memkit_clock):
    memory_store.save("mia", [{"role": "user", "content": "hi"}])
    memkit_clock.shift("6d")
    assert memory_store.load("mia")
"""
ENDS_EARLY = """%%ipytest
import pytest
def test_a(): pass
def test_exit(): pytest.exit("enough", returncode=0)
def test_c(): assert 0
"""
RED = "%%ipytest\ndef test_ttl():\n    ttl_s = 300\n    assert ttl_s == 604800"


def run_cell(client: BlockingKernelClient, code: str) -> str:
    shown: list[str] = []
    streams: list[str] = []  # which one the last thing shown came from

    def take(message: dict) -> None:
        content = message["content"]
        if message["msg_type"] == "stream" and streams[-1:] == [content["name"]]:
            shown[-1] += content["text"]  # what is printed may come in pieces
            return
        streams.append(content.get("name", ""))
        shown.append(content.get("text") or content.get("data", {}).get("text/plain", ""))
        shown.extend(content.get("traceback", ()))

    status = "aborted"
    while status == "aborted":  # a kernel drops what is sent to it while it still ends a cell that failed
        reply = client.execute_interactive(code, timeout=WITHIN_S, output_hook=take, allow_stdin=False)
        status = reply["content"]["status"]
    return "\n".join([*filter(None, shown), *(["FAILED"] if status != "ok" else [])])


class Kernel:
    """A kernel, and what a notebook's cells show."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=own_jupyter(folder) | env, stderr=subprocess.DEVNULL)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=WITHIN_S)

    def run(self, code: str) -> str:
        """Run a cell and return what it shows, with a last line FAILED where it did."""
        return run_cell(self.client, code)

    def server(self, which: str = "n.server()") -> tuple[int, Path]:
        """Return the process and the directory of this notebook's server."""
        said = self.run(f"import memkit.notebook as n; s = {which}; print(s.pid, s.directory)").split()
        return int(said[0]), Path(said[1])

    def stop(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Kernel]]:
    started: list[Kernel] = []

    def start(**env: str) -> Kernel:
        started.append(Kernel(tmp_path, **env))
        return started[-1]

    yield start
    for kernel in started:
        kernel.stop()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path_factory.mktemp("kernel"))
    kernel.run("%load_ext memkit")
    yield kernel
    kernel.stop()


def test_loading_prints_one_line_and_sets_no_name(start: Callable[..., Kernel]) -> None:
    kernel = start()
    names = "print(sorted(name for name in globals() if name.isidentifier() and name[0] != '_'))"
    before = kernel.run(names)
    status = kernel.run("%load_ext memkit")
    assert status.startswith("memkit ")
    assert "private; time moved by " in status
    assert "no other Redis is used" in status
    assert len(status.splitlines()) == 1
    assert kernel.run(names) == before
    assert kernel.run("%load_ext memkit") == status


def test_a_passing_cell_prints_the_same_each_time(kernel: Kernel) -> None:
    assert kernel.run(GREEN) == kernel.run(GREEN) == "1 passed: test_a_week\n"


def test_the_cases_of_a_test_are_listed_together(kernel: Kernel) -> None:
    cell = "%%ipytest\nimport pytest\n@pytest.mark.parametrize('store', ['ag2', 'agno'])\ndef test_a(store): pass"
    assert kernel.run(cell + "\ndef test_b(): pass") == "3 passed: test_a[ag2, agno], test_b\n"


def test_the_line_magic_runs_the_tests_again(kernel: Kernel) -> None:
    kernel.run(GREEN)
    assert kernel.run("%ipytest") == "1 passed: test_a_week\n"
    assert kernel.run("%ipytest -k nothing").endswith("FAILED")


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (RED, "1 of 1 failed: test_ttl"),
        (RED, "assert 300 == 604800"),
        ("%%ipytest\nx = 1", "no test was found in this cell"),
        ("%%ipytest\nimport pytest\ndef test_ttl():\n    pytest.skip('not today')", "every test was skipped"),
        ("%%ipytest\nimport pytest\n@pytest.mark.xfail\ndef test_ttl():\n    assert False", "every test was skipped"),
        ("%%ipytest\ndef test_ttl():\n    pass\n1 / 0", "the cell's own code raised ZeroDivisionError: no test ran"),
        ("%%ipytest\ndef test_ttl(:\n    pass", "the cell's own code raised SyntaxError: no test ran"),
        ("%%ipytest\ndef test_ttl(no_such_fixture):\n    pass", "fixture 'no_such_fixture' not found"),
        ("%%ipytest --no-such-option\ndef test_ttl():\n    pass", "unrecognized arguments: --no-such-option"),
        (
            f"{RED}\nimport pytest\n@pytest.fixture\ndef f():\n    yield\n    1 / 0\ndef test_2(f):\n    pass",
            "2 of 2 failed",
        ),
        ("%%ipytest --must-fail\ndef test_ttl():\n    pass", "expected a failing test, and none failed"),
        (ENDS_EARLY, "pytest stopped before 2 tests ran: test_exit, test_c"),
        (ENDS_EARLY.replace("ipytest", "ipytest --must-fail", 1), "pytest stopped before 2 tests ran"),
        ("%%ipytest\ndef test_ttl():\n    return 300 == 604800", "1 of 1 failed: test_ttl"),
        ("%%ipytest\ndef test_ttl():\n    return 300 == 604800", "PytestReturnNotNoneWarning"),
        (
            "%%ipytest --must-fail\ndef test_ttl(nothing):\n    pass",
            "this is an error outside of one",
        ),
    ],
)
def test_a_failing_cell_prints_the_reason(kernel: Kernel, cell: str, says: str) -> None:
    shown = kernel.run(cell)
    assert shown.endswith("FAILED")
    assert says in shown
    assert "memkit/notebook/extension.py" not in shown


def test_must_fail_prints_the_assertion(kernel: Kernel) -> None:
    shown = kernel.run(RED.replace("%%ipytest", "%%ipytest --must-fail"))
    assert shown.splitlines() == [
        "1 failed as expected: test_ttl",
        "  >       assert ttl_s == 604800",
        "  E       assert 300 == 604800",
    ]


def test_skipped_tests_are_listed_with_the_reason(kernel: Kernel) -> None:
    shown = kernel.run(GREEN + "import pytest\ndef test_later():\n    pytest.skip('not today')")
    assert shown == "1 passed: test_a_week\nskipped test_later: Skipped: not today\n"


def test_the_tests_of_an_earlier_cell_do_not_run(kernel: Kernel) -> None:
    kernel.run(RED)
    assert kernel.run("%%ipytest\ndef test_other():\n    pass") == "1 passed: test_other\n"


def test_a_project_around_the_notebook_is_ignored(kernel: Kernel) -> None:
    kernel.run("import pathlib; pathlib.Path('pytest.ini').write_text('[pytest]\\naddopts = --no-such-option')")
    assert kernel.run(GREEN) == "1 passed: test_a_week\n"
    kernel.run("pathlib.Path('pytest.ini').unlink()")


def test_an_interrupt_leaves_server_and_kernel(kernel: Kernel) -> None:
    pid, _ = kernel.server()
    hangs = kernel.folder / "hangs"
    hanging = "def test_hangs():\n    pathlib.Path('hangs').touch()\n    while True: pass"
    asked = kernel.client.execute(f"%%ipytest\nimport pathlib\n{hanging}")
    wait_for("a cell that hangs", hangs.exists)
    kernel.manager.interrupt_kernel()
    wait_for(
        "the reply to the cell that hung",
        lambda: kernel.client.get_shell_msg(timeout=WITHIN_S)["parent_header"]["msg_id"],
        asked.__eq__,
    )
    assert kernel.server()[0] == pid
    assert kernel.run(GREEN) == "1 passed: test_a_week\n"


def test_a_kernel_restart_gets_a_new_server(start: Callable[..., Kernel]) -> None:
    kernel = start()
    kernel.run("%load_ext memkit")
    pid, directory = kernel.server()
    kernel.manager.restart_kernel(now=True)
    assert_gone(pid, directory)
    kernel.client.wait_for_ready(timeout=WITHIN_S)
    kernel.run("%load_ext memkit")
    assert kernel.run(GREEN) == "1 passed: test_a_week\n"
    assert kernel.server()[0] != pid


def test_a_killed_kernel_leaves_no_server(start: Callable[..., Kernel]) -> None:
    kernel = start()
    kernel.run("%load_ext memkit\nimport memkit.notebook as n")
    servers = kernel.server(), kernel.server("n.incident()")
    os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
    for pid, directory in servers:
        assert_gone(pid, directory)


def test_cells_run_again_after_a_server_ended(start: Callable[..., Kernel]) -> None:
    kernel = start()
    kernel.run("%load_ext memkit\nimport memkit.notebook as n\nn.server().client().set('k', 'v')")
    for name, cell in (("n.server()", "n.server().client().get('k')"), ("n.incident()", "n.is_demo()")):
        pid, _ = kernel.server(name)
        kernel.run(f"{name}.kill()")
        assert kernel.run(f"assert {cell}") == ""
        assert kernel.server(name)[0] != pid


def test_an_old_server_is_replaced_for_expire_options(start: Callable[..., Kernel]) -> None:
    old = every_server()["redis-6.2"]
    if not old:
        pytest.skip(f"no redis-6.2 on this machine: {LANES['redis-6.2']}")
    kernel = start(MEMKIT_REDIS_SERVER=str(old.path))
    status = kernel.run("%load_ext memkit")
    assert "; this server lacks EXPIRE with NX, XX, GT, LT (Redis 7.0); redis " in status
    assert len(status.splitlines()) == 1
    kernel.run("import memkit.notebook as n")
    assert kernel.run("print(n.server_with_expire_options().client().expire('k', 9, gt=True))") == "False\n"


def test_no_server_is_reported_without_a_traceback(start: Callable[..., Kernel]) -> None:
    shown = start(MEMKIT_REDIS_SERVER="/no/redis-server").run("%load_ext memkit")
    assert shown == "MEMKIT_REDIS_SERVER=/no/redis-server is not a Redis or Valkey server that runs here\nFAILED"


def test_the_status_names_the_investigated_redis(memkit_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMKIT_LAB_URL", memkit_server.url)
    assert notebook.url() == memkit_server.url
    assert repr(notebook.Status(memkit_server)).endswith("the demo incident runs beside it")
    with bare_server("--requirepass", "s3cret-canary") as port:
        monkeypatch.setenv("MEMKIT_LAB_URL", f"redis://:s3cret-canary@127.0.0.1:{port}/0")
        shown = notebook.Status(memkit_server)._repr_html_()
    assert "read-only on " in shown
    assert "s3cret-canary" not in shown


def test_running_lists_both_servers_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    with RedisServer() as server, server.client() as client:
        client.set("chat:1", "x")
        monkeypatch.setenv("MEMKIT_LAB_URL", server.url)
        running = notebook.running()
        assert running.rows[1][-1] == "1"
        assert f"{server.flavour} {server.version}" in running.rows[1]
        assert "&#x27;s</td>" in running._repr_html_()
        assert "<caption " in running._repr_html_()


def test_remaining_ttls_counts_sessions(memkit_server_factory: Callable[..., RedisServer]) -> None:
    server = memkit_server_factory()
    with server.client() as client:
        for number, ttl_s in enumerate((299, 3600, 86_000, 6.5 * 86_400, 6.6 * 86_400)):
            client.set(f"chat:{number}", "x", px=int(ttl_s * 1000))
        client.set("chat:persistent", "x")
        client.set("other:1", "x", ex=60)
    counted = notebook.remaining_ttls(server.url, "chat:")
    assert [int(count) for _, count, _ in counted.rows] == [1, 1, 1, 0, 0, 0, 0, 2]
    assert counted.caption == "5 sessions chat:* by remaining TTL"
