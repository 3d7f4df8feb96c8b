"""How often guards admit a soup that loses too much, and one that loses nothing: searches with known truth.

    python -m benchmarks.guards [--runs 400] [--only TEXT ..] [--seed 0] [--date DATE]
        [--out benchmarks/results/guards-DATE.md]
    python -m benchmarks.guards --front [--runs 400] [--seed 0] [--group-size 10]
    python -m benchmarks.guards --soups

Only the models' answers are simulated; the search and the guards are the package's own. Every mixture is 10 points
better than the single models in the category that is the goal. In the guarded category it loses nothing, the margin,
or twice the margin. The uniform soup is one that nobody chose. `planned` is the share of soups without a loss that the
plan says will pass, from the candidates' answers on other items. A search prefers soups near the reference, which lose
less by chance, so that more of its soups pass. `--front` measures the bands of a front, `--soups` on recorded
tables how much less soups differ from the best candidate than two candidates do (`NEARER`).
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.pipelines import Answers, Layout, Pool, World, alone
from benchmarks.search_tables import TruthTable
from souping.analysis.front import Front, resolve_goals
from souping.analysis.guards import Admission, Guard, guarded_difference, plan_guards
from souping.core.scores import Mean
from souping.core.types import Item, Recipe
from souping.core.unit import POINTS
from souping.runs.goals import admitted, best_first
from souping.search.adaptive import Adaptive
from souping.search.loop import find_weights

TABLES = Path(__file__).parent / "tables"
GAIN = 10.0
MARGIN = 5.0
"""Points that a mixture gains in the goal, and the allowed loss."""


@dataclass(frozen=True, kw_only=True)
class GuardedWorld(World):
    """World whose mixtures are better in category 0 and lose so many points in category 1, which is guarded."""

    loss: float = 0.0

    def rates(self, recipe: Recipe) -> np.ndarray:
        own = super().rates(recipe)
        return own if len(recipe.ingredients) == 1 else own + np.array([GAIN, -self.loss]) / 100


def clustered(n: int) -> Layout:
    """Guarded items in groups of five."""
    return Layout(np.repeat([0, 1], n), np.concatenate([np.arange(n), n + np.arange(n) // 5]))


@dataclass(frozen=True, kw_only=True)
class FrontWorld(World):
    """World whose two categories pull opposite ways along the weights of the first two models, with a bend."""

    def rates(self, recipe: Recipe) -> np.ndarray:
        own = self.weights(recipe)
        bend = 1 - float((own**2).sum())
        return np.asarray(0.5 + 0.25 * own[:2] + 0.15 * bend)


def covered(seed: int, number: int, size: int = 1) -> tuple[float, float]:
    """Share of the true points, of all and of the front's, that lie in their bands after one search, if the items are
    in groups of this `size`."""
    layout = alone(2, 150)
    layout = Layout(layout.categories, layout.groups // size)
    rng = np.random.default_rng([seed, number])
    world = FrontWorld(candidates=(70.0,) * 3, layout=layout)
    if size > 1:
        world = replace(world, shared=0.4, grouped=0.4)
    items = tuple(
        Item(id=str(n), category=f"c{c}", group=str(g), prompt="", answer="")
        for n, (c, g) in enumerate(
            zip(layout.categories.tolist(), layout.groups.tolist(), strict=True)
        )
    )
    pool = Pool(world.names)
    trials = find_weights(
        Adaptive(),
        Mean(),
        seed=number,
        pool=pool,
        evaluation=Answers(world, items, rng),
        ingredients=world.names,
        items=items,
    ).trials
    goals = resolve_goals(["c0", "c1"], ["c0", "c1"], {}, POINTS)
    front = Front(goals, items, Adaptive().points(3), trials)
    truth = np.array(
        [
            world.rates(pool.recipe(dict(zip(world.names, point, strict=True))))
            for point in front.points
        ]
    )
    inside = (front.low <= truth) & (truth <= front.high)
    return float(inside.mean()), float(inside[front.on].mean())


LAYOUTS = {
    "200 items": alone(2, 200),
    "600 items": alone(2, 600),
    "600 items in fives": clustered(600),
}
LOSSES = {"nothing": 0.0, "the margin": MARGIN, "twice the margin": 2 * MARGIN}


def items_of(layout: Layout, half: str) -> list[Item]:
    """Items of a layout; the two halves of a run share no group."""
    items = []
    for n, (category, group) in enumerate(zip(layout.categories, layout.groups, strict=True)):
        items.append(
            Item(
                id=f"{half} {n}",
                category=f"c{category}",
                group=f"{half} {group}",
                prompt="",
                answer="",
            )
        )
    return items


def run(world: GuardedWorld, seed: int, number: int) -> tuple[bool, bool, float]:
    """Whether the uniform soup passes, whether the search ends with a mixture, and the share that the plan expected."""
    rng = np.random.default_rng([seed, number])
    layout = world.layout
    count = len(layout.categories)
    items = (*items_of(layout, "known"), *items_of(layout, "search"))
    # The candidates have answered as many items of their own before the search begins.
    twice = Layout(
        np.tile(layout.categories, 2),
        np.concatenate([layout.groups, layout.groups + layout.groups.max() + 1]),
    )
    answers = Answers(GuardedWorld(**{**vars(world), "layout": twice}), items, rng)
    pool = Pool(world.names)
    known = items[:count]
    search = items[count:]
    guards = (Guard(name="c1", margin=MARGIN / 100, categories=("c1",)),)
    singles = {name: answers.scores(pool.recipe({name: 1.0}), known) for name in world.names}
    planned = plan_guards(guards, {"search": {"": search}}, singles)[0]["share"]
    reference = pool.recipe({"model0": 1.0})
    admission = Admission(
        guards=guards, against="model0", reference=answers.scores(reference, search)
    )
    found = find_weights(
        Adaptive(),
        Mean(),
        seed=number,
        pool=pool,
        evaluation=answers,
        ingredients=world.names,
        items=search,
        bounds=admission.bounds,
    )
    found, _ = admitted(POINTS, found, best_first(found), admission, reference, Mean())
    uniform = answers.scores(pool.recipe(dict.fromkeys(world.names, 1 / len(world.names))), search)
    passes = guards[0].admits(guarded_difference(guards[0], uniform, admission.reference))
    return passes, len(found.recipe.ingredients) > 1, planned or 0.0


def line(layout: str, loss: str, runs: int, seed: int) -> tuple[str, bool]:
    """A row of the table, and whether it meets its bar: a mixture that loses just the margin has none."""
    world = GuardedWorld(candidates=(70.0,) * 3, layout=LAYOUTS[layout], loss=LOSSES[loss])
    made = [run(world, seed, number) for number in range(runs)]
    one, share, planned = np.mean(made, axis=0).tolist()
    met = True
    if LOSSES[loss] == 2 * MARGIN:
        met = max(one, share) <= 0.05
    elif LOSSES[loss] == 0:
        met = abs(one - planned) <= 0.1
    cells = [layout, loss, *(f"{100 * value:.1f} %" for value in (planned, one, share))]
    return f"| {' | '.join(cells)} |", met


def report(names: Sequence[str], runs: int, seed: int) -> tuple[str, bool]:
    """The table, and whether every bar is met."""
    rows = []
    for name in names:
        for loss in LOSSES:
            rows.append(line(name, loss, runs, seed))
            print(*rows[-1], flush=True)
    head = "| guarded items | a mixture loses | planned | uniform soup passes | searches that end with a mixture |"
    head += "\n|---|---|---:|---:|---:|"
    return "\n".join([head, *(row for row, _ in rows)]), all(met for _, met in rows)


def nearness() -> str:
    """Mean squared difference of the uniform soup and the best candidate over that of two candidates, by table."""
    found = {}
    for path in sorted(TABLES.glob("*.npz")):
        for number, table in enumerate(TruthTable.read(path)):
            singles = table.ok[[int(column.argmax()) for column in table.w.T]]
            apart = ((singles[:, None] - singles) ** 2).mean(-1)
            soup = table.ok[int(np.abs(table.w - table.w.shape[1] ** -1.0).sum(1).argmin())]
            pairs = apart[np.triu_indices(len(singles), 1)].mean()
            found[f"{path.stem} {number}"] = float(
                ((soup - singles[singles.mean(1).argmax()]) ** 2).mean() / pairs
            )
    rows = "\n".join(f"{name}: {ratio:.2f}" for name, ratio in found.items())
    return f"{rows}\nmedian of {len(found)}: {np.median([*found.values()]):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--date", default=str(datetime.date.today()))
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--soups", action="store_true", help="how much less soups differ from candidates instead"
    )
    parser.add_argument(
        "--front", action="store_true", help="coverage of a front's 95 %% bands instead"
    )
    parser.add_argument("--group-size", type=int, default=1, help="items a group, for --front")
    given = parser.parse_args()
    if given.front:
        numbers = range(given.runs)
        shares = np.mean([covered(given.seed, n, given.group_size) for n in numbers], axis=0)
        print(
            f"true points in their bands: {100 * shares[0]:.1f} % of all, {100 * shares[1]:.1f} % on the front"
        )
        return
    if given.soups:
        print(nearness())
        return
    names = []
    for name in LAYOUTS:
        if not given.only or any(text in name for text in given.only):
            names.append(name)
    table, met = report(names, given.runs, given.seed)
    text = (
        f"# Guards in simulated searches, {given.date}\n\n`python -m benchmarks.guards --runs {given.runs} --seed "
        f"{given.seed}`: the guard allows {MARGIN:g} points.\n\n{table}\n\nA mixture that loses twice the margin "
        "should pass in at most 5 % of the runs, a uniform soup that loses nothing about as often as planned: "
        f"{'met' if met else 'NOT MET'}.\n"
    )
    out = given.out or Path(__file__).parent / "results" / f"guards-{given.date}.md"
    out.write_text(text)
    print(text)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
