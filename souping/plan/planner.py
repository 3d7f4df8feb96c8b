"""Plan of a run (`plan=true`): the steps of the run with an `answer` that counts, and what is missing on this machine.

The pool is opened as a run opens it (headers and tokenizers). Nothing is hashed, downloaded, evaluated or stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from souping.checkpoints import hub
from souping.core.files import error_text, nearby, write_atomically
from souping.core.protocols import Evaluator
from souping.core.types import FOLDS, Item, Items, LateError, Missing, ScoreMatrix, UserError
from souping.evaluate.benchmark import Folds, OwnBenchmark
from souping.evaluate.identity import fingerprint
from souping.merge.digests import StandIns
from souping.pipeline import checks
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.execute import check_settings
from souping.pipeline.models import OpenPool
from souping.pipeline.settings import RunSettings, items_of
from souping.pipeline.state import ExtraBenchmark
from souping.pipeline.steps import extra_benchmarks
from souping.pipeline.store import IN_MEMORY, Store
from souping.plan.content import Plan, as_dict
from souping.plan.counting import CountedSteps, NamedPool, NotStoredError, merged, not_stored
from souping.plan.page import sections
from souping.plan.speed import Speed, speed
from souping.plan.stages import PlannedStage
from souping.report.files import as_json
from souping.report.render import sheet_markdown, show_sheet
from souping.search.loop import RecipeSource


def make(run: RunSettings) -> Plan:
    """The plan. Reads the store if there is one, and writes nothing."""
    with Store(run.store_path if run.store_path.exists() else Path(IN_MEMORY)) as store:
        return _Planner(run, store).plan()


class _Planner:
    """Collects what is missing here (`lacking`) and what no machine would fix (`faults`)."""

    def __init__(self, run: RunSettings, store: Store) -> None:
        self.run = run
        self.store = store
        self.lacking: list[Missing] = []
        self.faults: list[str] = []
        self.items: Items = ()
        self.extra: tuple[ExtraBenchmark, ...] = ()
        self.opened: OpenPool | None = None
        names = tuple(candidate.name for candidate in run.pool.resolve())
        self.pool: RecipeSource = NamedPool(names=names)

    def plan(self) -> Plan:
        plan = Plan(run=self.run, machine=checks.machine_facts())
        if self.run.selects_from_table:
            self.faults += map(str, checks.refusals(self.run, {}, ()))
            self._select(plan)
            plan.notes = self._notes(plan, None)
        else:
            self._plan_evaluations(plan)
        plan.faults = list(dict.fromkeys(self.faults))
        small = [requirement.lack() for requirement in plan.requirements if not requirement.fits]
        plan.reasons = list(
            dict.fromkeys([*plan.missing, *(Missing(what=fault) for fault in plan.faults), *small])
        )
        return plan

    def _plan_evaluations(self, plan: Plan) -> None:
        """Items, pool, selection and stages, each as far as it is available here."""
        plan.models = checks.model_sizes(self.run)
        with self._attempt():
            self.extra = extra_benchmarks(self.run.also, self.run.evaluator, self.run.limit)
        folds = self._folds()
        outlined = None if folds else self._outlined()
        cut = folds or outlined
        work = [(evaluator, items) for evaluator, items in self._evaluators(self.items).values()]
        for error in checks.refusals(self.run, cut.items if cut else {}, work):
            self._refused(error)
        if not any(model.trouble or model.download for model in plan.models):
            self._open(work)
        evaluators = [evaluator for evaluator, _ in work]
        plan.run = self.run
        plan.folds = cut.items if cut else {}
        plan.outlined = outlined is not None
        self._select(plan)
        plan.notes = self._notes(plan, folds)
        plan.similarity = self.opened.similarity if self.opened else None
        plan.stages = self._stages(plan)
        plan.speeds = self._speeds(plan)
        plan.requirements = checks.requirements_of(self.run, plan.models, plan.machine, evaluators)
        plan.missing = checks.once(
            [*checks.missing(self.run, plan.models, plan.machine, evaluators), *self.lacking]
        )

    def _evaluators(self, items: Sequence[Item]) -> dict[str, tuple[Evaluator, Sequence[Item]]]:
        """{extra benchmark: (evaluator, items)}, the run's own under an empty name."""
        return {
            "": (self.run.evaluator, items),
            **{benchmark.name: (benchmark.evaluator, benchmark.items) for benchmark in self.extra},
        }

    def _refused(self, error: UserError | OSError, missing: bool = False) -> None:
        """If something is `missing`, or the error has a remedy here; else it is a fault of the settings."""
        refused = error if isinstance(error, UserError) else UserError(error_text(error))
        if refused.fix or missing:
            self.lacking.append(Missing.from_error(refused))
        else:
            self.faults.append(error_text(error))

    @contextmanager
    def _attempt(self, missing: bool = False) -> Iterator[None]:
        try:
            yield
        except (UserError, OSError) as error:
            self._refused(error, missing)

    def _folds(self) -> Folds | None:
        """None if the items cannot be read (an evaluator's own may be elsewhere) or cut."""
        with self._attempt(missing=isinstance(self.run.benchmark, OwnBenchmark)):
            self.items = items_of(self.run.evaluator, self.run.benchmark).items()
        with self._attempt():
            return checks.cut_folds(self.run, self.items) if self.items else None
        self.items = ()
        return None

    def _outlined(self) -> Folds | None:
        """The folds of a benchmark that is known by its published sizes alone; about as large as the real ones."""
        items: Sequence[Item] = ()
        if isinstance(self.run.benchmark, OwnBenchmark):
            items = self.run.evaluator.prompts.outline()
        return checks.cut_folds(self.run, items) if items else None

    def _open(self, work: Sequence[tuple[Evaluator, Sequence[Item]]]) -> None:
        run = self.run
        try:
            pool = open_unhashed(run, self.store)
            checks.check_pool(run, pool, work)
        except (UserError, OSError) as error:
            self.faults.append(error_text(error))
            return
        self.opened = self.pool = pool
        with self._attempt():
            evaluator = pool.bound(run.evaluator)
            extra = tuple(
                replace(benchmark, evaluator=pool.bound(benchmark.evaluator))
                for benchmark in self.extra
            )
            self.run = replace(run, evaluator=evaluator)
            self.extra = extra

    def _evaluation(self, evaluator: Evaluator) -> Evaluation:
        ends = self.opened.eos_token_ids if self.opened is not None else lambda recipe: ()
        return Evaluation(
            self.store, evaluator, not_stored, ends, lambda items: None, grade=not_stored
        )

    def _select(self, plan: Plan) -> None:
        """Select from published scores, or from the store if it has every candidate on the select fold."""
        run = self.run
        names = self.pool.names
        items = plan.folds.get("select", ())
        try:
            if run.scores.published:
                plan.scores = run.scores.matrix(names, checks.not_measured)
                plan.basis = "published scores"
            else:
                plan.basis = "scores that must be measured first"
                plan.sizes = run.selector.sizes(len(names))
                evaluation = self._evaluation(run.evaluator)
                with suppress(NotStoredError, UserError):
                    if items:
                        scores = {
                            name: evaluation.scores(self.pool.recipe({name: 1.0}), items)
                            for name in names
                        }
                        plan.scores = ScoreMatrix.from_items(scores)
                        plan.basis = "the store, which has every candidate on the select fold"
            if plan.scores is not None:
                plan.sizes = ()
                plan.selection = run.selector.select_checked(plan.scores)
                plan.sizes = (len(plan.selection.ingredients),)
        except UserError as error:
            self.faults.append(str(error))

    def _notes(self, plan: Plan, folds: Folds | None) -> list[str]:
        """What a reader of the report will have to know, as far as it is known."""
        flat = (
            checks.flat_categories(self.run.evaluator.unit, plan.scores)
            if plan.scores is not None
            else []
        )
        trajectory = self.run.pool.trajectory
        notes = [
            *(trajectory.sentences if trajectory else []),
            *checks.run_notes(self.run, self.opened, folds),
            *flat,
        ]
        return list(dict.fromkeys(notes))

    def _stages(self, plan: Plan) -> list[PlannedStage]:
        """The steps counted, with an open selection once for each possible number of ingredients."""
        counted = list[list[PlannedStage]]()
        errors = list[UserError]()
        chosen = (
            [plan.selection.ingredients]
            if plan.selection
            else [self.pool.names[:size] for size in plan.sizes]
        )
        extra = {benchmark.name: benchmark.items for benchmark in self.extra}
        for ingredients in chosen:
            evaluations = {
                name: self._evaluation(evaluator)
                for name, (evaluator, _) in self._evaluators(()).items()
            }
            steps = CountedSteps(plan, self.pool, extra, evaluations, ingredients)
            try:
                steps.walk()
                counted.append(steps.stages)
            except UserError as error:  # the paper's grid ends at ten ingredients
                errors.append(error)
        if not counted and errors:
            self.faults.append(str(errors[-1]))
        return merged(counted)

    def _speeds(self, plan: Plan) -> dict[str, Speed]:
        """{extra benchmark: speed}, the run's own under an empty name."""
        items = [item for fold in FOLDS for item in plan.folds.get(fold, ())]
        parameters = max(
            (model.parameters for model in plan.models if not model.adapter), default=0
        )
        singles = [self.pool.recipe({name: 1.0}).fingerprint for name in self.pool.names]
        speeds = {}
        for name, (evaluator, answered) in self._evaluators(items).items():
            with suppress(UserError):  # an evaluator that cannot start here
                measured = self.store.throughput(singles, fingerprint(evaluator))
                rate = speed(
                    self.run.throughput, measured, evaluator, answered, parameters, plan.machine
                )
                if rate is not None:
                    speeds[name] = rate
        return speeds


def open_unhashed(run: RunSettings, store: Store) -> OpenPool:
    """The pool of a run as it is on this disk; a file that was never hashed counts as never evaluated."""
    candidates = []
    for candidate in run.pool.resolve():
        name = hub.parse(candidate.path)
        here = hub.cached(name, run.merge.allow_pickle) if name else None
        candidates.append(replace(candidate, path=here) if here else candidate)
    trajectory = run.pool.trajectory
    more = trajectory.models if trajectory else ()
    return OpenPool.fetch(
        candidates, run.merge, hashes=StandIns(store.hashes), more=more, stream=True
    )


def plan(run: RunSettings) -> None:
    """Print and save the plan of a run, `plan.json` and `plan.md` in its directory.

    Raises:
        LateError: the run cannot go on anywhere as it is configured; the plan is saved all the same.
    """
    run_plan = checked_plan(run)
    shown = sections(run_plan)
    write_atomically(run.run_dir / "plan.json", as_json(as_dict(run_plan)).encode())
    write_atomically(run.run_dir / "plan.md", sheet_markdown(f"Plan of {run.name}", shown).encode())
    show_sheet(shown)
    print(f"saved as plan.md and plan.json in {nearby(run.run_dir)}")
    if not run_plan.reasons:
        print("This run can start: repeat the command without `plan`.")
        return
    first = run_plan.faults[0] if run_plan.faults else run_plan.reasons[0].sentence()
    more = (
        f" (and {len(run_plan.reasons) - 1} more, see above)" if len(run_plan.reasons) > 1 else ""
    )
    verdict = f"this run cannot start here: {first}{more}"
    if run_plan.faults:
        raise LateError(verdict)
    print(verdict)


def checked_plan(run: RunSettings) -> Plan:
    if run.benchmark.banner:
        print(run.benchmark.banner, flush=True)
    check_settings(run)
    return make(run)
