"""Session stores of many designs that lose nothing: a case that fails one of them is a false alarm.

Each class is its own factory and its own handle. They need Redis 7.0 or a Valkey, and redis-py.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
import uuid
import zlib
from collections.abc import Coroutine
from typing import Any, ClassVar

import redis
import redis.asyncio
from redis.backoff import ConstantBackoff
from redis.exceptions import WatchError
from redis.retry import Retry

from memkit.connect import SHORT_HANDSHAKE


class Right:
    """Open and close; a TTL in whole milliseconds, 0 for none; refuses what is not above zero."""

    has_ttl = True
    options: ClassVar[dict[str, object]] = {}

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = type(self)()
        handle.session_id, handle.ttl_ms = session_id, self.ms(ttl_s)
        handle.key = self.key_of(session_id)
        handle.r = self.client(url)
        return handle

    def client(self, url: str) -> redis.Redis:
        return redis.Redis.from_url(url, **SHORT_HANDSHAKE | self.options)

    def key_of(self, session_id: str) -> str:
        return "right:" + session_id

    def ms(self, ttl_s: float | None) -> int:
        if ttl_s is None:
            return 0
        if not ttl_s > 0:
            raise ValueError(f"ttl_s must be above 0, not {ttl_s}")
        return max(1, round(ttl_s * 1000))

    def clear(self) -> None:
        self.r.delete(self.key)

    def close(self) -> None:
        self.r.close()


def retrying(times: int = 3) -> dict[str, object]:
    return {"retry": Retry(ConstantBackoff(0.01), times)}


class ListScript(Right):
    """A list and a script: EVALSHA with a fall-back, EXPIRE GT, ids against duplicates, retries."""

    options: ClassVar[dict[str, object]] = retrying()
    script = """
        for _, e in ipairs(redis.call('LRANGE', KEYS[1], -200, -1)) do
          if string.sub(e, 1, 32) == string.sub(ARGV[1], 1, 32) then return 0 end
        end
        local ttl, new = tonumber(ARGV[2]), redis.call('EXISTS', KEYS[1]) == 0
        if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if ttl > 0 and new then redis.call('PEXPIRE', KEYS[1], ttl) end
        return 1"""

    def append(self, role: str, text: str) -> None:
        item = uuid.uuid4().hex.encode() + json.dumps([role, text]).encode()
        self.r.register_script(self.script)([self.key], [item, self.ttl_ms])

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(item[32:])) for item in self.r.lrange(self.key, 0, -1)]


class Resp3Text(ListScript):
    """The same over RESP3 with decode_responses, and redis-py's ten retries with its own backoff."""

    def client(self, url: str) -> redis.Redis:
        parts = redis.connection.parse_url(url)
        return redis.Redis(
            host=parts["host"], port=parts["port"], db=parts.get("db", 0), decode_responses=True, protocol=3
        )


class SharedPool(ListScript):
    """One pool a URL for the whole process, made when first used."""

    pools: ClassVar[dict[str, redis.ConnectionPool]] = {}
    lock = threading.Lock()

    def client(self, url: str) -> redis.Redis:
        with self.lock:
            pool = self.pools.setdefault(
                url, redis.BlockingConnectionPool.from_url(url, max_connections=20, **SHORT_HANDSHAKE | self.options)
            )
        return redis.Redis(connection_pool=pool)

    def close(self) -> None:
        pass


class HashedKeys(ListScript):
    """The id is hashed into the key: its name does not show the session."""

    def key_of(self, session_id: str) -> str:
        return "right:" + hashlib.sha256(session_id.encode()).hexdigest()


class RenewsOnRead(ListScript):
    """A read renews too, and only ever lengthens; where it may not, the read raises."""

    def read(self) -> list[tuple[str, str]]:
        if self.ttl_ms:
            self.r.pexpire(self.key, self.ttl_ms, gt=True)
        return super().read()


class WholeSecondsOnly(ListScript):
    """A TTL of a fraction of a second is refused."""

    def ms(self, ttl_s: float | None) -> int:
        if ttl_s is not None and ttl_s != int(ttl_s):
            raise ValueError("whole seconds only")
        return super().ms(ttl_s)


class PlainIdsOnly(ListScript):
    """Ids with white space, control characters or patterns are refused."""

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        if not session_id.isprintable() or set(" *?[]{}\\,'\"") & set(session_id) or len(session_id) > 200:
            raise ValueError("not an id")
        return super().open(url, session_id, ttl_s)


class StringWatch(Right):
    """One JSON string, WATCH and SET PX; tries again while others write.

    The id matters: redis-py raises WatchError for a connection that broke after EXEC was carried out, too.
    """

    def encode(self, items: list[list[str]]) -> bytes:
        return json.dumps(items).encode()

    def decode(self, raw: bytes) -> list[list[str]]:
        return json.loads(raw)

    def load(self, client: redis.Redis) -> list[list[str]]:
        raw = client.get(self.key)
        return [] if raw is None else self.decode(raw)

    def expiry_of(self, client: redis.Redis) -> dict[str, object]:
        left = client.pttl(self.key)
        renew = self.ttl_ms and left != -1
        return {"px": max(left, self.ttl_ms)} if renew else {"keepttl": True}

    def append(self, role: str, text: str) -> None:
        item = [uuid.uuid4().hex, role, text]
        while not self.tried(item):
            pass

    def tried(self, item: list[str]) -> bool:
        with self.r.pipeline() as pipe:
            pipe.watch(self.key)
            items, expiry = self.load(pipe), self.expiry_of(pipe)
            if any(item[0] == there[0] for there in items):
                return True
            pipe.multi()
            pipe.set(self.key, self.encode([*items, item]), **expiry)
            try:
                pipe.execute()
            except WatchError:
                return False
            return True

    def read(self) -> list[tuple[str, str]]:
        return [(role, text) for _, role, text in self.load(self.r)]


class Compressed(StringWatch):
    """The same, compressed: nothing on the server is readable as text."""

    def encode(self, items: list[list[str]]) -> bytes:
        return zlib.compress(super().encode(items))

    def decode(self, raw: bytes) -> list[list[str]]:
        return super().decode(zlib.decompress(raw))


class FewTries(StringWatch):
    """Raises when others write at the same time."""

    def append(self, role: str, text: str) -> None:
        if not self.tried([uuid.uuid4().hex, role, text]):
            raise RuntimeError("somebody else wrote at the same time")


class HashWithIndex(Right):
    """A hash of messages, a zset that orders them, a set of all sessions without a TTL; WATCH and MULTI."""

    @property
    def keys(self) -> tuple[str, str]:
        return self.key, f"{self.key}:order"

    def append(self, role: str, text: str) -> None:
        message_id = uuid.uuid4().hex
        while not self.tried(message_id, json.dumps({"role": role, "text": text})):
            pass

    def tried(self, message_id: str, message: str) -> bool:
        with self.r.pipeline() as pipe:
            pipe.watch(*self.keys)
            number, left = pipe.zcard(self.keys[1]), pipe.pttl(self.key)
            if pipe.hexists(self.key, message_id):
                return True
            pipe.multi()
            pipe.hset(self.keys[0], message_id, message)
            pipe.zadd(self.keys[1], {message_id: number})
            pipe.sadd("right-sessions", self.session_id)
            if self.ttl_ms and left != -1:
                for key in self.keys:
                    pipe.pexpire(key, max(left, self.ttl_ms))
            try:
                pipe.execute()
            except WatchError:
                return False
            return True

    def read(self) -> list[tuple[str, str]]:
        with self.r.pipeline() as pipe:
            order, messages = pipe.zrange(self.keys[1], 0, -1).hgetall(self.keys[0]).execute()
        if len(order) != len(messages):
            raise ValueError("the index and the messages differ")
        return [(m["role"], m["text"]) for m in (json.loads(messages[message_id]) for message_id in order)]

    def clear(self) -> None:
        with self.r.pipeline() as pipe:
            pipe.delete(*self.keys).srem("right-sessions", self.session_id).execute()


class Stream(Right):
    """A stream of raw fields; XADD and PEXPIRE (NX if new, else GT) in one MULTI; raises on a conflict."""

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.watch(self.key)
            new = not pipe.exists(self.key)
            pipe.multi()
            pipe.xadd(self.key, {"role": role, "text": text})
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=new, gt=not new)
            pipe.execute()

    def read(self) -> list[tuple[str, str]]:
        return [(f[b"role"].decode(), f[b"text"].decode()) for _, f in self.r.xrange(self.key)]


class RawList(Right):
    """Role, NUL and text as plain bytes in a list; MULTI."""

    options: ClassVar[dict[str, object]] = {"retry": None}

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, role.encode() + b"\0" + text.encode())
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> list[tuple[str, str]]:
        parts = [item.split(b"\0", 1) for item in self.r.lrange(self.key, 0, -1)]
        return [(role.decode(), text.decode()) for role, text in parts]


class KeyPerMessage(Right):
    """A key a message and a list that orders them, all renewed together by a script; a shared zset of sessions."""

    script = """
        local ttl, left = tonumber(ARGV[3]), redis.call('PTTL', KEYS[1])
        local parts = redis.call('LRANGE', KEYS[1], 0, -1)
        if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end
        redis.call('RPUSH', KEYS[1], KEYS[2])
        if ttl > 0 and left == -2 then redis.call('PEXPIRE', KEYS[1], ttl) end
        redis.call('SET', KEYS[2], ARGV[1])
        local at = redis.call('PEXPIRETIME', KEYS[1])
        if at > 0 then
          redis.call('PEXPIREAT', KEYS[2], at)
          for _, key in ipairs(parts) do redis.call('PEXPIREAT', key, at) end
        end
        redis.call('ZADD', 'right-last-seen', redis.call('TIME')[1], ARGV[2])"""

    def append(self, role: str, text: str) -> None:
        part = f"right-part:{self.session_id}:{uuid.uuid4().hex}"
        self.r.eval(self.script, 2, self.key, part, json.dumps([role, text]), self.session_id, self.ttl_ms)

    def read(self) -> list[tuple[str, str]]:
        return [
            (role, text)
            for role, text in map(
                json.loads,
                self.r.eval(
                    """
            local found = {}
            for i, key in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
              found[i] = redis.call('GET', key)
              if not found[i] then return redis.error_reply('a message is missing') end
            end
            return found""",
                    1,
                    self.key,
                ),
            )
        ]

    def clear(self) -> None:
        self.r.eval(
            """
            for _, key in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do redis.call('DEL', key) end
            redis.call('DEL', KEYS[1])
            redis.call('ZREM', 'right-last-seen', ARGV[1])""",
            1,
            self.key,
            self.session_id,
        )


class Async(Right):
    """An asyncio client behind the adapter, with a loop of its own."""

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        handle.loop = asyncio.new_event_loop()
        handle.a = redis.asyncio.Redis.from_url(url)
        return handle

    def append(self, role: str, text: str) -> None:
        item = uuid.uuid4().hex.encode() + json.dumps([role, text]).encode()
        self.loop.run_until_complete(self.a.eval(ListScript.script, 1, self.key, item, self.ttl_ms))

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(e[32:])) for e in self.loop.run_until_complete(self.a.lrange(self.key, 0, -1))]

    def close(self) -> None:
        self.loop.run_until_complete(self.a.aclose())
        self.loop.close()
        super().close()


class LoopInAThread(Right):
    """An asyncio client in a loop that a thread of the process runs from the start: nothing answers after a fork."""

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        handle.a = redis.asyncio.Redis.from_url(url)
        return handle

    def append(self, role: str, text: str) -> None:
        item = uuid.uuid4().hex.encode() + json.dumps([role, text]).encode()
        self.wait(self.a.eval(ListScript.script, 1, self.key, item, self.ttl_ms))

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(e[32:])) for e in self.wait(self.a.lrange(self.key, 0, -1))]

    def close(self) -> None:
        self.wait(self.a.aclose())
        super().close()


class Locked(StringWatch):
    """Read, extend, write back, under a lock in Redis; two commands, so SET PX carries the TTL."""

    def append(self, role: str, text: str) -> None:
        item = [uuid.uuid4().hex, role, text]
        with self.r.lock(f"{self.key}:lock", timeout=5, blocking_timeout=10, sleep=0.002):
            expiry = self.expiry_of(self.r)
            self.r.set(self.key, self.encode([*self.load(self.r), item]), **expiry)


class NoTtl(Right):
    """No TTL at all, which it declares."""

    has_ttl = False

    def append(self, role: str, text: str) -> None:
        self.r.rpush(self.key, json.dumps([role, text]))

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(item)) for item in self.r.lrange(self.key, 0, -1)]


class SharedHash(NoTtl):
    """Every session in one hash, a field each, written by a script; no TTL, which it declares."""

    script = """
        local messages = redis.call('HGET', KEYS[1], ARGV[1])
        messages = messages and cjson.decode(messages) or {}
        messages[#messages + 1] = {ARGV[2], ARGV[3]}
        redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(messages))"""

    def append(self, role: str, text: str) -> None:
        self.r.eval(self.script, 1, "right-all", self.session_id, role, text)

    def read(self) -> list[tuple[str, str]]:
        raw = self.r.hget("right-all", self.session_id)
        return [(role, text) for role, text in json.loads(raw)] if raw is not None else []

    def clear(self) -> None:
        self.r.hdel("right-all", self.session_id)


class Absolute(ListScript):
    """The deadline is set once, which it declares."""

    expiry = "absolute"
    script = """
        for _, e in ipairs(redis.call('LRANGE', KEYS[1], -200, -1)) do
          if string.sub(e, 1, 32) == string.sub(ARGV[1], 1, 32) then return 0 end
        end
        local ttl, new = tonumber(ARGV[2]), redis.call('EXISTS', KEYS[1]) == 0
        if ttl > 0 and new then redis.call('PEXPIRE', KEYS[1], ttl) end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if ttl > 0 and new then redis.call('PEXPIRE', KEYS[1], ttl) end
        return 1"""


class MayShorten(ListScript):
    """The newest TTL counts, which it declares."""

    may_shorten = True
    script = """
        for _, e in ipairs(redis.call('LRANGE', KEYS[1], -200, -1)) do
          if string.sub(e, 1, 32) == string.sub(ARGV[1], 1, 32) then return 0 end
        end
        if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if tonumber(ARGV[2]) > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
        return 1"""


class TwoLists(Right):
    """Roles in one list, texts in another, written and read in one MULTI; any bytes are a text."""

    options: ClassVar[dict[str, object]] = {"retry": None}

    @property
    def keys(self) -> tuple[str, str]:
        return f"right-roles:{self.session_id}", f"right-texts:{self.session_id}"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            for key, value in zip(self.keys, (role, text), strict=True):
                pipe.rpush(key, value)
                if self.ttl_ms:
                    pipe.pexpire(key, self.ttl_ms, nx=True)
                    pipe.pexpire(key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> list[tuple[str, str]]:
        with self.r.pipeline() as pipe:
            roles, texts = pipe.lrange(self.keys[0], 0, -1).lrange(self.keys[1], 0, -1).execute()
        return [(role.decode(), text.decode()) for role, text in zip(roles, texts, strict=True)]

    def clear(self) -> None:
        self.r.delete(*self.keys)


class CheckedCache(ListScript):
    """A copy in the handle, shown while length and last message in Redis are those of the copy."""

    seen: Any = None
    copy: tuple[tuple[str, str], ...] = ()

    def read(self) -> list[tuple[str, str]]:
        with self.r.pipeline() as pipe:
            now = pipe.llen(self.key).lindex(self.key, -1).execute()
        if now != self.seen:
            self.seen, self.copy = now, tuple(super().read())
        return list(self.copy)


class PartsApart(Right):
    """Long texts and tools' results have keys of their own, named by content within the session, all renewed together.

    The id's length stands before it, so that no part of one session has the name of another's.
    """

    options: ClassVar[dict[str, object]] = {"retry": None}
    script = """
        local ttl, left = tonumber(ARGV[2]), redis.call('PTTL', KEYS[1])
        if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if ttl > 0 and left == -2 then redis.call('PEXPIRE', KEYS[1], ttl) end
        if KEYS[2] then redis.call('SADD', KEYS[1] .. '|parts', KEYS[2]) redis.call('SET', KEYS[2], ARGV[3]) end
        local at = redis.call('PEXPIRETIME', KEYS[1])
        if at > 0 then
          redis.call('PEXPIREAT', KEYS[1] .. '|parts', at)
          for _, key in ipairs(redis.call('SMEMBERS', KEYS[1] .. '|parts')) do redis.call('PEXPIREAT', key, at) end
        end"""

    def key_of(self, session_id: str) -> str:
        return f"right:{len(session_id)}:{session_id}"

    def append(self, role: str, text: str) -> None:
        if role != "tool" and len(text) < 1000:
            self.r.eval(self.script, 1, self.key, json.dumps([role, text]), self.ttl_ms)
            return
        place = f"{self.key}|{hashlib.sha256(text.encode()).hexdigest()}"
        self.r.eval(self.script, 2, self.key, place, json.dumps([role, {"in": place}]), self.ttl_ms, text)

    def read(self) -> list[tuple[str, str]]:
        return [(role, self.text_of(text)) for role, text in map(json.loads, self.r.lrange(self.key, 0, -1))]

    def text_of(self, text: Any) -> str:
        if isinstance(text, str):
            return text
        raw = self.r.get(text["in"])
        if raw is None:
            raise ValueError("a text is missing")
        return raw.decode()

    def clear(self) -> None:
        script = "redis.call('DEL', KEYS[1], KEYS[1] .. '|parts', unpack(redis.call('SMEMBERS', KEYS[1] .. '|parts')))"
        self.r.eval(script, 1, self.key)


class Compacts(ListScript):
    """Every 64th append writes the list anew, with the TTL it had."""

    script = ListScript.script.replace(
        "return 1",
        "if redis.call('LLEN', KEYS[1]) % 64 == 0 then "
        "local all, to = redis.call('LRANGE', KEYS[1], 0, -1), redis.call('PEXPIRETIME', KEYS[1]) "
        "redis.call('DEL', KEYS[1]) for _, e in ipairs(all) do redis.call('RPUSH', KEYS[1], e) end "
        "if to > 0 then redis.call('PEXPIREAT', KEYS[1], to) end end return 1",
    )


class BeginsOnce(StringWatch):
    """A new session is SET NX; who comes second goes on as with any other."""

    def tried(self, item: list[str]) -> bool:
        first = self.r.set(self.key, self.encode([item]), nx=True, px=self.ttl_ms or None)
        return bool(first) or super().tried(item)


class NewestOnTheLeft(RawList):
    """LPUSH, and read from the right."""

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.lpush(self.key, json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(item)) for item in reversed(self.r.lrange(self.key, 0, -1))]


class ClientClock(StringWatch):
    """Deadlines computed from the client's clock, which the suite cannot move."""

    def expiry_of(self, client: redis.Redis) -> dict[str, object]:
        at = client.execute_command("PEXPIRETIME", self.key)
        renew = self.ttl_ms and at != -1
        return {"pxat": max(at, round(time.time() * 1000) + self.ttl_ms)} if renew else {"keepttl": True}


class RefusesLongTexts(ListScript):
    """A text of more than 100,000 characters is refused."""

    def append(self, role: str, text: str) -> None:
        if len(text) > 100_000:
            raise ValueError("too long")
        super().append(role, text)


class OneConnection(ListScript):
    """One connection a URL for the process; it raises once when that is lost."""

    clients: ClassVar[dict[tuple[int, str], redis.Redis]] = {}

    def client(self, url: str) -> redis.Redis:
        options: dict[str, Any] = SHORT_HANDSHAKE | {"retry": Retry(ConstantBackoff(0), 0)}
        client = redis.Redis.from_url(url, single_connection_client=True, **options)
        return self.clients.setdefault((os.getpid(), url), client)

    def close(self) -> None:
        pass


class Chunks(Right):
    """A counter, and a list a hundred messages, all in one script; the chunk is written before the counter."""

    script = """
        local ttl, count = tonumber(ARGV[2]), tonumber(redis.call('GET', KEYS[1]) or '0')
        local left, chunk = redis.call('PTTL', KEYS[1]), KEYS[1] .. '/' .. math.floor(count / 100)
        if ttl > 0 then
          redis.call('PEXPIRE', KEYS[1], ttl, 'GT')
          for i = 0, math.floor(count / 100) do redis.call('PEXPIRE', KEYS[1] .. '/' .. i, ttl, 'GT') end
        end
        redis.call('RPUSH', chunk, ARGV[1])
        redis.call('INCR', KEYS[1])
        if ttl > 0 and left == -2 then redis.call('PEXPIRE', KEYS[1], ttl) end
        local at = redis.call('PEXPIRETIME', KEYS[1])
        if at > 0 then redis.call('PEXPIREAT', chunk, at) end"""
    reading = """
        local count, found = tonumber(redis.call('GET', KEYS[1]) or '0'), {}
        for i = 0, math.floor(count / 100) do
          for _, item in ipairs(redis.call('LRANGE', KEYS[1] .. '/' .. i, 0, -1)) do found[#found + 1] = item end
        end
        if #found ~= count then return {err = 'DAMAGED'} end
        return found"""
    clearing = """
        for i = 0, math.floor(tonumber(redis.call('GET', KEYS[1]) or '0') / 100) do
          redis.call('DEL', KEYS[1] .. '/' .. i)
        end
        redis.call('DEL', KEYS[1])"""

    def key_of(self, session_id: str) -> str:
        return super().key_of(session_id.encode().hex())

    def append(self, role: str, text: str) -> None:
        self.r.eval(self.script, 1, self.key, json.dumps([role, text]), self.ttl_ms)

    def read(self) -> list[tuple[str, str]]:
        return [tuple(json.loads(item)) for item in self.r.eval(self.reading, 1, self.key)]

    def clear(self) -> None:
        self.r.eval(self.clearing, 1, self.key)


RIGHT = (
    *(ListScript, Resp3Text, SharedPool, HashedKeys, RenewsOnRead, WholeSecondsOnly, PlainIdsOnly, StringWatch),
    *(
        Compressed,
        FewTries,
        HashWithIndex,
        Stream,
        RawList,
        KeyPerMessage,
        Async,
        LoopInAThread,
        Locked,
        NoTtl,
        SharedHash,
    ),
    *(Absolute, MayShorten, TwoLists, CheckedCache, PartsApart, Compacts, BeginsOnce, NewestOnTheLeft, ClientClock),
    *(RefusesLongTexts, OneConnection, Chunks),
)
