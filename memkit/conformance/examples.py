"""Two small stores as examples: one as it is often written, and the same one corrected.

Each class is its own factory and its own handle: ``memkit conformance memkit.conformance.examples:ListThenExpire``.
"""

import json
import uuid
from typing import Any, Self

import redis

from memkit.conformance.adapter import Messages


class ListThenExpire:
    """A list for each session: push the message, then set the TTL. It has five faults."""

    name = "ListThenExpire"

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Self:
        """Return a handle on a session."""
        handle = type(self)()
        handle.client = redis.Redis.from_url(url)
        handle.key, handle.ttl_s = f"chat:{session_id}", ttl_s
        return handle

    client: Any
    key: str
    ttl_s: float | None

    def append(self, role: str, text: str) -> None:
        """Push a message, then set the TTL."""
        self.client.rpush(self.key, json.dumps({"role": role, "text": text}))
        if self.ttl_s:
            self.client.expire(self.key, int(self.ttl_s))

    def read(self) -> Messages:
        """Return the messages; none if Redis raises an error."""
        try:
            items = self.client.lrange(self.key, 0, -1)
        except redis.RedisError:
            return []
        return [(message["role"], message["text"]) for message in map(json.loads, items)]

    def clear(self) -> None:
        """Delete the session."""
        self.client.delete(self.key)

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class ListAndScript(ListThenExpire):
    """The same list, corrected: each write is a script, ids prevent duplicates, TTLs only grow, errors are raised."""

    name = "ListAndScript"

    # A script does not roll back: PEXPIRE comes before the first write, so that a refusal leaves nothing.
    SCRIPT = """
        for _, item in ipairs(redis.call('LRANGE', KEYS[1], -1000, -1)) do
          if string.sub(item, 1, 32) == string.sub(ARGV[1], 1, 32) then return end
        end
        local ttl_ms, left_ms = tonumber(ARGV[2]), redis.call('PTTL', KEYS[1])
        local renew = ttl_ms > 0 and left_ms ~= -1 and left_ms < ttl_ms
        if renew then redis.call('PEXPIRE', KEYS[1], ttl_ms) end
        redis.call('RPUSH', KEYS[1], ARGV[1])
        if renew and left_ms == -2 then redis.call('PEXPIRE', KEYS[1], ttl_ms) end"""

    def open(self, url: str, session_id: str, ttl_s: float | None) -> Self:
        """Return a handle on a session; ValueError for a TTL that is not above zero."""
        if ttl_s is not None and not ttl_s > 0:
            raise ValueError(f"ttl_s must be above zero, not {ttl_s}")
        return super().open(url, session_id, ttl_s)

    def append(self, role: str, text: str) -> None:
        """Add a message once, however often the client has to send it, and renew the session."""
        item = uuid.uuid4().hex + json.dumps({"role": role, "text": text})
        self.client.eval(self.SCRIPT, 1, self.key, item, round((self.ttl_s or 0) * 1000))

    def read(self) -> Messages:
        """Return the messages; errors are raised."""
        items = self.client.lrange(self.key, 0, -1)
        return [(message["role"], message["text"]) for message in (json.loads(item[32:]) for item in items)]
