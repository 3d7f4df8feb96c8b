"""Plan of a run (`souping plan`): the steps of the run, whose answers are only counted, and what is missing here.

The pool is opened as a run opens it (headers and tokenizers). Nothing is hashed, downloaded, evaluated or stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from souping.analysis.chance import selected
from souping.analysis.correlation import few_models
from souping.answers.counted_looks import CountedLooks
from souping.answers.evaluation import Evaluation
from souping.answers.store import IN_MEMORY, Store
from souping.checkpoints import hub
from souping.checkpoints.pool import ModelSize
from souping.core.files import dated_path, error_text, nearby, write_atomically
from souping.core.protocols import Evaluator, evaluator_fingerprint
from souping.core.reading import read
from souping.core.types import (
    OWN_BENCHMARK,
    SPLITS,
    Item,
    Items,
    Missing,
    ScoreMatrix,
    UserError,
    refuse_start,
)
from souping.evaluate.benchmark import Splits
from souping.merge.digests import StandIns
from souping.merge.soup_files import CARD, planned_files
from souping.plan.counting import CountedSteps, NotStoredError, PlannedPool, merged, not_stored
from souping.plan.page import plan_sections
from souping.plan.plan_content import Plan, as_dict
from souping.plan.speed import PlannedStage, Speed, checked_speed, speed
from souping.report.cells import Section
from souping.report.recipe import RecipeSummary
from souping.report.render import show_sheet
from souping.report.run_files import as_json
from souping.runs import checks
from souping.runs.execute import check_settings
from souping.runs.requirements import (
    Machine,
    machine_facts,
    missing_gpus,
    missing_packages,
    model_sizes,
    requirements_of,
)
from souping.runs.settings import RunSettings
from souping.runs.state import ExtraBenchmark
from souping.runs.steps import Candidates, extra_benchmarks
from souping.soups.card import soup_card
from souping.soups.models import RunPool
from souping.soups.upload import planned_upload


def make(run: RunSettings) -> Plan:
    """The plan of a run. It reads the run's store, if that exists, and writes nothing."""
    path = run.store_path
    # An empty one, in memory.
    if not path.exists():
        path = Path(IN_MEMORY)
    with Store(path) as store:
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
        # The run's pool if it can be opened here. `pool` is the same, or stands for it.
        self.opened: RunPool | None = None
        self.pool: Candidates = PlannedPool(candidates=run.pool.resolve())

    def plan(self) -> Plan:
        """The plan; its `reasons` are why the run cannot start here."""
        plan = Plan(run=self.run, machine=machine_facts())
        if self.run.selects_from_table:
            # A published table selects: nothing is evaluated, so there are no splits and no evaluators to check.
            self.faults += map(str, checks.refusals(self.run, {}, ()))
            self._select(plan)
            plan.notes = self._notes(plan, splits=None)
        else:
            self._plan_evaluations(plan)
        with self._attempt():
            plan.upload = self._upload(plan)
        # Several parts of the plan may meet the same error.
        plan.missing = unique_needs([*plan.missing, *self.lacking])
        plan.faults = list(dict.fromkeys(self.faults))
        # Faults first: they hold on any machine.
        reasons = [Missing(what=fault) for fault in plan.faults]
        reasons += plan.missing
        reasons += [requirement.lack() for requirement in plan.requirements if not requirement.fits]
        plan.reasons = list(dict.fromkeys(reasons))
        return plan

    def _plan_evaluations(self, plan: Plan) -> None:
        """Fill in the plan's items, pool, selection and stages, each as far as it is available here."""
        plan.models = model_sizes(self.run)
        with self._attempt():
            self.extra = extra_benchmarks(
                self.run.extra_benchmarks, self.run.evaluator, self.run.dry_run
            )
        splits = self._splits()
        outline = None if splits else self._outline()
        known_splits = splits or outline
        if known_splits:
            plan.splits = known_splits.items
        plan.outlined = outline is not None
        work = list(self._evaluators(self.items).values())
        for error in checks.refusals(self.run, plan.splits, work):
            self._add_error(error)
        # Models that have to be fetched first cannot be opened.
        if not any(model.trouble or model.download for model in plan.models):
            self._open(work)
        evaluators = [evaluator for evaluator, _ in work]
        plan.run = self.run
        self._select(plan)
        plan.notes = self._notes(plan, splits)
        plan.similarity = self.opened.similarity if self.opened else None
        plan.stages = self._stages(plan)
        plan.speeds = self._speeds(plan)
        written = self.opened.merge_pool.soup_bytes if self.opened else None
        plan.requirements = requirements_of(
            self.run, plan.models, plan.machine, evaluators, written
        )
        plan.missing = missing_here(self.run, plan.models, plan.machine, evaluators)

    def _upload(self, plan: Plan) -> Section | None:
        """What `upload=` would send, for a uniform soup of the selection or, before that, of all candidates."""
        run = self.run
        if run.upload is None:
            return None
        if self.opened is None:
            return Section(
                "Upload",
                (
                    f"What goes to {run.upload.repo} is known once all candidates can be opened here.",
                ),
            )
        names = plan.selection.ingredients if plan.selection else self.pool.names
        recipe = self.opened.uniform(names)
        # Nothing is searched, and files may not be hashed: id, weights and fingerprints (`base` is one) are not known.
        draft = {**recipe.as_dict(), "id": "to be found", "fingerprints": []}
        draft["weights"] = [None] * len(names)
        draft["settings"] = {key: recipe.settings[key] for key in recipe.settings if key != "base"}
        pool = self.opened.merge_pool
        summary = read(RecipeSummary, draft)
        text = soup_card(summary, folder=run.out.resolve(), base=pool.base_repo, loader=pool.loader)
        files = {**planned_files(pool, recipe), CARD: text.encode()}
        return planned_upload(run.upload, files, run.store_path)

    def _evaluators(self, items: Sequence[Item]) -> dict[str, tuple[Evaluator, Sequence[Item]]]:
        """{benchmark: (evaluator, items)}; `items` are those of OWN_BENCHMARK."""
        return {
            OWN_BENCHMARK: (self.run.evaluator, items),
            **{benchmark.name: (benchmark.evaluator, benchmark.items) for benchmark in self.extra},
        }

    def _add_error(self, error: UserError | OSError, is_local: bool = False) -> None:
        """Add an error to what this machine lacks if it `is_local`, else to the faults, which every machine would have.

        An error with a `fix` is local: before a run starts, fixes are packages to install and logins.
        """
        if not isinstance(error, UserError):
            error = UserError(error_text(error))
        is_local = is_local or bool(error.fix)
        if is_local:
            self.lacking.append(Missing.from_error(error))
        else:
            self.faults.append(str(error))

    @contextmanager
    def _attempt(self, is_local: bool = False) -> Iterator[None]:
        """Add an error of the block to what stops the run, and go on after the block."""
        try:
            yield
        except (UserError, OSError) as error:
            self._add_error(error, is_local)

    def _splits(self) -> Splits | None:
        """Read the items and cut them; None if that fails. An evaluator's own items may be on another machine."""
        with self._attempt(is_local=self.run.benchmark.from_evaluator):
            self.items = self.run.with_items().benchmark.items()
        if not self.items:
            return None
        with self._attempt():
            return checks.cut_splits(self.run, self.items)
        # Reached only if that failed: `_attempt` takes the error.
        self.items = ()
        return None

    def _outline(self) -> Splits | None:
        """The splits of a benchmark that is known by its published sizes alone; about as large as the real ones."""
        items = self.run.benchmark.outline(self.run.evaluator.prompts)
        return checks.cut_splits(self.run, items) if items else None

    def _open(self, work: Sequence[tuple[Evaluator, Sequence[Item]]]) -> None:
        """Open and check the pool, and give the evaluators what they take from its files.

        `work` are the evaluators with their items. What fails becomes a fault of the plan.
        """
        run = self.run
        try:
            pool = open_unhashed(run, self.store)
            checks.check_pool(run, pool, work)
        except (UserError, OSError) as error:
            self.faults.append(error_text(error))
            return
        self.opened = pool
        self.pool = pool
        with self._attempt():
            evaluator = pool.bound(run.evaluator)
            extra = []
            for benchmark in self.extra:
                extra.append(replace(benchmark, evaluator=pool.bound(benchmark.evaluator)))
            self.run = replace(run, evaluator=evaluator)
            self.extra = tuple(extra)

    def _evaluation(self, evaluator: Evaluator) -> Evaluation:
        """An evaluation that reads the store and computes nothing. Without a pool, no end tokens are known."""
        eos_token_ids = self.opened.eos_token_ids if self.opened else lambda recipe: ()
        return Evaluation(
            self.store,
            evaluator,
            serve=not_stored,
            ends=eos_token_ids,
            advance=lambda answered: None,
            grade=not_stored,
        )

    def _select(self, plan: Plan) -> None:
        """Select from published scores, or from the store if it has every candidate on the select split.

        Fills in the plan's scores, their basis, the selection and the possible numbers of ingredients.
        """
        run = self.run
        try:
            if run.scores.published:
                plan.scores = run.scores.matrix(self.pool.names, checks.not_measured)
                plan.basis = "published scores"
            else:
                plan.basis = "scores that must be measured first"
                plan.sizes = run.selector.sizes(len(self.pool.names))
                evaluation = self._evaluation(run.evaluator)
                # An answer is not stored, or the evaluator cannot start here: the scores are measured first.
                with suppress(NotStoredError, UserError):
                    plan.scores = self._stored_scores(evaluation, plan.splits.get("select", ()))
                if plan.scores is not None:
                    plan.basis = "the store, which has every candidate on the select split"
            if plan.scores is not None:
                # There is no possible number of ingredients if the selector refuses the scores.
                plan.sizes = ()
                plan.selection = selected(run.selector, plan.scores)
                plan.sizes = (len(plan.selection.ingredients),)
        except UserError as error:
            self.faults.append(str(error))

    def _stored_scores(self, evaluation: Evaluation, items: Items) -> ScoreMatrix | None:
        """Scores of the candidates on the `items` of the select split, None if there are no items here.

        Raises:
            NotStoredError: the store lacks an answer.
        """
        if not items:
            return None
        scores = {}
        for name in self.pool.names:
            scores[name] = evaluation.scores(self.pool.recipe({name: 1.0}), items)
        return ScoreMatrix.from_items(scores)

    def _notes(self, plan: Plan, splits: Splits | None) -> list[str]:
        """What a reader of the report will have to know, as far as it is known."""
        notes = list[str]()
        notes += self.run.pool.sentences
        notes += checks.run_notes(self.run, self.opened, splits)
        if plan.scores is not None:
            notes += checks.flat_categories(self.run.evaluator.unit, plan.scores)
        # A selection has this warning itself.
        elif self.run.selector.deciding_correlation and (
            warning := few_models(len(self.pool.names))
        ):
            notes.append(warning)
        if splits and self.run.stop_after is None and self.run.dry_run is None:
            announcement = CountedLooks(self.store).announcement(splits.items["test"])
            notes.append(
                announcement or "no report in this store has shown the items of the test split"
            )
        return list(dict.fromkeys(notes))

    def _stages(self, plan: Plan) -> list[PlannedStage]:
        """The stages of the run, counted once for each possible number of ingredients if the selection is not known.

        Any candidates stand for the ingredients then.
        """
        counted = list[list[PlannedStage]]()
        errors = list[UserError]()
        selections = [self.pool.names[:size] for size in plan.sizes]
        if plan.selection:
            selections = [plan.selection.ingredients]
        extra = {benchmark.name: benchmark.items for benchmark in self.extra}
        for ingredients in selections:
            evaluations = {}
            for name, (evaluator, _) in self._evaluators(()).items():
                evaluations[name] = self._evaluation(evaluator)
            steps = CountedSteps(plan, self.pool, extra, evaluations, ingredients)
            try:
                steps.walk()
                counted.append(steps.stages)
            except UserError as error:
                # A search may allow only some numbers of ingredients: the paper's grid ends at ten.
                errors.append(error)
        if not counted and errors:
            self.faults.append(str(errors[-1]))
        return merged(counted)

    def _speeds(self, plan: Plan) -> dict[str, Speed]:
        """{benchmark: speed}, including OWN_BENCHMARK, without benchmarks whose speed is not known."""
        items = list[Item]()
        for split in SPLITS:
            items += plan.splits.get(split, ())
        parameters = max(
            (model.parameters for model in plan.models if not model.adapter), default=0
        )
        singles = [self.pool.recipe({name: 1.0}).fingerprint for name in self.pool.names]
        speeds = {}
        for name, (evaluator, answered) in self._evaluators(items).items():
            # An evaluator that cannot start here has no speed.
            with suppress(UserError):
                key = evaluator_fingerprint(evaluator)
                stated = self.run.throughput
                measured = self.store.throughput(singles, key)
                # A check measures the run's own benchmark.
                rate = None
                if name == OWN_BENCHMARK and stated is None and measured is None:
                    rate = checked_speed(plan.models, key)
                if rate is None:
                    rate = speed(stated, measured, evaluator, answered, parameters, plan.machine)
                if rate is not None:
                    speeds[name] = rate
        return speeds


def open_unhashed(run: RunSettings, store: Store) -> RunPool:
    """The pool of a run as it is on this disk; a file that was never hashed counts as never evaluated."""
    candidates = []
    for candidate in run.pool.resolve():
        # A model of the Hub that is in its cache is read there.
        name = hub.parse_name(candidate.path)
        folder = hub.cached(name, run.merge.allow_pickle) if name else None
        if folder:
            candidate = replace(candidate, path=folder, source=hub.cached_name(folder) or "")
        candidates.append(candidate)
    return RunPool.fetch(
        candidates,
        run.merge,
        hashes=StandIns(store.hashes),
        stream=True,
        further_models=run.pool.further_models,
    )


def missing_here(
    run: RunSettings,
    models: Sequence[ModelSize],
    machine: Machine,
    evaluators: Sequence[Evaluator],
) -> list[Missing]:
    """The extras, environments, GPUs, models and login that a run needs and this machine lacks, each once."""
    from huggingface_hub import get_token

    needs = missing_packages(run, evaluators)
    needs += run.tracker.needs()
    needs += missing_gpus(evaluators, machine)
    needs += [Missing(what=model.trouble, fix=model.fix) for model in models if model.trouble]
    # Reading public models needs no login.
    if run.upload is not None and get_token() is None:
        needs.append(Missing(what="a login to the Hub, which upload= needs", fix="hf auth login"))
    return unique_needs(needs)


def unique_needs(needs: Iterable[Missing]) -> list[Missing]:
    """The needs without repetitions, as components may lack the same. Needs are equal by their command or, if they have
    none, by what is missing."""
    by_fix: dict[str, Missing] = {}
    for need in needs:
        by_fix.setdefault(need.fix or need.what, need)
    return list(by_fix.values())


def plan(run: RunSettings) -> None:
    """Print and save the plan of a run, as `outputs/NAME/plan_DATE_TIME.json`.

    Raises:
        LateError: the run cannot start here; the plan is saved all the same.
    """
    run_plan = checked_plan(run)
    sheet = plan_sections(run_plan)
    show_sheet(sheet)
    file = write_atomically(dated_path(run.name, "plan"), as_json(as_dict(run_plan)).encode())
    print(f"saved: {nearby(file)}")
    refuse_start(run_plan.reasons)
    print("This run can start: repeat the command without `plan`.")


def checked_plan(run: RunSettings) -> Plan:
    """The plan of a run whose settings do not contradict each other (UserError); prints the benchmark's banner."""
    if run.benchmark.banner:
        print(run.benchmark.banner, flush=True)
    check_settings(run)
    return make(run)
