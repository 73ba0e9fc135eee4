"""Which processes run, by facts that stay true for as long as they run.

Redis and Valkey write their title over their arguments *and* their environment (``spt_init`` in ``setproctitle.c``): a
server that has started has no variable in ``/proc/PID/environ`` any more. Its working directory stays.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import nothing, wait_for

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which answers kill -0, does not."""
    if sys.platform == "linux":
        state = _text(Path(f"/proc/{pid}/stat")).rpartition(") ")[2]
    else:
        command = ["ps", "-o", "stat=", "-p", str(pid)]
        state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def assert_gone(pid: int, directory: str | Path) -> None:
    """Wait until a server's process and its directory no longer exist."""
    wait_for("the end of the server's process", lambda: alive(pid), nothing)
    wait_for("the end of the server's directory", Path(directory).exists, nothing)


def processes_of(temporary: Path) -> dict[int, str]:
    """Return the processes that were started with a TMPDIR, or that work below it, and their command lines."""
    every = (Path(path) for path in Path("/proc").glob("[0-9]*"))
    return {
        int(one.name): _text(one / "cmdline").replace("\0", " ").strip()
        for one in every
        if _belongs_to(one, temporary) and alive(int(one.name))
    }


def servers_of(temporary: Path) -> dict[int, str]:
    """Return the servers that were started below a TMPDIR and have written their process file, and run."""
    return {pid: command for pid, command in processes_of(temporary).items() if pid in _written_below(temporary)}


def _written_below(temporary: Path) -> set[int]:
    return {int(text) for file in temporary.glob("memkit-*/pid") if (text := _text(file)).strip()}


def _belongs_to(process: Path, temporary: Path) -> bool:
    with contextlib.suppress(OSError):  # it ended, or is another user's
        if (process / "cwd").readlink().is_relative_to(temporary):
            return True
        return f"TMPDIR={temporary}".encode() in (process / "environ").read_bytes().split(b"\0")
    return False


def _text(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text(errors="replace")
    return ""


def left_of(temporary: Path) -> list[object]:
    """Return what is left of a run with a TMPDIR of its own: its processes, and the files that it left there."""
    return [*processes_of(temporary).items(), *temporary.iterdir()]


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make a TMPDIR for one run, with a path that is short enough for unix sockets; nothing of the run may be left."""
    temporary = Path(tempfile.mkdtemp(prefix="run-", dir="/tmp"))
    try:
        yield temporary
        wait_for("a run that leaves no process and no file", lambda: left_of(temporary), nothing)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
