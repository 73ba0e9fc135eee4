"""How long until a private server answers, against the bare binary's own start to its first PONG.

    python tests/benchmarks/bench_server.py

Prints, for every server found, the medians of 15 starts each, taken in turn, and their ratio (to be at most 1.5).
"""

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from servers import every_server

from memkit import RedisServer

RUNS = 15


def bare_start_ms(binary):
    """Start the binary on a unix socket and poll it as fast as this machine can."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/s"
        options = ["--port", "0", "--unixsocket", path, "--save", "", "--dir", folder, "--logfile", f"{folder}/log"]
        began = time.perf_counter()
        process = subprocess.Popen([binary, *options])
        while not answers(path):
            pass
        took = time.perf_counter() - began
        process.kill()
        process.wait()
    return took * 1000


def answers(path):
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(64) == b"+PONG\r\n"
        except OSError:
            return False


def memkit_start_ms(binary):
    server = RedisServer(binary=binary)
    began = time.perf_counter()
    server.start()
    took = time.perf_counter() - began
    server.stop()
    return took * 1000


def main():
    print(f"{os.cpu_count()} processors; medians of {RUNS} starts, ms")
    for name, binary in every_server().items():
        if not binary:
            print(f"{name}: not here")
            continue
        pairs = [(bare_start_ms(binary.path), memkit_start_ms(binary.path)) for _ in range(RUNS)]
        bare, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{name:10} bare {bare:6.1f}  memkit {ours:6.1f}  ratio {ours / bare:.2f}")


if __name__ == "__main__":
    main()
