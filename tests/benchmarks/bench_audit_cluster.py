"""How long a full audit of a cluster takes: shards in parallel, and over a network with a round trip of 3 ms.

``python tests/benchmarks/bench_audit_cluster.py [keys]``: six primaries against the slowest one alone, at the default
pace and without rests; then four primaries behind a TCP proxy that holds everything back for half a round trip.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis
import redis.crc

sys.path.insert(0, str(Path(__file__).parents[1]))

import topology
from servers import every_server
from waiting import wait_for

from memkit.audit import audit
from memkit.audit.sampling import Sampler, ServerKeys
from memkit.readonly import ReadOnlyConnection
from memkit.readonly.pace import Pace
from memkit.server import RedisServer

ROUND_TRIP_S = 0.003
TAGS = 64
FILL = """
for i = ARGV[1], ARGV[2] do
  local key = KEYS[1] .. i
  redis.call('RPUSH', key, '{"type":"human","data":{"content":"hello"}}')
  redis.call('PEXPIRE', key, 604800000 - (i * 7919 % 500000000))
end"""
PROXY = """
import socket, sys, threading, time
from queue import SimpleQueue
delay, pairs = float(sys.argv[1]), [tuple(map(int, pair.split(":"))) for pair in sys.argv[2:]]

def forward(source, target):
    held = SimpleQueue()
    def send():
        while True:
            due, data = held.get()
            time.sleep(max(due - time.monotonic(), 0))
            if not data:
                target.close()
                return
            target.sendall(data)
    threading.Thread(target=send, daemon=True).start()
    while True:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        held.put((time.monotonic() + delay, data))
        if not data:
            return

def serve(listener, port):
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for ends in ((client, server), (server, client)):
            threading.Thread(target=forward, args=ends, daemon=True).start()

for own, port in pairs:
    listener = socket.create_server(("127.0.0.1", own))
    threading.Thread(target=serve, args=(listener, port), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def primaries(number: int, keys: int) -> Iterator[topology.Cluster]:
    """Start a cluster of so many primaries, and fill it."""
    binary = every_server()["redis-8.2"] or every_server()["redis-7.0"]
    assert binary
    topology.PRIMARIES = number
    with topology.cluster(binary.path, replicas=False) as made:
        for server in made.servers:
            fill(server, keys // number)
        yield made


def fill(server: RedisServer, keys: int) -> None:
    with server.client() as client:
        own = next(row for row in client.execute_command("CLUSTER SLOTS") if int(row[2][1]) == server.port)
        names = (f"chat:{{user-{n}}}:" for n in range(100_000))
        tags = (name for name in names if int(own[0]) <= redis.crc.key_slot(name.encode()) <= int(own[1]))
        for _, tag in zip(range(TAGS), tags, strict=False):
            client.eval(FILL, 1, tag, 1, keys // TAGS)


@contextmanager
def behind_a_network(made: topology.Cluster) -> Iterator[str]:
    """Announce every server at a proxy's address; yield the URL of one."""
    ports = [port for port, _ in topology.cluster_ports(len(made.servers))]
    pairs = [f"{own}:{server.port}" for own, server in zip(ports, made.servers, strict=True)]
    command = [sys.executable, "-c", PROXY, str(ROUND_TRIP_S / 2), *pairs]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        assert proxy.stdout.readline() == "ready\n"
        for own, server in zip(ports, made.servers, strict=True):
            with server.client() as client:
                client.config_set("cluster-announce-port", own)
        wait_for("announced ports", lambda: all(announced(server) == set(ports) for server in made.servers))
        yield f"redis://127.0.0.1:{ports[0]}/0"
        proxy.terminate()


def announced(server: RedisServer) -> set[int]:
    with server.client() as client:
        return {int(row[2][1]) for row in client.execute_command("CLUSTER SLOTS")}


def alone(server: RedisServer, duty: float) -> float:
    """Return how long every key of one server takes to read, by itself."""
    with server.client() as client:
        connection = ReadOnlyConnection(client)
        began = time.perf_counter()
        Sampler([ServerKeys(connection, pace=Pace(duty, batch=60 if duty < 1 else 350), sizes=True)]).full()
        took = time.perf_counter() - began
        connection.close()
    return took


def together(servers: Sequence[RedisServer], duty: float) -> float:
    clients = [server.client() for server in servers]
    connections = [ReadOnlyConnection(client, name=str(n)) for n, client in enumerate(clients)]
    began = time.perf_counter()
    batch = 60 if duty < 1 else 350
    Sampler([ServerKeys(each, pace=Pace(duty, batch=batch), sizes=True) for each in connections]).full()
    took = time.perf_counter() - began
    for each in connections:
        each.close()
    return took


def main(keys: int) -> None:
    with primaries(6, keys) as made:
        print(f"six primaries, {keys:,} keys")
        for duty in (0.25, 1):
            runs = [(max(alone(one, duty) for one in made.servers), together(made.servers, duty)) for _ in range(2)]
            slowest, all_six = (min(column) for column in zip(*runs, strict=True))
            print(
                f"duty {duty}: slowest alone {slowest:.2f} s, all {all_six:.2f} s, {all_six / slowest:.2f} x",
                flush=True,
            )
    with primaries(4, keys) as made, behind_a_network(made) as url:
        for full in (True, False):
            began = time.perf_counter()
            report = audit(url, expect={"chat:*": "7d"}, full=full)
            took = time.perf_counter() - began
            print(f"four primaries, round trip {ROUND_TRIP_S * 1000:.0f} ms, {report.sample}: {took:.1f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 1_000_000)
