"""Requests per second of `executor=ray`: one actor against two, in turns, with requests that compute.

    python -m benchmarks.ray_actors [--requests 12] [--seconds 2] [--rounds 3]

A request computes `--seconds` of one thread's time. Starting Ray and the actors is not counted: the clock runs from the
first request to the last. Rounds take turns; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from souping.answers.ray_actors import RayExecutor
from souping.core.protocols import Workers
from souping.core.types import Record, Request, Response
from tests.support.actors import requests


@dataclass
class Computing(Workers):
    """Computes for `seconds` of one thread's time on each request."""

    seconds: float

    @property
    def fingerprints(self) -> Mapping[str, str]:
        return {"": "same"}

    def put(self, request: Request) -> Response:
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        records = tuple(Record(item=item.id, score=1.0) for item in request.items)
        return Response(records=records, seconds=self.seconds)


def rate(actors: int, count: int, seconds: float) -> float:
    """Requests per second, with as many open as there are actors: what comes back is followed by the next."""
    worker = Computing(seconds)
    workers = RayExecutor(actors=actors, cpus=1).start(worker, partial(Computing, seconds))
    try:
        for request in requests(actors):  # actors are there, and have answered once
            workers.put(request)
        for _ in range(actors):
            workers.take()
        waiting = requests(count)
        done = 0
        started = time.monotonic()
        for _ in range(min(workers.slots, count)):
            workers.put(waiting.pop())
        while done < count:
            workers.take()
            done += 1
            if waiting:
                workers.put(waiting.pop())
        return count / (time.monotonic() - started)
    finally:
        workers.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(given.rounds):
        for actors, own in rates.items():
            own.append(rate(actors, given.requests, given.seconds))
            print(f"{actors} actors: {own[-1]:.3f} requests per second", flush=True)
    one = statistics.median(rates[1])
    two = statistics.median(rates[2])
    print(
        f"median of {given.rounds}: {one:.3f} and {two:.3f} requests per second, ratio {two / one:.2f}"
    )


if __name__ == "__main__":
    main()
