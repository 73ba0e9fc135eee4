"""Hundreds of drawn incidents against the audit: ``python tests/stress/audit_truth.py [seeds] [name ...]``.

Prints each verdict that is not the truth, with the line that repeats it, and the score of each kind.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from incidents import CAUSES, HEALTHIES, complaints, draw
from servers import every_server

from memkit.audit import audit
from memkit.server import RedisServer


def run(name: str, seed: int, lane: str) -> list[str]:
    incident = draw(name, seed, many=True)
    binary = every_server()[lane]
    assert binary
    with RedisServer(binary=binary.path, config=incident.config, persist=incident.persist) as server:
        incident.play(server)
        report = audit(server.url, expect=incident.expect, full=incident.full, duty=1, touch=True)
        return [
            f"{one}  [{'travelled' if incident.travelled else 'restored'}, {dict(incident.expect)}]"
            for one in complaints(report, incident.truth)
        ]


def main(seeds: int, names: list[str]) -> int:
    lanes = [name for name, binary in every_server().items() if binary]
    score: Counter[str] = Counter()
    began = time.monotonic()
    for name in names or [*CAUSES, *HEALTHIES]:
        for seed in range(seeds):
            lane = lanes[seed % len(lanes)]
            wrong = run(name, seed, lane)
            score[f"{name} {'wrong' if wrong else 'right'}"] += 1
            for one in wrong:
                print(f"{name} seed {seed} on {lane}: {one}", flush=True)
        print(f"{name}: {score[f'{name} right']} of {seeds}", flush=True)
    wrong_all = sum(count for key, count in score.items() if key.endswith("wrong"))
    print(f"{score.total() - wrong_all} of {score.total()} right in {time.monotonic() - began:.0f} s")
    return int(wrong_all > 0)


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]) if given else 20, given[1:]))
