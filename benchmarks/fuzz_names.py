"""Wrong names, shapes, configs and rules: each is mapped or refused in one line, fast and in little memory.

    python -m benchmarks.fuzz_names [MUTATIONS] [SEED]

So many mutations each of the tensors of a checkpoint (with its config and the model that it should be like) and of the
files of rules, in a process that may take 1 GB more than it has.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from souping.checkpoints.names import described, map_names
from souping.checkpoints.trainers import RULES
from souping.core.types import Json, JsonObject, UserError
from tests.support.layouts import LAYOUTS, MEGATRON, PLAIN, SIZES, Shape

MEMORY = 1 << 30
SECONDS = 20
CASES: list[tuple[JsonObject, dict[str, Shape]]] = [
    *(({**SIZES, **config}, shapes) for config, shapes, _ in LAYOUTS.values()),
    (SIZES, PLAIN),
    (SIZES, MEGATRON),
]
NUMBERS = (0, 1, 2, 3, 7, -1, 10**6, 10**9, 2**62)
VALUES: tuple[Json, ...] = (
    None,
    0,
    -1,
    10**9,
    2**62,
    1.5,
    True,
    "x",
    [],
    {},
    ["*"],
    "megatron",
    {"a": 3},
)
ROWS: tuple[Any, ...] = (
    None, 3, "x", [], {}, ["a"], list("abcde"), [["a", 1], "b", ""], [[], "b", ""], ["{a", "b", "("], ["a", "{x}", ""],
)  # fmt: skip


def name(rng: random.Random, text: str) -> str:
    """Another name: with a character more or less, endless, of another layer, or of another kind."""
    at = rng.randrange(len(text) + 1)
    odd = chr(rng.choice([0, 10, 46, 48, 91, 123, 125, 0x202E, 0xD800]))
    return rng.choice([
        text[:at] + odd + text[at:], text[:at] + text[at + 1 :], "." * rng.randrange(50) + text, text + "/x",
        "a." * rng.randrange(3000) + text, text.replace("0", rng.choice(["1", "999999", "9" * 12, "00"])),
        text.replace("weight", "bias"), f"{text}._extra_state",
    ])  # fmt: skip


def shape(rng: random.Random, sizes: tuple[int, ...]) -> tuple[int, ...]:
    changed = [rng.choice(NUMBERS) if rng.random() < 0.3 else size for size in sizes]
    return tuple(rng.choice([changed, changed[1:], [*changed, rng.choice(NUMBERS)], changed[::-1]]))


def tensors(rng: random.Random, _: Path) -> None:
    """Map tensors of which one to three have another name or shape, or are there twice; config and model may differ."""
    config, known = rng.choice(CASES)
    shapes = dict(known)
    for key in rng.sample(list(shapes), min(len(shapes), rng.randint(1, 3))):
        value = shapes[key] if rng.random() < 0.5 else shapes.pop(key)
        changed = name(rng, key) if rng.random() < 0.6 else key
        shapes[changed] = shape(rng, value) if rng.random() < 0.6 else value
    if rng.random() < 0.4:
        config = {**config, rng.choice(list(config)): rng.choice(VALUES)}
    like = {key: shape(rng, value) if rng.random() < 0.1 else value for key, value in PLAIN.items()}
    dtypes = ["F32", "F32", "F32", "BF16"]
    native = {key: (rng.choice(dtypes), value) for key, value in shapes.items()}
    mapped = map_names(native, config, like if rng.random() < 0.3 else None)
    described(mapped, native)


def rules(rng: random.Random, folder: Path) -> None:
    """Map tensors by a file of rules with a wrong character, or with a wrong entry in a row or in the table."""
    text = rng.choice([path for path in RULES.glob("*.json") if path.stem != "common"]).read_text()
    if rng.random() < 0.5:
        at = rng.randrange(len(text))
        odd = rng.choice(["", '"', "{", "[", "]", "\\", "\0", "9" * 400])
        text = text[:at] + odd + text[at + rng.randrange(3) :]
    else:
        table = json.loads(text)
        row = rng.choice(table["rules"])
        place = rng.randrange(len(row))
        row[place] = name(rng, row[place]) if isinstance(row[place], str) else rng.choice(VALUES)
        table["rules"][rng.randrange(len(table["rules"]))] = rng.choice([row, *ROWS])
        if rng.random() < 0.2:
            table[rng.choice([*table, "prefix", "extends", "drop"])] = rng.choice(VALUES)
        text = json.dumps(table)
    path = folder / f"{rng.random()}.json"
    path.write_text(text, "utf-8", "surrogatepass")
    config, shapes = rng.choice(CASES)
    try:
        map_names({key: ("F32", value) for key, value in shapes.items()}, config, rules=path)
    finally:
        path.unlink()


def attempt(change: Callable[[random.Random, Path], None], rng: random.Random, folder: Path) -> str:
    """What became of a mutation; any end but a mapping or a refusal in one short line is a fault."""
    try:
        change(rng, folder)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            raise AssertionError(str(error)[:300]) from None
        return "refused"
    return "mapped"


def main(count: int, seed: int) -> None:
    limit = psutil.Process().memory_info().vms + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with tempfile.TemporaryDirectory() as place:
        for change in (tensors, rules):
            rng = random.Random(seed)
            results = Counter[str]()
            slowest = 0.0
            for _ in range(count):
                began = time.perf_counter()
                results[attempt(change, rng, Path(place))] += 1
                slowest = max(slowest, time.perf_counter() - began)
            if slowest > SECONDS or list(Path(place).iterdir()):
                raise AssertionError(
                    f"slowest: {slowest:.1f} s; left: {list(Path(place).iterdir())}"
                )
            print(f"{change.__name__}: {dict(results)}, slowest {slowest:.2f} s")


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["5000", "0"][len(sys.argv) - 1 :])))
