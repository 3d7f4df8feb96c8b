"""Puts a plan together, shows it, saves it, and says whether the run can go on here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from souping.checkpoints.pool import ModelSize, weigh
from souping.core.types import FOLDS, Fold, Item, ItemScores, LateError, Missing, UserError
from souping.evaluate.benchmark import OwnBenchmark
from souping.evaluate.folds import split_folds
from souping.pipeline.baseline_gate import check_names
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.requirements import (
    Machine,
    Requirement,
    from_error,
    look,
    missing,
    once,
    requirements_of,
)
from souping.pipeline.run import check_settings
from souping.pipeline.side_benchmarks import SideBenchmark, check_entries, sides
from souping.pipeline.store import Store
from souping.planning.plan import Speed, outline, speed
from souping.planning.sheet import as_dict, sections
from souping.planning.workload import (
    NotStoredError,
    PlannedPool,
    PlannedSelection,
    PlannedStage,
    Work,
    choose,
    open_pool,
    refuse,
)
from souping.report.files import as_json, put
from souping.report.terminal import sheet_markdown, show_sheet
from souping.search.loop import check_budget


@dataclass(kw_only=True)
class Plan:
    """Everything a plan knows. `reasons` say why the run cannot go on here; empty: it can. Those that no other machine
    would mend are `faults` too.

    With `outlined`, the folds hold items without content, as many as the benchmark's published sizes say.
    """

    run: Any
    machine: Machine
    models: Sequence[ModelSize] = ()
    opened: PlannedPool
    choice: PlannedSelection
    folds: Mapping[Fold, tuple[Item, ...]] = field(default_factory=dict)
    outlined: bool = False
    notes: list[str] = field(default_factory=list)
    stages: Sequence[PlannedStage] = ()
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    requirements: Sequence[Requirement] = ()
    missing: Sequence[Missing] = ()
    reasons: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def plan(run: Any) -> None:
    """Print and save the plan of a full run, `plan.json` and `plan.md` in its directory.

    Raises:
        LateError: the run cannot go on anywhere as it is configured; the plan is whole all the same.
    """
    check_settings(run)
    found = make(run)
    parts = sections(found)
    put(run.run_dir / "plan.json", as_json(as_dict(found)).encode())
    put(run.run_dir / "plan.md", sheet_markdown(f"Plan of {run.name}", parts).encode())
    show_sheet(parts)
    print(f"saved as plan.md and plan.json in {run.run_dir}")
    if not found.reasons:
        print("this run can go on: leave plan=true out")
        return
    first = (found.faults or found.reasons)[0]
    more = f" (and {len(found.reasons) - 1} more: see above)" if len(found.reasons) > 1 else ""
    verdict = f"this run cannot go on here: {first}{more}"
    if found.faults:
        raise LateError(verdict)
    print(verdict)


def make(run: Any) -> Plan:
    """The plan. Opens the store where there is one, and writes nothing."""
    machine = look()
    models = [weigh(candidate, getattr(run.merge, "allow_pickle", False)) for candidate in run.pool.resolve()]
    path = run.store_path if run.store_path.exists() else Path(":memory:")
    with Store(path) as store:
        return _with(run, machine, models, store)


def _with(run: Any, machine: Machine, models: Sequence[ModelSize], store: Store) -> Plan:
    opened = open_pool(run, models, store)
    evaluation = Evaluation(store, run.evaluator, refuse, _silent)
    lacking: list[Missing] = []
    read = _folds(run, lacking)
    folds = read or _outlined(run)
    odd: list[Missing] = []
    beside = _sides(run, odd)
    choice = _choose(run, opened, folds.get("select", ()), evaluation)
    found = Plan(run=run, machine=machine, models=models, opened=opened, choice=choice, folds=folds)
    found.outlined = bool(folds) and not read
    others = [(side, Evaluation(store, side.evaluator, refuse, _silent)) for side in beside]
    work = Work(run=run, opened=opened, choice=choice, folds=folds, evaluation=evaluation, sides=others)
    evaluators = [run.evaluator, *(side.evaluator for side in beside)]
    found.notes = [*opened.notes]
    found.faults = [reason for reason in (opened.trouble, choice.trouble, *_late(run, folds, opened)) if reason]
    found.faults += [one.what for one in odd if not one.mends]
    if choice.sizes:
        try:
            found.stages = work.stages()
        except UserError as error:
            found.faults.append(str(error))
    found.speeds = _speeds(run, found, store, beside)
    found.requirements = requirements_of(run, models, machine, evaluators)
    found.missing = once([*missing(run, models, machine, evaluators), *lacking, *(one for one in odd if one.mends)])
    small = [room.sentence() for room in found.requirements if not room.fits]
    found.reasons = list(dict.fromkeys([*(one.sentence() for one in found.missing), *found.faults, *small]))
    return found


def _silent(items: int) -> None:
    """A plan has no progress to show."""


def _folds(run: Any, lacking: list[Missing]) -> dict[Fold, tuple[Item, ...]]:
    try:
        own = isinstance(run.benchmark, OwnBenchmark)
        benchmark = getattr(run.evaluator, "benchmark", run.benchmark) if own else run.benchmark
        found = split_folds(benchmark.items(), benchmark.title, two=run.scores.published)
    except UserError as error:
        lacking.append(from_error(error))
        return {}
    return {fold: found.items[fold] for fold in FOLDS}


def _outlined(run: Any) -> dict[Fold, tuple[Item, ...]]:
    """The folds of a benchmark that is known by its published sizes alone; about as large as the real ones."""
    items = outline(run.evaluator)
    if not items:
        return {}
    found = split_folds(items, run.name, two=run.scores.published)
    return {fold: found.items[fold] for fold in FOLDS}


def _sides(run: Any, lacking: list[Missing]) -> tuple[SideBenchmark, ...]:
    try:
        return sides(run.also, run.evaluator)
    except UserError as error:
        lacking.append(from_error(error))
        return ()


def _choose(run: Any, opened: PlannedPool, items: Sequence[Item], evaluation: Evaluation) -> PlannedSelection:
    def stored(name: str) -> ItemScores | None:
        try:
            return evaluation.scores(opened.recipe({name: 1.0}), items)
        except (NotStoredError, UserError):
            return None

    try:
        return choose(run, opened.names, items, stored)
    except UserError as error:
        return PlannedSelection(basis="", sizes=(), trouble=str(error))


def _late(run: Any, folds: Mapping[Fold, Sequence[Item]], opened: PlannedPool) -> list[str]:
    """What a run refuses when it opens: names that nothing has, a budget below one soup."""
    found = []
    categories = list(dict.fromkeys(item.category for fold in FOLDS for item in folds.get(fold, ())))
    if not categories:
        return []
    checks = (
        lambda: run.objective.coefficients(categories),
        lambda: check_names(run.expected, opened.names, categories),
        lambda: check_entries(run.also),
        lambda: check_budget(run.optimiser, len(folds["search"])),
    )
    for check in checks:
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def _speeds(run: Any, found: Plan, store: Store, beside: Sequence[SideBenchmark]) -> dict[str, Speed]:
    """{name of a side, or nothing for the run's own benchmark: speed}."""
    items = [item for fold in FOLDS for item in found.folds.get(fold, ())]
    parameters = max((model.parameters for model in found.models if not model.adapter), default=0)
    soups = [found.opened.recipe({name: 1.0}).fingerprint for name in found.opened.names]
    speeds = {}
    for name, evaluator, asked in [("", run.evaluator, items), *((s.name, s.evaluator, s.items) for s in beside)]:
        try:
            rate = speed(run, evaluator, asked, parameters, found.machine, store, soups)
        except UserError:  # an evaluator that lacks a part here
            rate = None
        if rate is not None:
            speeds[name] = rate
    return speeds
