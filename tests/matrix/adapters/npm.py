"""Stores of npm packages behind the suite's adapter: each handle is a Node process that runs ``npm_stores.mjs``."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

from adapters.shared import whole_seconds

from memkit.conformance.adapter import Messages

STORES = Path(__file__).with_name("npm_stores.mjs")


class NpmStore:
    """A store as its documentation makes it; MEMKIT_NPM names the folder in which its packages are installed."""

    def __init__(self, name: str, *, whole: bool) -> None:
        self.name, self._whole = name, whole

    def open(self, url: str, session_id: str, ttl_s: float | None) -> NpmHandle:
        """Return a handle with a Node process, and so a client, of its own."""
        return NpmHandle([self.name, url, session_id, whole_seconds(ttl_s) if self._whole else ttl_s])


class NpmHandle:
    """One session in a Node process, which ends when its input ends."""

    def __init__(self, opened: list[Any]) -> None:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._node = subprocess.Popen(["node", str(STORES)], stdin=pipe, stdout=pipe, stderr=nothing)
        self._call("open", *opened)

    def append(self, role: str, text: str) -> None:
        """Add a message."""
        self._call("append", role, text)

    def read(self) -> Messages:
        """Return the messages with the suite's names of roles."""
        return [(role, text) for role, text in self._call("read")]

    def clear(self) -> None:
        """Remove the session, as the library understands it."""
        self._call("clear")

    def close(self) -> None:
        """Close the client and end the process."""
        try:
            self._call("close")
        finally:
            self._node.kill()
            self._node.communicate()

    def _call(self, method: str, *arguments: Any) -> Any:
        assert self._node.stdin
        assert self._node.stdout
        self._node.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        self._node.stdin.flush()
        line = self._node.stdout.readline()
        if not line:
            raise RuntimeError("the Node process ended without an answer")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


LangchainJs = partial(NpmStore, "langchain-js", whole=True)
LanggraphJs = partial(NpmStore, "langgraph-js", whole=False)
LanggraphJsShallow = partial(NpmStore, "langgraph-js-shallow", whole=False)
