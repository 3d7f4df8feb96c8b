"""Run: performs the six steps, writes the soup, and keeps what the report says."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from souping.analysis import RunScores
from souping.analysis.alternatives import RoutedAnswers, alternatives, routed
from souping.analysis.correlation import stability
from souping.analysis.guards import (
    GUARDS,
    Admission,
    Guard,
    GuardsResult,
    plan_guards,
    warnings_of,
)
from souping.analysis.significance import Power, power_of
from souping.core.files import write_atomically
from souping.core.reading import read, to_json
from souping.core.scores import Mean
from souping.core.system import provenance
from souping.core.types import (
    FOLDS,
    Fold,
    Item,
    ItemScores,
    Recipe,
    ScoreMatrix,
    Selection,
    Trial,
    UserError,
)
from souping.merge.soup_files import RECIPE
from souping.pipeline.analyses import analyse, missing_answers, run_scores, stored_answers
from souping.pipeline.checks import (
    check_machine,
    check_pool,
    cut_folds,
    flat_categories,
    refusals,
    run_notes,
)
from souping.pipeline.claims import Claim, Look
from souping.pipeline.evaluation import Evaluation, EvaluatorWorker, open_worker
from souping.pipeline.evidence import (
    Contender,
    best_mixture,
    check_expected,
    choose,
    compare_on,
    dry_verdict,
    gate_sentence,
    gather,
    lost_answers,
)
from souping.pipeline.goals import (
    check_tokens,
    declared,
    guard_checks,
    guard_names,
    search_again,
    with_goals,
)
from souping.pipeline.ledger import Ledger
from souping.pipeline.merge_only import soup_in, verify
from souping.pipeline.models import OpenPool
from souping.pipeline.opening import Opening, item_counts
from souping.pipeline.settings import RunSettings
from souping.pipeline.steps import SEARCH, Stage, Steps, extra_benchmarks
from souping.pipeline.store import Store
from souping.pipeline.training_run import trajectory_evidence
from souping.pipeline.upload import card, replace_card
from souping.report import tables
from souping.report.analyses import AnalysisResult, UserResult
from souping.report.content import GateSummary, Report, TrialRow
from souping.report.files import as_json, raw_result, search_summary, selection_dict, trial_rows
from souping.report.progress import Progress
from souping.report.render import plain_table
from souping.report.sections import ended
from souping.search.loop import SearchResult, result_of, trial_limit


class Run(Steps):
    """Run that evaluates. Each step keeps its result in an attribute, which does not exist before."""

    selection: Selection
    winner: SearchResult

    def __init__(self, settings: RunSettings, store: Store, progress: Progress) -> None:
        """Check everything that can be refused before a model is loaded.

        Raises:
            UserError: settings, items, pool and machine do not fit each other.
        """
        self.items = items = settings.benchmark.items()
        self.cut = cut_folds(settings, items)
        extra = extra_benchmarks(settings.also, settings.evaluator, settings.limit)
        pairs = [(settings.evaluator, items), *((one.evaluator, one.items) for one in extra)]
        for error in refusals(settings, self.cut.items, pairs):
            raise error
        check_machine(settings, [evaluator for evaluator, _ in pairs])
        candidates, found = settings.pool.resolve(), settings.pool.trajectory
        more = found.models if found else ()
        pool = OpenPool(candidates, settings.merge, store, aside=progress.aside, more=more)
        check_pool(settings, pool, pairs)
        settings = replace(settings, evaluator=pool.bound(settings.evaluator))
        extra = tuple(replace(one, evaluator=pool.bound(one.evaluator)) for one in extra)
        super().__init__(settings, pool, self.cut.items, {one.name: one.items for one in extra})
        self.pool, self.store, self.progress, self.ledger = pool, store, progress, Ledger(store)
        self.opening = Opening(
            settings=settings,
            ledger=self.ledger,
            candidates=tuple(candidate.fingerprint for candidate in pool.candidates),
            note=self.note,
        )
        self.benchmarks = {one.name: one for one in extra}
        evaluators = {"": settings.evaluator, **{one.name: one.evaluator for one in extra}}
        self.workers = settings.executor.start(
            EvaluatorWorker({name: (one, pool.serving(one)) for name, one in evaluators.items()}),
            partial(
                open_worker, Path.cwd(), pool.models, settings.merge, evaluators, dict(store.hashes)
            ),
        )
        ends, advance = pool.eos_token_ids, progress.advance
        self.evaluations = {
            name: Evaluation(store, one, pool.serving(one), ends, advance, self.workers, name)
            for name, one in evaluators.items()
        }
        self.evaluation = self.evaluations[""]
        self.notes: list[str] = []
        self.look = Look(1, first=True)
        self.gate: dict[str, Any] | None = None
        self.power: Power | None = None
        self.searched: dict[str, ItemScores] = {}
        self.best = -math.inf
        self.report_content: dict[str, Any] = {}
        self.frozen: Path | None = None
        self.first_card = ""
        self.measured: dict[str, dict[str, ItemScores]] = {}
        self.rows: tuple[tuple[str, Recipe], ...] = ()
        self.router: RoutedAnswers | None = None
        self.reported: tuple[Item, ...] = ()
        self.analyses = dict[str, AnalysisResult]()
        for sentence in found.sentences if found else ():
            progress.say(sentence)
        self.note(*run_notes(settings, pool, self.cut))

    def walk(self) -> None:
        """Perform the steps; what a reader should know before the first is printed here."""
        reports = self.settings.limit is None and self.settings.stop_after is None
        if reports and (looks := self.ledger.announcement(self.report_items)):
            self.progress.say(looks)
        if banner := self.settings.evaluator.banner():
            self.progress.say(banner)
        super().walk()

    @property
    def report_items(self) -> tuple[Item, ...]:
        """The items that the report of a new claim would be on, as far as the ledger knows before the search."""
        settings = self.settings
        return self.ledger.new_items(self.folds["report"], settings.objective, settings.slices)

    def note(self, *notes: str) -> None:
        """Keep what a reader of the report must know, and print it now."""
        self.notes += notes
        for note in notes:
            self.progress.say(f"note: {note}")

    def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
        return self._checked(stage, self._measure(stage))

    def _measure(self, stage: Stage) -> list[ItemScores]:
        """Scores of a stage's models. Nothing about them is shown yet."""
        evaluation = self.evaluations[stage.benchmark]
        self.progress.stage(
            stage.name, items=len(stage.models) * len(stage.items) * evaluation.answers_per_item
        )
        return evaluation.all_scores(stage.models, stage.items)

    def _checked(self, stage: Stage, measured: Sequence[ItemScores]) -> dict[str, ItemScores]:
        """{recipe id: scores} of a stage, after a warning of lost answers."""
        check_tokens(self.settings, stage, measured)
        names = [
            r.ingredients[0] if len(r.ingredients) == 1 else f"soup {r.id}" for r in stage.models
        ]
        by_model = dict(zip(names, measured, strict=True))
        length_key = self.evaluations[stage.benchmark].length_key
        self.note(*lost_answers(by_model, stage.name, length_key))
        return {recipe.id: one for recipe, one in zip(stage.models, measured, strict=True)}

    def _by_candidate(self, stage: Stage) -> dict[str, ItemScores]:
        scores = self.evaluate_stage(stage)
        return {recipe.ingredients[0]: scores[recipe.id] for recipe in stage.models}

    def check_expected(self, stage: Stage) -> None:
        """Stop, or warn, if a candidate does not score as expected, before anything else costs time."""
        settings = self.settings
        measured = self._by_candidate(stage)
        self.gate = check_expected(
            settings.evaluator.unit,
            settings.expected,
            measured,
            settings.objective,
            settings.gate,
            stage.fold,
        )
        sentence = gate_sentence(self.gate)
        if self.gate["passed"]:
            self.progress.say(sentence)
            return
        self.progress.show(
            plain_table(tables.gate(settings.evaluator.unit, read(GateSummary, self.gate)))
        )
        if settings.gate == "error":
            raise UserError(f"{sentence}\nthe answers are in the store; gate=warn continues")
        self.notes.append(sentence)

    def select(self, stage: Stage | None) -> Selection:
        settings, answers = self.settings, dict[str, ItemScores]()
        if stage is not None:
            self._remember_choice("select")
            answers = self._by_candidate(stage)
        self.scores = settings.scores.matrix(
            self.pool.names, lambda: ScoreMatrix.from_items(answers)
        )
        self.note(*flat_categories(settings.evaluator.unit, self.scores))
        self.selection = choose(settings, self.scores, self.progress)
        if settings.limit is None and settings.objective.linear:
            self.power = power_of(
                self.scores, self.report_items, settings.objective, settings.inner_margin
            )
            self.progress.say(
                self.power.sentence(settings.evaluator.unit)
                if self.power
                else "all candidates gave the same answers"
            )
        return self.selection

    def search(self, ingredients: tuple[str, ...]) -> SearchResult:
        self._remember_choice("search")
        items = self.folds["search"]
        if len(ingredients) == 1:
            self.progress.say(
                f"{ingredients[0]} is the expert for every category: there is nothing to soup"
            )
        else:
            if (stage := self.ingredient_stage(ingredients)) is not None:
                self.evaluate_stage(stage)
            self._announce(ingredients, items)
        winner = self.find_weights(self.evaluation, ingredients, items, self._log)
        if len(ingredients) > 1:
            winner, found = with_goals(self, winner, ingredients, self._log)
            self.analyses |= found
        self.winner = winner
        unit = self.settings.evaluator.unit
        parts = zip(winner.recipe.ingredients, winner.recipe.weights, strict=True)
        soup = " + ".join(f"{weight:.3g} {name}" for name, weight in parts)
        self.progress.end_stage()
        self.progress.say(
            f"chosen: {soup}, {unit.level(unit.raw(winner.result.objective))} on the search fold"
        )
        if words := ended(search_summary(unit, winner.summary)):
            self.progress.say(words)
        if winner.guards:
            self.note(f"compared with {winner.guards['against']}, {winner.guards['sentence']}")
        return winner

    def _remember_choice(self, fold: Fold) -> None:
        """Note in the ledger, before any score is shown, that candidates and their soups compete on this fold."""
        fingerprints = [candidate.fingerprint for candidate in self.pool.candidates]
        self.ledger.note_search(fingerprints, self.folds[fold])

    def _announce(self, ingredients: tuple[str, ...], items: Sequence[Item]) -> None:
        """Say what the search is about to evaluate."""
        strategy, size = self.settings.optimiser, len(ingredients)
        self.progress.say(f"search on {len(items):,} items: {strategy.describe(size)}")
        # then the number of soups is not known
        in_parts = strategy.workload(size, len(items)) is not None
        count = None if in_parts else trial_limit(strategy, size, len(items))
        total = count * len(items) * self.evaluation.answers_per_item if count else None
        self.progress.stage(SEARCH, items=total, trials=count)

    def _log(self, trial: Trial) -> None:
        unit = self.settings.evaluator.unit
        result = raw_result(unit, trial.result)
        if trial.whole:
            self.best = max(self.best, trial.result.objective)
            self.progress.trial(unit.level(unit.raw(self.best), more=1))
        best = unit.raw(self.best) if trial.whole else None
        self.settings.tracker.log(replace(trial, result=result, best=best))

    def open_guards(self, guards: tuple[Guard, ...], stage: Stage) -> Admission:
        self.searched = scores = self._by_candidate(stage)
        against = self.settings.guard_reference(self.pool.candidates) or self._best_of(scores)
        self.note(*warnings_of(plan_guards(guards, self.guarded_items, scores)))
        return Admission(guards=guards, against=against, reference=scores[against])

    def best_candidate(self, stage: Stage) -> str:
        """The candidate with the best objective on the search fold; of equals, the first of the pool."""
        # guards needed them before the search
        self.searched = self.searched or self._by_candidate(stage)
        return self._best_of(self.searched)

    def _best_of(self, scores: Mapping[str, ItemScores]) -> str:
        merits = {
            name: result_of(one, self.settings.objective).objective for name, one in scores.items()
        }
        return max(merits, key=lambda name: round(merits[name], 12))

    def freeze(self, selection: Selection, winner: SearchResult) -> None:
        """Write the soup, whole or not at all, with a card that has no numbers: the report fold is still closed."""
        settings, recipe = self.settings, winner.recipe
        unit = settings.evaluator.unit
        assert self.scores is not None
        self.report_content = {
            "experiment": settings.name,
            "unit": asdict(unit),
            "benchmark": {"name": settings.benchmark.label, "note": settings.benchmark.note},
            **({} if settings.limit is None else {"limit": settings.limit}),
            "objective": self._objective(winner),
            "selection": selection_dict(unit, selection, self.scores),
            "recipe": recipe.as_dict(),
            "folds": self.cut.counts(),
            "items": self.cut.content,
            "warnings": self._warnings(),
            **({} if self.power is None else {"power": self.power.as_dict(unit)}),
        }
        kept = soup_in(settings.out)
        if kept is not None and kept.fingerprint != recipe.fingerprint:
            write_atomically(settings.run_dir / RECIPE, as_json(recipe.as_dict()).encode())
            self.note(
                f"out={settings.out} holds another soup, {kept.id}, which stays; this run's recipe is in {RECIPE}"
            )
        elif len(selection.ingredients) > 1:
            self.report_content["rebuild"] = settings.rebuild_command
            self.first_card = card(self.report_content, settings.out.resolve())
            if kept is None:
                self.progress.stage("freeze: writing the soup")
                self.pool.merge_pool.write(
                    recipe, settings.out, extra_files={"README.md": self.first_card}
                )
            else:
                self.progress.stage("freeze: verifying the existing soup")
                verify(self.pool, recipe, settings.out)
            self.frozen = settings.out
            self.progress.say(
                "the recipe is frozen: from here on the soup is measured and nothing is chosen"
            )
        if self.gate is not None:
            self.report_content["gate"] = self.gate

    def _objective(self, winner: SearchResult) -> dict[str, Any]:
        names, objective = list(winner.result.categories), self.settings.objective
        weights = objective.coefficients(names).tolist()
        coefficients = dict(zip(names, weights, strict=True)) if objective.linear else {}
        return {
            "name": objective.name,
            "coefficients": coefficients,
            "search": self.settings.evaluator.unit.raw(winner.result.objective),
        }

    def _warnings(self) -> list[str]:
        notes = list(self.notes)
        if self.scores is not None and self.scores.published:
            notes.append(
                "selection saw published scores: the benchmark's own test set chose the ingredients"
            )
        return notes

    def report(self, stage: Stage, contenders: Sequence[Contender]) -> None:
        """Open the report fold for the frozen recipe (noted in the ledger first) and compare."""
        settings, winner, selection = self.settings, self.winner, self.selection
        dry = settings.limit is not None
        unit = settings.evaluator.unit
        claim = self.opening.report_claim(winner.recipe, self.folds["report"])
        items = claim.items
        if not dry:
            items, part = self.opening.items_of(claim)
            self.report_content |= item_counts(self.cut.counts(), claim, items, part)
        stage = replace(stage, items=items)
        scores = self._measure(stage)
        guards = declared(self.admission)
        look = Look(1, first=False, guards=guards)
        if not dry:
            look, scores = self.opening.show(claim, stage, self.evaluation, scores, guards)
        measured = self._checked(stage, scores)
        self.look = look
        self.measured[""] = measured
        self.reported, self.rows = items, tuple((one.name, one.recipe) for one in contenders)
        assert self.scores is not None
        parents = {name: measured[self.single(name).id] for name in selection.ingredients}
        self.router = routed(parents, self.scores)
        rows = list(contenders)
        if self.router and len(parents) > 1:
            rows.insert(-1, self.router_row(self.router))
            measured.setdefault(rows[-2].recipe.id, self.router.scores)
        evidence = gather(
            unit,
            rows,
            measured,
            settings.objective,
            selection.ingredients,
            look.number,
            settings.inner_margin,
            settings.evaluator.length_key,
            best_mixture(winner, self.folds["search"], settings.objective),
            self.opening.shown(look, items, unit),
        )
        evidence |= alternatives(
            unit,
            winner.result.objective,
            measured[winner.recipe.id],
            parents,
            self.scores,
            settings.objective,
        )
        if settings.pool.trajectory is not None:
            evidence["trajectory"] = trajectory_evidence(
                self, settings.pool.trajectory, winner, self.searched, measured, look.number
            )
        if winner.guards.get("refused") and evidence["verdict"]["claim"] == "keep_single":
            evidence["verdict"]["sentence"] = (
                f"Keep {winner.recipe.ingredients[0]}: {winner.guards['sentence']}."
            )
        if dry:
            evidence["verdict"] |= dry_verdict(settings.limit)
        self.report_content |= evidence

    def extra_benchmark(self, stage: Stage) -> None:
        """The frozen soup and its ingredients on all items of another benchmark."""
        soup = self.winner.recipe
        ingredients = {name: self.single(name) for name in self.selection.ingredients}
        # a guard has used up the others
        benchmark = replace(self.benchmarks[stage.benchmark], items=stage.items)
        claim = Claim(
            soup=soup,
            candidates=tuple(recipe.fingerprints[0] for recipe in ingredients.values()),
            evaluator=benchmark.evaluator.look,
            objective=Mean(),
            items=stage.items,
        )
        benchmark = replace(benchmark, items=self.opening.items_of(claim)[0])
        stage = replace(stage, items=benchmark.items)
        evaluation = self.evaluations[stage.benchmark]
        look, scores = self.opening.show(claim, stage, evaluation, self._measure(stage))
        measured = self.measured[stage.benchmark] = self._checked(stage, scores)
        prompts = {str(item.prompt) for fold in FOLDS for item in self.folds[fold]}
        shown = self.opening.shown(look, stage.items, benchmark.evaluator.unit)
        compared = compare_on(benchmark, soup, ingredients, measured, look.number, shown)
        compared["shared"] = sum(str(item.prompt) in prompts for item in stage.items)
        self.report_content.setdefault("also", []).append(compared)

    def analyse(self, name: str, stage: Stage) -> None:
        """Evaluate what an analysis needs, then keep what it finds. An analysis that fails never ends the run."""
        try:
            if models := self.lacking(stage):
                self.evaluate_stage(replace(stage, models=models))
            if self.settings.analyses[name].searches:
                self.progress.stage(
                    f"{stage.name}: searches, with at most {self.winner.spent:,} items in all"
                )
            self.analyses[name] = analyse(
                self.settings.analyses[name], self._run_scores(stage.models)
            )
        except UserError as error:  # of a component that answers
            self.analyses[name] = UserResult(failed=str(error))

    def lacking(self, stage: Stage) -> tuple[Recipe, ...]:
        """The models of an analysis that lack answers. Prints what they cost."""
        if not stage.models:
            return ()
        missing = missing_answers(self.evaluation, stage)
        soups = sum(answers > 0 for answers in missing)
        self.progress.say(
            f"{stage.name}: {soups} of {len(stage.models)} soups lack answers on the {len(stage.items)} "
            f"items of the search fold: {sum(missing):,} answers to evaluate"
        )
        pairs = zip(stage.models, missing, strict=True)
        return tuple(model for model, answers in pairs if answers)

    def _run_scores(self, soups: Sequence[Recipe]) -> RunScores:
        """All item scores in the store, those of an analysis's own `soups` among them."""
        stored = stored_answers(self.store, self.settings.evaluator, self.pool.eos_token_ids)
        return run_scores(
            self,
            stored,
            self.selection,
            self.winner,
            soups=soups,
            reported=self.reported,
            contenders=[recipe for _, recipe in self.rows],
            again=partial(search_again, self, self.evaluation),
        )

    def whole_report(self) -> tuple[Report, list[TrialRow]]:
        """The report and the rows of its trials, after the last step."""
        assert self.scores is not None
        if self.admission is not None:
            against = self.single(self.admission.against)
            checks = guard_checks(
                self.admission,
                self.winner.recipe,
                against,
                self.measured,
                claim=self.report_content["verdict"]["claim"],
                look=self.look,
                names=guard_names(self),
            )
            facts = read(GuardsResult, self.winner.guards)
            self.analyses[GUARDS] = replace(facts, checks=tuple(checks))
        if self.winner.summary:
            summary = search_summary(self.settings.evaluator.unit, self.winner.summary)
            self.report_content["search"] = summary
        self.progress.stage("analyse: stability of the selection")
        content = {
            **self.report_content,
            "warnings": self._warnings(),
            "stability": stability(self.scores, self.settings.selector),
            "cost": self._cost(self.winner),
            "provenance": to_json(provenance(self.settings.command, self.settings.config)),
        }
        report = replace(read(Report, content), analyses=self.analyses)
        return report, trial_rows(self.settings.evaluator.unit, self.winner.trials, self.selection)

    def replace_card(self, report: Report) -> None:
        """Put the report's verdict and numbers on the soup's card, unless it has some or was edited."""
        if self.frozen is not None and self.frozen.is_dir():
            replace_card(self.frozen, self.first_card, report)

    def _cost(self, winner: SearchResult) -> dict[str, Any]:
        evaluations = self.evaluations.values()
        return {
            "evaluated_items": sum(evaluation.evaluated for evaluation in evaluations),
            "reused_items": sum(evaluation.reused for evaluation in evaluations),
            "trials": len(winner.trials),
            "seconds": round(time.monotonic() - self.settings.started, 3),
            **({"lost_workers": self.workers.lost} if self.workers.lost else {}),
            **(
                {"search": {**asdict(winner.cost), "soups": len(winner.trials)}}
                if winner.trials
                else {}
            ),
        }

    def close(self) -> None:
        self.workers.close()
        self.pool.close()
