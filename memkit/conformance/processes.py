"""Work outside the calling thread: a daemon thread, a forked process, or a fresh interpreter.

A store that keeps state in its process works among threads and fails between processes.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from memkit.conformance.adapter import error_line
from memkit.conformance.environment import TestEnvironment
from memkit.conformance.outcomes import CaseFailed, CaseSkipped
from memkit.conformance.trial import TrialSession, difference

LIMIT_S = 60.0
"""For one piece of work in another thread or process: more means that the store hangs."""
FORK_ANSWERS_WITHIN = 0.25
"""The part of a case's time limit in which a store has to answer in a forked process, or is not tested in one."""
STARTS_WITHIN = 0.6
"""The part of a case's time limit in which a fresh Python has to start and import the adapter; else it is skipped."""
LONGEST_S = 120.0
"""A forked process that works for longer ends by itself."""
Result = TypeVar("Result")


def in_thread(work: Callable[[], Result]) -> Future[Result]:
    """Start work in a daemon thread: a ThreadPoolExecutor would wait at exit for a store that hangs."""
    future: Future[Result] = Future()

    def body() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # SystemExit of a store included; raised by result()
            future.set_exception(error)

    threading.Thread(target=body, daemon=True, name="memkit-conformance").start()
    return future


def in_threads(works: Sequence[Callable[[], object]]) -> None:
    """Do works at the same time and raise the first error, in their order."""
    futures = [in_thread(work) for work in works]
    wait(futures)
    for future in futures:
        future.result()


def outcome(future: Future[Any], *, within_s: float = LIMIT_S) -> object:
    """Return what the work returned or raised; a TimeoutError if it has not ended yet."""
    try:
        return future.result(within_s)
    except BaseException as error:  # noqa: BLE001  # returned
        return error


class ForkedProcess:
    """A forked process that does some work, sends the result as JSON, and ends without the store's exit hooks."""

    def __init__(self, work: Callable[[], object]) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise CaseSkipped("this platform cannot fork a process")
        context = multiprocessing.get_context("fork")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_work_and_end, args=(work, sender), daemon=True)
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; the child only calls the store and ends by _exit.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        sender.close()

    def is_done(self, *, within_s: float) -> bool:
        """Return whether the process has sent its result, or ended, within a time."""
        return self._receiver.poll(within_s)

    def result(self, *, limit_s: float = LIMIT_S) -> Any:
        """Return what the work returned, as JSON types; RuntimeError: no answer, or the work's error."""
        try:
            answer = json.loads(self._receiver.recv_bytes()) if self.is_done(within_s=limit_s) else None
        except EOFError:
            answer = None
        finally:
            self.kill()
        if answer is None:
            raise RuntimeError(f"another process did not answer within {limit_s:g} s")
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def kill(self) -> None:
        """Send SIGKILL and wait for the process's end."""
        self._process.kill()
        self._process.join()


def _work_and_end(work: Callable[[], object], sender: Any) -> None:
    def end_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join(LONGEST_S)
        os._exit(2)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        answer = {"result": work()}
    except BaseException as error:  # noqa: BLE001  # sent to the parent, which decides
        answer = {"error": error_line(error)}
    sender.send_bytes(json.dumps(answer).encode())
    os._exit(0)


def works_when_forked(env: TestEnvironment) -> bool:
    """Return whether the store answers in a forked process; one with a thread or loop from before may not."""
    if env.works_when_forked is None:
        session_id = env.new_id("forked")
        process = ForkedProcess(lambda: env.open(session_id).append("user", "appended by a forked process"))
        try:
            process.result(limit_s=env.limit_s * FORK_ANSWERS_WITHIN)
            env.works_when_forked = True
        except RuntimeError:  # no answer, or an error: a refusal
            env.works_when_forked = False
    return env.works_when_forked


class Interpreter:
    """A fresh Python that runs memkit.conformance.worker and exchanges JSON lines; it ends with this process."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        # -P and a path without the current directory, from which load() alone imports: a json.py in it would replace
        # the standard library's.
        path = os.pathsep.join(one for one in sys.path if one and one != str(Path.cwd()))
        self._ended: str | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memkit.conformance.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=os.environ | {"PYTHONPATH": path} | variables,
        )

    def send(self, **line: object) -> None:
        """Send a JSON object; one that has ended does not get it, but what it wrote before can still be received."""
        if self._process.stdin:
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(line).encode() + b"\n")
                self._process.stdin.flush()

    def receive(self, limit_s: float) -> dict[str, Any] | None:
        """Return the next JSON object, None at its end; TimeoutError if none comes in time."""
        if not self._process.stdout:
            return None
        line = in_thread(self._process.stdout.readline).result(limit_s)
        return json.loads(line) if line.endswith(b"\n") else None

    def stop(self, *, within_s: float = 0.0) -> str:
        """End the interpreter, by SIGKILL after a time; return its exit status and the last line of its stderr."""
        if self._ended is None:
            try:
                self._process.wait(within_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process.communicate()
            with self._stderr as stderr:
                stderr.seek(0)
                last = stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            code = self._process.returncode
            self._ended = ", ".join((f"exit status {code}" if code >= 0 else f"signal {-code}", *last))
        return self._ended


def in_a_fresh_process(session: TrialSession, fresh: Interpreter | None, *, when: str = "") -> str:
    """Read and append in another process; return why that was not possible, or nothing."""
    env = session.env
    if fresh is None:
        return "another process is a fork here: a fresh one imports the adapter by package.module:factory"
    message = session.role("user"), f"from a fresh process to {session.id}"
    limit_s = env.limit_s * STARTS_WITHIN
    try:
        fresh.send(url=env.server.url, session_id=session.id, ttl_s=env.ttl(), role=message[0], text=message[1])
        answer = fresh.receive(limit_s) or {"error": f"it ended: {fresh.stop()}"}
    except TimeoutError:
        answer = {"error": f"no answer within {limit_s:.2g} s"}
    if "error" in answer:
        return f"not tested from a fresh process: {answer['error']}"
    if "raised" in answer:
        raise RuntimeError(answer["raised"])
    read = [(role, text) for role, text in answer["read"]]
    if read != session.expected:
        raise CaseFailed(f"read by a fresh process{when}: {difference(session.expected, read)}")
    session.messages.append(message)
    session.expect("appended by a fresh process, read by the first handle", by=session.handle)
    return ""
