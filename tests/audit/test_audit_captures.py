"""Sessions that real libraries wrote are healthy: alone, and all together in one database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from servers import NO_FSYNC, every_server

from memkit.audit.run import audit
from memkit.formats import capture
from memkit.formats.capture import load_capture
from memkit.inspect import inspect_session
from memkit.server import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    binary = every_server()["redis-8.2"] or every_server()["valkey-9"]
    if not binary:
        pytest.skip("no server with CLIENT NO-TOUCH on this machine")
    with RedisServer(binary=binary.path, persist=True, config=NO_FSYNC) as server:
        yield server


def findings(server: RedisServer, names: Sequence[str], ttl_s: int | None) -> list[tuple[str, str]]:
    """Load captures and return what the audit and inspect find, but for keys that a library gives no TTL."""
    with server.client() as client:
        client.flushdb()
        sessions = [load_capture(client, name, json_as_text=True) for name in names]
        client.config_resetstat()
        # The Chat SDK's own TTL is not that of the other captures.
        own = {"chat-sdk:*": "7d"} if len(names) > 1 else {}
        report = audit(server.url, expect={**own, "*": f"{ttl_s}s" if ttl_s else None}, full=True, duty=1)
        found = [(one.cause, one.message) for one in report.findings]
        if len(names) == 1:
            found += [(one.cause, one.key) for one in inspect_session(client, sessions[0]).problems]
    return [one for one in found if one[0] != "no_ttl"]


@pytest.mark.parametrize("name", capture.names())
def test_a_session_of_a_library_is_healthy(server: RedisServer, name: str) -> None:
    assert findings(server, [name], capture.capture(name).get("ttl_configured_s")) == []


def test_all_libraries_in_one_database_are_healthy(server: RedisServer) -> None:
    assert findings(server, capture.names(), 1_000) == []
