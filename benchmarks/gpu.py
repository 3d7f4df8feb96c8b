"""Merging, loading, a search, and answers that change with the batch size, on a GPU in bfloat16.

    python -m benchmarks.gpu [--hidden 2048] [--rounds 5] [--items 400] [--models FOLDER ..] [--tests FILE]

Without a GPU that torch can use it says so and ends with status 2. One rank of `merge=accelerate` mixes on the GPU,
compared with `merge=local`. A soup is loaded into a module on the GPU, and the bundled example runs there, with its
search. Flips are greedy answers, and scores, at batch size 8 and 64 that differ from those at batch size 1, of the
bundled models and items or of `--models` and the items in `--tests`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks import load_soups, main_job, ranks
from souping import demo
from souping.core.fields import Precision
from souping.core.protocols import ModuleSettings
from souping.core.types import Item, Record
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.generate import LocalEvaluator
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.soups.serving import SoupServer

BATCHES = (1, 8, 64)
DTYPES: dict[str, Precision] = {"cuda": "bfloat16", "cpu": "float32"}


def main() -> int:
    given = arguments().parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: this machine has no GPU that torch can use", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {DTYPES[given.device]}\n")
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in load_soups.NAMES}
        for seed, folder in enumerate(folders.values()):
            load_soups.save(folder, given.hidden, given.vocabulary, seed)
        merges(folders, Path(place) / "soup", given.rounds)
        loads(folders, given.device)
        searches(Path(place) / "run", given.device, given.items)
    models = {folder.name: folder for folder in given.models}
    flips(models, Benchmark(path=str(given.tests)).items()[: given.items], given.device)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size of what is merged")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--items",
        type=int,
        default=400,
        help="items that flips are counted on, and of a category in the search",
    )
    models = [demo.path(name) for name in demo.CANDIDATES[:3]]
    parser.add_argument("--models", type=Path, nargs="+", default=models)
    parser.add_argument("--tests", type=Path, default=demo.path("items"))
    # for tests of this script
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help=argparse.SUPPRESS)
    return parser


def merges(folders: Mapping[str, Path], out: Path, rounds: int) -> None:
    pool = LocalMerge().open(folders)
    plan = pool.plan(pool.recipe(dict.fromkeys(folders, 1 / len(folders))))
    assert isinstance(plan, MergePlan)
    ranks.report(ranks.measure(plan, out, 1, rounds), plan, 1)


def loads(folders: Mapping[str, Path], device: str) -> None:
    pool = LocalMerge().open(folders)
    module = load_module(folders["0"], ModuleSettings(device=device, dtype=DTYPES[device]))
    seconds = load_soups.load_times(pool.live(module))
    milliseconds = 1e3 * statistics.median(seconds)
    print(f"\nload of {pool.soup_bytes / 1e9:.2f} GB: median {milliseconds:.1f} ms")


def searches(folder: Path, device: str, items: int) -> None:
    settings = (
        f"evaluator.device={device}",
        f"evaluator.dtype={DTYPES[device]}",
        f"benchmark.limit={items}",
        "analysis=[]",
    )
    cost = main_job.run("adaptive", folder, settings)
    print(
        f"search: {cost['stage']:.1f} s, {cost['answering']:.1f} s of it for {cost['items']:.0f} items"
    )


def flips(models: Mapping[str, Path], items: Sequence[Item], device: str) -> None:
    print(
        "\n| model | batch | answers that differ from batch 1 | scores that differ |\n|---|---|---|---|"
    )
    pool = LocalMerge().open(models)
    server = SoupServer(pool)
    for name in models:
        at_one = list[Record]()
        for batch in BATCHES:
            evaluator = LocalEvaluator(batch_size=batch, device=device, dtype=DTYPES[device])
            model = server.serve(evaluator, pool.recipe({name: 1.0}))
            records = evaluator.evaluate(model, items)
            at_one = at_one or records
            pairs = list(zip(at_one, records, strict=True))
            answers = sum(a.output != b.output for a, b in pairs)
            scores = sum(a.score != b.score for a, b in pairs)
            print(
                f"| {name} | {batch} | {share(answers, items)} | {share(scores, items)} |",
                flush=True,
            )
            evaluator.close()
    server.close()


def share(count: int, items: Sequence[Item]) -> str:
    return f"{100 * count / len(items):.1f} % ({count} of {len(items)})"


if __name__ == "__main__":
    sys.exit(main())
