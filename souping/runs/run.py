"""Run: performs the six steps, from the first score table to the soup.

What a step makes is in the state that it returns.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from souping.analysis.alternatives import best_by_category, routed, with_alternatives
from souping.analysis.chance import selected
from souping.analysis.guards import Admission, Guard, plan_guards, warnings_of
from souping.answers.claims import Claim, Look, Measurement, evaluator_digest
from souping.answers.counted_looks import CountedLooks
from souping.answers.report_choices import Choices
from souping.answers.store import Store
from souping.core.protocols import Tracker
from souping.core.reading import read
from souping.core.scores import Mean
from souping.core.types import (
    OWN_BENCHMARK,
    SPLITS,
    Items,
    ItemScores,
    Names,
    Recipe,
    ScoreMatrix,
    Selection,
    Split,
    Trial,
    UserError,
)
from souping.core.unit import Unit
from souping.merge.soup_files import CARD
from souping.report import tables
from souping.report.analysis_results import UserResult
from souping.report.content import ExpectedSummary, Report
from souping.report.progress import Progress
from souping.report.render import plain_table
from souping.report.run_files import (
    raw_result,
    search_summary,
    selection_summary,
    write_selection,
)
from souping.report.sections import ended
from souping.runs.analyses import analyse, missing_answers, report_scores, run_scores
from souping.runs.checks import flat_categories, prepare_run, run_notes
from souping.runs.evidence import (
    ContenderScores,
    VerdictTerms,
    best_mixture,
    compare_on,
    dry_verdict,
    gather_evidence,
    lost_answers,
    measured_soup,
)
from souping.runs.expected import check_expected, expected_sentence
from souping.runs.goals import check_tokens, declared, with_goals
from souping.runs.held_out import HeldOutItems, split_sizes
from souping.runs.run_report import card, final_report, frozen_report, run_cost
from souping.runs.settings import RunSettings
from souping.runs.state import Contender, Frozen, Reported, Searched, Selected
from souping.runs.steps import SEARCH, Stage, Steps
from souping.runs.verdict import planned_power, power_in_words
from souping.search.loop import result_of, trial_limit
from souping.soups.merge_only import soup_in, verify
from souping.soups.models import RunPool
from souping.statistics.power import Power


class TrialLog:
    """Gives trials to the tracker, and the best objective so far to the terminal."""

    def __init__(self, unit: Unit, tracker: Tracker, progress: Progress) -> None:
        self._unit = unit
        self._tracker = tracker
        self._progress = progress
        self._best = -math.inf

    def __call__(self, trial: Trial) -> None:
        unit = self._unit
        best = None
        # Trials on parts of the split do not compare.
        if trial.whole:
            self._best = max(self._best, trial.result.objective)
            best = unit.raw(self._best)
            # A digit more, so that small gains show.
            self._progress.trial(unit.level(best, more=1))
        self._tracker.log(replace(trial, result=raw_result(unit, trial.result), best=best))


class Run(Steps):
    """Run that evaluates."""

    def __init__(self, settings: RunSettings, store: Store, progress: Progress) -> None:
        """Check everything that can be refused before a model is loaded.

        Raises:
            UserError: settings, items, pool and machine do not fit each other.
        """
        prepared = prepare_run(settings, store, progress)
        extra = {name: benchmark.items for name, benchmark in prepared.benchmarks.items()}
        super().__init__(prepared.settings, prepared.pool, prepared.splits.items, extra)
        self.pool: RunPool = prepared.pool
        self.made_splits = prepared.splits
        self.store = store
        self.progress = progress
        self.benchmarks = prepared.benchmarks
        self.workers = prepared.workers
        self.evaluations = prepared.evaluations
        self.evaluation = prepared.evaluations[OWN_BENCHMARK]
        self.search_evaluation = prepared.search_evaluation
        # What a reader of the report must know; grows until the run ends.
        self.notes: list[str] = []
        self.counted_looks = CountedLooks(store)
        self.held_out = HeldOutItems(
            settings=prepared.settings,
            counted_looks=self.counted_looks,
            candidates={model.name: model.fingerprint for model in prepared.pool.candidates},
            note=self.note,
        )
        for sentence in settings.pool.sentences:
            progress.say(sentence)
        self.note(*run_notes(prepared.settings, prepared.pool, prepared.splits))

    def close(self) -> None:
        self.workers.close()
        self.pool.close()

    @property
    def unit(self) -> Unit:
        return self.settings.evaluator.unit

    @property
    def report_items(self) -> Items:
        """The items that the report of a new claim would be on, as far as the store knows before the search."""
        return self.counted_looks.new_items(self.splits["test"], self.settings.objective)

    def note(self, *notes: str) -> None:
        """Keep what a reader of the report must know, and print it now."""
        self.notes += notes
        for note in notes:
            self.progress.say(f"note: {note}")

    # ------------------------------------------------------------ stages

    def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
        return self._checked(stage, self._measure(stage))

    def _measure(self, stage: Stage, shown: Sequence[Measurement] = ()) -> list[ItemScores]:
        """Scores of a stage's models, in their order; nothing shows them yet.

        `shown` are the measurements with which a claim was shown before: their answers are reported again.
        """
        evaluation = self.evaluations[stage.benchmark]
        answers = len(stage.models) * len(stage.items) * evaluation.answers_per_item
        self.progress.stage(stage.name, answers=answers)
        if shown:
            return evaluation.scores_first_shown(stage.models, stage.items, shown)
        return evaluation.all_scores(stage.models, stage.items)

    def _checked(self, stage: Stage, measured: Sequence[ItemScores]) -> dict[str, ItemScores]:
        """{recipe id: scores} from the scores of a stage's models, in their order; warns of lost answers."""
        check_tokens(self.settings, stage, measured)
        by_model = {}
        by_id = {}
        for recipe, scores in zip(stage.models, measured, strict=True):
            name = f"soup {recipe.id}"
            if len(recipe.ingredients) == 1:
                name = recipe.ingredients[0]
            by_model[name] = scores
            by_id[recipe.id] = scores
        length_key = self.evaluations[stage.benchmark].length_key
        self.note(*lost_answers(by_model, stage.name, length_key))
        return by_id

    def _by_candidate(self, stage: Stage) -> dict[str, ItemScores]:
        """{candidate: scores} of a stage of single models."""
        scores = self.evaluate_stage(stage)
        return {recipe.ingredients[0]: scores[recipe.id] for recipe in stage.models}

    # ------------------------------------------------------------ score and select

    def choose(self) -> Selected | Searched | Frozen:
        """Print what a reader should know before the first step, then take the steps to the soup."""
        reports = self.settings.dry_run is None and self.settings.stop_after is None
        if reports and not _repeats(self.settings.run_dir):
            announcement = self.counted_looks.announcement(self.report_items)
            if announcement:
                self.progress.say(announcement)
        if banner := self.settings.evaluator.prompts.banner():
            self.progress.say(banner)
        return super().choose()

    def check_expected(self, stage: Stage) -> ExpectedSummary:
        """Stop, or warn, if a candidate does not score as expected, before anything else costs time."""
        settings = self.settings
        expected_check = check_expected(
            self.unit,
            settings.expected,
            self._by_candidate(stage),
            settings.objective,
            settings.expected_mismatch,
            stage.split,
        )
        sentence = expected_sentence(expected_check)
        if expected_check.passed:
            self.progress.say(sentence)
            return expected_check
        self.progress.show(plain_table(tables.expected_scores(self.unit, expected_check)))
        if settings.expected_mismatch == "error":
            raise UserError(
                f"{sentence}\nthe answers are in the store; expected_mismatch=warn continues"
            )
        # The table was printed in its place.
        self.notes.append(sentence)
        return expected_check

    def select(self, stage: Stage | None) -> Selected:
        """The ingredients by the candidates' answers or, without a stage, by published scores, and the power of the
        test. The run's first score table is made here."""
        answers = dict[str, ItemScores]()
        if stage is not None:
            self._remember_choice("select")
            answers = self._by_candidate(stage)
        # Published scores do not call the function.
        scores = self.settings.scores.matrix(
            self.pool.names, lambda: ScoreMatrix.from_items(answers)
        )
        self.note(*flat_categories(self.unit, scores))
        selection = choose_ingredients(self.settings, scores, self.progress)
        return Selected(selection=selection, scores=scores, power=self._power(scores))

    def _power(self, scores: ScoreMatrix) -> Power | None:
        """What the test split can show, which is also printed; None for a dry run or without a formula for it."""
        settings = self.settings
        if settings.dry_run is not None or not settings.objective.linear:
            return None
        power = planned_power(settings, scores, self.report_items)
        # Equal answers tell nothing of the variance of a difference.
        if power is None:
            self.progress.say("all candidates gave the same answers")
        else:
            self.progress.say(power_in_words(power, self.unit))
        return power

    # ------------------------------------------------------------ search

    def open_guards(self, selected: Selected, guards: tuple[Guard, ...], stage: Stage) -> Selected:
        """The selection with its guards. They compare a soup with the candidate that `guard_baseline` names, or else
        with the best candidate on `stage`."""
        singles = self._by_candidate(stage)
        named_candidate = self.settings.guard_reference(self.pool.candidates)
        against = named_candidate or self._best_of(singles)
        self.note(*warnings_of(plan_guards(guards, self.guarded_items, singles)))
        admission = Admission(guards=guards, against=against, reference=singles[against])
        return replace(selected, admission=admission, singles=singles)

    def search(self, selected: Selected) -> Searched:
        """Search for the best weights, then apply guards and goals; prints the choice."""
        self._remember_choice("search")
        ingredients = selected.selection.ingredients
        log = TrialLog(self.unit, self.settings.tracker, self.progress)
        if len(ingredients) == 1:
            self.progress.say(
                f"{ingredients[0]} is the expert for every category: there is nothing to soup"
            )
            winner = self.find_weights(self.search_evaluation, selected, log)
            searched = Searched(selected=selected, winner=winner)
        else:
            # A stage of its own on the terminal: the search finds these answers in the store.
            if stage := self.ingredient_stage(ingredients):
                self.evaluate_stage(stage)
            self._announce(ingredients)
            winner = self.find_weights(self.search_evaluation, selected, log)
            searched = with_goals(self, selected, winner, log)
        self._say_choice(searched)
        return searched

    def _remember_choice(self, split: Split) -> None:
        """Note in the store, before this split decides anything or a dry run shows it, that candidates and their soups
        compete on it."""
        fingerprints = [candidate.fingerprint for candidate in self.pool.candidates]
        self.counted_looks.note_search(fingerprints, self.splits[split])

    def _announce(self, ingredients: Names) -> None:
        """Say what the search is about to evaluate."""
        optimiser = self.settings.optimiser
        size = len(ingredients)
        items = len(self.splits["search"])
        self.progress.say(f"search: {optimiser.describe(size)}, on {items:,} items")
        # The number of soups is not known if they answer parts of the split.
        trials: int | None = None
        answers: int | None = None
        if optimiser.workload(size, items) is None:
            trials = trial_limit(optimiser, size, items)
        if trials:
            answers = trials * items * self.evaluation.answers_per_item
        self.progress.stage(SEARCH, answers=answers, trials=trials)

    def _say_choice(self, searched: Searched) -> None:
        """Print the soup that was chosen, why the search ended, and what the guards changed."""
        winner = searched.winner
        shares = winner.recipe.shares
        soup = " + ".join(f"{weight:.3g} {name}" for name, weight in shares.items())
        score = self.unit.level(self.unit.raw(winner.result.objective))
        self.progress.end_stage()
        self.progress.say(f"search: chose {soup}, {score} on the search split")
        if words := ended(search_summary(self.unit, winner.summary)):
            self.progress.say(words)
        if searched.guards is not None:
            self.note(f"compared with {searched.guards.against}, {searched.guards.sentence}")

    def _best_of(self, scores: Mapping[str, ItemScores]) -> str:
        """The candidate with the best objective; of equals, the first of the pool."""
        objectives = {}
        for name, item_scores in scores.items():
            result = result_of(item_scores, self.settings.objective)
            # Sums in another order differ in the last digits.
            objectives[name] = round(result.objective, 12)
        return max(objectives, key=lambda name: objectives[name])

    # ------------------------------------------------------------ write

    def write(self, searched: Searched, stage: Stage) -> Frozen:
        """Write the soup, whole or not at all, with a card that has no numbers: the test split is still closed."""
        # With guards, the search needed these scores already.
        singles = searched.selected.singles or self._by_candidate(stage)
        frozen = Frozen(
            searched=searched,
            report=frozen_report(self.settings, self.made_splits, searched),
            choices=self._choices(searched.selected, self._best_of(singles)),
            singles=singles,
        )
        # One ingredient is a candidate, which has a folder.
        if len(searched.selected.selection.ingredients) == 1:
            return frozen
        return self._write_soup(frozen)

    def _choices(self, selected: Selected, best: str) -> Choices:
        """The candidates of the report's other rows: the best one, the members of the top-K soup, and the routes."""
        # Only plans, and states that are read from a finished run's files, lack them.
        assert selected.scores is not None
        ingredients = selected.selection.ingredients
        categories = [item.category for item in self.splits["test"]]
        top: Names = ()
        if len(ingredients) > 1:
            top = self.uniform_best(selected).ingredients
        routes = best_by_category(ingredients, selected.scores, categories)
        return Choices(best=best, top=top, routes=routes)

    def _write_soup(self, frozen: Frozen) -> Frozen:
        """The state with the soup's folder and card. The folder is written, or verified if it is there already."""
        settings = self.settings
        recipe = frozen.searched.winner.recipe
        report = replace(frozen.report, rebuild=settings.rebuild_command)
        pool = self.pool.merge_pool
        text = card(report, settings.out.resolve(), pool.base_repo, pool.loader)
        # A run that `ask` continues may have written it before.
        if soup_in(settings.out) is not None:
            self.progress.stage("write: verifying the existing soup")
            verify(self.pool, recipe, settings.out)
        else:
            self.progress.stage("write: the soup; its weights are fixed from here on")
            self.pool.merge_pool.write(recipe, settings.out, extra_files={CARD: text})
        return replace(frozen, report=report, soup_folder=settings.out, card=text)

    # ------------------------------------------------------------ test

    def measure(self, frozen: Frozen) -> Reported:
        """Test and analyse. A soup that was reported before meets the other models of its first report again."""
        claim = self.held_out.report_claim(frozen.searched.winner.recipe, self.splits["test"])
        choices = self.held_out.first_choices(claim, frozen.choices)
        if choices != frozen.choices:
            self.note(
                f"this soup was tested before: best candidate ({choices.best}), top-K soup and router are those of "
                "the first test"
            )
        return super().measure(replace(frozen, claim=claim, choices=choices))

    def test(self, frozen: Frozen, stage: Stage, contenders: Sequence[Contender]) -> Reported:
        """Open the test split for the frozen recipe and compare; the store has the look before anything is shown."""
        searched = frozen.searched
        guards = declared(searched.selected.admission)
        # A dry run counts no look.
        look = Look(1, first=False, guards=guards)
        report = frozen.report
        claim = frozen.claim
        # `measure` gave it.
        assert claim is not None
        if self.settings.dry_run is not None:
            stage = replace(stage, items=claim.items)
            # Other splits may have these items in their test split.
            self._remember_choice("test")
            scores = self._measure(stage)
        else:
            stage = replace(stage, items=self.held_out.items_of(claim))
            report = replace(
                report, splits=split_sizes(self.made_splits.counts(), claim, stage.items)
            )
            look, scores = self.held_out.open(
                claim, stage, self.evaluation, self._measure, guards, frozen.choices
            )
        state = Reported(
            frozen=frozen,
            report=report,
            items=stage.items,
            contenders=tuple(contenders),
            look=look,
            measured={OWN_BENCHMARK: self._checked(stage, scores)},
            analyses=searched.analyses,
        )
        return self._compare(state)

    def _compare(self, state: Reported) -> Reported:
        """The state with what the answers to the test items say of the soup in its report, and with the router."""
        winner = state.searched.winner
        routes = state.frozen.choices.routes
        measured = state.measured[OWN_BENCHMARK]
        # {ingredient: scores on the test split}
        ingredients = {}
        for name in state.searched.selected.selection.ingredients:
            ingredients[name] = measured[self.single(name).id]
        # Routes of an earlier report may lead to other candidates.
        routed_to = {name: measured[self.single(name).id] for name in routes.values()}
        router = routed({**ingredients, **routed_to}, routes, self.pool.names)
        state = replace(state, router=router)
        report = with_alternatives(
            self._with_evidence(state),
            winner.result.objective,
            measured[winner.recipe.id],
            ingredients,
            router,
            self.settings.objective,
        )
        of_pool = self.settings.pool.report(measured_soup(self, state))
        if of_pool:
            report = read(Report, {**report.to_json(), **of_pool})
        return replace(state, report=report)

    def _with_evidence(self, state: Reported) -> Report:
        """The report with rows, differences and verdict.

        If guards refused every soup, the verdict says so; the verdict of a dry run says that nothing is claimed.
        """
        settings = self.settings
        winner = state.searched.winner
        ingredients = state.searched.selected.selection.ingredients
        scores = state.measured[OWN_BENCHMARK]
        # The soup is the last row (`Steps.contenders`).
        *others, soup = state.contenders
        # A router that is one of the models has its measured scores.
        if state.router is not None and len(ingredients) > 1:
            router = self.router_row(state.router)
            others.append(router)
            scores = {router.recipe.id: state.router.scores, **scores}
        models = ContenderScores(
            unit=self.unit,
            soup=soup,
            others=others,
            scores=scores,
            objective=settings.objective,
            look=state.look.number,
            known=self.held_out.family_scores(state.look, state.items, self.unit),
        )
        terms = VerdictTerms(
            selected=ingredients,
            margin=settings.inner_min_gain,
            mixture=best_mixture(winner, self.splits["search"], settings.objective),
            length_key=settings.evaluator.sampling.length_key,
        )
        report = gather_evidence(state.report, models, terms)
        if settings.dry_run is None:
            self.held_out.note_pairs(models)
        verdict = report.verdict
        assert verdict is not None
        guards = state.searched.guards
        if guards is not None and guards.refused and verdict.claim == "keep_candidate":
            sentence = f"Keep {winner.recipe.ingredients[0]}: {guards.sentence}."
            verdict = replace(verdict, sentence=sentence)
        if settings.dry_run is not None:
            verdict = dry_verdict(verdict, settings.dry_run)
        return replace(report, verdict=verdict)

    def extra_benchmark(self, state: Reported, stage: Stage) -> Reported:
        """Compare the soup with its ingredients on another benchmark, which has its own looks; the state with that."""
        searched = state.searched
        soup = searched.winner.recipe
        names = searched.selected.selection.ingredients
        ingredients = {name: self.single(name) for name in names}
        benchmark = self.benchmarks[stage.benchmark]
        claim = Claim(
            soup=soup,
            candidates=tuple(recipe.fingerprints[0] for recipe in ingredients.values()),
            evaluator=evaluator_digest(benchmark.evaluator),
            objective=Mean(),
            items=stage.items,
        )
        stage = replace(stage, items=self.held_out.items_of(claim))
        evaluation = self.evaluations[stage.benchmark]
        look, scores = self.held_out.open(claim, stage, evaluation, self._measure)
        measured = self._checked(stage, scores)
        # Items that the run's own benchmark has too.
        run_items = itertools.chain.from_iterable(self.splits[split] for split in SPLITS)
        prompts = {str(item.prompt) for item in run_items}
        result = compare_on(
            replace(benchmark, items=stage.items),
            soup,
            ingredients,
            measured,
            look.number,
            self.held_out.family_scores(look, stage.items, benchmark.evaluator.unit),
            shared=sum(str(item.prompt) in prompts for item in stage.items),
        )
        results = (*(state.report.extra_benchmarks or ()), result)
        return replace(
            state,
            report=replace(state.report, extra_benchmarks=results),
            measured={**state.measured, stage.benchmark: measured},
        )

    # ------------------------------------------------------------ analyse

    def analyse(self, state: Reported, name: str, stage: Stage) -> Reported:
        """Evaluate what an analysis needs; the state with its result. An analysis that fails never ends the run."""
        analysis = self.settings.analyses[name]
        if state.stored is None:
            state = replace(state, stored=report_scores(self.evaluation, state))
        try:
            if models := self.lacking(stage):
                self.evaluate_stage(replace(stage, models=models))
            result = analyse(analysis, run_scores(self, self.evaluation, state, stage.models))
        # An evaluator may refuse to answer, for example.
        except UserError as error:
            result = UserResult(failed=str(error))
        return replace(state, analyses={**state.analyses, name: result})

    def lacking(self, stage: Stage) -> tuple[Recipe, ...]:
        """The models of an analysis (`stage`) that lack answers. Prints how many answers are to evaluate."""
        if not stage.models:
            return ()
        missing = missing_answers(self.evaluation, stage)
        soups = sum(answers > 0 for answers in missing)
        self.progress.say(
            f"{stage.name}: {soups} of {len(stage.models)} soups lack answers on the {len(stage.items)} "
            f"items of the search split: {sum(missing):,} answers to evaluate"
        )
        pairs = zip(stage.models, missing, strict=True)
        return tuple(model for model, answers in pairs if answers)

    def finish(self, state: Reported) -> Report:
        """The report after the last step."""
        warnings = list(self.notes)
        scores = state.searched.selected.scores
        if scores is not None and scores.published:
            warnings.append(
                "selection saw published scores: the benchmark's own test set chose the ingredients"
            )
        self.progress.stage("analyse: stability of the selection")
        report = final_report(self, state, warnings)
        evaluations = self.evaluations.values()
        cost = run_cost(self.settings, state.searched.winner, evaluations, self.workers.lost)
        similarity = self.pool.similarity_of(state.searched.winner.recipe.shares)
        cost = replace(cost, unchecked_weights=tuple(self.pool.unchecked_weights) or None)
        return replace(report, cost=cost, similarity=similarity)


def choose_ingredients(settings: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    """Select the ingredients, print them with what a reader must know of the choice, and write selection.json."""
    progress.stage("select: ingredients")
    selection = selected(settings.selector, scores)
    progress.say(f"select: {', '.join(selection.ingredients)}")
    for note in selection.notes:
        progress.say(f"note: {note}")
    unit = settings.evaluator.unit
    summary = selection_summary(unit, selection, scores)
    write_selection(unit, summary, settings.dry_run, settings.run_dir / "selection.json")
    return selection


def _repeats(run_dir: Path) -> bool:
    """Whether another run in the same parent folder reported with the same configuration: its claim is most likely the
    same."""
    config = run_dir / "config.yaml"
    if not config.is_file():
        return False
    for report in run_dir.absolute().parent.glob("*/report.json"):
        earlier = report.with_name("config.yaml")
        if earlier != config and earlier.is_file() and earlier.read_bytes() == config.read_bytes():
            return True
    return False
