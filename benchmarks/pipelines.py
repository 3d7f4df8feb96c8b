"""False claims, coverage and power of whole runs: splits, selection, the default search, the frozen soup, the verdict.

    python benchmarks/pipelines.py [--runs 400] [--only TEXT ..] [--seed 0] [--jobs 1] [--date DATE]
        [--out benchmarks/results/pipelines-DATE.md]

Only the models' answers are simulated. Every stage is the package's own: `Steps` walks, `make_splits` cuts, the
selector selects, `optimiser=adaptive` searches, `compare` and `verdict` judge the frozen soup on the test split. Each
run cuts its splits anew and has answers of its own. Sign flips are 499 a comparison instead of 9,999.

The truth of a soup follows from its weights, so every claim is known to be true or false, and every interval of soup
minus candidate to hold the truth or not. A run in which one model is selected, or wins the search, tests nothing.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from souping.checkpoints import pool
from souping.core.protocols import Objective, Selector
from souping.core.scores import Mean, MeasuredScores, Weighted
from souping.core.types import Candidate, Item, ItemScores, Recipe, Request, ScoreMatrix, Split
from souping.core.unit import MARGIN, POINTS
from souping.evaluate.benchmark import make_splits
from souping.merge.local import LocalMerge
from souping.runs.settings import RunSettings
from souping.runs.state import Contender, Frozen, Reported, Searched, Selected
from souping.runs.steps import Stage, Steps
from souping.runs.verdict import verdict
from souping.search.adaptive import Adaptive
from souping.search.loop import RecipeEvaluator, result_of
from souping.selection import All, SoCE
from souping.statistics.comparison import Comparison, contrast, same_model
from souping.statistics.power import measured_power
from souping.statistics.score_table import ItemTable, ScoreTable

Rows = np.ndarray
DRAWS = 499
POWERED = 30
"""Sign patterns of a comparison, and runs of a world whose power is estimated as a run prints it."""
BETTER = 0.031
EVERY = 0.01
COVERED = 0.94
"""What is accepted: false claims at most, of the tested runs of all nulls, and coverage of all pairs at least (less two
standard errors, as if the pairs of a run were one)."""


@dataclass(frozen=True)
class Layout:
    """Categories [I] and groups [I] of a benchmark's items."""

    categories: Rows
    groups: Rows


def usual(categories: int = 8, n: int = 120) -> Layout:
    """A third of the items alone, a third in fives, and a third in groups that span all categories."""
    third = n // 3
    within = np.concatenate([np.arange(n - 2 * third), n + np.arange(third) // 5])
    groups = [
        np.concatenate([c * 10_000 + within, 1_000_000 + np.arange(third)])
        for c in range(categories)
    ]
    return Layout(np.repeat(np.arange(categories), n), np.concatenate(groups))


def alone(categories: int, n: int) -> Layout:
    return Layout(np.repeat(np.arange(categories), n), np.arange(categories * n))


def spanning(categories: int, groups: int, each: int = 1) -> Layout:
    """Every group has so many items in each category."""
    shared = np.repeat(np.arange(groups), each)
    return Layout(np.repeat(np.arange(categories), len(shared)), np.tile(shared, categories))


def heavy(categories: int = 8, n: int = 120) -> Layout:
    """Groups within categories that have from 1 to 24 items, as few sources of many questions make them."""
    sizes = [24, 16, 12, 8, 8, 6, 6, 4, 4, *[3] * 4, *[2] * 5, *[1] * 10]
    own = np.repeat(np.arange(len(sizes)), sizes)[:n]
    return Layout(
        np.repeat(np.arange(categories), n),
        np.concatenate([c * 1000 + own for c in range(categories)]),
    )


@dataclass(frozen=True, kw_only=True)
class World:
    """Benchmark and models of a simulation. Rates are in percent: of each candidate, and of every mixture of them.

    `opposite` moves mixtures by so many points, up in every other category and down in the rest. `shared` of the
    variance of an answer is the item's, `grouped` the model's on the group; `twins` is the correlation of the first two
    candidates beyond what all share. Scores are the mean of so many `answers`.
    """

    candidates: tuple[float, ...] = (70.0,) * 5
    mixture: float = 70.0
    opposite: float = 0.0
    layout: Layout = field(default_factory=usual)
    objective: Objective = field(default_factory=Mean)
    selector: Selector | None = None
    shared: float = 0.5
    grouped: float = 0.15
    twins: float = 0.0
    answers: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"model{n}" for n in range(len(self.candidates)))

    @cached_property
    def alike(self) -> Rows:
        """Correlation of the candidates beyond what all share [M, M]."""
        found = np.eye(len(self.candidates))
        found[0, 1] = found[1, 0] = self.twins
        return found

    def weights(self, recipe: Recipe) -> Rows:
        """Weights of a recipe over all candidates [M]."""
        given = dict(zip(recipe.ingredients, recipe.weights, strict=True))
        return np.array([given.get(name, 0.0) for name in self.names])

    def rates(self, recipe: Recipe) -> Rows:
        """True rates by category [C], fractions of 1."""
        count = int(self.layout.categories.max()) + 1
        if len(recipe.ingredients) == 1:
            return np.full(count, self.candidates[self.names.index(recipe.ingredients[0])] / 100)
        return (
            np.full(count, self.mixture / 100)
            + np.where(np.arange(count) % 2, -1, 1) * self.opposite / 100
        )

    def difference(self, soup: Recipe, other: Recipe) -> float:
        names = [f"c{c:02d}" for c in range(int(self.layout.categories.max()) + 1)]
        return float(self.objective.coefficients(names) @ (self.rates(soup) - self.rates(other)))


class Answers(RecipeEvaluator):
    """The models' answers in one run: P(right) is exactly the world's rate (a Gaussian copula). A soup's noise is that
    of its ingredients by its weights, so that soups near each other answer nearly alike."""

    whole_splits = False
    reused = 0
    full_batch = 64
    min_items = 1
    slots = 1

    def __init__(self, world: World, items: Sequence[Item], rng: np.random.Generator) -> None:
        layout = world.layout
        models = len(world.candidates)
        self._world = world
        self._number = {item.id: n for n, item in enumerate(items)}
        _, group = np.unique(layout.groups, return_inverse=True)
        # What decides an answer is normal with variance 1: parts of the item, of models on the group, and of models on
        # the item; between models, the last two have the correlations `alike`.
        mixed = np.linalg.cholesky(world.alike + 1e-12 * np.eye(models))
        own = 1 - world.shared - world.grouped
        self._item = np.sqrt(world.shared) * rng.standard_normal(len(items))
        grouped = rng.standard_normal((group.max() + 1, models)) @ mixed.T
        self._group = np.sqrt(world.grouped) * grouped[group]
        self._own = (
            np.sqrt(own) * rng.standard_normal((world.answers, len(items), models)) @ mixed.T
        )
        self._known: dict[str, Rows] = {}
        self._asked: deque[tuple[Request, ItemScores]] = deque()

    def values(self, recipe: Recipe) -> Rows:
        """Scores of all items [I]."""
        from scipy.special import ndtri

        key = recipe.fingerprint
        if key not in self._known:
            world = self._world
            weights = self._world.weights(recipe)
            # Noise by these weights has variance 1 again, and the answer is right below the rate's quantile.
            weights = weights / np.sqrt(weights @ world.alike @ weights)
            latent = self._item + self._group @ weights + self._own @ weights
            self._known[key] = (latent < ndtri(world.rates(recipe))[world.layout.categories]).mean(
                axis=0
            )
        return self._known[key]

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        return ItemScores(
            items=tuple(items),
            values=self.values(recipe)[[self._number[item.id] for item in items]],
        )

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        return [self.scores(recipe, items) for recipe in soups]

    def submit(self, request: Request) -> None:
        self._asked.append((request, self.scores(request.recipe, request.items)))

    def collect(self) -> tuple[Request, ItemScores]:
        return self._asked.popleft()


@dataclass(frozen=True)
class Pool:
    """Candidates by name; their content is their name."""

    names: tuple[str, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(Candidate(name=name, path=Path(name)) for name in self.names)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        names = tuple(name for name in self.names if weights.get(name))
        return Recipe(
            ingredients=names,
            fingerprints=names,
            weights=tuple(weights[name] for name in names),
            dtype="float32",
        )


class Run(Steps):
    """Steps of one run, and what came of it: its claim, each pair with its true difference, how much better the soup
    truly is than the best candidate (`deployed`), and the gain that its power promised (if `powered`)."""

    def __init__(
        self,
        world: World,
        settings: RunSettings,
        pool: Pool,
        splits: Mapping[Split, tuple[Item, ...]],
        answers: Answers,
        powered: bool,
    ) -> None:
        super().__init__(settings, pool, splits, {})
        self.world = world
        self.answers = answers
        self.powered = powered
        self.claim = ""
        self.pairs: list[tuple[Comparison, float]] = []
        self.deployed = 0.0
        self.gain = np.nan

    def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
        return {recipe.id: self.answers.scores(recipe, stage.items) for recipe in stage.models}

    def _by_candidate(self, stage: Stage) -> dict[str, ItemScores]:
        return {
            recipe.ingredients[0]: self.answers.scores(recipe, stage.items)
            for recipe in stage.models
        }

    def select(self, stage: Stage | None) -> Selected:
        assert stage is not None
        found = self._by_candidate(stage)
        if self.powered:
            power = measured_power(found, self.splits["test"], self.settings.objective, MARGIN)
            self.gain = np.nan if power is None else power.gain
        scores = ScoreMatrix.from_items(found)
        selection = self.settings.selector.select_checked(scores)
        return Selected(selection=selection, scores=scores)

    def search(self, selected: Selected) -> Searched:
        return Searched(selected=selected, winner=self.find_weights(self.answers, selected))

    def write(self, searched: Searched, stage: Stage) -> Frozen:
        scores = self._by_candidate(stage)
        found = {
            name: result_of(one, self.settings.objective).objective for name, one in scores.items()
        }
        return self.freeze(searched, max(found, key=lambda name: round(found[name], 12)))

    def test(self, frozen: Frozen, stage: Stage, contenders: Sequence[Contender]) -> Reported:
        state = Reported(
            frozen=frozen,
            report=frozen.report,
            items=stage.items,
            contenders=tuple(contenders),
        )
        soup = contenders[-1]
        if len(soup.recipe.ingredients) == 1:
            return state
        table = ItemTable.of(stage.items, self.settings.objective)
        ours = self.answers.scores(soup.recipe, stage.items).values
        singles = [c for c in contenders if c.kind in ("ingredient", "candidate")]
        best = next(c for c in contenders if c.kind == "best_candidate")
        for single in singles:
            theirs = self.answers.scores(single.recipe, stage.items).values
            scores = ScoreTable.complete(table, {soup.name: ours, single.name: theirs})
            pair = contrast(scores, soup.name, single.name, draws=DRAWS)
            if soup.recipe.id == single.recipe.id:
                pair = same_model(table, soup.name, single.name)
            self.pairs.append((pair, self.world.difference(soup.recipe, single.recipe)))
        self.deployed = self.world.difference(soup.recipe, best.recipe)
        self.claim = verdict(
            POINTS,
            soup.name,
            [pair for pair, _ in self.pairs],
            candidates=[single.name for single in singles],
            best_candidate=best.name,
            selected=frozen.searched.selected.selection.ingredients,
            recipe=soup.recipe.ingredients,
        ).claim
        return state


def simulate(world: World, seed: int, number: int) -> Run:
    """The `number`-th run of a world."""
    rng = np.random.default_rng([seed, number])
    items = tuple(
        Item(
            id=f"{n}",
            category=f"c{c:02d}",
            group=f"run {seed} {number} group {g}",
            prompt="",
            answer="",
        )
        for n, (c, g) in enumerate(
            zip(world.layout.categories.tolist(), world.layout.groups.tolist(), strict=True)
        )
    )
    absent: Any = None  # parts that a simulation has no use for
    run = RunSettings(
        pool=pool.Pool(candidates=list(world.names)), benchmark=absent, evaluator=absent, merge=LocalMerge(),
        tracker=absent, executor=absent,
        out=absent, store_path=absent, run_dir=absent, config={}, name="pipelines", stop_after=None, seed=number,
        scores=MeasuredScores(), selector=world.selector or _soce(world), objective=world.objective,
        optimiser=Adaptive(),
    )  # fmt: skip
    splits = make_splits(items).items
    simulated = Run(
        world, run, Pool(world.names), splits, Answers(world, items, rng), number < POWERED
    )
    simulated.walk()
    return simulated


def _soce(world: World) -> SoCE:
    from souping.analysis.correlation import pearson

    return SoCE(correlation=pearson, objective=world.objective)


TREE = Weighted(category_weights={"c00": 0.6, **{f"c{c:02d}": 0.4 / 7 for c in range(1, 8)}})
NULLS: dict[str, World] = {
    "all equal": World(),
    "twins, the others 4 points below": World(
        candidates=(70.0, 70.0, 66.0, 66.0, 66.0), twins=0.97
    ),
    "one 14 points ahead, soups level with it": World(
        candidates=(70.0, 56.0, 56.0, 56.0, 56.0), selector=All(), grouped=0.15
    ),
    "soups 3 points worse": World(mixture=67.0),
    "heavy groups": World(layout=heavy(), grouped=0.3),
    "groups across categories": World(layout=spanning(8, 120), grouped=0.3),
    "3 x 45 items": World(layout=alone(3, 45)),
    "ties at 97 %": World(candidates=(97.0,) * 5, mixture=97.0),
    "one category of weight 0.6": World(objective=TREE),
    "50 groups over 4 categories": World(layout=spanning(4, 50, 4), grouped=0.3),
    "half the categories +15, half -15": World(opposite=15.0),
    "scores in thirds": World(answers=3),
    "24 x 40 items": World(layout=alone(24, 40)),
}
GAINS: dict[str, World] = {
    f"every soup {gain} points better": World(mixture=70.0 + gain) for gain in (1, 3, 6, 9)
}


@dataclass
class Tally:
    """Counts of a world's runs."""

    runs: int = 0
    tested: int = 0
    better: int = 0
    every: int = 0
    kept: int = 0
    false_better: int = 0
    false_every: int = 0
    false_kept: int = 0
    pairs: int = 0
    covered: int = 0
    seconds: float = 0.0
    gains: tuple[float, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def coverage(self) -> float:
        return self.covered / max(self.pairs, 1)


def judged(run: Run, seconds: float) -> Tally:
    """What one run claims, and which of it is false."""
    every = run.claim == "better_than_every_candidate"
    better = every or run.claim == "better_than_best_candidate"
    kept = run.claim == "keep_candidate"
    nearest = min((truth for _, truth in run.pairs), default=0.0)
    held = [pair.low <= truth + 1e-12 and truth - 1e-12 <= pair.high for pair, truth in run.pairs]
    return Tally(
        runs=1,
        tested=bool(run.claim),
        better=better,
        every=every,
        kept=kept,
        false_better=better and run.deployed <= 1e-12,
        false_every=every and nearest <= 1e-12,
        false_kept=kept and run.deployed >= MARGIN - 1e-12,
        pairs=len(held),
        covered=sum(held),
        seconds=seconds,
        gains=(run.gain,) if np.isfinite(run.gain) else (),
    )


def tally(name: str, numbers: Sequence[int], seed: int) -> Tally:
    """The runs of a world with these numbers."""
    total = Tally()
    for number in numbers:
        start = time.process_time()
        run = simulate({**NULLS, **GAINS}[name], seed, number)
        total += judged(run, time.process_time() - start)
    return total


def line(name: str, told: Tally) -> str:
    gain = f"{100 * np.mean(told.gains):.1f}" if told.gains else ""
    cells = [
        name, told.tested, told.better, told.false_better, told.every, told.false_every, told.kept, told.false_kept,
        f"{100 * told.coverage:.1f}", gain, f"{told.seconds / max(told.runs, 1):.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


HEAD = (
    "| truth | tested | 'better than the best candidate' | false | 'better than every candidate' | false | 'keep' | "
    "false "
    "| coverage % | stated gain for 80 % | s a run |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def verdicts(nulls: Tally, whole: Tally) -> list[tuple[str, bool]]:
    """The bars, and whether each is met."""
    tested = max(nulls.tested, 1)
    better = nulls.false_better / tested
    every = nulls.false_every / tested
    kept = whole.false_kept / max(whole.tested, 1)
    of_best = f"at most {100 * BETTER:.1f} % of {nulls.tested} runs of nulls"
    of_every = f"at most {100 * EVERY:.0f} %"
    of_kept = f"at most {100 * EVERY:.0f} % of {whole.tested} tested runs"
    lines = [
        (
            f"false 'better than the best candidate', {of_best}: {100 * better:.2f} %",
            better <= BETTER,
        ),
        (f"false 'better than every candidate', {of_every}: {100 * every:.2f} %", every <= EVERY),
        (f"false 'keep', {of_kept}: {100 * kept:.2f} %", kept <= EVERY),
    ]
    least = COVERED - 2 * math.sqrt(COVERED * (1 - COVERED) / tested)
    covered = f"coverage of {nulls.pairs} pairs of all nulls, at least {100 * least:.1f} %"
    return [*lines, (f"{covered}: {100 * nulls.coverage:.1f} %", nulls.coverage >= least)]


def world_limit(name: str, told: Tally) -> tuple[str, bool]:
    """A null's false claims of its runs: 21 of 400 are a chance of one in a thousand at 2.5 %."""
    from scipy.stats import binom

    most = int(binom.ppf(0.999, told.runs, 0.025))
    false = max(told.false_better, told.false_every)
    return f"{name}: {false} false claims of {told.runs} runs, at most {most}", false <= most


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument(
        "--only", nargs="*", default=[], help="worlds whose name has one of these texts"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--date", default=str(datetime.date.today()))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    names = []
    for name in (*NULLS, *GAINS):
        if not given.only or any(text in name for text in given.only):
            names.append(name)
    if not names or min(given.runs, given.jobs) < 1:
        raise SystemExit("error: --only matches no world, or --runs or --jobs is below 1")
    limits: list[tuple[str, bool]] = []
    lines = []
    totals = {"nulls": Tally(), "whole": Tally()}
    with ProcessPoolExecutor(given.jobs) as workers:
        for name in names:
            parts = [range(first, given.runs, given.jobs) for first in range(given.jobs)]
            asked = [(name, part, given.seed) for part in parts]
            found = (
                [tally(*asked[0])]
                if given.jobs == 1
                else list(workers.map(tally, *zip(*asked, strict=True)))
            )
            told = sum(found, Tally())
            totals["whole"] += told
            if name in NULLS:
                totals["nulls"] += told
                limits.append(world_limit(name, told))
            lines.append(line(name, told))
            print(lines[-1], flush=True)
    bars = verdicts(totals["nulls"], totals["whole"])
    bars += [bar for bar in limits if not bar[1]]
    text = [
        f"# Whole pipelines, {given.date}",
        f"\n{given.runs} runs each, seed {given.seed}. `python benchmarks/pipelines.py`\n",
        HEAD,
        *lines,
        line("all nulls", replace(totals["nulls"], gains=())),
        "",
        *[f"- {'met' if met else '**missed**'}: {what}" for what, met in bars],
    ]
    print("\n".join(text[-len(bars) :]))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    raise SystemExit(0 if all(met for _, met in bars) else 1)


if __name__ == "__main__":
    main()
