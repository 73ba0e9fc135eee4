"""Stores of npm packages behind the suite's adapter: a Node process runs ``npm_stores.mjs`` and answers calls.

MEMKIT_NPM names the folder in which the packages are installed, with a copy of that file: Node looks for packages
beside the file that asks for them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, ClassVar

from adapters.shared import whole_seconds

from memkit.conformance.adapter import Messages

FILE = "npm_stores.mjs"


class NpmStore:
    """A store as its documentation makes it.

    Args:
        name: Its name in ``npm_stores.mjs``.
        whole: Whether it takes whole seconds.
        more: What else the adapter declares, such as ``window``.
    """

    def __init__(self, name: str, *, whole: bool = False, **more: Any) -> None:
        self.name, self._whole = name, whole
        self.__dict__ |= more

    def open(self, url: str, session_id: str, ttl_s: float | None) -> NpmHandle:
        """Return a handle with a client of its own."""
        return NpmHandle(self.name, url, session_id, whole_seconds(ttl_s) if self._whole else ttl_s)


class NpmHandle:
    """One session, with a client of its own in the Node process."""

    def __init__(self, *opened: Any) -> None:
        self._node = Node.of_this_process()
        self._number = self._node.call("open", *opened)

    def append(self, role: str, text: str) -> None:
        """Add a message."""
        self._node.call("append", self._number, role, text)

    def read(self) -> Messages:
        """Return the messages with the suite's names of roles."""
        return [(role, text) for role, text in self._node.call("read", self._number)]

    def clear(self) -> None:
        """Remove the session, as the library understands it."""
        self._node.call("clear", self._number)

    def close(self) -> None:
        """Close the client."""
        self._node.call("close", self._number)


class Node:
    """A Node process, which ends with this one: its input ends then. A forked process starts one of its own."""

    _started: ClassVar[dict[int, Node]] = {}
    _starting = threading.Lock()

    def __init__(self) -> None:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        command = ["node", f"{os.environ['MEMKIT_NPM']}/{FILE}"]
        node = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing)
        assert node.stdin
        assert node.stdout
        self._input, self._output = node.stdin, node.stdout
        self._writing = threading.Lock()
        self._numbers: Iterator[int] = itertools.count()
        self._waiting: dict[int, SimpleQueue[dict[str, Any]]] = {}
        threading.Thread(target=self._answer, daemon=True).start()

    @classmethod
    def of_this_process(cls) -> Node:
        """Return the Node process that was started by this one."""
        with cls._starting:
            pid = os.getpid()
            if pid not in cls._started:
                cls._started[pid] = cls()
            return cls._started[pid]

    def call(self, method: str, *arguments: Any) -> Any:
        """Return the result of a call; raise RuntimeError with the error of the library."""
        number, answers = next(self._numbers), SimpleQueue[dict[str, Any]]()
        self._waiting[number] = answers
        with self._writing:
            self._input.write(json.dumps([number, method, *arguments]).encode() + b"\n")
            self._input.flush()
        answer = answers.get()
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _answer(self) -> None:
        for line in self._output:
            number, answer = json.loads(line)
            self._waiting.pop(number).put(answer)
        for waiting in self._waiting.values():
            waiting.put({"error": "the Node process ended"})


TWO_ROLES = ("user", "assistant")
LangchainJs = partial(NpmStore, "langchain-js", whole=True)
LanggraphJs = partial(NpmStore, "langgraph-js")
LanggraphJsShallow = partial(NpmStore, "langgraph-js-shallow")
VercelChatSdk = partial(NpmStore, "vercel-chat-sdk", window=100, roles=TWO_ROLES)
MastraRedis = partial(NpmStore, "mastra-redis", has_ttl=False, roles=TWO_ROLES)
