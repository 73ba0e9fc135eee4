"""Hundreds of drawn worlds against the audit: ``python tests/stress/audit_worlds.py [seeds] [name ...]``.

The seeds start at a random number. Prints each false alarm on a healthy world and each fault that is called healthy,
with the line that repeats it.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from worlds import FAULTS, HEALTHY, draw_world, false_alarms


def main(seeds: int, names: list[str]) -> int:
    began, wrong, statuses, total = time.monotonic(), 0, {"healthy": 0}, 0
    for seed in range(first := random.SystemRandom().randrange(1_000_000), first + seeds):
        for name in names or HEALTHY:
            if name in HEALTHY:
                report = draw_world(name, seed).audited()
                statuses[report.verdict.status] = statuses.get(report.verdict.status, 0) + 1
                total += 1
                for alarm in false_alarms(report):
                    wrong += 1
                    print(f"false alarm: draw_world({name!r}, {seed}): {alarm}", flush=True)
        for name in names or FAULTS:
            for count in (1, 30, 3_000) if name in FAULTS else ():
                report = draw_world(name, seed, count).audited()
                total += 1
                if report.verdict.status == "healthy":
                    wrong += 1
                    print(f"not seen: draw_world({name!r}, {seed}, {count}): {report.verdict.sentence}", flush=True)
    print(f"{total:,} worlds, {wrong:,} wrong, healthy ones: {statuses}, in {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]) if given else 3, given[1:]))
