"""Ways to search a simulated split, each within a budget of generated items; every one knows the single models."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.search_tables import Simulation, TruthTable
from souping.core.protocols import Search
from souping.core.types import Query, SearchSpace, UserError, Weights
from souping.search.adaptive import Adaptive, item_samples
from souping.search.points import spread

Method = Callable[[Simulation, int], "Outcome"]
Start = Callable[[Sequence[Weights], SearchSpace, int, bool, int | None], Search]
"""Opens a search over points of a space: (points, space, seed, whether it may end by itself, budget of items)."""


@dataclass(frozen=True)
class Outcome:
    """Row that a method picked; where it says so, its probability of being within a point of the best and its expected
    regret in points."""

    pick: int
    within: float = float("nan")
    regret: float = float("nan")


def _best(sim: Simulation, asked: list[int]) -> Outcome:
    known = [*asked, *sim.table.singles]
    if not known:
        raise UserError("the budget is below one soup on the whole split")
    return Outcome(max(known, key=lambda soup: sim.whole(soup)))


def _affordable(sim: Simulation, order: list[int], budget: int) -> list[int]:
    """The first soups of an order that fit into the budget whole; singles are free."""
    asked = [soup for soup in order if soup not in sim.table.singles]
    return asked[: budget // len(sim.split)]


def grid_on_fewer(sim: Simulation, budget: int) -> Outcome:
    """Every soup on the same first items of the split."""
    soups = len(sim.table.ok) - len(sim.table.singles)
    items = sim.split[: max(budget // soups, 1)]
    sim.spent += soups * len(items)
    return Outcome(int(np.argmax(sim.table.objective(items))))


def random_soups(sim: Simulation, budget: int) -> Outcome:
    order = np.random.default_rng([sim.seed, 2]).permutation(len(sim.table.ok)).tolist()
    return _best(sim, _affordable(sim, order, budget))


def halving(sim: Simulation, budget: int) -> Outcome:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): all soups but the single models answer the
    same few items, and the better half goes on to twice as many."""
    members = [np.concatenate(row) for row in item_samples(sim.space, sim.seed)]
    alive = spread([p for n, p in enumerate(sim.table.points) if n not in sim.table.singles])
    values = {point: np.full(len(sim.split), np.nan) for point in alive}
    before: set[int] = set()
    for stage in _stages(members, len(alive), budget):
        fresh = tuple(i for i in stage if i not in before)
        for point in alive if fresh else ():
            if sim.spent + len(fresh) > budget:
                break
            values[point][list(fresh)] = sim.answer(Query(weights=point, items=fresh)).values
        before |= set(stage)
        order = sorted(alive, key=lambda point: -_mean(members, values[point]))
        alive = [point for point in alive if point in order[: (len(order) + 1) // 2]]
    whole = [point for point, known in values.items() if np.isfinite(known).all()]
    asked = whole or [point for point, known in values.items() if np.isfinite(known).any()]
    best = min(
        asked,
        key=lambda point: (-round(_mean(members, values[point]), 12), sum(w > 0 for w in point)),
    )
    sim.asked.add(sim.rows[best])  # paid for in the race
    return _best(sim, [sim.rows[best]])


SCALES = (16.0, 8.0, 5.6, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05)
"""Sizes of the early stages that a budget may choose from; at 1 the last of them is half of the split."""


def _stages(members: Sequence[np.ndarray], size: int, budget: int) -> list[tuple[int, ...]]:
    """Nested positions of each stage, the whole split last; the earlier ones are as large as the budget allows."""
    rounds = max(int(np.ceil(np.log2(max(size, 2)))), 1)
    shares = np.array([0.5 ** (rounds - 1 - r) for r in range(rounds)])
    for scale in SCALES:
        wanted = np.append((shares[:-1] * scale).clip(max=1.0), 1.0)
        stages = [_prefix(members, share) for share in wanted]
        if _price(stages, size) <= budget:
            return stages
    return [_prefix(members, 1.0)]


def _prefix(members: Sequence[np.ndarray], share: float) -> tuple[int, ...]:
    """The first items of each category."""
    items = list[int]()
    for of_category in members:
        count = max(int(np.ceil(share * len(of_category))), 1)
        items.extend(int(item) for item in of_category[:count])
    return tuple(items)


def _price(stages: list[tuple[int, ...]], size: int) -> int:
    """Items that halving takes in these stages, of which each halves the soups that are alive."""
    total = 0
    before = 0
    alive = size
    for stage in stages:
        total += alive * (len(stage) - before)
        before = len(stage)
        alive = max((alive + 1) // 2, 1)
    return total


def _mean(members: Sequence[np.ndarray], known: np.ndarray) -> float:
    """Objective on what a soup answered: the mean over the categories of which it answered something, 0 if none."""
    parts = [known[items][np.isfinite(known[items])] for items in members]
    means = [part.mean() for part in parts if len(part)]
    return float(np.mean(means)) if means else 0.0


def glm(sim: Simulation, budget: int, soups: int = 10) -> Outcome:
    """A binomial GLM a category, quadratic in the weights (Scheffe), on some spread soups and the singles."""
    table = sim.table
    inner = spread([p for n, p in enumerate(table.points) if n not in table.singles])
    asked = [sim.rows[p] for p in inner[:soups]]
    count = min(budget // len(asked), len(sim.split))
    if count < 1:
        raise UserError("the budget is below one item a soup")
    sim.spent += count * len(asked)
    x = _quadratic(table.w)
    total = np.zeros(len(table.w))
    codes = np.unique(table.cat[sim.split])
    for code in codes:
        own = sim.split[table.cat[sim.split] == code]
        first = sim.split[:count][table.cat[sim.split[:count]] == code]
        rows = [*asked, *table.singles]
        right = []
        trials = []
        for soup in rows:
            items = own if soup in table.singles else first
            right.append(table.ok[soup, items].sum())
            trials.append(len(items))
        total += _logistic(x, rows, np.array(right), np.array(trials)) / len(codes)
    return Outcome(int(np.argmax(total)))


def _quadratic(w: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(w.shape[1], 1)
    return np.hstack([w, w[:, first] * w[:, second]])


def _logistic(x: np.ndarray, rows: list[int], right: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Fitted rates of all points, by Newton's method with a small ridge."""
    beta = np.zeros(x.shape[1])
    design = x[rows]
    for _ in range(12):
        rate = 1 / (1 + np.exp(-np.clip(design @ beta, -12, 12)))
        weight = trials * rate * (1 - rate)
        hessian = design.T @ (weight[:, None] * design) + 0.1 * np.eye(len(beta))
        beta = beta + np.linalg.solve(hessian, design.T @ (right - trials * rate) - 0.1 * beta)
    return np.asarray(1 / (1 + np.exp(-np.clip(x @ beta, -12, 12))))


def nevergrad(sim: Simulation, budget: int) -> Outcome:
    """NGOpt on the softmax of a vector, snapped to the table's nearest soup."""
    from nevergrad import optimizers, p

    table = sim.table
    many = max(budget // len(sim.split), 1)
    parameter = p.Array(shape=(table.w.shape[1],))
    parameter.random_state = np.random.RandomState(sim.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimiser = optimizers.registry["NGOpt"](
            parametrization=parameter, budget=many, num_workers=1
        )

        def propose() -> Iterator[int]:
            while True:
                candidate = optimiser.ask()
                soup = _snap(table, candidate.value)
                yield soup
                optimiser.tell(candidate, -sim.whole(soup))

        return _sequential(sim, budget, propose())


def tpe(sim: Simulation, budget: int) -> Outcome:
    """Optuna's TPE on the same vector."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(logging.ERROR)
    table = sim.table
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=sim.seed)
    )

    def propose() -> Iterator[int]:
        while True:
            trial = study.ask()
            size = table.w.shape[1]
            vector = [trial.suggest_float(f"w{k}", -3, 3) for k in range(size)]
            soup = _snap(table, np.array(vector))
            yield soup
            study.tell(trial, sim.whole(soup))

    return _sequential(sim, budget, propose())


def _sequential(sim: Simulation, budget: int, proposals: Iterator[int]) -> Outcome:
    """Soups one after another on the whole split; one proposed again is free, thirty times in all."""
    asked: list[int] = []
    again = 0
    while sim.spent + len(sim.split) <= budget and again < 30:
        soup = next(proposals)
        again += soup in asked
        asked.append(soup)
    if asked:
        # A proposer scores a soup when it is asked for the next one: nobody scored the last.
        sim.whole(asked[-1])
    return _best(sim, asked)


def _snap(table: TruthTable, vector: np.ndarray) -> int:
    raw = np.exp(vector - vector.max())
    return int(np.argmin(((np.array(table.points) - raw / raw.sum()) ** 2).sum(1)))


def adaptive(settings: Adaptive, slots: int = 1, min_items: int = 1) -> Method:
    """`optimiser=adaptive` as a run would use it, with up to `slots` open requests of `min_items` items or more."""

    def start(
        points: Sequence[Weights], space: SearchSpace, seed: int, auto: bool, budget: int | None
    ) -> Search:
        search = replace(settings, early_stopping=auto, max_items=budget)
        return search.over(points, replace(space, min_items=min_items), seed)

    return driven(start, slots)


def driven(start: Start, slots: int = 1) -> Method:
    """Any search that asks and tells as the product's do; without a budget it ends by itself.

    Up to `slots` requests are open at once, and end in random order.
    """

    def search(sim: Simulation, budget: int) -> Outcome:
        optimiser = start(sim.table.points, sim.space, sim.seed, not budget, budget or None)
        order = np.random.default_rng([sim.seed, 3])
        open_queries: list[Query] = []
        while True:
            while len(open_queries) < slots and (query := optimiser.ask()) is not None:
                open_queries.append(query)
            if not open_queries:
                break
            ended = open_queries.pop(int(order.integers(len(open_queries))))
            optimiser.tell(ended, sim.answer(ended))
        told = optimiser.summary()
        facts = told if isinstance(told, Mapping) else {}
        within = float(str(facts.get("within_1_point", "nan")))
        regret = float(str(facts.get("expected_regret", "nan")))
        return Outcome(sim.rows[optimiser.best()], within, regret)

    return search


def from_file(named: str) -> Method:
    """The search `NAME` of FILE, from `FILE.py:NAME`: called as a `Start`."""
    file, _, name = named.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--search {named} must be FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise UserError(f"--search {named}: {file} has no {name}")
    start: Start = getattr(module, name)
    return driven(start)
