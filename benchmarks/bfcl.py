"""Seconds that bfcl-eval's checker takes, as souping runs it, on one answer to every single-turn item.

    python benchmarks/bfcl.py [--rounds 5] [--out benchmarks/results/bfcl-DATE.md]

Every item of the 13 single-turn files gets an answer (the right function with its arguments as Python literals, so
that the checker has to go the whole way). A round is what a batch costs beside its generation: result files written,
the process of bfcl-eval's own environment started, all answers judged, score files read. The environment is found as
always (docs/evaluators.md, SOUPING_BFCL).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.core.types import Item
from souping.evaluate.bfcl import (
    BFCL_EVAL_VERSION,
    Environment,
    find_environment,
    place_of,
    records,
    run_bfcl_eval,
)
from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark
from souping.logs.bfcl_items import LIVE_ITEMS, SINGLE_TURN
from tests.support.bfcl import answer_key


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    environment = find_environment(place_of())
    items = BfclBenchmark(data=environment.data, categories=SINGLE_TURN).items()
    before = os.getloadavg()[0]
    seconds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as root:
            begin = time.perf_counter()
            right = judge(environment, Path(root), items)
            seconds.append(time.perf_counter() - begin)
    text = page(environment, len(items), right, seconds, before)
    print(text)
    if options.out:
        options.out.write_text(text)


def judge(environment: Environment, root: Path, items: Sequence[Item]) -> int:
    """How many answers bfcl-eval takes for right."""
    ids: dict[str, list[str]] = {}
    lines: dict[str, list[str]] = {}
    for item in items:
        ids.setdefault(item.category, []).append(item.id)
        result = answer(answer_key(item)["calls"])
        lines.setdefault(item.category, []).append(json.dumps({"id": item.id, "result": result}))
    for category, rows in lines.items():
        folder = root / "result" / "plain" / ("live" if category in LIVE_ITEMS else "non_live")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"BFCL_v4_{category}_result.json").write_text("\n".join(rows) + "\n")
    run_bfcl_eval(environment, root, "plain", ids)
    found = records(root / "result" / "plain", root / "score" / "plain", items)
    return sum(record.score == 1.0 for record in found)


def answer(calls: Any) -> str:
    if not isinstance(calls, list) or not calls:
        return "none of these functions can do that" if calls == [] else "[f(x=1)]"
    return f"[{', '.join(one(call) for call in calls)}]"


def one(call: Mapping[str, Mapping[str, Sequence[Any]]]) -> str:
    ((name, arguments),) = call.items()
    given = {key: allowed[0] for key, allowed in arguments.items() if allowed and allowed[0] != ""}
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def page(
    environment: Environment, items: int, right: int, seconds: Sequence[float], load: float
) -> str:
    rounds = ", ".join(f"{value:.2f}" for value in seconds)
    return "\n".join(
        [
            f"# BFCL checker benchmark, {datetime.date.today()}",
            "",
            f"{os.cpu_count()} cores, {platform.machine()}, load {load:.1f} before; bfcl-eval {BFCL_EVAL_VERSION}, "
            f"{environment.level} environment.",
            "",
            f"13 single-turn categories, {items} items, {right} of the answers right: "
            f"median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s (rounds: {rounds}). Limit: 10 s.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
