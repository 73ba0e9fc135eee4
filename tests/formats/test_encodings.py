"""What bytes of an unknown store look like."""

from __future__ import annotations

import base64
import gzip
import json
import pickle
import random
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable

import lz4.frame
import pytest
import zstandard

from memkit.formats.parsing.bounded_json import parse
from memkit.formats.parsing.encodings import PEEK_BYTES, encoding_of, examine, pickle_opcodes

FIELDS = b"\x0a\x05hello\x10\x96\x01"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"", "empty"),
        (gzip.compress(b'{"a": 1}', mtime=0), "gzip > json"),
        (gzip.compress(gzip.compress(b'["x"]', mtime=0), mtime=0), "gzip > gzip > json"),
        (gzip.compress(zlib.compress(b"a text"), mtime=0), "gzip > zlib > text"),
        # Begins like gzip or zlib, and is neither.
        (b"\x1f\x8b\xff\xff\xff\xff", "binary"),
        (b"xylophone", "text"),
        (b"HumanMessage(content='hi', additional_kwargs={})", "python repr"),
        (b"[HumanMessage(content='hi'), AIMessage(content='yes')]", "python repr"),
        (b"Message(content='hi') is how to call it", "text"),
        (b"Search(query='weather')", "text"),
        (base64.b64encode(b'{"role": "user", "content": "hi"}'), "base64 > json"),
        (base64.urlsafe_b64encode(gzip.compress(b'{"a": "??>>"}', mtime=0)).rstrip(b"="), "base64 > gzip > json"),
        # A digest in hex is base64 by its letters; five letters too many are not base64 by their number.
        (b"d41d8cd98f00b204e9800998ecf8427e", "text"),
        (b"abcdefghijklmnopqrstu", "text"),
        ("ä".encode() * 40_000, "text"),
        (b"x" * (64 * 1024 - 1) + "ä".encode(), "text"),
        (b"x" * 70_000 + b"\xff", "text"),
        (b"x" * 100 + b"\xff", "binary"),
        (b"a text\x00with a nul", "binary"),
        # .NET may write a byte-order mark before JSON; two marks, or one before text, are text.
        (BOM_UTF8 + b'{"a": 1}', "json"),
        (BOM_UTF8 + b'"{\\"a\\": 1}"', "json string > json"),
        (BOM_UTF8 + b'{"a": 1}\n{"a": 2}', "ndjson"),
        (gzip.compress(BOM_UTF8 + b"[1]", mtime=0), "gzip > json"),
        (BOM_UTF8 + BOM_UTF8 + b'{"a": 1}', "text"),
        (BOM_UTF8 + b"a text", "text"),
        (FIELDS, "binary"),
        # A length over the end, a number without end, a group, a tag alone.
        (b"\x0a\x7fhello\x00", "binary"),
        (b"\x08" + b"\xff" * 12, "binary"),
        (b"\x0b\x00\x01\xff", "binary"),
        (b"\x0a\xff", "binary"),
        (pickle.dumps({"a": 1}, protocol=4), "pickle"),
        ('{"a": 1}'.encode("utf-16"), "utf-16 > json"),
        ('["天気"]'.encode("utf-16-le"), "utf-16 > json"),
        ('[{"a": "天気"}]'.encode("utf-16-be"), "utf-16 > json"),
        ("[1]".encode("utf-16-le"), "binary"),
        ('{"a": 1}'.encode("utf-32"), "binary"),
        (b"[com.acme.Message@1a2b, com.acme.Message@2b3c]", "stringified object"),
        (b"[<app.Message object at 0x7f3c>, <app.Message object at 0x7f3d>]", "stringified object"),
        (b"[com.acme.Message@1a2b, see there]", "text"),
    ],
)
def test_encoding_of_unknown_bytes(data: bytes, encoding: str) -> None:
    assert encoding_of(data) == encoding


def test_frame_that_needs_a_dictionary_is_no_damage() -> None:
    text = b'{"role": "user", "content": "hello"}'
    dictionary = zstandard.train_dictionary(1_024, [text + b"%d" % number for number in range(2_000)])
    frame = zstandard.ZstdCompressor(dict_data=dictionary).compress(text)
    assert (str(examine(frame)), examine(frame).fault) == ("zstd", "")
    assert examine(frame[:-3]).fault == "zstd ends early"
    zstd_frame = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    for whole, name in ((zstd_frame, "zstd"), (lz4.frame.compress(text, content_checksum=True), "lz4")):
        assert str(examine(whole)) == f"{name} > json"
        damaged = whole[:-12] + bytes([whole[-12] ^ 1]) + whole[-11:]
        assert examine(damaged).fault == f"{name} does not decompress to its end"


@pytest.mark.parametrize("cut", [7, 5, 3])
def test_json_with_a_mark_ends_early_as_without(cut: int) -> None:
    whole = b'{"a": 1}'
    assert examine(BOM_UTF8 + whole[:cut])[:2] == examine(whole[:cut])[:2]
    assert parse(BOM_UTF8 + whole[:cut]).fault.byte == parse(whole[:cut]).fault.byte + len(BOM_UTF8)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ['{"a": "天気', '{"a": 1}\n{', '{"a": 1}\n{"role'])
def test_json_that_ends_early(text: str, codec: str) -> None:
    assert examine(text.encode(codec)).fault == "json ends early"


@pytest.mark.parametrize("text", ["[1] [2] [", '[1]\n["a', "{", '{"role'])
def test_text_that_begins_like_json(text: str) -> None:
    assert examine(text.encode()).fault == ""


LARGE = {"messages": [random.Random(n).randbytes(100).hex() for n in range(1_000)]}


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize(
    "inner",
    [
        pickle.dumps(LARGE, 2),
        pickle.dumps(LARGE, 5),
        base64.b64encode(json.dumps(LARGE).encode()),
        gzip.compress(json.dumps(LARGE).encode()),
        b'a:1:{i:0;s:200000:"' + b"x" * 200_000 + b'";}',
    ],
    ids=["pickle 2", "pickle 5", "base64", "gzip", "php"],
)
def test_large_payload_inside_another_is_whole(pack: Callable[[bytes], bytes], inner: bytes) -> None:
    assert len(inner) > PEEK_BYTES
    assert examine(pack(inner)).fault == ""
    assert examine(pack(inner)[:-20]).fault.endswith("ends early")


def test_opcodes_of_a_damaged_pickle() -> None:
    whole = pickle.dumps({"a": [1, 2, 3]}, protocol=4)
    assert pickle_opcodes(whole)["STOP"] == 1
    cut = pickle_opcodes(whole[:-4])
    assert cut["PROTO"] == 1
    assert cut["STOP"] == 0
    assert pickle_opcodes(b"\x80\x04" + b"N0" * 5_000).total() == 2_000
