"""Payloads of many kinds, each under its own prefix on one server: what is damaged, what is merely different."""

from __future__ import annotations

import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from servers import NO_FSYNC, every_server

from memkit.audit import Finding
from memkit.audit.run import AuditReport, audit
from memkit.inspect import inspect_session
from memkit.server import RedisServer

WEEK_S = 604_800
COUNT = 40
RELEASE = 0.8
"""The share of sessions that are older than the release."""

Value = bytes | list[bytes] | dict[str, bytes]
Payload = Callable[[random.Random, float], Value]
"""From a source of chance and the session's place in time, 0 (oldest) to 1."""


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    binary = every_server()["redis-8.2"] or every_server()["valkey-9"]
    if not binary:
        pytest.skip("no server with CLIENT NO-TOUCH on this machine")
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


WORDS = ("order", "refund", "Zürich", "status", "ship", "please", "天気", "délai", "total", "заказ", "café")


def words(dice: random.Random, count: int = 9) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def chat(dice: random.Random, **more: Any) -> dict[str, Any]:
    return {"role": dice.choice(("user", "assistant")), "content": words(dice), **more}


def document(dice: random.Random) -> bytes:
    return json.dumps({"user": f"{dice.getrandbits(64):016x}", "messages": [chat(dice), chat(dice)]}).encode()


def packed(value: Any) -> bytes:
    """Return a value as msgpack."""
    if isinstance(value, dict):
        return bytes([0x80 + len(value)]) + b"".join(packed(one) for pair in value.items() for one in pair)
    if isinstance(value, list):
        return bytes([0x90 + len(value)]) + b"".join(map(packed, value))
    data = value.encode()
    return (bytes([0xA0 + len(data)]) if len(data) < 32 else b"\xda" + struct.pack(">H", len(data))) + data


def zstd_frame(data: bytes) -> bytes:
    """Return a zstd frame of one raw block, without a checksum."""
    return (
        b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", len(data) - 256) + (len(data) << 3 | 1).to_bytes(3, "little") + data
    )


def lz4_frame(data: bytes) -> bytes:
    """Return an lz4 frame of one block that is not compressed."""
    return b"\x04\x22\x4d\x18\x60\x40\x82" + struct.pack("<I", len(data) | 1 << 31) + data + bytes(4)


def fernet(data: bytes) -> bytes:
    return b"gAAAAAB" + base64.urlsafe_b64encode(random.Random(data).randbytes(len(data) + 64))


def protobuf(dice: random.Random) -> bytes:
    text = words(dice).encode()[:100]
    return b"\x0a\x10" + dice.randbytes(8).hex().encode() + b"\x12" + bytes([len(text)]) + text


def table(dice: random.Random) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([["id", "text"], *([n, words(dice)] for n in range(3))])
    return out.getvalue().encode()


CODECS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zlib": zlib.compress,
    "zlib fast": lambda data: zlib.compress(data, 1),
    "zstd": lambda data: zstd_frame(data.ljust(300)),
    "lz4": lz4_frame,
    "pickle 2": lambda data: pickle.dumps(json.loads(data), 2),
    "pickle 5": lambda data: pickle.dumps(json.loads(data), 5),
    "msgpack": lambda data: packed(json.loads(data)),
    "base64": base64.b64encode,
    "base64 of gzip": lambda data: base64.b64encode(gzip.compress(data, mtime=0)),
    "url base64 of zlib": lambda data: base64.urlsafe_b64encode(zlib.compress(data)),
    "version prefix": lambda data: b"v2:" + base64.b64encode(zlib.compress(data)),
    "name prefix": lambda data: b"gz:" + gzip.compress(data, mtime=0),
    "gzip of pickle": lambda data: gzip.compress(pickle.dumps(json.loads(data)), mtime=0),
}
UNCHECKED: Mapping[str, Callable[[bytes], bytes]] = {
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "deflate": lambda data: zlib.compress(data)[2:-4],
    "fernet": fernet,
    "xor": lambda data: bytes(byte ^ 0x5A for byte in data),
    "random": lambda data: random.Random(data).randbytes(len(data)),
    "envelope": lambda data: json.dumps({"__enc__": 1, "v": 1, "kid": "k", "payload": fernet(data).decode()}).encode(),
    "hex": lambda data: data.hex().encode(),
    "latin-1": lambda data: json.dumps(json.loads(data), ensure_ascii=False).encode("latin-1", "replace"),
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "bom": lambda data: b"\xef\xbb\xbf" + data,
    "magic of zstd alone": lambda data: b"(\xb5/\xfd$" + zlib.compress(data),
    "magic of lz4 alone": lambda data: b"\x04\x22M\x18d@" + zlib.compress(data),
}
TEXTS: Mapping[str, Callable[[random.Random], str]] = {
    "markdown link": lambda dice: f"[Order 17](https://example.org/17) has shipped. {words(dice)}",
    "markdown task": lambda dice: f"[x] done, {words(dice)}\n[ ] open",
    "stage direction": lambda dice: f"[laughs] {words(dice)}",
    "transcript": lambda dice: "".join(f"[10:0{n}] user: {words(dice)}\n" for n in range(4)),
    "footnote": lambda dice: f"[1] {words(dice)}",
    "ini": lambda dice: f"[session]\nuser = {words(dice, 1)}\n",
    "toml": lambda dice: f'[[messages]]\ntext = "{words(dice)}"\n',
    "template": lambda dice: "{name}, hello. {{ order }} " + words(dice),
    "json template": lambda dice: '{"name": {{ name }}, "text": "' + words(dice) + '"}',
    "json with comments": lambda dice: '{"a": 1, // first\n "b": "' + words(dice) + '"}',
    "json5": lambda dice: "{a: 1, b: '" + words(dice) + "',}",
    "yaml flow": lambda dice: "{role: user, content: " + words(dice, 2) + "}",
    "yaml": lambda dice: f"- role: user\n  content: {words(dice)}\n",
    "xml": lambda dice: f"<message role='user'>{words(dice)}</message>",
    "html": lambda dice: f"<p>{words(dice)}</p>",
    "latex": lambda dice: "{\\bf " + words(dice) + "}",
    "rtf": lambda dice: "{\\rtf1 " + words(dice) + "}",
    "css": lambda dice: "{ color: red } " + words(dice),
    "code": lambda dice: "{ int x = 1; return x; } // " + words(dice),
    "lisp": lambda dice: f"(say {words(dice)})",
    "quotation": lambda dice: f'"Hello," she answered, {words(dice)}',
    "an open quotation": lambda dice: f'"{words(dice)}',
    "an open bracket": lambda dice: f"[{words(dice)}",
    "an open brace": lambda dice: "{" + words(dice),
    "chinese": lambda dice: "你好，世界。" * dice.randrange(1, 9),
    "arabic": lambda dice: "مرحبا بالعالم " * dice.randrange(1, 9),
    "emoji": lambda dice: "👍🏽" * dice.randrange(1, 9),
    "formula": lambda dice: f"x^2 + y^{dice.randrange(9)} = z",
    "number": lambda dice: str(dice.randrange(10**9)),
    "float": lambda dice: str(dice.random()),
    "json number list": lambda dice: json.dumps([dice.random() for _ in range(4)]),
    "uuid": lambda dice: str(uuid.UUID(int=dice.getrandbits(128))),
    "digest": lambda dice: f"{dice.getrandbits(256):064x}",
    "token": lambda dice: base64.urlsafe_b64encode(dice.randbytes(45)).decode(),
    "jwt": lambda dice: "eyJhbGciOiJIUzI1NiJ9." + base64.urlsafe_b64encode(dice.randbytes(60)).decode().rstrip("="),
    "url": lambda dice: f"https://example.org/?q={dice.getrandbits(32)}",
    "php": lambda _dice: 'a:1:{s:4:"user";s:4:"abcd";}',
    "ndjson": lambda dice: "\n".join(json.dumps(chat(dice)) for _ in range(3)),
    "json documents in a row": lambda dice: "".join(json.dumps(chat(dice)) for _ in range(3)),
    "json text": lambda dice: json.dumps(words(dice)),
    "json of a model": lambda dice: '```json\n{"a": 1}\n```' + words(dice),
    "empty": lambda _dice: "",
    "replacement characters": lambda dice: f"caf\ufffd, na\ufffdve: {words(dice)}",
    "code of bytes": lambda dice: f"b'{words(dice)}'",
    "code with a list": lambda dice: f"['{words(dice, 1)}', total(order), card]",
    "name of a class": lambda _dice: "System.Text.Json",
    "one bracket": lambda _dice: "[",
    "true": lambda _dice: "true",
}


def mixed_texts(dice: random.Random) -> bytes:
    return dice.choice(list(TEXTS.values()))(dice).encode()


def healthy_worlds() -> dict[str, Payload]:
    worlds: dict[str, Payload] = {}
    for name, text in TEXTS.items():
        worlds[f"text-{name}"] = lambda dice, _at, text=text: text(dice).encode()
    for name, codec in {**CODECS, **UNCHECKED}.items():
        worlds[f"all-{name}"] = lambda dice, _at, codec=codec: codec(document(dice))
        worlds[f"release-{name}"] = lambda dice, at, codec=codec: (codec if at > RELEASE else bytes)(document(dice))
        worlds[f"canary-{name}"] = lambda dice, at, codec=codec: (
            codec if at > RELEASE and dice.random() < 0.5 else bytes
        )(document(dice))
    worlds |= {
        "json-beside-text": lambda dice, _at: document(dice) if dice.random() < 0.7 else mixed_texts(dice),
        "list-mixed": lambda dice, _at: [
            json.dumps(chat(dice)).encode() if dice.random() < 0.6 else mixed_texts(dice) for _ in range(6)
        ],
        "hash-content": lambda dice, _at: {
            "role": b"assistant",
            "content": json.dumps({"answer": words(dice)}).encode() if dice.random() < 0.75 else mixed_texts(dice),
        },
        "hash-answers-that-end-early": lambda dice, _at: {
            "role": b"assistant",
            "content": (f'{{"answer": "{words(dice)}' if dice.random() < 0.3 else words(dice)).encode(),
        },
        "hash-optional-fields": lambda dice, _at: {
            "role": b"tool",
            "content": words(dice).encode(),
            **({"call": b"c"} if dice.random() < 0.5 else {}),
        },
        "hash-numbered": lambda dice, _at: {
            f"msg:{n}": json.dumps(chat(dice)).encode() for n in range(dice.randrange(1, 6))
        },
        "protobuf": lambda dice, _at: protobuf(dice),
        "floats": lambda dice, _at: struct.pack("<8f", *(dice.random() for _ in range(8))),
        "java": lambda dice, _at: b"\xac\xed\x00\x05sr\x00\x11java.util.HashMap" + dice.randbytes(20),
        "cbor": lambda dice, _at: b"\xa1dtextx\x20" + dice.randbytes(16).hex().encode(),
        "bson": lambda dice, _at: b"\x1a\x00\x00\x00\x02text\x00\x0a\x00\x00\x00" + dice.randbytes(5).hex().encode(),
        "one-encrypted-tenant": lambda dice, _at: (fernet if dice.random() < 0.1 else bytes)(document(dice)),
        "one-binary-tenant": lambda dice, _at: dice.randbytes(80) if dice.random() < 0.1 else document(dice),
    }
    return worlds


HEALTHY = healthy_worlds()


def play(server: RedisServer, worlds: Mapping[str, Payload], seed: int) -> AuditReport:
    """Write the sessions of all worlds over six days, each with a week's TTL, and audit them."""
    dice = random.Random(seed)
    now = server.clock.now()
    with server.client() as client:
        client.flushdb()
        for n in range(COUNT):
            server.clock.move_to(now - timedelta(days=6) * (1 - (n + 1) / COUNT))
            pipe = client.pipeline(transaction=False)
            for world, payload in worlds.items():
                write(pipe, f"{world}:{n:04d}", payload(dice, n / COUNT))
            pipe.execute()
        server.clock.move_to(datetime.now(UTC))  # not behind the machine's clock by the time that this took
    expect = {f"{world}:*": "7d" for world in worlds}
    return audit(server.url, expect=expect, full=True, duty=1)


def write(pipe: Any, key: str, value: Value) -> None:
    if isinstance(value, list):
        pipe.rpush(key, *value)
    elif isinstance(value, dict):
        pipe.hset(key, mapping=value)
    else:
        pipe.set(key, value)
    pipe.expire(key, WEEK_S)


def under(report: AuditReport, world: str) -> list[Finding]:
    return [one for one in report.findings if one.prefix == f"{world}:"]


@pytest.mark.parametrize("seed", [1])
def test_payloads_that_differ_are_no_damage(server: RedisServer, seed: int) -> None:
    assert len(HEALTHY) > 100
    report = play(server, HEALTHY, seed)
    found = [(one.prefix, one.cause, one.evidence) for one in report.findings if one.severity != "info"]
    assert found == []
    changed = {one.prefix for one in report.findings if one.cause == "encoding_changed"}
    assert {f"release-{codec}:" for codec in CODECS} <= changed
    assert not {one for one in changed if not one or not one.startswith(("release-", "canary-"))}


DAMAGE: Mapping[str, tuple[Callable[[bytes], bytes], str]] = {
    **{f"{name} cut": (lambda data, codec=codec: codec(data)[: -len(codec(data)) // 3], "ends early")
       for name, codec in CODECS.items()},
    "json cut": (lambda data: data[: len(data) // 2], "ends early"),
    "json cut in a letter": (lambda _data: '{"role": "user", "content": "Zü'.encode()[:-1], "ends early"),
    "json cut in a string of JSON": (lambda data: json.dumps(data.decode())[:-20].encode(), "ends early"),
    "ndjson cut": (lambda _data: b'{"role": "user"}\n{"role": "assistant", "cont', "ends early"),
    "gzip with a flipped bit": (lambda data: _flipped(gzip.compress(data, mtime=0), -6), "checksum"),
    "zlib with a flipped bit": (lambda data: _flipped(zlib.compress(data), -2), "checksum"),
    "php cut": (lambda _data: b'a:2:{s:4:"user";s:4:"abcd";s:8:"messages";a:1:{i:0;s:90:"when', "ends early"),
    "gzip decoded as text": (lambda data: gzip.compress(data).decode(errors="replace").encode(), "replacement"),
    "pickle decoded as text": (lambda data: pickle.dumps(data).decode(errors="replace").encode(), "replacement"),
    "a JavaScript object": (lambda _data: b"[object Object]", "name of an object"),
    "a Python object": (lambda _data: b"<app.Message object at 0x7f2a10>", "name of an object"),
    "a Python coroutine": (lambda _data: b"<coroutine object load at 0x7f2a10>", "name of an object"),
    "a Ruby object": (lambda _data: b"#<Chat::Session:0x00007f2a10>", "name of an object"),
    "a list of Java objects": (
        lambda _data: b"[com.acme.Message@1a2b, com.acme.Message@2b3c]", "name of an object"),
    "a .NET object": (lambda _data: b"System.Collections.Generic.List`1[Chat.Message]", "name of an object"),
}  # fmt: skip


def _flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def test_damage_is_found_among_intact_payloads(server: RedisServer) -> None:
    def world(kind: str) -> Payload:
        damage = DAMAGE[kind][0]
        intact = CODECS.get(kind.removesuffix(" cut"), bytes)

        def payload(dice: random.Random, at: float) -> bytes:
            return damage(document(dice)) if round(at * COUNT) % 8 == 3 else intact(document(dice))

        return payload

    report = play(server, {kind: world(kind) for kind in DAMAGE}, 2)
    for kind, (_, reason) in DAMAGE.items():
        found = [one for one in under(report, kind) if one.cause == "corrupt"]
        assert [(one.keys, one.confidence) for one in found] == [(5, "proven")], kind
        assert reason in found[0].evidence[0], kind


EMPTY: Mapping[str, bytes] = {"null": b"null", "braces": b"{}", "nothing": b"", "no-messages": b'{"messages": []}'}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_sessions_without_messages_since_a_release(server: RedisServer, share: float) -> None:
    """If every session is written without messages since; sessions that have just begun have none either."""

    def world(empty: bytes) -> Payload:
        return lambda dice, at: empty if at > 0.5 and dice.random() < share else document(dice)

    report = play(server, {name: world(empty) for name, empty in EMPTY.items()}, 5)
    for name in EMPTY:
        found = [one for one in under(report, name) if one.cause == "corrupt"]
        assert [(one.keys, one.confidence) for one in found] == ([(19, "possible")] if share == 1 else []), name


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_in_the_only_session(server: RedisServer, kind: str) -> None:
    value = DAMAGE[kind][0](document(random.Random(3)))
    with server.client() as client:
        client.flushdb()
        client.set("chat:1", value, ex=WEEK_S)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert [one.keys for one in report.findings if one.cause == "corrupt"] == [1]


@pytest.mark.parametrize("kind", ["gzip cut", "php cut", "a JavaScript object", "pickle decoded as text"])
def test_inspect_names_the_damaged_part(server: RedisServer, kind: str) -> None:
    dice = random.Random(4)
    damaged = DAMAGE[kind][0](document(dice))
    with server.client() as client:
        client.flushdb()
        client.rpush("list:1", json.dumps(chat(dice)), json.dumps(chat(dice)), damaged)
        client.hset("hash:1", mapping={"role": "user", "content": damaged})
        client.expire("list:1", WEEK_S), client.expire("hash:1", WEEK_S)
        found = [inspect_session(client, key).problems for key in ("list:1", "hash:1")]
    for problems, place in zip(found, ("element 2 is unreadable", "field content is unreadable"), strict=True):
        assert [problem.cause for problem in problems] == ["corrupt"]
        assert place in problems[0].message


@pytest.mark.parametrize(
    ("text", "lost"), [("[object Object]", True), ("why do I see [object Object]?", False), ("[object Object", False)]
)
def test_name_of_an_object_as_a_text(text: str, lost: bool, server: RedisServer) -> None:
    with server.client() as client:
        client.flushdb()
        client.set("chat:1", json.dumps([{"role": "user", "content": text}, {"role": "assistant", "content": "hi"}]))
        client.expire("chat:1", WEEK_S)
        noted = [one for one in inspect_session(client, "chat:1").notes if "name of an object" in one]
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert len(noted) == lost
    found = [one for one in report.findings if one.cause == "corrupt"]
    assert [(one.confidence, one.severity) for one in found] == [("possible", "warning")] * lost
    assert all("of which a text is lost" in one.message for one in found)


def test_inspect_names_json_encoded_twice(server: RedisServer) -> None:
    with server.client() as client:
        client.flushdb()
        client.set("chat:1", json.dumps(json.dumps([{"role": "user", "content": "hi"}] * 2)))
        client.set("chat:2", json.dumps([{"role": "user", "content": "hi"}] * 2))
        found = [inspect_session(client, key) for key in ("chat:1", "chat:2")]
    assert [len(one.messages) for one in found] == [2, 2]
    assert [any("encoded twice" in note for note in one.notes) for one in found] == [True, False]


def test_inspect_takes_text_in_braces_for_text(server: RedisServer) -> None:
    dice = random.Random(5)
    with server.client() as client:
        client.flushdb()
        client.rpush("list:1", json.dumps(chat(dice)), json.dumps(chat(dice)), "{name}, hello. " + words(dice))
        client.expire("list:1", WEEK_S)
        assert inspect_session(client, "list:1").problems == ()


@pytest.mark.parametrize("pattern", ["chat:1", "chat:1*"])
def test_key_expected_by_its_name_is_not_shared(server: RedisServer, pattern: str) -> None:
    with server.client() as client:
        client.flushdb()
        client.set("chat:1", document(random.Random(6)), ex=WEEK_S)
    report = audit(server.url, expect={pattern: "7d"}, full=True, duty=1)
    assert "shared_key" not in {one.cause for one in report.findings}


@pytest.mark.parametrize(
    ("name", "twice"),
    [
        ("JSON inside a JSON string", lambda data: json.dumps(data.decode())),
        ("encoded 3 times", lambda data: json.dumps(json.dumps(data.decode()))),
        ("Python repr", lambda data: repr(json.loads(data))),
        ("Python repr", lambda data: repr(json.loads(data) | {"at": datetime(2026, 11, 3, tzinfo=UTC)})),
        ("Python repr", repr),
    ],
)
def test_new_json_encoding_since_a_release_is_dated(
    server: RedisServer, name: str, twice: Callable[[bytes], str]
) -> None:
    def payload(dice: random.Random, at: float) -> bytes:
        return twice(document(dice)).encode() if at > RELEASE else document(dice)

    report = play(server, {"chat": payload}, 4)
    (found,) = report.findings
    assert (found.cause, found.severity, found.keys, found.since_is) == ("encoding_changed", "info", 7, "upper bound")
    assert name in found.message
    with server.client() as client:
        text = str(inspect_session(client, f"chat:{COUNT - 1:04d}").to_dict()).lower()
    assert "json string" in text or "repr" in text


@pytest.mark.parametrize("codec", ["gzip", "base64", "pickle 5", "msgpack"])
def test_known_store_in_another_encoding_is_no_damage(server: RedisServer, codec: str) -> None:
    def payload(dice: random.Random, at: float) -> Value:
        elements = [json.dumps({"type": "human", "data": {"content": words(dice)}}).encode() for _ in range(4)]
        return [*elements, CODECS[codec](elements[0])] if at > RELEASE else elements

    (found,) = play(server, {"message_store": payload}, 9).findings
    assert (found.cause, found.keys) == ("encoding_changed", 7)


def test_damaged_text_of_no_encoding_is_only_possible(server: RedisServer) -> None:
    def payload(dice: random.Random, at: float) -> bytes:
        return b"\x00\xff not json" if round(at * COUNT) % 10 == 4 else document(dice)

    (found,) = play(server, {"chat": payload}, 5).findings
    assert (found.cause, found.confidence, found.severity, found.keys) == ("corrupt", "possible", "warning", 4)


def test_damage_is_possible_beside_a_known_store(server: RedisServer) -> None:
    message = json.dumps({"type": "human", "data": {"content": "hello", "type": "human"}})
    with server.client() as client:
        client.flushdb()
        for n in range(40):
            client.rpush(f"chat:{n}", message if n % 10 else "\x00\xff not json")
            client.expire(f"chat:{n}", WEEK_S)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    found = [(one.cause, one.confidence, one.keys) for one in report.findings if one.cause != "flushed"]
    assert found == [("corrupt", "possible", 4)]


@pytest.mark.parametrize("optional", [False, True])
def test_a_field_written_after_the_end_is_a_fragment(optional: bool, server: RedisServer) -> None:
    def whole(dice: random.Random, at: float) -> Value:
        fields = {"created": b"1", "user": b"u", "messages": b"[]"}
        last_seen = {} if optional and dice.random() < 0.5 else {"last_seen": b"5"}
        return {"last_seen": b"5"} if round(at * COUNT) % 10 == 4 else fields | last_seen

    report = play(server, {"sess": whole, "twin": lambda dice, _at: whole(dice, 0)}, 6)
    (found,) = report.findings
    assert (found.prefix, found.cause, found.confidence, found.keys) == ("sess:", "corrupt", "possible", 4)
    with server.client() as client:
        for n in range(4, COUNT, 10):
            client.persist(f"sess:{n:04d}")
    report = audit(server.url, expect={"sess:*": "7d"}, full=True, duty=1)
    assert [one.confidence for one in report.findings if one.cause == "corrupt"] == ["likely"]


@pytest.mark.parametrize(
    ("name", "others_until", "confidence"),
    [
        ("None", 0.8, "likely"),
        ("undefined", 0.8, "likely"),
        ("tenant-1:null", 0.8, "likely"),
        ("default", 0.4, "likely"),
        ("default", 0.8, "possible"),  # the others are silent for a weekend or less
    ],
)
def test_one_key_for_many_users_is_found(server: RedisServer, name: str, others_until: float, confidence: str) -> None:
    _shared(server, name, others_until=others_until)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    (found,) = [one for one in report.findings if one.cause == "shared_key"]
    assert found.confidence == confidence
    assert f"chat:{name}" in found.message


@pytest.mark.parametrize("name", ["default", "alice", "nonesuch"])
def test_large_session_among_active_ones_is_healthy(server: RedisServer, name: str) -> None:
    _shared(server, name, others_until=1)
    report = audit(server.url, expect={"chat:*": "7d"}, full=True, duty=1)
    assert [one.cause for one in report.findings] == []


def _shared(server: RedisServer, name: str, *, others_until: float) -> None:
    """Write many messages to one key, and few to others until a time; all with a week's TTL."""
    dice = random.Random(7)
    now = server.clock.now()
    with server.client() as client:
        client.flushdb()
        for n in range(100):
            server.clock.move_to(now - timedelta(days=6) * (1 - (n + 1) / 100))
            client.rpush(f"chat:{name}", *(json.dumps(chat(dice)) for _ in range(20)))
            client.expire(f"chat:{name}", WEEK_S)
            if n / 100 < others_until:
                other = f"chat:{dice.getrandbits(64):016x}"
                client.rpush(other, json.dumps(chat(dice)))
                client.expire(other, WEEK_S)
        server.clock.move_to(datetime.now(UTC))  # not behind the machine's clock by the time that this took
