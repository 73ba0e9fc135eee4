"""The keyspace of the application fixtures: empty at the start of each test, whatever key names an application uses."""

import re
import secrets
from collections.abc import Callable
from typing import Self, TypeVar

import redis
import redis.asyncio
from redis.exceptions import RedisError, ResponseError
from redis.utils import str_if_bytes

from memkit.connect import (
    SHORT_HANDSHAKE,
    AnyAsyncClient,
    AnyClient,
    cli_command,
    connect,
    connect_async,
    execute_undecoded,
    place,
    primaries,
    scan,
)
from memkit.errors import LeftSandboxError, SandboxError
from memkit.server.clock import ServerClock
from memkit.server.guard import DATABASE_USER, foreign_keys, guard_write, sandboxes, unregistered
from memkit.server.launcher import RedisServer
from memkit.server.sandbox import (
    all_nodes,
    database_of,
    explain_refusals,
    explain_refusals_async,
    is_refusal,
    make_user,
    named_client,
    no_user_error,
    unlink,
    url_for_user,
)

Result = TypeVar("Result")
# Commands that change more than keys: after one of them, the next test gets a restarted server.
SERVER_CHANGES = re.compile(
    rb"cmdstat_(acl|client\|pause|config|config\|(set|rewrite|resetstat)|debug|failover|function|function\|(load|delete|restore)"
    rb"|module|module\|load|replicaof|slaveof|acl\|(setuser|deluser|load)):calls=(\d+)"
)
COMMAND_STATS = "INFO commandstats"
"""As one word: redis-py would parse the whole reply (0.2 ms)."""
# All commands but those that reach other databases, other clients or the whole server.
DATABASE_RULES = """
    +@all -@admin -@dangerous -select -move -swapdb -copy -function -script +script|load +script|exists
    +info +keys +sort +sort_ro +flushdb +restore +role
""".split()  # noqa: SIM905  # read as the words that redis.conf takes


class PrivateKeyspace:
    """A private server with a TCP port for the application fixtures of one test process, which nothing else uses."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.url = server.url
        # On the unix socket, as a test may change what the port accepts; without retries, as CLIENT PAUSE may last.
        self._admin = redis.Redis(unix_socket_path=server.socket_path, **SHORT_HANDSHAKE | {"retry": None})
        self._changes = b""

    @property
    def clock(self) -> ServerClock:
        """The server's clock."""
        return self.server.clock

    def begin(self) -> None:
        """Remove every key; restart the server if the last test changed its configuration, users or functions."""
        try:
            with self._admin.pipeline(transaction=False) as pipe:
                pipe.execute_command(COMMAND_STATS)
                pipe.client_list()
                stats, clients = pipe.execute()
            if _changes_in(stats) == self._changes:
                # A thread of an earlier test that waits in BLPOP would take what this test writes. Its connection is
                # not ended: a worker of the whole run continues as after a timeout.
                for client in clients:
                    if "b" in client["flags"]:
                        self._admin.client_unblock(int(client["id"]))
                self._admin.flushall()
                return
        except RedisError:
            pass
        if self.server.running:
            self.server.kill()
        self.server.start()
        self._admin.close()
        self._admin.flushall()
        self._changes = self._server_changes()

    def end(self) -> None:
        """Do nothing: the next test begins with an empty server."""

    def accept_changes(self, work: Callable[[], Result]) -> Result:
        """Do work of memkit's own that changes the configuration: only changes of the test are a reason to restart."""
        unchanged = self._server_changes() == self._changes
        result = work()
        self._changes = self._server_changes() if unchanged else self._changes
        return result

    def client(self) -> redis.Redis:
        """Return a plain client."""
        return self.server.client()

    def async_client(self) -> redis.asyncio.Redis:
        """Return a plain asyncio client that closes with its event loop."""
        client = self.server.async_client()
        explain_refusals_async(client, lambda error: error)
        return client

    def _server_changes(self) -> bytes:
        return _changes_in(execute_undecoded(self._admin, COMMAND_STATS))

    def close(self) -> None:
        """Close memkit's connection."""
        self._admin.close()


def _changes_in(stats: bytes) -> bytes:
    return b" ".join(match[0] for match in SERVER_CHANGES.finditer(stats))


class DedicatedDatabase:
    """A database of another server, with no key but those of the running test.

    Its tests connect as an ACL user that cannot reach another database. memkit writes no key to it. ``url`` has that
    user; ``clock`` shifts the deadlines of one test's keys.
    """

    def __init__(self, url: str) -> None:
        self._admin_url = url
        self._user, self._password = f"{DATABASE_USER}-{secrets.token_hex(6)}", secrets.token_urlsafe(18)
        self.url = url_for_user(url, self._user, self._password)
        self._admin = named_client(url, self._user)
        self._has_user = False

    def open(self) -> Self:
        """Make the tests' user, if the guard allows writing, and neither another run nor others' keys are there."""
        self._refuse_foreign_keys()
        guard_write(self._admin)
        self._remove_users_of_killed_runs()
        try:
            make_user(self._admin, self._user, self._password, ["allkeys", "allchannels"], DATABASE_RULES)
        except RedisError as error:
            raise no_user_error("database for tests", self._admin_url, error) from error
        self._has_user = True
        return self

    def begin(self) -> None:
        """Check that the database is empty; raise SandboxError otherwise."""
        self.clock = ServerClock(self._admin, prefix="", dedicated=True)
        self._refuse_foreign_keys()

    def end(self) -> None:
        """Remove the keys that the test wrote."""
        registered = sandboxes(self._admin)
        for node in primaries(self._admin):
            unlink(self._admin, list(unregistered(scan(node), registered)))

    def client(self) -> AnyClient:
        """Return a plain client of the tests' user."""
        client = connect(self.url)
        explain_refusals(client, self._explained)
        return client

    def async_client(self) -> AnyAsyncClient:
        """Return a plain asyncio client of the tests' user that closes with its event loop."""
        client = connect_async(self.url)
        explain_refusals_async(client, self._explained)
        return client

    def _explained(self, error: ResponseError) -> ResponseError:
        return LeftSandboxError(f"{error}. {self.limits}") if is_refusal(error) else error

    @property
    def limits(self) -> str:
        """What the tests' user cannot do."""
        return (
            f"With --real-redis a test has one database, {place(self._admin)}. SELECT of another one is refused, as "
            "are SWAPDB, MOVE, COPY, FLUSHALL and commands that change the server. Leave out --real-redis: a private "
            "server allows all of them"
        )

    def close(self) -> None:
        """Remove the user and close the connection."""
        for node in all_nodes(self._admin) if self._has_user else ():
            node.acl_deluser(self._user)
        self._admin.close()

    def _refuse_foreign_keys(self) -> None:
        keys = foreign_keys(self._admin)
        if keys:
            raise SandboxError(
                f"the database at {place(self._admin)} is not empty: it has {keys}. redis_client, async_redis_client "
                "and redis_client_url need an empty database, because an application may use any key name. Name "
                "another one, such as --real-redis=redis://host:port/15, or leave out --real-redis for a private "
                "server. If the keys are left from a killed run, or from a thread of an earlier test, and can be lost, "
                f"this empties the database: {cli_command(self._admin_url, place(self._admin))} FLUSHDB"
            )

    def _remove_users_of_killed_runs(self) -> None:
        """Remove users without a connection: a run keeps one open. Refuse the database if another run uses it."""
        for node in all_nodes(self._admin):
            connected = {client["name"]: client["db"] for client in execute_undecoded(node, "CLIENT LIST")}
            for user in map(str_if_bytes, node.acl_users()):  # bytes if the URL has protocol=3
                if not user.startswith(f"{DATABASE_USER}-") or user == self._user:
                    continue
                if user not in connected:
                    node.acl_deluser(user)
                elif int(connected[user]) == database_of(self._admin):
                    raise SandboxError(
                        f"another test run uses the database at {place(self._admin)} ({user}); wait until it has "
                        "ended, or name another database"
                    )
