"""Planner: puts a plan together, shows it, saves it, and says whether the run can go on here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from souping.core.files import nearby, put, said
from souping.core.protocols import Evaluator
from souping.core.types import FOLDS, Item, ItemScores, LateError, Missing, UserError
from souping.evaluate.benchmark import OwnBenchmark
from souping.evaluate.folds import Folds
from souping.pipeline.checks import complaints, cut_folds, flat_categories, run_notes
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.models import OpenPool
from souping.pipeline.requirements import (
    look,
    missing,
    model_sizes,
    once,
    requirements_of,
)
from souping.pipeline.run import check_settings
from souping.pipeline.schedule import Schedule
from souping.pipeline.settings import RunSettings, items_of
from souping.pipeline.side_benchmarks import SideBenchmark, sides
from souping.pipeline.store import Store
from souping.planning.plan import Plan, Speed, speed
from souping.planning.sheet import as_dict, sections
from souping.planning.workload import (
    NotStoredError,
    PlannedPool,
    PlannedSelection,
    PlannedStage,
    choose,
    count_stages,
    grade_nothing,
    open_what_is_here,
    refuse,
)
from souping.report.files import as_json
from souping.report.terminal import sheet_markdown, show_sheet


def plan(run: RunSettings) -> None:
    """Print and save the plan of a full run, `plan.json` and `plan.md` in its directory.

    Raises:
        LateError: the run cannot go on anywhere as it is configured; the plan is whole all the same.
    """
    if run.benchmark.opening:
        print(run.benchmark.opening, flush=True)
    check_settings(run)
    whole = make(run)
    parts = sections(whole)
    put(run.run_dir / "plan.json", as_json(as_dict(whole)).encode())
    put(run.run_dir / "plan.md", sheet_markdown(f"Plan of {run.name}", parts).encode())
    show_sheet(parts)
    print(f"saved as plan.md and plan.json in {nearby(run.run_dir)}")
    if not whole.reasons:
        print("this run can go on: leave plan=true out")
        return
    first = (whole.faults or whole.reasons)[0]
    more = f" (and {len(whole.reasons) - 1} more: see above)" if len(whole.reasons) > 1 else ""
    verdict = f"this run cannot go on here: {first}{more}"
    if whole.faults:
        raise LateError(verdict)
    print(verdict)


def make(run: RunSettings) -> Plan:
    """The plan. Opens the store where there is one, and writes nothing."""
    path = run.store_path if run.store_path.exists() else Path(":memory:")
    with Store(path) as store:
        return _Planner(run, store).plan()


@dataclass
class _Planner:
    """Plan in the making: what cannot be had here is `lacking`, what no machine would mend is in `faults`."""

    run: RunSettings
    store: Store
    lacking: list[Missing] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    items: tuple[Item, ...] = ()

    def plan(self) -> Plan:
        run, machine = self.run, look()
        models = [] if run.selects_from_table else model_sizes(run)
        beside = self._sides()
        evaluators = [] if run.selects_from_table else [run.evaluator, *(side.evaluator for side in beside)]
        folds = self._folds()
        read = folds is not None
        folds = folds or self._outlined()
        items = self.items if read else ()
        asked = [(run.evaluator, items), *((side.evaluator, side.items) for side in beside)]
        for complaint in complaints(run, folds.items if folds else {}, () if run.selects_from_table else asked):
            self._refused(complaint)
        names = tuple(candidate.name for candidate in run.pool.resolve())
        opened = (
            PlannedPool(names=names) if run.selects_from_table else open_what_is_here(run, models, self.store, asked)
        )
        if opened.opened is not None:
            run, beside = self._bound(opened.opened, beside)
        choice = self._choose(opened, folds)
        self.faults += [trouble for trouble in (opened.trouble, choice.trouble) if trouble]
        plan = Plan(run=run, machine=machine, models=models, opened=opened, choice=choice)
        plan.folds = folds.items if folds else {}
        plan.outlined = folds is not None and not read
        plan.notes = self._notes(opened, choice, folds if read else None)
        plan.stages = self._stages(plan, beside)
        plan.speeds = self._speeds(plan, beside)
        plan.requirements = requirements_of(run, models, machine, evaluators)
        needs = [] if run.selects_from_table else missing(run, models, machine, evaluators)
        plan.missing = once([*needs, *self.lacking])
        plan.faults = list(dict.fromkeys(self.faults))
        small = [requirement.sentence() for requirement in plan.requirements if not requirement.fits]
        plan.reasons = list(dict.fromkeys([*(one.sentence() for one in plan.missing), *plan.faults, *small]))
        return plan

    def _refused(self, error: UserError | OSError) -> None:
        """Something that a command would mend is lacking here; anything else is a fault of the settings."""
        one = Missing.from_error(UserError(said(error)))
        if one.mends:
            self.lacking.append(one)
        else:
            self.faults.append(said(error))

    def _sides(self) -> tuple[SideBenchmark, ...]:
        if self.run.selects_from_table:
            return ()
        try:
            return sides(self.run.also, self.run.evaluator, self.run.limit)
        except (UserError, OSError) as error:
            self._refused(error)
            return ()

    def _folds(self) -> Folds | None:
        """The folds, or None where the items cannot be had (an evaluator's own may lie elsewhere) or cut."""
        if self.run.selects_from_table:
            return None
        own = isinstance(self.run.benchmark, OwnBenchmark)
        try:
            benchmark = items_of(self.run.evaluator, self.run.benchmark)
            self.items = benchmark.items()
        except (UserError, OSError) as error:
            if own:
                self.lacking.append(Missing.from_error(UserError(said(error))))
            else:
                self._refused(error)
            return None
        try:
            return cut_folds(self.run, self.items)
        except UserError as error:
            self._refused(error)
            return None

    def _outlined(self) -> Folds | None:
        """The folds of a benchmark that is known by its published sizes alone; about as large as the real ones."""
        if not isinstance(self.run.benchmark, OwnBenchmark) or self.run.selects_from_table:
            return None
        items = self.run.evaluator.outline()
        return cut_folds(self.run, items) if items else None

    def _bound(self, pool: OpenPool, beside: Sequence[SideBenchmark]) -> tuple[RunSettings, tuple[SideBenchmark, ...]]:
        """The run and its side benchmarks, with what their evaluators take from the candidates' files."""
        try:
            own = pool.bound(self.run.evaluator)
            sides_bound = tuple(replace(side, evaluator=pool.bound(side.evaluator)) for side in beside)
        except UserError as error:
            self._refused(error)
            return self.run, tuple(beside)
        self.run = replace(self.run, evaluator=own)
        return self.run, sides_bound

    def _choose(self, opened: PlannedPool, folds: Folds | None) -> PlannedSelection:
        items = folds.items["select"] if folds else ()
        evaluation = self._evaluation(self.run.evaluator, opened)

        def stored(name: str) -> ItemScores | None:
            try:
                return evaluation.scores(opened.recipe({name: 1.0}), items)
            except (NotStoredError, UserError):
                return None

        try:
            return choose(self.run, opened.names, items, stored)
        except UserError as error:
            return PlannedSelection(basis="", sizes=(), trouble=str(error))

    def _evaluation(self, evaluator: Evaluator, opened: PlannedPool) -> Evaluation:
        return Evaluation(self.store, evaluator, refuse, opened.ends, lambda items: None, grade=grade_nothing)

    def _notes(self, opened: PlannedPool, choice: PlannedSelection, folds: Folds | None) -> list[str]:
        """What a reader of the report will have to know, as far as it is known."""
        flat = flat_categories(choice.scores) if choice.scores is not None else []
        return [*run_notes(self.run, opened.opened, folds), *flat]

    def _stages(self, plan: Plan, beside: Sequence[SideBenchmark]) -> list[PlannedStage]:
        """The very schedule that the run performs, counted."""
        if not plan.choice.sizes:
            return []
        evaluations = {side.name: self._evaluation(side.evaluator, plan.opened) for side in beside}
        schedule = Schedule(
            run=self.run, pool=plan.opened, folds=plan.folds, sides={side.name: side.items for side in beside}
        )
        evaluations[""] = self._evaluation(self.run.evaluator, plan.opened)
        try:
            return count_stages(schedule, plan.opened, plan.choice, evaluations)
        except UserError as error:
            self.faults.append(str(error))
            return []

    def _speeds(self, plan: Plan, beside: Sequence[SideBenchmark]) -> dict[str, Speed]:
        """{name of a side, or nothing for the run's own benchmark: speed}."""
        items = [item for fold in FOLDS for item in plan.folds.get(fold, ())]
        parameters = max((model.parameters for model in plan.models if not model.adapter), default=0)
        soups = [plan.opened.recipe({name: 1.0}).fingerprint for name in plan.opened.names]
        asked: list[tuple[str, Evaluator, Sequence[Item]]] = [("", self.run.evaluator, items)]
        asked += [(side.name, side.evaluator, side.items) for side in beside]
        speeds = {}
        for name, evaluator, own in asked:
            try:
                rate = speed(self.run, evaluator, own, parameters, plan.machine, self.store, soups)
            except UserError:  # an evaluator that lacks a part here
                rate = None
            if rate is not None:
                speeds[name] = rate
        return speeds
