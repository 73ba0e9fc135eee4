"""Session stores that are wrong in one way each, as stores in the field are; ``found_by`` is the case that names it.

Each class is its own factory and its own handle, as in right_stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
import unicodedata
import uuid
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import redis
from redis.exceptions import RedisError, ResponseError
from right_stores import KeyPerMessage, ListScript, NoTtl, RawList, Right, Stream, StringWatch, retrying

from memkit.connect import SHORT_HANDSHAKE

Messages = list[tuple[str, str]]


def part(item: bytes) -> tuple[str, str]:
    role, text = json.loads(item[32:])
    return role, text


def packed(role: str, text: str) -> bytes:
    return uuid.uuid4().hex.encode() + json.dumps([role, text]).encode()


# Content


class Strips(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, text.strip())


class DropsEmpty(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        if text:
            super().append(role, text)


class ParsesJson(ListScript):
    found_by = "round_trip"

    def read(self) -> Messages:
        return [(role, self.parsed(text)) for role, text in super().read()]

    def parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text


class CutsAtNul(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, text.split("\0")[0])


class Ascii(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, text.encode("ascii", "replace").decode())


class Normalises(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, unicodedata.normalize("NFC", text))


class TextsAsBytes(ListScript):
    found_by = "round_trip"

    def read(self) -> Messages:
        return [(role, str(text.encode(errors="surrogatepass"))) for role, text in super().read()]


class UniversalNewlines(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, text.replace("\r\n", "\n"))


class DropsLoneSurrogates(ListScript):
    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, text.encode(errors="ignore").decode())


class JoinedByBars(ListScript):
    """Role and text with three bars between them."""

    found_by = "round_trip"

    def append(self, role: str, text: str) -> None:
        super().append(role, f"{role}|||{text}")

    def read(self) -> Messages:
        return [(role, text.split("|||")[1]) for role, text in super().read()]


class CutsLongTexts(ListScript):
    found_by = "long_text"

    def append(self, role: str, text: str) -> None:
        super().append(role, text[:65_536])


class MergesNeighbours(ListScript):
    """Consecutive messages of one role are read as one, as some providers of models want them."""

    found_by = "identical_messages"

    def read(self) -> Messages:
        merged: Messages = []
        for role, text in super().read():
            if merged and merged[-1][0] == role:
                merged[-1] = role, f"{merged[-1][1]}\n{text}"
            else:
                merged.append((role, text))
        return merged


class KeepsTheLastState(ListScript):
    """An answer that continues the one before it is taken for its next state, as it is streamed."""

    found_by = "identical_messages"

    def read(self) -> Messages:
        kept: Messages = []
        for role, text in super().read():
            if kept and role == kept[-1][0] == "assistant" and text.startswith(kept[-1][1]):
                kept.pop()
            kept.append((role, text))
        return kept


class DropsRepeats(ListScript):
    found_by = "identical_messages"

    def append(self, role: str, text: str) -> None:
        if (role, text) not in self.read()[-1:]:
            super().append(role, text)


class IsASet(Right):
    found_by = "identical_messages"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.zadd(self.key, {json.dumps([role, text]): time.time_ns()}, nx=True)
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        return [tuple(json.loads(item)) for item in self.r.zrange(self.key, 0, -1)]


class TwoRoles(ListScript):
    found_by = "roles"

    def append(self, role: str, text: str) -> None:
        super().append("assistant" if role == "assistant" else "user", text)


class ForgetsTools(ListScript):
    found_by = "roles"

    def read(self) -> Messages:
        return [(role, text) for role, text in super().read() if role != "tool"]


class ScoreInSeconds(IsASet):
    found_by = "order"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.zadd(self.key, {json.dumps([role, text, uuid.uuid4().hex]): int(time.time())})
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        return [tuple(json.loads(item)[:2]) for item in self.r.zrange(self.key, 0, -1)]


class ScoreInMs(IsASet):
    """Two messages in a millisecond are ordered by their spelling."""

    found_by = "order"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.zadd(self.key, {json.dumps([role, text, uuid.uuid4().hex]): int(time.time() * 1000)})
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        return [tuple(json.loads(item)[:2]) for item in self.r.zrange(self.key, 0, -1)]


class BeginsWithTheUser(ListScript):
    """What comes before the user's first message is left out, as some trimmers do; a greeting is lost."""

    found_by = "roles"

    def read(self) -> Messages:
        messages = super().read()
        return next((messages[at:] for at, (role, _) in enumerate(messages) if role == "user"), messages)


class DropsTheFirstPrompt(ListScript):
    """System messages at the beginning are 'the prompt', and left out."""

    found_by = "roles"

    def read(self) -> Messages:
        messages = super().read()
        while messages and messages[0][0] == "system":
            messages = messages[1:]
        return messages


class NewestFirst(ListScript):
    found_by = "order"

    def read(self) -> Messages:
        return super().read()[::-1]


class CountsInTheHandle(Right):
    """The message's number comes from the handle: a new handle begins at 0 and overwrites."""

    found_by = "order"
    count = 0

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.hset(self.key, str(self.count), json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()
        self.count += 1

    def read(self) -> Messages:
        return [tuple(json.loads(v)) for _, v in sorted(self.r.hgetall(self.key).items(), key=lambda kv: int(kv[0]))]


class LastHundred(ListScript):
    found_by = "long_dialogue"

    def read(self) -> Messages:
        return [part(item) for item in self.r.lrange(self.key, -100, -1)]


class Trims(ListScript):
    found_by = "long_dialogue"
    script = ListScript.script.replace("return 1", "redis.call('LTRIM', KEYS[1], -250, -1)")


class ReadsAThousand(ListScript):
    found_by = "long_dialogue"

    def read(self) -> Messages:
        return super().read()[:1000]


class ClearsAHundred(NoTtl):
    found_by = "long_dialogue"

    def clear(self) -> None:
        self.r.lpop(self.key, 100)


class OffByOne(ListScript):
    found_by = "round_trip"

    def read(self) -> Messages:
        return [part(item) for item in self.r.lrange(self.key, 1, -1)]


# Isolation


class FoldsCase(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + session_id.lower()


class StripsIds(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + session_id.strip()


class SlugIds(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + re.sub(r"\W", "-", session_id)


class CutsIds(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + session_id[:255]


class CutsIdsAtTwoThousand(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return super().key_of(session_id[:2000])


class ChecksumOfIds(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return super().key_of(str(zlib.crc32(session_id.encode())))


class EmptyIdIsTheDefault(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return super().key_of(session_id or "default")


class NormalisesIds(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + unicodedata.normalize("NFC", session_id)


class SplitsAtCommas(ListScript):
    found_by = "ids_apart"

    def key_of(self, session_id: str) -> str:
        return "wrong:" + session_id.split(",")[0]


class PartsNamedLikeSessions(Right):
    """Message n of the session "user" has the key of the session "user:n"; sometimes WRONGTYPE reports it."""

    found_by = "ids_apart"
    options: ClassVar[dict[str, object]] = {"retry": None}
    first = 1
    script = """
        local ttl, left = tonumber(ARGV[2]), redis.call('PTTL', KEYS[1])
        if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end
        local part = KEYS[1] .. ':' .. (redis.call('LLEN', KEYS[1]) + tonumber(ARGV[3]))
        redis.call('RPUSH', KEYS[1], part)
        if ttl > 0 and left == -2 then redis.call('PEXPIRE', KEYS[1], ttl) end
        redis.call('SET', part, ARGV[1])
        local to = redis.call('PTTL', KEYS[1])
        local parts = to > 0 and redis.call('LRANGE', KEYS[1], 0, -1) or {}
        for _, k in ipairs(parts) do redis.call('PEXPIRE', k, to) end"""

    def append(self, role: str, text: str) -> None:
        self.r.eval(self.script, 1, self.key, json.dumps([role, text]), self.ttl_ms, self.first)

    def parts(self) -> Any:
        return self.r.lrange(self.key, 0, -1)

    def read(self) -> Messages:
        parts = self.parts()
        return [tuple(json.loads(item)) for item in self.r.mget(parts)] if parts else []

    def clear(self) -> None:
        self.r.delete(self.key, *self.parts())


class PartsFromZero(PartsNamedLikeSessions):
    """The same, counted from 0: only the second message collides, and writes over another session."""

    found_by = "ids_apart"
    first = 0


class KeepsAHundredSessions(ListScript):
    """Deletes the session that was written longest ago when there are more than a hundred."""

    found_by = "ids_apart"
    script = (
        ListScript.script.removesuffix("return 1")
        + """
        redis.call('LREM', 'right-latest', 0, KEYS[1])
        redis.call('RPUSH', 'right-latest', KEYS[1])
        if redis.call('LLEN', 'right-latest') > 100 then redis.call('DEL', redis.call('LPOP', 'right-latest')) end"""
    )


class TextsByContent(ListScript):
    """Each text is kept once, for all sessions; clear() deletes those of the session."""

    found_by = "clear_no_other_session"
    options: ClassVar[dict[str, object]] = {"retry": None}
    script = """
        local ttl, left = tonumber(ARGV[2]), redis.call('PTTL', KEYS[1])
        if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if ttl > 0 and left == -2 then redis.call('PEXPIRE', KEYS[1], ttl) end
        if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('SET', KEYS[2], ARGV[3], 'PX', 1) end
        local to = redis.call('PTTL', KEYS[1])
        for _, e in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
          local k = string.match(e, '[^ ]+$')
          if to > 0 then redis.call('PEXPIRE', k, to, 'GT') else redis.call('PERSIST', k) end
        end"""

    def append(self, role: str, text: str) -> None:
        place = "wrong-text:" + hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.r.eval(self.script, 2, self.key, place, f"{role} {place}", self.ttl_ms, text)

    def places(self) -> list[list[str]]:
        return [item.decode().split() for item in self.r.lrange(self.key, 0, -1)]

    def read(self) -> Messages:
        return [(role, self.r.get(place).decode()) for role, place in self.places()]

    def clear(self) -> None:
        self.r.delete(self.key, *[place for _, place in self.places()])


class FirstMatch(ListScript):
    """Looks its key up with KEYS, and takes what it finds."""

    found_by = "ids_are_no_patterns"

    def read(self) -> Messages:
        found = [self.key.encode()] if self.r.exists(self.key) else sorted(self.r.keys(self.key))
        return [part(item) for item in self.r.lrange(found[0], 0, -1)] if found else []


class ClearsByPattern(ListScript):
    found_by = "clear_no_other_session"

    def clear(self) -> None:
        for key in list(self.r.scan_iter(self.key)):
            self.r.delete(key)


class ClearsByPrefix(ListScript):
    found_by = "clear_no_other_session"

    def clear(self) -> None:
        for key in list(self.r.scan_iter(re.sub(r"([\\*?\[\]])", r"\\\1", self.key) + "*")):
            self.r.delete(key)


class Flushes(ListScript):
    found_by = "clear_no_other_session"

    def clear(self) -> None:
        self.r.flushdb()


class LeavesMetadata(ListScript):
    found_by = "clear_all_of_it"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.r.set(self.key + ":seen", role, px=self.ttl_ms or None)


class LeavesLongTexts(ListScript):
    """A long text has a key of its own, which clear() leaves."""

    found_by = "clear_all_of_it"

    def append(self, role: str, text: str) -> None:
        if len(text) > 10_000:
            self.r.set(self.key + ":long", text, px=self.ttl_ms or None)
        super().append(role, text)


class LeavesItsIndexEntry(ListScript):
    """clear() does not remove the session from the set of all sessions."""

    found_by = "clear_all_of_it"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.r.sadd("right-sessions", self.session_id)


class ClearsForItself(ListScript):
    """clear() only makes this handle forget."""

    found_by = "clear_all_of_it"
    cleared = False

    def clear(self) -> None:
        self.cleared = True

    def append(self, role: str, text: str) -> None:
        if self.cleared:
            self.r.delete(self.key)
            self.cleared = False
        super().append(role, text)

    def read(self) -> Messages:
        return [] if self.cleared else super().read()


class ReadsOnce(ListScript):
    """Reads what this handle has not read yet, as a queue's consumer does."""

    found_by = "second_client"
    at = 0

    def read(self) -> Messages:
        new = super().read()[self.at :]
        self.at += len(new)
        return new


class ClosesForAll(ListScript):
    """close() ends the session, and so does the end of a with statement."""

    found_by = "second_client"

    def close(self) -> None:
        with contextlib.suppress(RedisError):
            self.clear()
        super().close()


class CachesInTheHandle(ListScript):
    found_by = "second_client"
    seen: Messages | None = None

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.seen = None

    def read(self) -> Messages:
        if self.seen is None:
            self.seen = super().read()
        return list(self.seen)


class CachesInTheProcess(ListScript):
    """Threads of one process agree; the other worker's messages are never seen."""

    found_by = "second_client"
    cache: ClassVar[dict[tuple[int, str], Messages]] = {}

    @property
    def place(self) -> tuple[int, str]:
        return self.r.get_connection_kwargs()["port"], self.key

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.cache.pop(self.place, None)

    def clear(self) -> None:
        super().clear()
        self.cache.pop(self.place, None)

    def read(self) -> Messages:
        return list(self.cache.setdefault(self.place, super().read()))


class OwnCopy(ListScript):
    """What this handle has read once it shows again when Redis has nothing."""

    found_by = "no_private_copy"
    seen: Messages = []  # noqa: RUF012  # the bug

    def read(self) -> Messages:
        self.seen = super().read() or self.seen
        return list(self.seen)

    def clear(self) -> None:
        super().clear()
        self.seen = []


class CachesByLength(ListScript):
    """A copy is right if Redis has as many messages: not if the session ended and has as many again."""

    found_by = "no_private_copy"

    def read(self) -> Messages:
        copies = self.__dict__.setdefault("copies", {})
        length = self.r.llen(self.key)
        if length not in copies:
            copies[length] = super().read()
        return copies[length]


class StaleAfterExpiry(OwnCopy):
    found_by = "open_handle_sees_expiry"


class Buffers(ListScript):
    """Writes in twos, and on close."""

    found_by = "second_client"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        handle.buffer = []
        return handle

    def append(self, role: str, text: str) -> None:
        self.buffer.append((role, text))
        if len(self.buffer) == 2:
            self.flush()

    def flush(self) -> None:
        for role, text in self.buffer:
            super().append(role, text)
        self.buffer = []

    def read(self) -> Messages:
        return super().read() + self.buffer

    def close(self) -> None:
        self.flush()
        super().close()


class PythonsHash(ListScript):
    """The key is hash(id), which differs from process to process; a fork has its parent's."""

    found_by = "second_client"

    def key_of(self, session_id: str) -> str:
        return f"wrong:{hash(session_id)}"


class NamedByTheProcess(ListScript):
    """A prefix that is made when the module is imported: after a deploy everybody is new."""

    found_by = "second_client"
    prefix = uuid.uuid4().hex

    def key_of(self, session_id: str) -> str:
        return f"wrong:{self.prefix}:{session_id}"


class DatabaseZero(ListScript):
    found_by = "database_of_the_url"

    def client(self, url: str) -> redis.Redis:
        return redis.Redis.from_url(re.sub(r"/\d+$", "", url), **SHORT_HANDSHAKE, **retrying())


class OneHashForAll(Right):
    """Every session in one hash, and each sets the TTL of the hash."""

    found_by = "lifetimes_apart"

    def append(self, role: str, text: str) -> None:
        item = json.dumps([role, text])
        self.r.eval(
            """
            local messages = redis.call('HGET', KEYS[1], ARGV[1])
            messages = messages and cjson.decode(messages) or {}
            messages[#messages + 1] = ARGV[2]
            redis.call('HSET', KEYS[1], ARGV[1], cjson.encode(messages))
            if tonumber(ARGV[3]) > 0 then
              redis.call('PEXPIRE', KEYS[1], ARGV[3], 'NX')
              redis.call('PEXPIRE', KEYS[1], ARGV[3], 'GT')
            end""",
            1,
            "wrong:all",
            self.session_id,
            item,
            self.ttl_ms,
        )

    def read(self) -> Messages:
        return [tuple(json.loads(item)) for item in json.loads(self.r.hget("wrong:all", self.session_id) or "[]")]

    def clear(self) -> None:
        self.r.hdel("wrong:all", self.session_id)


class SelectsOnce(ListScript):
    """SELECT when it opens; redis-py does not repeat that when it reconnects."""

    found_by = "database_of_the_url"

    def client(self, url: str) -> redis.Redis:
        base, _, database = url.rpartition("/")
        client = redis.Redis.from_url(base, single_connection_client=True, **SHORT_HANDSHAKE, **retrying())
        client.execute_command("SELECT", database)
        return client


class OneTtlForAll(ListScript):
    """The TTL is kept in the class: the handle that was opened last decides for all."""

    found_by = "lifetimes_apart"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        type(self).last_ms = handle.ttl_ms
        return handle

    def append(self, role: str, text: str) -> None:
        self.ttl_ms = self.last_ms
        super().append(role, text)


class RenewsByPattern(ListScript):
    """Renews the keys that begin with the session's, and with them those of other sessions."""

    found_by = "lifetimes_apart"
    script = (
        ListScript.script.removesuffix("return 1")
        + """
        for _, key in ipairs(ttl > 0 and redis.call('KEYS', KEYS[1] .. '*') or {}) do
          redis.call('PEXPIRE', key, ttl, 'GT')
        end"""
    )


# Expiry


class IgnoresTtl(ListScript):
    found_by = "ttl_boundary"

    def ms(self, ttl_s: float | None) -> int:
        return super().ms(ttl_s) * 0


class Minutes(ListScript):
    found_by = "ttl_boundary"

    def ms(self, ttl_s: float | None) -> int:
        return super().ms(ttl_s) * 60


class SecondsAsMs(ListScript):
    found_by = "ttl_boundary"

    def ms(self, ttl_s: float | None) -> int:
        return max(1, super().ms(ttl_s) // 1000) if ttl_s is not None else super().ms(ttl_s)


class AtMostAMonth(ListScript):
    found_by = "ttl_boundary"

    def ms(self, ttl_s: float | None) -> int:
        return min(super().ms(ttl_s), 30 * 86_400_000)


class Jitters(ListScript):
    found_by = "ttl_boundary"

    def ms(self, ttl_s: float | None) -> int:
        return round(super().ms(ttl_s) * 0.95)


class DefaultHour(ListScript):
    found_by = "none_means_no_deadline"

    def ms(self, ttl_s: float | None) -> int:
        return super().ms(3600 if ttl_s is None else ttl_s)


class NoTtlButAnHour(RawList):
    """Declares that it has no TTL, and sets one of an hour."""

    found_by = "none_means_no_deadline"
    has_ttl = False

    def ms(self, ttl_s: float | None) -> int:
        return super().ms(ttl_s) or 3_600_000


class WholeSeconds(ListScript):
    found_by = "ttl_fraction"

    def ms(self, ttl_s: float | None) -> int:
        return super().ms(ttl_s) // 1000 * 1000


class RoundsUp(ListScript):
    found_by = "ttl_fraction"

    def ms(self, ttl_s: float | None) -> int:
        return -(-super().ms(ttl_s) // 1000) * 1000


class ZeroIsNever(ListScript):
    found_by = "ttl_not_positive"

    def ms(self, ttl_s: float | None) -> int:
        return 0 if ttl_s is None or ttl_s <= 0 else super().ms(ttl_s)


class NegativeDeletes(Right):
    found_by = "ttl_not_positive"

    def ms(self, ttl_s: float | None) -> int:
        return 0 if ttl_s is None else round(ttl_s * 1000)

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, json.dumps([role, text]))
            if self.ttl_ms > 0:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            elif self.ttl_ms < 0:
                pipe.pexpire(self.key, self.ttl_ms)
            pipe.execute()

    def read(self) -> Messages:
        return [tuple(json.loads(item)) for item in self.r.lrange(self.key, 0, -1)]


class TheIncident(ListScript):
    """The newest TTL counts, which is not declared."""

    found_by = "reopen_shorter"
    script = ListScript.script.replace(", 'GT'", "")


class KeepsTheOldTtl(ListScript):
    """Renews with what was set first: a raised TTL never arrives."""

    found_by = "reopen_longer"
    script = ListScript.script.replace(
        "redis.call('PEXPIRE', KEYS[1], ttl, 'GT')",
        "local was = redis.call('GET', KEYS[1] .. ':ttl') or ttl "
        "redis.call('PEXPIRE', KEYS[1], was, 'GT') redis.call('PEXPIRE', KEYS[1] .. ':ttl', was, 'GT')",
    ).replace("and new then", "and new then redis.call('SET', KEYS[1] .. ':ttl', ttl, 'PX', ttl)")

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":ttl")


class OnceOnly(ListScript):
    """An absolute deadline, which is not declared."""

    found_by = "append_renews"
    script = ListScript.script.replace("'GT'", "'NX'")


class RenewsLate(ListScript):
    """Renews when a tenth of the TTL is left, to save a command."""

    found_by = "append_renews"
    script = ListScript.script.replace(
        "if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT')",
        "if ttl > 0 and redis.call('PTTL', KEYS[1]) < ttl / 10 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT')",
    )


class ShorterNeverRenews(ListScript):
    found_by = "reopen_near_the_end"
    script = ListScript.script.replace(
        "if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT')",
        "local max = tonumber(redis.call('GET', KEYS[1] .. ':max') or 0) "
        "if ttl > 0 and ttl >= max then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') "
        "redis.call('SET', KEYS[1] .. ':max', ttl, 'PX', ttl)",
    )

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":max")


class ReadSetsTtl(ListScript):
    found_by = "reads_do_not_shorten"

    def read(self) -> Messages:
        if self.ttl_ms:
            self.r.pexpire(self.key, self.ttl_ms)
        return super().read()


class ReadWithoutTtlPersists(ListScript):
    found_by = "reads_do_not_shorten"

    def read(self) -> Messages:
        if not self.ttl_ms:
            self.r.persist(self.key)
        return super().read()


class AbsoluteRenewedByReads(ListScript):
    """Declares a deadline that is set once; a read renews it."""

    found_by = "append_renews"
    expiry = "absolute"
    script = ListScript.script.replace("redis.call('PEXPIRE', KEYS[1], ttl, 'GT')", "redis.call('PTTL', KEYS[1])")

    def read(self) -> Messages:
        if self.ttl_ms:
            self.r.pexpire(self.key, self.ttl_ms, gt=True)
        return super().read()


class DeadlineOfTheHandle(ListScript):
    """The deadline is computed when the handle is opened, from the client's clock."""

    found_by = "append_renews"
    script = ListScript.script.replace("'PEXPIRE'", "'PEXPIREAT'")

    def ms(self, ttl_s: float | None) -> int:
        ttl_ms = super().ms(ttl_s)
        return ttl_ms and ttl_ms + round(time.time() * 1000)


class NaiveUtcDeadline(ListScript):
    found_by = "time_zone"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        if self.ttl_ms:
            self.r.pexpireat(self.key, self.now() + timedelta(milliseconds=self.ttl_ms))

    def now(self) -> datetime:
        seconds, micros = self.r.time()
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None, microsecond=micros)


class LocalDeadlineAsUtc(NaiveUtcDeadline):
    def now(self) -> datetime:
        seconds, micros = self.r.time()
        return datetime.fromtimestamp(seconds).replace(tzinfo=UTC, microsecond=micros)  # noqa: DTZ006  # the fault


class OpenSetsTtl(ListScript):
    found_by = "reads_do_not_shorten"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        if handle.ttl_ms:
            handle.r.pexpire(handle.key, handle.ttl_ms)
        return handle


class SetDropsTtl(StringWatch):
    """Without a TTL of its own the handle writes with a plain SET."""

    found_by = "none_leaves_the_deadline"

    def expiry_of(self, client: redis.Redis) -> dict[str, object]:
        expiry = super().expiry_of(client)
        return expiry if "px" in expiry else {}


class NonePersists(ListScript):
    found_by = "none_leaves_the_deadline"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        if not self.ttl_ms:
            self.r.persist(self.key)


class PersistentMetadata(ListScript):
    found_by = "ttl_on_every_key"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.r.hset(self.key + ":meta", "last", role)

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":meta")


class MetadataExpiresLater(ListScript):
    found_by = "ttl_on_every_key"

    def append(self, role: str, text: str) -> None:
        super().append(role, text)
        self.r.set(self.key + ":meta", role, px=self.ttl_ms * 10 or None)

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":meta")


class OldPartsExpire(Right):
    """A list of numbers and a key a message; only the newest message's key is renewed."""

    found_by = "long_talk_stays_whole"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.watch(self.key)
            number = pipe.llen(self.key)
            pipe.multi()
            pipe.rpush(self.key, number)
            pipe.set(f"{self.key}|{number}", json.dumps([role, text]), px=self.ttl_ms or None)
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def parts(self) -> list[str]:
        return [f"{self.key}|{int(number)}" for number in self.r.lrange(self.key, 0, -1)]

    def read(self) -> Messages:
        parts = self.parts()
        return [tuple(json.loads(item)) for item in self.r.mget(parts) if item] if parts else []

    def clear(self) -> None:
        self.r.delete(self.key, *self.parts())


class OldMessagesAreExpired(ListScript):
    """Encrypted messages have a lifetime of their own, by the clock of the machine that reads them."""

    found_by = "messages_have_no_other_ttl"

    def append(self, role: str, text: str) -> None:
        item = uuid.uuid4().hex.encode() + json.dumps([role, text, time.time()]).encode()
        self.r.register_script(self.script)([self.key], [item, self.ttl_ms])

    def read(self) -> Messages:
        items = [json.loads(item[32:]) for item in self.r.lrange(self.key, 0, -1)]
        return [(role, text) for role, text, at in items if time.time() - at < 600]


class AMonthInAll(ListScript):
    """Each append renews a session until it is a month old."""

    found_by = "long_talk_stays_whole"
    longest_ms = 30 * 86_400_000

    def append(self, role: str, text: str) -> None:
        items = self.r.lrange(self.key, 0, 0)
        now_ms = self.r.time()[0] * 1000
        began_ms = json.loads(items[0][32:])[2] if items else now_ms
        item = uuid.uuid4().hex.encode() + json.dumps([role, text, began_ms]).encode()
        ttl_ms = min(self.ttl_ms, max(1, began_ms + self.longest_ms - now_ms)) if items else self.ttl_ms
        self.r.register_script(self.script)([self.key], [item, ttl_ms])

    def read(self) -> Messages:
        return [tuple(json.loads(item[32:])[:2]) for item in self.r.lrange(self.key, 0, -1)]


class Chunks(Right):
    """A list a hundred messages; the last one alone is renewed."""

    found_by = "long_dialogue_expires_as_one"

    def chunk(self, number: int) -> str:
        return f"{self.key}|{number}"

    def append(self, role: str, text: str) -> None:
        count = len(self.read())
        with self.r.pipeline() as pipe:
            pipe.rpush(self.chunk(count // 100), json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.chunk(count // 100), self.ttl_ms, nx=True)
                pipe.pexpire(self.chunk(count // 100), self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        chunks = [self.r.lrange(self.chunk(number), 0, -1) for number in range(10)]
        return [tuple(json.loads(item)) for chunk in chunks for item in chunk]

    def clear(self) -> None:
        self.r.delete(*map(self.chunk, range(10)))


class ToolResultsExpire(ListScript):
    """A tool's result has a key of its own, whose TTL is set once; a missing one is left out."""

    found_by = "append_renews"
    options: ClassVar[dict[str, object]] = {"retry": None}

    def apart(self, message: tuple[str, str]) -> bool:
        return message[0] == "tool"

    def part(self, number: str) -> str:
        return f"wrong-part:{self.session_id}:{number}"

    def append(self, role: str, text: str) -> None:
        number, item = uuid.uuid4().hex, json.dumps([role, text])
        if self.apart((role, text)):
            item = json.dumps([role, {"in": number}])
        with self.r.pipeline() as pipe:
            if self.apart((role, text)):
                pipe.set(self.part(number), text.encode(), px=self.ttl_ms or None)
            pipe.eval(self.script, 1, self.key, number + item, self.ttl_ms)
            pipe.execute()

    def read(self) -> Messages:
        messages = [(role, self.text_of(text)) for role, text in super().read()]
        return [(role, text) for role, text in messages if text is not None]

    def text_of(self, text: Any) -> Any:
        raw = self.r.get(self.part(text["in"])) if isinstance(text, dict) else text
        return raw.decode() if isinstance(raw, bytes) else raw

    def clear(self) -> None:
        parts = [self.part(text["in"]) for _, text in super().read() if isinstance(text, dict)]
        self.r.delete(self.key, *parts)


class PromptsExpire(ToolResultsExpire):
    """The same with the system prompt."""

    found_by = "long_talk_stays_whole"

    def apart(self, message: tuple[str, str]) -> bool:
        return message[0] == "system"


class LongTextsExpire(ToolResultsExpire):
    """The same with a long text."""

    found_by = "long_talk_stays_whole"

    def apart(self, message: tuple[str, str]) -> bool:
        return len(message[1]) > 10_000


class CompactionDropsTheTtl(ListScript):
    """Every 64th append writes the list anew, without its TTL; the next one sets it again."""

    found_by = "long_dialogue_expires_as_one"
    script = ListScript.script.replace(
        "if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end",
        "if ttl > 0 and redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ttl) end "
        "if ttl > 0 then redis.call('PEXPIRE', KEYS[1], ttl, 'GT') end",
    ).replace(
        "return 1",
        "if redis.call('LLEN', KEYS[1]) % 64 == 0 then "
        "local all = redis.call('LRANGE', KEYS[1], 0, -1) redis.call('DEL', KEYS[1]) "
        "for _, e in ipairs(all) do redis.call('RPUSH', KEYS[1], e) end end return 1",
    )


class ShortensAPart(KeyPerMessage):
    """Declares that it may shorten: the messages get the shorter TTL, their list keeps the longer one."""

    found_by = "reopen_shorter"
    may_shorten = True
    script = KeyPerMessage.script.replace(
        "redis.call('ZADD'",
        "if ttl > 0 then for _, key in ipairs(redis.call('LRANGE', KEYS[1], 0, 0)) do "
        "redis.call('PEXPIRE', key, ttl) end end redis.call('ZADD'",
    )

    def read(self) -> Messages:
        parts = self.r.lrange(self.key, 0, -1)
        return [tuple(json.loads(item)) for item in self.r.mget(parts) if item] if parts else []


class ClearsTheFirstChunk(Chunks):
    found_by = "long_dialogue_expires_as_one"

    def clear(self) -> None:
        self.r.delete(self.chunk(0))


class LongTextsElsewhere(ListScript):
    """A long text has a key of its own, and that key no TTL."""

    found_by = "ttl_on_every_key"

    def append(self, role: str, text: str) -> None:
        if len(text) > 100_000:
            self.r.set(f"{self.key}:{uuid.uuid4().hex}", text)
        super().append(role, text)

    def clear(self) -> None:
        self.r.delete(self.key, *self.r.keys(f"{self.key}:*"))


class ReadCreates(ListScript):
    """Looking at a session that is not there makes a key for it."""

    found_by = "ttl_on_every_key"

    def read(self) -> Messages:
        self.r.hset(f"{self.key}:seen", "count", 1)
        return super().read()

    def clear(self) -> None:
        self.r.delete(self.key, f"{self.key}:seen")


class AppendNeedsTheSession(Right):
    """append() adds to what is there (RPUSHX); create happens in open(). To an expired session it adds nothing."""

    found_by = "append_after_expiry"
    created = False

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            push = pipe.rpushx if self.created else pipe.rpush
            push(self.key, json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()
        self.created = True

    def read(self) -> Messages:
        return [tuple(json.loads(item)) for item in self.r.lrange(self.key, 0, -1)]


class Resurrects(StringWatch):
    """Writes back what the handle remembers, and the new message: an expired talk comes back."""

    found_by = "append_after_expiry"
    remembered: ClassVar[list[list[str]]] = []

    def load(self, client: redis.Redis) -> list[list[str]]:
        items = super().load(client)
        self.remembered = items or self.remembered
        return list(self.remembered)

    def read(self) -> Messages:
        return [(role, text) for _, role, text in super().load(self.r)]

    def clear(self) -> None:
        super().clear()
        self.remembered = []


class HandleOutlivesTheSession(ListScript):
    """Sets the TTL when the handle writes first; what it creates later has none."""

    found_by = "append_after_expiry"
    wrote = False

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, packed(role, text))
            if self.ttl_ms and not self.wrote:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()
        self.wrote = True


# Faults


class TwoCommands(Right):
    """RPUSH, then PEXPIRE; the error is raised, and the key stays for ever."""

    found_by = "expire_denied"
    options: ClassVar[dict[str, object]] = {}

    def append(self, role: str, text: str) -> None:
        new = not self.r.exists(self.key)
        self.r.rpush(self.key, packed(role, text))
        if self.ttl_ms:
            self.r.pexpire(self.key, self.ttl_ms, nx=new, gt=not new)

    def read(self) -> Messages:
        return [part(item) for item in self.r.lrange(self.key, 0, -1)]


class CrashLeavesPersistent(TwoCommands):
    """The same, found by a process that is killed between the two."""

    found_by = "crash_in_append"


class AsksBeforeItWrites(ListScript):
    """Whether the session is new is asked for in a command of its own; it may expire before the script runs."""

    found_by = "append_after_expiry"

    def append(self, role: str, text: str) -> None:
        script = self.script.replace("redis.call('EXISTS', KEYS[1])", str(self.r.exists(self.key)))
        self.r.eval(script, 1, self.key, packed(role, text), self.ttl_ms)


class RenewalSwallowed(Right):
    """A new session is right; when a renewal fails, the append reports success."""

    found_by = "expire_denied"

    def append(self, role: str, text: str) -> None:
        if self.r.exists(self.key):
            self.r.rpush(self.key, packed(role, text))
            with contextlib.suppress(ResponseError):
                if self.ttl_ms:
                    self.r.pexpire(self.key, self.ttl_ms, gt=True)
            return
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, packed(role, text))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms)
            pipe.execute()

    def read(self) -> Messages:
        return [part(item) for item in self.r.lrange(self.key, 0, -1)]


class ReadErrorIsEmpty(ListScript):
    found_by = "read_denied"

    def read(self) -> Messages:
        try:
            return super().read()
        except RedisError:
            return []


class ReadErrorIsTheLastCopy(ListScript):
    """What cannot be read is shown as it was read last, by this handle; another worker has written since."""

    found_by = "read_denied"
    copy: Any = None

    def read(self) -> Messages:
        try:
            self.copy = super().read()
        except RedisError:
            if self.copy is None:
                raise
        return list(self.copy)


class OfflineIsTheLastCopy(ReadErrorIsTheLastCopy):
    """The same, found by a broken connection."""

    found_by = "connection_lost"
    options: ClassVar[dict[str, object]] = {"retry": None}


class ReadErrorLeavesOut(Right):
    """A hash of texts and a list of roles; texts that cannot be read are empty."""

    found_by = "read_denied"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            number = uuid.uuid4().hex
            pipe.rpush(self.key, json.dumps([role, number]))
            pipe.hset(self.key + ":texts", number, text)
            for key in (self.key, self.key + ":texts") if self.ttl_ms else ():
                pipe.pexpire(key, self.ttl_ms, nx=True)
                pipe.pexpire(key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        roles = [json.loads(item) for item in self.r.lrange(self.key, 0, -1)]
        try:
            texts = self.r.hgetall(self.key + ":texts")
        except ResponseError:
            texts = {}
        return [(role, texts.get(number.encode(), b"").decode()) for role, number in roles]

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":texts")


class WriteErrorSwallowed(ListScript):
    found_by = "write_denied"

    def append(self, role: str, text: str) -> None:
        with contextlib.suppress(RedisError):
            super().append(role, text)


class IndexErrorSwallowed(Right):
    """The message is written, its place in the index is not, and no error is raised."""

    found_by = "write_denied"

    def append(self, role: str, text: str) -> None:
        number = uuid.uuid4().hex
        with self.r.pipeline() as pipe:
            pipe.hset(self.key, number, json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()
        with contextlib.suppress(ResponseError), self.r.pipeline() as pipe:
            pipe.rpush(self.key + ":order", number)
            if self.ttl_ms:
                pipe.pexpire(self.key + ":order", self.ttl_ms, nx=True)
                pipe.pexpire(self.key + ":order", self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        order = self.r.lrange(self.key + ":order", 0, -1)
        return [tuple(json.loads(item)) for item in self.r.hmget(self.key, order)] if order else []

    def clear(self) -> None:
        self.r.delete(self.key, self.key + ":order")


class ClearErrorSwallowed(ListScript):
    found_by = "clear_denied"

    def clear(self) -> None:
        with contextlib.suppress(RedisError):
            super().clear()


class ClearsItsIndexFirst(Right):
    """clear() deletes the index, then the messages: if that fails, they cannot be found again."""

    found_by = "clear_denied"

    def append(self, role: str, text: str) -> None:
        place = f"{self.key}:{uuid.uuid4().hex}"
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, place).set(place, json.dumps([role, text])).execute()

    def places(self) -> list[bytes]:
        return self.r.lrange(self.key, 0, -1)

    def read(self) -> Messages:
        return [tuple(json.loads(self.r.get(place))) for place in self.places()]

    def clear(self) -> None:
        places = self.places()
        self.r.delete(self.key)
        self.r.unlink(*places)


class ClearsWhenOnline(ListScript):
    """A clear() that does not reach the server is logged, and done for the user."""

    found_by = "connection_lost"

    def clear(self) -> None:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            super().clear()


class TwoTrips(Right):
    """Roles in one list, texts in another, a command each: a crash between them shifts every role after it."""

    found_by = "crash_in_append"
    options: ClassVar[dict[str, object]] = {"retry": None}

    @property
    def keys(self) -> tuple[str, str]:
        return self.key + "|roles", self.key + "|texts"

    def append(self, role: str, text: str) -> None:
        for key, value in zip(self.keys, (role, text), strict=True):
            with self.r.pipeline() as pipe:
                pipe.rpush(key, value)
                if self.ttl_ms:
                    pipe.pexpire(key, self.ttl_ms, nx=True)
                    pipe.pexpire(key, self.ttl_ms, gt=True)
                pipe.execute()

    def read(self) -> Messages:
        with self.r.pipeline() as pipe:
            roles, texts = pipe.lrange(self.keys[0], 0, -1).lrange(self.keys[1], 0, -1).execute()
        return [(role.decode(), text.decode()) for role, text in zip(roles, texts, strict=False)]

    def clear(self) -> None:
        self.r.delete(*self.keys)


class TwoTripsApart(TwoTrips):
    """The same, found by a request that is lost."""

    found_by = "lost_reply"


class Retries(NoTtl):
    """RPUSH with redis-py's retries: a lost reply stores the message twice."""

    found_by = "lost_reply"
    options: ClassVar[dict[str, object]] = retrying()


class RetriesAStream(Stream):
    found_by = "lost_reply"
    has_ttl = False

    def append(self, role: str, text: str) -> None:
        for _ in range(3):
            with contextlib.suppress(redis.ConnectionError):
                self.r.xadd(self.key, {"role": role, "text": text})
                return
        raise redis.ConnectionError("three times")


class LooksAtTheLastOnly(ListScript):
    """Skips a message with the text of the last one: right for a retry, wrong if the user repeats it."""

    found_by = "identical_messages"

    def append(self, role: str, text: str) -> None:
        for _ in range(3):
            with contextlib.suppress(redis.ConnectionError):
                if self.read()[-1:] != [(role, text)]:
                    super().append(role, text)
                return


class LooksForItsIdInTheLastOnly(ListScript):
    """Skips a message with the id of the last one: if another client wrote before the retry, it is stored twice."""

    found_by = "lost_reply"
    script = ListScript.script.replace("-200", "-1")


class NetworkErrorSwallowed(ListScript):
    """Whatever goes wrong on the network is logged, and the request is lost."""

    found_by = "lost_reply"
    options: ClassVar[dict[str, object]] = {"retry": None}

    def append(self, role: str, text: str) -> None:
        with contextlib.suppress(redis.ConnectionError):
            super().append(role, text)


class NoConnectionNoMemory(ListScript):
    """Holds one connection and reads from it; when that is closed, the memory is empty."""

    found_by = "connection_lost"
    connection: Any = None

    def read(self) -> Messages:
        self.connection = self.connection or self.r.connection_pool.get_connection()
        try:
            self.connection.send_command("LRANGE", self.key, 0, -1)
            return [part(item) for item in self.connection.read_response()]
        except redis.ConnectionError:
            return []


class HalfAnAnswer(ListScript):
    """Reads page by page, a connection a page; a page that does not come is the last one."""

    found_by = "connection_lost"
    options: ClassVar[dict[str, object]] = {"retry": None}

    def read(self) -> Messages:
        found: list[bytes] = []
        with contextlib.suppress(redis.ConnectionError):
            while page := self.r.lrange(self.key, len(found), len(found) + 1):
                found += page
        return [part(item) for item in found]


class RetriesTimeouts(NoTtl):
    """Retries when the answer takes too long, and only then."""

    found_by = "lost_reply"
    options: ClassVar[dict[str, object]] = {"socket_timeout": 1.0, "retry": None}

    def append(self, role: str, text: str) -> None:
        for _ in range(3):
            with contextlib.suppress(redis.TimeoutError):
                super().append(role, text)
                return
        raise redis.TimeoutError("three times")


class WritesBehind(ListScript):
    """A thread does the writing; append() returns when the message is in its queue."""

    found_by = "stored_when_acknowledged"

    def append(self, role: str, text: str) -> None:
        threading.Thread(target=self.later, args=(role, text), daemon=True).start()

    def later(self, role: str, text: str) -> None:
        # When the client is closed meanwhile, redis-py finds no socket: TypeError.
        with contextlib.suppress(RedisError, TypeError):
            super().append(role, text)


class FallsBack(ListScript):
    """Without Redis it remembers in the process."""

    found_by = "restart"
    options: ClassVar[dict[str, object]] = {"retry": None}
    local: Any = None

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        try:
            handle.r.ping()
        except redis.ConnectionError:
            handle.local = []
        return handle

    def append(self, role: str, text: str) -> None:
        super().append(role, text) if self.local is None else self.local.append((role, text))

    def read(self) -> Messages:
        return super().read() if self.local is None else list(self.local)


class UserRenews(ListScript):
    """Only the user's messages renew."""

    found_by = "append_renews"

    def append(self, role: str, text: str) -> None:
        ttl_ms, new = self.ttl_ms, not self.r.exists(self.key)
        self.ttl_ms = ttl_ms if new or role == "user" else 0
        super().append(role, text)
        self.ttl_ms = ttl_ms


class ImpatientReader(ListScript):
    """No answer within a second: no memory."""

    found_by = "lost_reply"
    options: ClassVar[dict[str, object]] = {"socket_timeout": 1.0, "retry": None}

    def read(self) -> Messages:
        try:
            return super().read()
        except redis.TimeoutError:
            return []


class OpensElsewhere(ListScript):
    """When it may not write, it keeps the messages in the handle."""

    found_by = "write_denied"
    local: Any = None

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Right:
        handle = super().open(url, session_id, ttl_s)
        try:
            handle.r.set("wrong:probe", 1, px=1)
        except RedisError:
            handle.local = []
        return handle

    def append(self, role: str, text: str) -> None:
        super().append(role, text) if self.local is None else self.local.append((role, text))

    def read(self) -> Messages:
        return super().read() if self.local is None else list(self.local)


class ReadOnlySwallowed(ListScript):
    found_by = "replica_without_primary"

    def append(self, role: str, text: str) -> None:
        with contextlib.suppress(redis.exceptions.ReadOnlyError):
            super().append(role, text)


class NoPrimaryNoMemory(ListScript):
    found_by = "replica_without_primary"

    def read(self) -> Messages:
        try:
            return super().read()
        except redis.exceptions.MasterDownError:
            return []


class DeletesFirst(StringWatch):
    """A list that is rewritten whole at each append, DEL first, outside MULTI."""

    found_by = "full_memory"
    options: ClassVar[dict[str, object]] = {}

    def append(self, role: str, text: str) -> None:
        items, left = self.r.lrange(self.key, 0, -1), self.r.pttl(self.key)
        self.r.delete(self.key)
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, *items, packed(role, text))
            if left > 0 or (left == -2 and self.ttl_ms):
                pipe.pexpire(self.key, max(left, self.ttl_ms))
            pipe.execute()

    def read(self) -> Messages:
        return [part(item) for item in self.r.lrange(self.key, 0, -1)]


class SkipsDamage(ListScript):
    found_by = "corrupt_element"

    def read(self) -> Messages:
        found = []
        for item in self.r.lrange(self.key, 0, -1):
            with contextlib.suppress(ValueError):
                found.append(part(item))
        return found


class SkipsBadJson(ListScript):
    """decode_responses raises for what is not UTF-8; what is not JSON is left out."""

    found_by = "corrupt_element"
    options: ClassVar[dict[str, object]] = {**retrying(), "decode_responses": True}

    def read(self) -> Messages:
        found = []
        for item in self.r.lrange(self.key, 0, -1):
            with contextlib.suppress(json.JSONDecodeError):
                found.append(tuple(json.loads(item[32:])))
        return found


class SkipsStrangeShapes(RawList):
    """JSON objects that are no messages are left out."""

    found_by = "corrupt_element"
    options: ClassVar[dict[str, object]] = {"retry": None, "decode_responses": True}

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, json.dumps({"role": role, "content": text}))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        found = [json.loads(item) for item in self.r.lrange(self.key, 0, -1)]
        return [(item["role"], item["content"]) for item in found if self.is_message(item)]

    def is_message(self, item: Any) -> bool:
        return "role" in item


class SkipsNumbers(SkipsStrangeShapes):
    """Whatever is no JSON object is left out."""

    found_by = "corrupt_element"

    def is_message(self, item: Any) -> bool:
        return isinstance(item, dict)


class StrangeShapesAreBlank(SkipsStrangeShapes):
    """An object without a role and a text is shown as an empty message."""

    found_by = "corrupt_element"

    def read(self) -> Messages:
        found = [json.loads(item) for item in self.r.lrange(self.key, 0, -1)]
        return [(item.get("role", "user"), item.get("content", "")) for item in found]


class DamageIsEmpty(StringWatch):
    """A string that does not decode is taken for none, and written over."""

    found_by = "corrupt_element"

    def decode(self, raw: bytes) -> list[list[str]]:
        try:
            return super().decode(raw)
        except ValueError:
            return []


class Mojibake(Stream):
    found_by = "corrupt_element"

    def read(self) -> Messages:
        return [
            (f[b"role"].decode(errors="replace"), f[b"text"].decode(errors="replace"))
            for _, f in self.r.xrange(self.key)
        ]


class WrongTypeIsEmpty(ListScript):
    found_by = "foreign_key"

    def read(self) -> Messages:
        return super().read() if self.r.type(self.key) == b"list" else []


class IgnoresErrorsInMulti(RawList):
    found_by = "foreign_key"

    def append(self, role: str, text: str) -> None:
        with self.r.pipeline() as pipe:
            pipe.rpush(self.key, role.encode() + b"\0" + text.encode()).execute(raise_on_error=False)


class OverwritesForeign(StringWatch):
    """A value of another type is replaced."""

    found_by = "foreign_key"

    def tried(self, item: list[str]) -> bool:
        if self.r.type(self.key) not in (b"string", b"none"):
            self.r.delete(self.key)
        return super().tried(item)


# Concurrency and restarts


class ReadModifyWrite(StringWatch):
    found_by = "eight_writers"

    def append(self, role: str, text: str) -> None:
        items, expiry = self.load(self.r), self.expiry_of(self.r)
        self.r.set(self.key, self.encode([*items, [uuid.uuid4().hex, role, text]]), **expiry)


class LockInTheProcess(ReadModifyWrite):
    """A lock that the other worker does not know."""

    found_by = "eight_writers"
    lock = threading.Lock()

    def append(self, role: str, text: str) -> None:
        with self.lock:
            super().append(role, text)


class BeginsAnew(ListScript):
    """The first message of a session clears the way for it: two first messages, and one is lost."""

    found_by = "eight_writers"
    options: ClassVar[dict[str, object]] = {"retry": None}

    def append(self, role: str, text: str) -> None:
        if self.r.exists(self.key):
            super().append(role, text)
            return
        with self.r.pipeline() as pipe:
            pipe.delete(self.key)
            pipe.rpush(self.key, packed(role, text))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms)
            pipe.execute()


class NumberedByLength(Right):
    """The message's number is HLEN, asked for in a command of its own: two writers, one number."""

    found_by = "eight_writers"

    def append(self, role: str, text: str) -> None:
        number = self.r.hlen(self.key)
        with self.r.pipeline() as pipe:
            pipe.hset(self.key, number, json.dumps([role, text]))
            if self.ttl_ms:
                pipe.pexpire(self.key, self.ttl_ms, nx=True)
                pipe.pexpire(self.key, self.ttl_ms, gt=True)
            pipe.execute()

    def read(self) -> Messages:
        return [tuple(json.loads(v)) for _, v in sorted(self.r.hgetall(self.key).items(), key=lambda kv: int(kv[0]))]


class ReadsPages(NoTtl):
    """Reads newest first in pages of ten, each a command: what is written meanwhile pushes messages over the edge."""

    found_by = "eight_writers"

    def append(self, role: str, text: str) -> None:
        self.r.lpush(self.key, json.dumps([role, text]))

    def read(self) -> Messages:
        found: list[Any] = []
        while page := self.r.lrange(self.key, len(found), len(found) + 9):
            found += page
        return [tuple(json.loads(item)) for item in reversed(found)]


class LosesItsScript(ListScript):
    """Keeps the script's hash as long as the process runs; raises nothing when the server has lost it."""

    found_by = "restart"
    sha = ""

    def append(self, role: str, text: str) -> None:
        if not self.sha:
            self.sha = self.r.script_load(self.script)
        with contextlib.suppress(redis.exceptions.NoScriptError):
            self.r.evalsha(self.sha, 1, self.key, packed(role, text), self.ttl_ms)


class DownIsEmpty(ListScript):
    """A server that does not answer has no memory."""

    found_by = "restart"
    options: ClassVar[dict[str, object]] = {"retry": None}

    def read(self) -> Messages:
        try:
            return super().read()
        except redis.ConnectionError:
            return []


MUTANTS: tuple[type[Any], ...] = tuple(
    one for one in list(globals().values()) if "found_by" in getattr(one, "__dict__", ())
)
