"""A coverage-guided fuzzer for the decoders: mutates captured sessions, keeps what reaches new lines.

    python tests/stress/fuzz_formats.py --seconds 600 [--seed 7]

An exception out of a decoder, or one input that takes over a second of processor time, is a failure: it is printed with
the seed and the step that made it, and the exit code is 1. The default suite runs a few hundred steps of it.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from memkit import formats
from memkit.formats import capture, unknown
from memkit.formats.capture import payload_of
from memkit.formats.model import KeyOwner, SessionValues
from memkit.formats.parsing import encodings
from memkit.readonly.values import DOCUMENT_KINDS, RedisValue, to_bytes

MAX_CPU_S = 1.0
TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"NaN", b"1e999", b"-1", b"\\ud83d", b"\xff", b"\x00"),
    *(b'"role":', b'"content":', b'"tool_calls":', b'"id":', b'{"text":"x"}', b'"__event__"', b"9" * 400, b"[" * 200),
    *(b"\x81\xa1a", b"\xc7\x03\x05", b"\xdd\xff\xff\xff\xff", b"\x80\x04", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"),
)
KINDS = ("string", "list", "hash", "set", "zset", "stream", "ReJSON-RL", "vectorset")


def value_of(entry: dict[str, Any]) -> RedisValue:
    """Return a capture's key as if it had just been read."""
    name, kind, value = entry["key"], entry["type"], entry["value"]
    if kind in DOCUMENT_KINDS:
        data = payload_of(value)
        return RedisValue(name, kind, data=data, total=len(data))
    if kind == "list":
        return RedisValue(name, kind, elements=list(map(payload_of, value)), total=len(value))
    if kind == "hash":
        fields = {field: payload_of(each) for field, each in value.items()}
        return RedisValue(name, kind, fields=fields, total=len(value))
    if kind == "set":
        return RedisValue(name, kind, members=frozenset(value), total=len(value))
    if kind == "stream":
        entries = [(uid, {field: payload_of(each) for field, each in fields.items()}) for uid, fields in value]
        return RedisValue(name, kind, entries=entries, total=len(value))
    return RedisValue(name, kind, scores=dict(value), total=len(value))


@dataclass
class Fuzzer:
    """Mutates sessions and runs them; ``edges`` are the pairs of lines that some input reached one after the other."""

    seed: int = 0
    steps: int = 0
    slowest_s: float = 0.0
    corpus: list[SessionValues] = field(default_factory=list)
    edges: set[tuple[str, int, int]] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.corpus = [_captured(name) for name in capture.names()]

    def step(self) -> None:
        """Mutate one session of the corpus, run it, and keep it when it reached something new."""
        self.steps += 1
        stored = self.mutated(self.random.choice(self.corpus))
        before = len(self.edges)
        begun = time.process_time()
        try:
            self._traced(lambda: run(stored))
        except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
            self._fail(traceback.format_exc(limit=-4))
        # Tracing slows what it traces; only what is slow with it is timed without.
        if time.process_time() - begun > MAX_CPU_S:
            self._time(stored)
        if len(self.edges) > before:
            self.corpus.append(stored)

    def _time(self, stored: SessionValues) -> None:
        begun = time.process_time()
        run(stored)
        took = time.process_time() - begun
        self.slowest_s = max(self.slowest_s, took)
        if took > MAX_CPU_S:
            self._fail(f"{took:.2f} s for {stored.owner.store}")

    def _fail(self, what: str) -> None:
        self.failures.append(f"seed {self.seed}, step {self.steps}: {what}")

    def _traced(self, call: Callable[[], None]) -> None:
        outer = sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(outer)

    def _trace(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if "/memkit/formats/" not in name:
            return None
        last = frame.f_lineno

        def line(frame: FrameType, _event: str, _argument: Any) -> Any:
            nonlocal last
            self.edges.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    def mutated(self, stored: SessionValues) -> SessionValues:
        keys = dict(stored.keys)
        for _ in range(self.random.choice((1, 1, 2, 4))):
            name = self.random.choice(list(keys))
            raw = keys[name]
            if raw is None or self.random.random() < 0.05:
                keys[name] = None
            else:
                keys[name] = self._mutated_key(raw)
        return stored._replace(keys=keys)

    def _mutated_key(self, raw: RedisValue) -> RedisValue:
        if self.random.random() < 0.03:
            return raw._replace(kind=self.random.choice(KINDS))
        elements = [self._bytes(each) if self.random.random() < 0.5 else each for each in raw.elements]
        if elements and self.random.random() < 0.2:
            elements.append(self.random.choice(elements))
        data = self._packed(raw.data) if b'"d"' in raw.data[:40] else self._bytes(raw.data) if raw.data else b""
        fields = {
            name: self._bytes(value) if self.random.random() < 0.5 else value for name, value in raw.fields.items()
        }
        scores = {self._bytes(to_bytes(each)).decode("utf-8", "surrogateescape"): at for each, at in raw.scores.items()}
        entries = [(uid, {name: self._bytes(each) for name, each in pairs.items()}) for uid, pairs in raw.entries]
        return raw._replace(data=data, elements=elements, fields=fields, scores=scores, entries=entries)

    def _packed(self, data: bytes) -> bytes:
        """Mutate inside plain LangGraph's base64 as well as around it."""
        try:
            document = json.loads(data)
            inner = base64.b64decode(document["d"])
        except (ValueError, KeyError, TypeError):
            return self._bytes(data)
        if self.random.random() < 0.3:
            return self._bytes(data)
        return json.dumps(document | {"d": base64.b64encode(self._bytes(inner)).decode()}).encode()

    def _bytes(self, data: bytes) -> bytes:
        at, to = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
        token = self.random.choice(TOKENS)
        choices: tuple[Callable[[], bytes], ...] = (
            lambda: data[:at] + bytes([self.random.randrange(256)]) + data[at + 1 :],
            lambda: data[:at] + token + data[at:],
            lambda: data[:at] + token + data[to:],
            lambda: data[:at] + data[to:],
            lambda: data[:at],
            lambda: data[:to] + data[at:to] + data[to:],
            lambda: self._value(data),
        )
        return self.random.choice(choices)()

    def _value(self, data: bytes) -> bytes:
        """Replace one value somewhere in a JSON document by one of another type."""
        try:
            document = json.loads(data)
        except ValueError:
            return data
        holder = document
        while isinstance(holder, dict | list) and holder:
            key = self.random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], dict | list) or not holder[key] or self.random.random() < 0.3:
                holder[key] = self.random.choice(
                    (None, 0, -1.5, True, "", "x", [], {}, [[]], {"type": []}, 10**30, [None, {}])
                )
                break
            holder = holder[key]
        return json.dumps(document).encode()


def _captured(name: str) -> SessionValues:
    raws = [value_of(entry) for entry in capture.capture(name)["keys"]]
    found = (owner for raw in raws if (owner := formats.recognise(raw, None)))
    owner = next(found, None) or KeyOwner("unknown", "k", "", "unknown")
    return SessionValues(owner, {raw.name: raw for raw in raws})


def run(stored: SessionValues) -> None:
    """Do with a session what an inspection does."""
    for raw in stored.keys.values():
        if raw:
            for wanted in ("sess-A", None):
                formats.recognise(raw, wanted)
            formats.leads(raw)
            encodings.encoding_of(next(iter(raw.payloads), b""))
    if stored.owner.store != "unknown":
        list(formats.format_of(stored.owner.store).siblings(stored))
        list(formats.decode(stored))
        formats.store_name(stored)
    list(unknown.decode(SessionValues(KeyOwner("unknown", "k", "", "unknown"), stored.keys)))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the decoders.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    fuzzer = Fuzzer(given.seed)
    until = time.monotonic() + given.seconds
    while time.monotonic() < until and len(fuzzer.failures) < 20:
        fuzzer.step()
    print(*fuzzer.failures, sep="\n")
    print(f"{fuzzer.steps:,} inputs, {len(fuzzer.edges):,} edges, {len(fuzzer.corpus):,} kept")
    print(f"{len(fuzzer.failures)} failures")
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
