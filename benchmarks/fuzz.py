"""Sharded and FP8 checkpoints with wrong bytes: read or refused in one line, fast, in little memory, nothing left over.

    python benchmarks/fuzz.py [MUTATIONS] [SEED]

So many mutations each of a `.metadata`, of the headers of DCP's safetensors files, of a rank's pickle, and of the
config, header and data of an FP8 model, in a process that may take 1 GB more than it has. What can still be opened is
also souped, and written back in its own layout if it is sharded.
"""

from __future__ import annotations

import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import Like
from souping.core.types import UserError
from souping.merge import Format
from souping.merge.local import LocalMerge

DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "sharded"
FP8 = DATA.with_name("fp8") / "block-0"
MEMORY = 1 << 30
SECONDS = 20
Change = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 64)]
    at = rng.randrange(len(data))
    return data[:at] + piece * rng.choice([1, 2, 1000]) + data[at:]


def drop(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


def number(rng: random.Random, data: bytes) -> bytes:
    """A large number of a pickle, or of JSON, somewhere."""
    at = rng.randrange(len(data))
    large = [
        b"J\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
        b"r\xff\xff\xff\xff",
    ]
    large += [
        b"\x8e" + b"\xff" * 8,
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"99999999999",
        b"-1",
        b"1e999",
        b"[" * 5000,
    ]
    return data[:at] + rng.choice(large) + data[at + rng.randint(0, 2) :]


CHANGES: tuple[Change, ...] = (flip, cut, repeat, drop, number)


def targets(root: Path) -> Iterator[tuple[str, Path, Path, int]]:
    """(what, folder, file that is changed, bytes of it that may be)."""
    shutil.copytree(DATA / "tp" / "step-1", root / "dcp")
    yield "metadata", root / "dcp", root / "dcp" / ".metadata", 1 << 30
    yield "archive", root / "dcp", root / "dcp" / "__0_0.distcp", 2000
    shards = Path(shutil.copytree(DATA / "shards", root / "shards"))
    shard = shards / "shard-00001-model-00001-of-00001.safetensors"
    yield "shards", shards, shard, header_size(shard)
    ranks = Path(shutil.copytree(DATA / "ranks", root / "ranks"))
    yield "ranks", ranks, next(ranks.glob("*_rank_0.pt")), 1 << 30
    for name in ("config.json", "model.safetensors"):
        folder = Path(shutil.copytree(FP8, root / f"fp8 {name}"))
        file = folder / name
        # Of the weights, some values too: they may be scales.
        size = 1 << 30 if name == "config.json" else header_size(file) + 1000
        yield folder.name, folder, file, size


def header_size(file: Path) -> int:
    """Bytes before the values of a safetensors file."""
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def attempt(folder: Path, out: Path) -> str:
    """Open, soup and write back; what became of it."""
    outcome = "refused"
    try:
        Checkpoint.open(folder, allow_pickle=True, like=Like(DATA / "plain" / "1"))
        outcome = "read"
        layout: Format = "hf" if folder.name.startswith("fp8") else "same"
        pool = LocalMerge(allow_pickle=True, format=layout, nonfinite="warn").open(
            {"a": folder, "b": folder}
        )
        pool.write(pool.recipe({"a": 0.5, "b": 0.5}), out)
    except UserError as error:
        if len(str(error).splitlines()) > 2 or len(str(error)) > 1500:
            raise ValueError(f"a long message: {str(error)[:300]}") from error
        return outcome
    shutil.rmtree(out)
    return "souped"


def stop(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def main(count: int, seed: int) -> None:
    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        found = list(targets(root))
        attempt(found[0][1], root / "warm")
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        for what, place, file, size in found:
            original = file.read_bytes()
            outcomes = Counter[str]()
            slowest = 0.0
            before = {path for path in root.rglob("*") if place not in path.parents}
            for turn in range(count):
                rng = random.Random(f"{seed} {what} {turn}")
                file.write_bytes(rng.choice(CHANGES)(rng, original[:size]) + original[size:])
                signal.alarm(SECONDS)
                start = time.perf_counter()
                try:
                    outcomes[attempt(place, root / "soup")] += 1
                except BaseException:
                    print(f"{what}, seed {seed}, mutation {turn}", file=sys.stderr)
                    raise
                signal.alarm(0)
                slowest = max(slowest, time.perf_counter() - start)
            file.write_bytes(original)
            left = {path for path in root.rglob("*") if place not in path.parents} - before
            assert not left, left
            print(f"{what}: {dict(outcomes)}, slowest {slowest:.2f} s", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak {peak:.0f} MB")


if __name__ == "__main__":
    main(*(int(word) for word in [*sys.argv[1:], "5000", "0"][:1] + [*sys.argv[2:], "0"][:1]))
