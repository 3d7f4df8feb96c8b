"""Truth tables of small networks, many worlds each: more ingredients than the demo has, and soups that do not rise.

    python benchmarks/tables/networks.py [FAMILY ..] [--out benchmarks/tables]

A world is one base network and K fine-tuned copies of it, trained here from the seed of the world. Its eight tasks are
drawn at random: the label of an input is what a teacher network says, and the task's number is part of the input. The
base learns all tasks badly; each copy is fine-tuned on two of them. A soup is the mean of the weights, run on every
item, so nothing about its scores is assumed. What differs between the families:

    nets2, nets6, nets8   2, 6 and 8 ingredients; a short fine-tuning, after which soups lie above the plane through
                          their parents, as those of the demo do
    flat4                 4 ingredients, fine-tuned longer and at a higher rate: soups lie on that plane or below it

A table holds `w` [S, K], `cat` [I], `group` [I] and `bits` [W, I, S / 8]: right or wrong, packed along the soups. Two
tasks ask about one input, and make a group. Training takes about five seconds a world and is reproducible for one
version of torch on one kind of processor; the committed tables are the reference.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from souping.search.points import grid_size, scattered, spread, uniform, vertices, weight_grid

TASKS = 8
INPUTS = 12
LABELS = 6
HIDDEN = 48
ITEMS = 1440
SOUPS = 240
"""Items of a world, and soups of it at most."""
TRAIN = 6000
BATCH = 64
"""Inputs of each task to train on, and of a step."""

NOISE = 0.6
"""Share of wrong labels in an ingredient's training data at most: ingredients differ in how good they are."""


@dataclass(frozen=True)
class NetworkFamily:
    """Ingredients; worlds; steps of the base; steps, rate and share of other tasks of the fine-tuning."""

    size: int
    worlds: int
    base: int
    steps: int
    rate: float
    others: float


FAMILIES = {
    "nets2": NetworkFamily(2, 12, 400, 600, 4e-3, 0.03),
    "nets6": NetworkFamily(6, 20, 400, 600, 4e-3, 0.03),
    "nets8": NetworkFamily(8, 20, 400, 600, 4e-3, 0.03),
    "flat4": NetworkFamily(4, 30, 20, 1000, 5e-3, 0.25),
}


def points(size: int) -> np.ndarray:
    """What the default search would search: vertices, the uniform soup, the grid, sparse soups of many ingredients."""
    inner = spread(weight_grid(size)) if grid_size(size) else []
    known = dict.fromkeys(
        [*vertices(size), uniform(size), *inner[: SOUPS // 2 if size > 5 else None]]
    )
    if size > 5:
        for point in islice(scattered(size, 0.1, np.full(size, 1 / size)), 20 * SOUPS):
            known[point] = None
            if len(known) >= SOUPS:
                break
    return np.array(list(known))


Weights = list[torch.Tensor]


def run(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Logits [N, items, LABELS] of N networks at once; each tensor of `weights` starts with N."""
    hidden = x
    for layer in range(0, len(weights), 2):
        hidden = hidden @ weights[layer] + weights[layer + 1]
        hidden = torch.relu(hidden) if layer < len(weights) - 2 else hidden
    return hidden


def fresh(count: int, inputs: int, random: torch.Generator) -> Weights:
    sizes = [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, LABELS)]
    made: Weights = []
    for rows, columns in sizes:
        made.append(torch.randn((count, rows, columns), generator=random) * (2 / rows) ** 0.5)
        made.append(0.3 * torch.randn((count, 1, columns), generator=random))
    return made


def train(
    start: Weights, x: torch.Tensor, y: torch.Tensor, rows: list[torch.Tensor], noise: torch.Tensor, steps: int,
    rate: float, others: float, random: torch.Generator,
) -> Weights:  # fmt: skip
    """Networks trained side by side by Adam, each on its own `rows` of the data and a share `others` of all rows.

    `noise` is the share of labels that are drawn at random."""
    given = [tensor.clone().requires_grad_(True) for tensor in start]
    optimiser = torch.optim.Adam(given, lr=rate)
    for _ in range(steps):
        own = torch.stack(
            [one[torch.randint(len(one), (BATCH,), generator=random)] for one in rows]
        )
        anywhere = torch.randint(len(x), own.shape, generator=random)
        batch = torch.where(torch.rand(own.shape, generator=random) < others, anywhere, own)
        logits = run(given, x[batch]).flatten(0, 1)
        wrong = torch.rand(own.shape, generator=random) < noise[:, None]
        labels = torch.where(wrong, torch.randint(LABELS, own.shape, generator=random), y[batch])
        loss = torch.nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum") / BATCH
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return [tensor.detach() for tensor in given]


def asked(x: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
    """Inputs with the number of their task."""
    return torch.cat([x, torch.nn.functional.one_hot(task, TASKS).float()], -1)


def world(family: NetworkFamily, seed: int, w: np.ndarray) -> np.ndarray:
    """Right or wrong [S, I] of one world's soups."""
    random = torch.Generator().manual_seed(seed)
    teachers = fresh(TASKS, INPUTS, random)

    def labelled(count: int, tasks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn((count, INPUTS), generator=random)
        labels = run(teachers, x.expand(TASKS, -1, -1)).argmax(-1)  # [TASKS, count]
        return asked(x, tasks), labels[tasks, torch.arange(count)]

    tasks = torch.arange(TASKS * TRAIN) % TASKS
    x, y = labelled(len(tasks), tasks)
    everywhere = torch.arange(len(x))
    base = train(
        fresh(1, INPUTS + TASKS, random),
        x,
        y,
        [everywhere],
        torch.zeros(1),
        family.base,
        2e-3,
        0,
        random,
    )
    copies = [tensor.repeat(family.size, 1, 1) for tensor in base]
    noise = NOISE * torch.rand(family.size, generator=random)
    own = own_rows(tasks, family.size, random)
    experts = train(copies, x, y, own, noise, family.steps, family.rate, family.others, random)
    items = torch.randn((ITEMS // 2, INPUTS), generator=random).repeat(2, 1)
    labels = run(teachers, items.expand(TASKS, -1, -1)).argmax(-1)
    cat = torch.from_numpy(categories()).long()
    mixed = [torch.einsum("sk,kab->sab", torch.from_numpy(w).float(), tensor) for tensor in experts]
    said = run(mixed, asked(items, cat)).argmax(-1)
    return (said == labels[cat, torch.arange(ITEMS)]).numpy()


def own_rows(tasks: torch.Tensor, size: int, random: torch.Generator) -> list[torch.Tensor]:
    """Training data of each ingredient: two tasks of its own."""
    chosen = [torch.randperm(TASKS, generator=random)[:2] for _ in range(size)]
    return [torch.isin(tasks, pair).nonzero()[:, 0] for pair in chosen]


def categories() -> np.ndarray:
    """Task of each item [I]: the second half asks another task about the inputs of the first."""
    first = np.arange(ITEMS // 2) % TASKS
    return np.concatenate(
        [first, (first + 1 + np.arange(ITEMS // 2) // TASKS % (TASKS - 1)) % TASKS]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.families:
        family = FAMILIES[name]
        w = points(family.size)
        ok = np.stack(
            [world(family, 1000 * family.size + seed, w) for seed in range(family.worlds)]
        )
        group = np.arange(ITEMS, dtype=np.int32) % (ITEMS // 2)
        bits = np.packbits(ok.transpose(0, 2, 1), axis=2)
        path = given.out / f"{name}.npz"
        np.savez_compressed(path, w=w, cat=categories().astype(np.int32), group=group, bits=bits)
        print(
            f"{name}: {len(ok)} worlds, {ok.shape[1]} soups x {ITEMS} items, {path.stat().st_size / 1000:.0f} kB"
        )


if __name__ == "__main__":
    main()
