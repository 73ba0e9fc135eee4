"""What a recording costs a server and this machine, and how long a fate or an audit takes from each file.

    python tests/benchmarks/bench_history.py [--writes 20000] [--keys 100000] [--rounds 1]

``--keys 1000000 --rounds 3`` makes RDB files of a million keys and a log of 1 GB, in which each key is written 3 times.
``--writes 0`` and ``--keys 0`` leave out a part.

Server time is the server's own CPU time (INFO cpu) for the same writes, in rounds that take turns, relative to none.
Times of files are CPU time of this process, relative to a bare read of the file in the same run.

Redis 7.0.15, 60,000 pipelined SETs of 300 bytes, on a loaded machine: MONITOR 6.9 times none, record 1.7, record
--replication=primary 1.3. A million events need 25 to 34 s of CPU and 47 to 50 MB.

From 1,000,000 keys: the fate of a session from two RDB files of 42 MB takes 5.8 s of CPU (91 times a bare read), an
audit of one 8.5 s; a private server with the file is ready after 7.2 s. The fate from a log of 1.3 GB (3.6 million
commands) takes 53 s (20 times a bare read). A fate needs 51 MB of memory and an audit 65 MB, also at a tenth of the
size.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import redis

from memkit.history import history
from memkit.history.recording import Recording
from memkit.history.snapshots import serve_rdb
from memkit.server import RedisServer

ROUNDS = 3
WEEK_S = 604_800
MEASURED = """
import json, pathlib, re, sys, time
from memkit.audit import audit
from memkit.history import history
began = time.process_time()
if sys.argv[1]:
    cause = history(*sys.argv[2:], session=sys.argv[1]).fate.cause
else:
    cause = audit(sys.argv[2], expect={"chat:*": "7d"}).verdict.status
seconds = time.process_time() - began
kb = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])  # ru_maxrss has the parent's
print(json.dumps([cause, seconds, kb / 1024]))
"""


def server_s(client: redis.Redis) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def write(client: redis.Redis, count: int) -> None:
    for start in range(0, count, 100):
        pipe = client.pipeline(transaction=False)
        for number in range(start, start + 100):
            pipe.set(f"chat:{number % 1_000}", "x" * 300, ex=WEEK_S + number % 7)
        pipe.execute()


@contextmanager
def recorder(url: str, path: Path, *options: str) -> Iterator[None]:
    command = [sys.executable, "-m", "memkit", "record", url, "-o", str(path), "--expect", "chat:*=7d", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "recording" in process.stderr.readline()
        yield
        process.terminate()
        process.wait(60)


@contextmanager
def monitor(server: RedisServer) -> Iterator[None]:
    with subprocess.Popen(["redis-cli", "-s", server.socket_path, "MONITOR"], stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        yield
        process.kill()


def of_recording(writes: int, folder: Path) -> None:
    """Print the server's time a write with each way to watch it, and what the recorder needs an event."""
    with RedisServer(port=0) as primary, primary.client() as client:
        replica = RedisServer(config={"replicaof": f"127.0.0.1 {primary.port}"})
        with replica, replica.client() as reader:
            while reader.info("replication")["master_link_status"] != "up":
                time.sleep(0.1)
            ways: dict[str, Callable[[int], AbstractContextManager[None]]] = {
                "none": lambda _: nullcontext(),
                "MONITOR": lambda _: monitor(primary),
                "record": lambda at: recorder(primary.url, folder / f"tracking-{at}.db"),
                "record --replication": lambda at: recorder(
                    primary.url, folder / f"stream-{at}.db", "--replication=primary"
                ),
            }
            spent = dict.fromkeys(ways, float("inf"))
            used = dict.fromkeys(ways, 0.0)
            for at in range(ROUNDS):
                for name, way in ways.items():
                    own = resource.getrusage(resource.RUSAGE_CHILDREN)
                    with way(at):
                        began = server_s(client)
                        write(client, writes)
                        time.sleep(1)
                        spent[name] = min(spent[name], server_s(client) - began)
                    after = resource.getrusage(resource.RUSAGE_CHILDREN)
                    used[name] = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    for name, seconds in spent.items():
        print(f"{name}: server {seconds / spent['none']:.2f} times none")
    for name, kind in (("record", "tracking"), ("record --replication", "stream")):
        path = folder / f"{kind}-{ROUNDS - 1}.db"
        with Recording(path, reading=True) as recording:
            events = sum(1 for _ in recording.events())
        size = path.stat().st_size / events
        print(f"{name}: {events:,} events, {used[name] / events * 1e6:.0f} s and {size:.0f} MB a million events")


def of_files(keys: int, rounds: int, folder: Path) -> None:
    """Print the time to a fate and the memory for an RDB file and a log, of one size and of ten times the size."""
    for count in (keys // 10, keys):
        config = {"appendonly": "yes", "auto-aof-rewrite-percentage": "0"}
        with RedisServer(config=config) as server, server.client() as client:
            for start in range(0, count * rounds, 1_000):
                pipe = client.pipeline(transaction=False)
                for number in range(start, start + 1_000):
                    pipe.set(f"chat:{number % count}", f"{number % count}" * 50, ex=WEEK_S)
                pipe.execute()
            client.save()
            rdb = (server.directory / "dump.rdb").rename(folder / f"{count}.rdb")
            of_each = (
                ("fate, 2 RDB files", "chat:7", [rdb, rdb]),
                ("fate, AOF", "chat:7", [server.directory]),
                ("audit, RDB file", "", [rdb]),
            )
            for name, session, sources in of_each:
                files = [*server.directory.glob("appendonlydir/*")] if "AOF" in name else sources
                began = time.process_time()
                size = sum(len(file.read_bytes()) for file in files)
                bare = time.process_time() - began
                command = [sys.executable, "-c", MEASURED, session, *map(str, sources)]
                cause, seconds, mb = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                print(
                    f"{name}, {count:,} keys, {size / 1e6:.0f} MB: {cause} in {seconds:.2f} s of CPU, "
                    f"{seconds / bare:.0f} times a bare read, {mb:.0f} MB of memory"
                )
        began = time.monotonic()
        with serve_rdb([rdb]):
            print(f"a private server with the RDB file of {count:,} keys: ready after {time.monotonic() - began:.2f} s")
    assert history(rdb, rdb, session="chat:7").fate is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.writes:
            of_recording(given.writes, Path(folder))
        if given.keys:
            of_files(given.keys, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
