"""The cost of removing a sandbox of 200 keys, with 200,000 foreign keys and without.

    python tests/benchmarks/bench_sandbox.py

Prints the medians of 21 removals each, taken in turn on two servers, and their ratio (to be at most 3).
"""

import statistics
import time

from memkit import RedisServer, Sandbox

RUNS, OWN, FOREIGN = 21, 200, 200_000


def removal_ms(server):
    sandbox = Sandbox(server).open()
    with sandbox.client() as client:
        client.mset({f"{sandbox.prefix}{n}": n for n in range(OWN)})
        began = time.perf_counter()
        sandbox.close()
        return (time.perf_counter() - began) * 1000


def main():
    with RedisServer() as empty, RedisServer() as full, full.client() as client:
        client.eval(f"for i = 1, {FOREIGN} do redis.call('SET', 'foreign:' .. i, i) end", 0)
        pairs = [(removal_ms(empty), removal_ms(full)) for _ in range(RUNS)]
        assert client.dbsize() == FOREIGN
        alone, with_others = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{full.flavour} {full.version}; medians of {RUNS} removals of {OWN} keys")
        print(f"without {alone:.2f} ms, with {FOREIGN:,} {with_others:.2f} ms, ratio {with_others / alone:.2f}")


if __name__ == "__main__":
    main()
