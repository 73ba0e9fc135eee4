"""A fuzzer for RDB files: changes files of every server here, and reads them as audit and history do.

    python tests/stress/fuzz_rdb.py --seconds 600 [--seed 7]

An exception that is no SourceError, an input that takes over 5 s of CPU time, or one that needs over 64 MB of memory is
a failure: it is printed with the seed and the step that made it, and the exit code is 1. One input in a hundred is also
loaded into a private server, as ``memkit audit --full`` does. The default suite runs some hundred steps without that.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
import tracemalloc
from contextlib import suppress
from pathlib import Path

import redis

sys.path.insert(0, str(Path(__file__).parents[1]))
from rdb_files import module_file, with_checksum
from servers import every_server

from memkit.audit import audit
from memkit.errors import MemkitError, SourceError
from memkit.history import history
from memkit.history.snapshots import read_rdb
from memkit.server import RedisServer

MAX_CPU_S = 5.0
MAX_BYTES = 64 << 20
SERVED_EVERY = 100
SMALL_ENCODINGS = {
    "list-max-ziplist-size": "4",
    "hash-max-ziplist-entries": "8",
    "zset-max-ziplist-entries": "8",
    "maxmemory-policy": "allkeys-lru",
}
TOKENS = (
    *(bytes([opcode]) for opcode in (*range(27), *range(243, 256))),
    *(b"\x81" + b"\xff" * 8, b"\x81" + b"\x00" * 8, b"\x80\xff\xff\xff\xff", b"\x7f\xff", b"\x40\x00", b"\x3f"),
    *(b"\xc0\xff", b"\xc1\xff\xff", b"\xc2\xff\xff\xff\xff", b"\xc3\x05\x80\xff\xff\xff\xff", b"\xc4", b"\x00"),
    *(
        b"\xfc" + b"\xff" * 7 + b"\x7f",
        b"\xfc" + b"\x00" * 7 + b"\x80",
        b"\xfd\xff\xff\xff\xff",
        b"\xfa\x05ctime\x0c" + b"9" * 12,
    ),
    *(b"\x00\x06chat:1\x01v", b"\x0d\x06chat:2\x00", b"\x07\x06chat:3\x81" + b"\xff" * 8, b"\xfe\x41\x00"),
)


def write_every_kind(client: redis.Redis, server: RedisServer) -> None:
    """Write a few keys of each type and encoding, a function, and another database."""
    client.set("chat:1", "a text", ex=300)
    client.mset({"chat:2": 7, "chat:3": 70_000, "chat:4": 2**40, "chat:5": "ab" * 300})
    client.mset({f"chat:{f'{number}ab' * 20}": "a compressed name" for number in range(10)})
    client.rpush("chat:list", "a", 1, "x" * 100)
    client.rpush("chat:quicklist", *range(40), "y" * 300)
    client.sadd("numbers", 1, 2, 3)
    client.sadd("members", "a", "b", "c" * 70)
    client.zadd("small", {"a": 1.5, "b": float("inf"), "c": float("-inf")})
    client.zadd("large", {f"member {n}": n / 7 for n in range(20)})
    client.hset("chat:hash", mapping={"role": "user", "content": "hello"})
    client.hset("chat:large", mapping={f"field {n}": "v" * n for n in range(20)})
    for number in range(5):
        client.xadd("chat:stream", {"n": number})
    client.xgroup_create("chat:stream", "group", "0")
    client.xreadgroup("group", "consumer", {"chat:stream": ">"}, count=3)
    with suppress(redis.ResponseError):  # Redis 7.4, Valkey 9
        client.hset("ttls", mapping={f"field {n}": n for n in range(12)})
        client.hexpire("ttls", 300, "field 1")
        client.hset("few ttls", mapping={"a": 1, "b": 2})
        client.hexpire("few ttls", 300, "a")
    with suppress(redis.ResponseError):  # Redis 7.0, Valkey
        client.function_load("#!lua name=lib\nredis.register_function('f', function() return 1 end)")
    client.select(3)
    client.set("chat:other", "in another database", exat=4_000_000_000)
    client.select(0)
    server.clock.shift("1h")


def corpus() -> list[bytes]:
    """Return a file of each server that is here, and one with module data, without their checksums."""
    found = [module_file(b"\x02\x07\x01\x03\x04" + b"d" * 8 + b"\x03ffff\x05\x02{}\x00", b"chat:1")[:-8]]
    for binary in filter(None, every_server().values()):
        with RedisServer(binary=binary.path, config=SMALL_ENCODINGS) as server, server.client() as client:
            write_every_kind(client, server)
            client.save()
            found.append((server.directory / "dump.rdb").read_bytes()[:-8])
    return found


def changed(data: bytes, files: list[bytes], dice: random.Random) -> bytes:
    """Return a file with bytes changed, removed, added, or taken from another file; half of them get a checksum."""
    changing = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at, length = dice.randrange(9, max(len(changing), 10)), dice.choice((1, 2, 9, 100))
        how = dice.randrange(6)
        if how == 0:
            changing[at : at + 1] = bytes([dice.randrange(256)])
        elif how == 1:
            changing[at : at + length] = b""
        elif how == 2:
            changing[at:at] = changing[at : at + length]
        elif how == 3:
            other = dice.choice(files)
            start = dice.randrange(len(other))
            changing[at:at] = other[start : start + length]
        else:
            changing[at : at + (how == 4)] = dice.choice(TOKENS)
    if dice.random() < 0.1:
        del changing[dice.randrange(len(changing)) :]
    return with_checksum(bytes(changing)) if dice.random() < 0.5 else bytes(changing) + data[:8]


def read(path: Path) -> bool:
    """Read a file as audit and history do; return whether it could be read."""
    try:
        answer = history(path, path)
        answer.to_json()
        history(path, path, session="chat:1").to_text()
        if not read_rdb([path]).has_field_ttls:
            report = audit(path, expect={"chat:*": "7d"})
            report.to_json()
            report.to_text()
            audit(path)
    except SourceError:
        return False
    return True


def attempt(path: Path, *, served: bool = False) -> tuple[bool, str]:
    """Read a file; return whether it could be read, and what is wrong with the reading, empty if nothing is."""
    tracemalloc.start()
    began = time.process_time()
    try:
        readable = read(path)
        peak = tracemalloc.get_traced_memory()[1]
        taken_s = time.process_time() - began
        if served:
            with suppress(MemkitError, redis.RedisError):
                audit(path, expect={"chat:*": "7d"}, full=True).to_json()
    except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
        return False, traceback.format_exc()
    finally:
        tracemalloc.stop()
    if taken_s > MAX_CPU_S:
        return readable, f"it took {taken_s:.1f} s of CPU time"
    return readable, f"it needed {peak >> 20} MB of memory" if peak > MAX_BYTES else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the reader of RDB files.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files = corpus()
    steps = failures = readable = 0
    until = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dump.rdb"
        while time.monotonic() < until and failures < 20:
            dice = random.Random(f"{given.seed} {steps}")
            path.write_bytes(changed(dice.choice(files), files, dice))
            was_read, found = attempt(path, served=steps % SERVED_EVERY == 0)
            readable += was_read
            if found:
                failures += 1
                kept = Path(tempfile.gettempdir()) / f"fuzz-rdb-{given.seed}-{steps}.rdb"
                kept.write_bytes(path.read_bytes())
                print(f"seed {given.seed}, step {steps}, {kept}: {found}")
            steps += 1
    print(f"{steps:,} files, {readable:,} of them could be read, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
