"""The stored envelope, without a server: whatever is accepted comes back equal, and damage is named."""

from __future__ import annotations

import copy
import enum
import inspect
import json
import math
import os
import sys
import uuid
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memkit.errors import DecodeError, EncodeError
from memkit.policy import ExpiryPolicy
from memkit.store import encoding
from memkit.store.encoding import (
    Version,
    decode_element,
    decode_header,
    decode_messages,
    decode_session,
    decode_vectors,
    encode_message,
    encode_messages,
    encode_value,
    encode_vectors,
    own_id,
    policy_of,
    policy_text,
)

KEY = "session:42"
HEADER = (
    b'{"memkit":1,"policy":"sliding 604800000","born":"Zk3_x9Ab","created_ms":1790000000000,"version":3,'
    b'"updated_ms":1790000000005,"summary":"short","metadata":{"user":"\\"bob\\"","big":"1180591620717411303424"},"end":1}'
)
HI = {"role": "user", "content": "hi"}

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(texts, json_values, max_size=5) | st.fixed_dictionaries(
    {"id": texts, "content": json_values}
)


def stored(bodies: list[bytes], *, saved: bool) -> list[bytes]:
    """Return elements as the scripts make them of a call's arguments."""
    elements, own = [], b""
    for body in bodies:
        if body.startswith(b"."):
            own = body
            continue
        stamp = b'"%b2f.1a2b%b",' % (b"." * 8 if saved else b"Zk3_x9Ab", own)
        elements.append(body if saved and not own else stamp + body)
        own = b""
    return elements


def exactly(value: Any) -> str:
    """Return a text that differs where == does not: 1 and 1.0 and True, 0.0 and -0.0."""
    return repr(value)


@settings(max_examples=50)
@given(st.lists(messages, max_size=40), st.booleans())
def test_messages_come_back_exactly(dialogue: list[dict[str, Any]], saved: bool) -> None:
    elements = stored(encode_messages(dialogue, listed=saved), saved=saved)
    assert exactly(decode_messages(elements, KEY)) == exactly(dialogue)
    one_by_one = [message for raw in elements for message in decode_element(raw, KEY, 1)]
    assert exactly(one_by_one) == exactly(dialogue)


@settings(max_examples=50)
@given(st.lists(messages, max_size=20), st.lists(messages, max_size=20))
def test_appends_follow_a_save(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    elements = stored(encode_messages(before, listed=True), saved=True) + stored(encode_messages(after), saved=False)
    assert exactly(decode_messages(elements, KEY)) == exactly(before + after)


@given(json_values)
def test_any_json_value_comes_back_exactly(value: Any) -> None:
    text, big = encode_value(value, "it")
    assert exactly((json.loads if big else encoding.orjson.loads)(text)) == exactly(value)


def test_an_element_is_limited_in_size() -> None:
    assert len(encode_messages([HI] * 100, listed=True)) == 1
    assert len(encode_messages([HI] * 1_000)) == math.ceil(30_001 / encoding.ELEMENT_BYTES)
    long = {"content": "x" * 3_000}
    assert max(map(len, encode_messages([long] * 50))) <= encoding.ELEMENT_BYTES
    huge = {"content": "x" * 100_000}
    assert len(encode_messages([huge, huge])) == 2
    assert encode_messages([]) == []


def test_a_message_with_an_id_has_its_own_element() -> None:
    bodies = encode_messages([HI, HI, {"id": "a"}, HI])
    assert [body[:1] for body in bodies] == [b"[", b".", b"{", b"{"]
    assert bodies[1] == own_id("a") != own_id("b")


@pytest.mark.parametrize("own", ["", None, 5, ["a"]])
def test_only_a_nonempty_string_is_an_id(own: Any) -> None:
    assert encode_messages([{"id": own}]) == [encode_message({"id": own}, "it")]


@dataclass
class Point:
    x: int = 1


class Colour(enum.Enum):
    RED = "red"


circular: list[Any] = []
circular.append(circular)
deep: Any = 1
for _ in range(300):
    deep = [deep]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: "a"}, "the key 1 is a int; expected a string"),
        ({"a": {None: 1}}, "at ['a']: the key None is None"),
        ({"a": (1, 2)}, "at ['a']: a tuple is not a JSON type"),
        ({"a": [{"b": {1, 2}}]}, "at ['a'][0]['b']: a set is not a JSON type"),
        ({"a": math.nan}, "at ['a']: nan is not a finite number"),
        ({"a": -math.inf}, "at ['a']: -inf is not a finite number"),
        ({"a": 2**70, "b": math.nan}, "at ['b']: nan is not a finite number"),
        ({"a": 2**70, "b": (1,)}, "at ['b']: a tuple is not a JSON type"),
        ({"a": b"x"}, "at ['a']: a bytes is not a JSON type"),
        ({"a": datetime.now(UTC)}, "at ['a']: a datetime is not a JSON type"),
        ({"a": uuid.uuid4()}, "at ['a']: a UUID is not a JSON type"),
        ({"a": Point()}, "at ['a']: a Point is not a JSON type"),
        ({"a": Colour.RED}, "at ['a']: a Colour is not a JSON type"),
        ({"a": np.float32(1)}, "at ['a']: a float32 is not a JSON type"),
        ({"a": 1j}, "at ['a']: a complex is not a JSON type"),
        ({"a": "\ud800"}, "at ['a']: the string contains a lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({"a": circular}, "nested deeper than 250 levels, or circular"),
        ({"a": deep}, "nested deeper than 250 levels"),
        ({"a": [2**70, deep]}, "nested deeper than 250 levels"),
        ({"a": "x" * encoding.MAX_BYTES}, "at most 16,777,216 (16 MiB)"),
        ({"a": 2**70, "b": "x" * encoding.MAX_BYTES}, "at most 16,777,216 (16 MiB)"),
        ("hi", "message 1 is a str; expected a JSON object"),
        (None, "message 1 is None"),
        ([HI], "message 1 is a list"),
        (Point(), "message 1 is a Point"),
    ],
)
def test_values_that_json_changes_are_refused(value: Any, message: str) -> None:
    for listed in (False, True):
        with pytest.raises(EncodeError) as caught:
            encode_messages([HI, value, HI], listed=listed)
        assert str(caught.value).startswith("message 1")
        assert message in str(caught.value)
        assert len(str(caught.value)) < 400


def test_deep_nesting_is_refused_from_a_deep_stack() -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]

    def under(frames: int) -> None:
        if frames:
            under(frames - 1)
        else:
            encode_messages([{"a": deep}])

    used = len(inspect.stack())
    with pytest.raises(EncodeError, match="nested deeper than 250 levels"):
        under(sys.getrecursionlimit() - used - 60)


def test_a_refusal_never_shows_a_text() -> None:
    with pytest.raises(EncodeError) as caught:
        encode_messages([{"content": "my secret", "extra": {"secret too"}}])
    assert "secret" not in str(caught.value)


def test_message_of_a_dict_subclass_is_stored() -> None:
    assert decode_messages(stored(encode_messages([OrderedDict(a=1), HI]), saved=False), KEY) == [{"a": 1}, HI]


def test_a_message_of_just_16_mib_is_stored() -> None:
    body = {"a": "x" * (encoding.MAX_BYTES - len('{"a":""}'))}
    assert len(encode_message(body, "it")) == encoding.MAX_BYTES


@pytest.mark.parametrize(
    "policy",
    [
        ExpiryPolicy.never(),
        ExpiryPolicy.absolute("1h"),
        ExpiryPolicy.sliding("7d"),
        ExpiryPolicy.sliding("7d", refresh_on_read=True),
    ],
)
def test_a_policy_comes_back_from_the_header(policy: ExpiryPolicy) -> None:
    assert policy_of(policy_text(policy)) == policy


def test_a_session_is_read_whole() -> None:
    elements = [HEADER, b'[{"a":1},{"b":2}]', b'"Zk3_x9Ab5.7",{"c":3}']
    found, vectors = decode_session("42", KEY, elements, 5.0)
    assert found.messages == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert (found.summary, found.metadata) == ("short", {"user": "bob", "big": 2**70})
    assert found.policy == ExpiryPolicy.sliding("7d")
    assert (found.version, vectors, found.ttl) == (5, False, 5.0)
    assert found.created_at == datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
    assert (found.updated_at - found.created_at).total_seconds() == 0.007


def test_after_an_update_the_header_has_the_version() -> None:
    found, _ = decode_session("42", KEY, [HEADER, b'"Zk3_x9Ab2.1",{"c":3}'], None)
    assert found.version == 3
    assert (found.updated_at - found.created_at).total_seconds() == 0.005
    empty, _ = decode_session("42", KEY, [HEADER], None)
    assert (empty.version, empty.messages) == (3, [])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not a memkit session"),
        (b'{"role":"user"}', "is not a memkit session"),
        (b'{"memkit":2,"anything":1}', "was written by a newer memkit (schema 2); this one reads 1: upgrade it"),
        (HEADER[:-1], "is truncated"),
        (HEADER.replace(b'"born":', b'"born":['), "is damaged"),
        (HEADER.replace(b"sliding 604800000", b"weekly 5"), "is damaged: PolicyError"),
        (HEADER.replace(b"sliding 604800000", b"sliding x"), "is damaged: ValueError"),
        (HEADER.replace(b"sliding 604800000", b"sliding 5 often"), "is damaged: ValueError"),
        (HEADER.replace(b'"version":3', b'"vers":3'), "is damaged: KeyError"),
        (HEADER.replace(b'"version":3', b'"version":null'), "is damaged: ValueError"),
        (HEADER.replace(b'"version":3', b'"version":-3'), "is damaged: ValueError"),
        (HEADER.replace(b'"updated_ms":1', b'"updated_ms":99991'), "is damaged: ValueError"),
        (HEADER.replace(b'"short"', b"5"), "is damaged: TypeError"),
        (HEADER.replace(b'"\\"bob\\""', b"5"), "is damaged: TypeError"),
        (HEADER.replace(b'"\\"bob\\""', b'"bob"'), "is damaged: JSONDecodeError"),
        (HEADER.replace(b'{"user":"\\"bob\\"","big":"1180591620717411303424"}', b"[1]"), "is damaged: AttributeError"),
    ],
)
def test_a_damaged_header_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_header(raw, KEY)
    assert message in str(caught.value)
    assert repr(KEY) in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"x",
        b"{",
        b"\xff\xfe",
        b'{"role":"user","content":"hi"}',
        b'{"role":"user"},{"role":"user"}',
        b'{"type":"human","data":{"content":"hi"}}',
        b'"Zk3_x9Ab2f.1a2b",{"role":"user"',
        b'"Zk3_x9Ab2f.1a2b"',
        b'"Zk3_x9Ab2f.1a2b",',
        b'"Zk3_x9Ab2f.1a2b",5',
        b'"Zk3_x9Ab2f.1a2b",[5]',
        b'"Zk3_x9Ab2f.1a2b","not json"',
        b'"Zk3_x9Ab2f.1a2b","[1]"',
        b'"Zk3_x9Abxx.1a2b",5',
        b'[{"role":"user"},5]',
        b'[{"role":"user"}',
        b'["x"]',
        b"[" * 5_000,
    ],
)
@pytest.mark.parametrize("others", [[], [b'"Zk3_x9Ab2.1",{"c":3}'], [b'[{"c":3}]'], [b"", b"{}"]])
def test_a_damaged_element_is_named_with_its_index(raw: bytes, others: list[bytes]) -> None:
    good = [b'[{"a":1}]', b'"Zk3_x9Ab2.1",{"c":3}']
    with pytest.raises(DecodeError, match=rf"element 3 of '{KEY}' (is damaged|is foreign|contains a value)"):
        decode_messages([*good, raw, *others], KEY)
    with pytest.raises(DecodeError, match=r"element -1 of"):
        decode_messages([raw], KEY, first=-1)


@given(st.data())
def test_a_truncated_session_is_an_error(data: st.DataObject) -> None:
    dialogue = data.draw(st.lists(messages, min_size=1, max_size=4))
    saved = data.draw(st.booleans())
    elements = [HEADER, *stored(encode_messages(dialogue, listed=saved), saved=saved)]
    index = data.draw(st.integers(0, len(elements) - 1))
    cut = data.draw(st.integers(0, len(elements[index]) - 1))
    elements[index] = elements[index][:cut]
    with pytest.raises(DecodeError):
        decode_session("42", KEY, elements, None)


def test_a_stamp_without_a_time_is_damaged() -> None:
    with pytest.raises(DecodeError, match="element 1 of 'session:42'"):
        decode_session("42", KEY, [HEADER, b'"Zk3_x9Ab2f.ffffffffffff",{}'], None)


def test_vectors_come_back_with_shape_and_bits() -> None:
    array = np.array([[1.5, -0.0, np.inf], [np.nan, 1e-45, 3.4e38]], dtype="float32")
    for shaped in (array, array[:, ::2], array.T, array[0], array[:0], np.float32(7) * np.ones(())):
        shaped = shaped.astype("float32")
        back = decode_vectors(encoding.VECTORS_MARK + b"Zk3_x9Ab " + encode_vectors(shaped), KEY, "Zk3_x9Ab")
        assert back is not None
        assert (back.shape, back.dtype, back.tobytes()) == (shaped.shape, np.float32, shaped.tobytes())
        assert back.flags.writeable


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "got ndarray of d"),
        (np.zeros(3, dtype=">f4"), "got ndarray of >f"),
        ([1.0, 2.0], "got list"),
        (b"\0\0\0\0", "got bytes of B"),
        (np.zeros(5_000_000, dtype="float32"), "at most 16,777,216 (16 MiB)"),
    ],
)
def test_only_float32_arrays_are_vectors(array: Any, message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode_vectors(array)
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"other", b"memkit1 float32 Zk3_x9Ab 2\n1234", b"memkit1 float32 Zk3_x9Ab x\n"])
def test_damaged_vectors_are_named(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="'session:42' contains damaged or foreign vectors"):
        decode_vectors(raw, KEY, "Zk3_x9Ab")


def test_vectors_of_an_earlier_session_are_none() -> None:
    raw = encoding.VECTORS_MARK + b"Zk3_x9Ab " + encode_vectors(np.zeros(2, dtype="float32"))
    assert decode_vectors(raw, KEY, "another_on") is None


def test_a_version_is_a_number_that_can_be_copied() -> None:
    version = Version.of(3, "Zk3_x9Ab")
    assert (version, version + 1, json.dumps(version), f"{version}") == (3, 4, "3", "3")
    back = copy.deepcopy(version)
    assert (back, back.born) == (3, "Zk3_x9Ab")


def test_nonces_differ_in_a_forked_process() -> None:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork with threads
        child = os.fork()
    if not child:
        os.write(writing, b"".join(encoding.new_id() for _ in range(64)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 1 << 16)
    ours = {encoding.new_id() for _ in range(200)}
    assert len(ours) == 200
    assert {len(nonce) for nonce in ours} == {8}
    assert ours.isdisjoint(theirs[at : at + 8] for at in range(0, len(theirs), 8))
    os.close(reading)
    os.close(writing)
