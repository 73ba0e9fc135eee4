"""MemoryStore on a real Redis Cluster under load: slots move, and a primary is killed and replaced by its replica.

``python tests/stress/cluster_load.py [--seconds 60] [--wait]``: three primaries and three replicas, writers that append
numbered messages. The link of the replica is cut shortly before its primary is killed, so that there is something to
lose. At the end every acknowledged message must be stored once and in order, except for those that asynchronous
replication loses: the newest of sessions on the killed primary. With ``--wait`` each append is followed by WAIT on its
connection; a message that a replica has confirmed must be stored.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from servers import every_server
from topology import PRIMARIES, Cluster, cluster, move_slot, settle
from waiting import wait_for

from memkit.store import MemoryStore

SESSIONS_EACH = 8
WAIT_MS = 100
CUT_S = 0.3
SLOTS = 16_384


@dataclass
class Journal:
    """What one writer knows of one session, by the number of the message.

    ``acknowledged`` has when each was sent; ``confirmed`` those that a replica has; ``unknown`` those that raised.
    """

    acknowledged: dict[int, float] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


@dataclass
class Outcome:
    """How many messages were acknowledged, confirmed by a replica, and lost; how many slots were moved."""

    acknowledged: int = 0
    confirmed: int = 0
    lost: int = 0
    slots: int = 0
    faults: list[str] = field(default_factory=list)


def connected(nodes: Cluster) -> redis.RedisCluster:
    retry = Retry(ExponentialBackoff(cap=0.05, base=0.001), 40)
    return nodes.client(retry=retry, socket_timeout=5, socket_connect_timeout=5)


def confirmed_by_a_replica(client: redis.RedisCluster, key: str) -> bool:
    """WAIT on the connection of the last append: with one thread, a node's pool returns the same one again."""
    node = client.get_node_from_key(key)
    return bool(client.execute_command("WAIT", 1, WAIT_MS, target_nodes=node))


def write(nodes: Cluster, journals: dict[str, Journal], stop: threading.Event, *, wait: bool) -> None:
    """Append numbered messages to the sessions of one writer, in turns, until stopped."""
    with connected(nodes) as client:
        store = MemoryStore(client, prefix="load:", ttl="7d")
        number = 0
        while not stop.is_set():
            number += 1
            for session_id, journal in journals.items():
                sent_at = time.monotonic()
                try:
                    store.append(session_id, {"n": number})
                except redis.RedisError:
                    journal.unknown.add(number)
                    continue
                journal.acknowledged[number] = sent_at
                try:
                    if wait and confirmed_by_a_replica(client, store.key(session_id)):
                        journal.confirmed.add(number)
                except redis.RedisError:
                    pass


def kill_a_primary(nodes: Cluster, slots: Collection[int]) -> tuple[set[int], float]:
    """Kill the primary of most sessions, wait for its replica, start it again; return its slots and the time.

    For CUT_S before, its replica is stopped and has no link: what is acknowledged then is on one server only. The
    replica takes over by command: an election after a short silence also replaces a primary that is slow for a moment.
    """
    with nodes.client() as client:
        owners = {slot: node.port for slot, (node, *_) in client.nodes_manager.slots_cache.items()}
    port, _ = Counter(owners[slot] for slot in slots).most_common(1)[0]
    at = next(at for at, server in enumerate(nodes.primaries) if server.port == port)
    victim, replica = nodes.servers[at], nodes.servers[at + PRIMARIES]
    owned = {slot for slot, owner in owners.items() if owner == port}
    time.sleep(CUT_S)  # the slot that was moved last reaches its new primary's replica
    with victim.client() as node:
        os.kill(replica.pid, signal.SIGSTOP)
        node.client_kill_filter(_type="replica")
    time.sleep(CUT_S)
    victim.kill()
    killed_at = time.monotonic()
    os.kill(replica.pid, signal.SIGCONT)
    with replica.client() as node:
        node.execute_command("CLUSTER FAILOVER", "TAKEOVER")
    probe = next(f"probe:{number}" for number in range(SLOTS) if redis.crc.key_slot(b"probe:%d" % number) in owned)
    wait_for("a primary for its slots", lambda: is_served(nodes, probe), bool)
    victim.start()
    return owned, killed_at


def is_served(nodes: Cluster, key: str) -> bool:
    try:
        with nodes.client() as client:
            return client.get(key) is None
    except redis.RedisError:
        return False


def moved(nodes: Cluster, slot: int) -> bool:
    """Move a slot; return False if the nodes disagree about its owner, as for a moment after a failover."""
    try:
        move_slot(nodes, slot)
    except redis.RedisError:
        return False
    return True


def run(nodes: Cluster, *, seconds: float, writers: int = 3, wait: bool = False, seed: int = 0) -> Outcome:
    """Write while slots move and, after half of the time, a primary is replaced; compare what is stored."""
    dice, stop, outcome = random.Random(seed), threading.Event(), Outcome()
    everything = [{f"{writer}-{n}": Journal() for n in range(SESSIONS_EACH)} for writer in range(writers)]
    threads = [threading.Thread(target=write, args=(nodes, own, stop), kwargs={"wait": wait}) for own in everything]
    for thread in threads:
        thread.start()
    slots = {name: redis.crc.key_slot(f"load:{name}".encode()) for own in everything for name in own}
    began = time.monotonic()
    owned: set[int] = set()
    killed_at = began
    try:
        while time.monotonic() - began < seconds / 2:
            outcome.slots += moved(nodes, dice.choice(list(slots.values())))
        owned, killed_at = kill_a_primary(nodes, slots.values())
        while time.monotonic() - began < seconds:
            outcome.slots += moved(nodes, dice.choice(list(slots.values())))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    settle(nodes)
    with connected(nodes) as client:
        store = MemoryStore(client, prefix="load:", ttl="7d")
        for own in everything:
            for name, journal in own.items():
                stored = [message["n"] for message in store.load(name) or []]
                outcome.faults += faults(name, journal, stored, killed_at if slots[name] in owned else None)
                outcome.acknowledged += len(journal.acknowledged)
                outcome.confirmed += len(journal.confirmed)
                outcome.lost += len(set(journal.acknowledged) - set(stored))
    return outcome


def faults(name: str, journal: Journal, stored: list[int], killed_at: float | None) -> list[str]:
    """Return what asynchronous replication does not explain; ``killed_at`` is None on the other primaries."""
    found = []
    if stored != sorted(set(stored)):
        found.append(f"{name}: stored twice or out of order")
    invented = set(stored) - set(journal.acknowledged) - journal.unknown
    if invented:
        found.append(f"{name}: {len(invented)} messages that were never sent")
    lost = sorted(set(journal.acknowledged) - set(stored))
    if lost and killed_at is None:
        found.append(f"{name}: {len(lost)} messages lost on a primary that was not killed")
    if any(journal.acknowledged[number] > (killed_at or 0) for number in lost):
        found.append(f"{name}: a message lost that was sent after the primary was killed")
    if lost and any(lost[0] < number < lost[-1] for number in stored):
        found.append(f"{name}: an older message lost, and a newer one stored")
    if journal.confirmed & set(lost):
        found.append(f"{name}: {len(journal.confirmed & set(lost))} messages lost that a replica had confirmed")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--wait", action="store_true", help="WAIT after each append")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    binary = every_server()["redis-8.2"] or every_server()["redis-7.0"]
    assert binary
    with cluster(binary.path) as nodes:
        outcome = run(nodes, seconds=options.seconds, wait=options.wait, seed=options.seed)
    print(
        f"{binary.flavour} {binary.version}: {outcome.acknowledged:,} messages acknowledged, {outcome.confirmed:,} "
        f"confirmed by a replica, {outcome.slots} slots moved, 1 failover, {outcome.lost} acknowledged messages lost"
    )
    for fault in outcome.faults:
        print(f"  {fault}")
    return bool(outcome.faults)


if __name__ == "__main__":
    sys.exit(main())
