"""``client``: each file has a private server of its own; its tests empty it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from memkit.server import RedisServer


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client(decode_responses=True) as client:
        client.flushall()
        yield client
