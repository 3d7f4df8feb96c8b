"""From settings to results: a merge, a run, or analyses of a finished run; its files, and what is printed at the end.

samples.jsonl.gz has every item with the answers of the report's models. Its shape is near that of
lm-evaluation-harness's `--log_samples` (doc_id, doc, target, arguments, resps, filtered_resps, the three hashes), with
one item per line and the models inside it.
"""

from __future__ import annotations

import gzip
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from souping.core.files import error_text, locked, nearby, write_atomically
from souping.core.reading import read, to_json
from souping.core.text import safe
from souping.core.types import (
    FOLDS,
    Fold,
    Item,
    Json,
    LateError,
    Recipe,
    Record,
    Result,
    Selection,
    Trial,
    UserError,
    digest,
)
from souping.pipeline.merge_only import merge, rebuild, soup_in, written_soup
from souping.pipeline.models import free_target
from souping.pipeline.settings import MergeSettings, RunSettings
from souping.pipeline.upload import check, push
from souping.report.content import RecipeSummary, Report, SelectionSummary, TrialRow
from souping.report.samples import SAMPLES_FILE

if TYPE_CHECKING:
    from souping.pipeline.run import Run
    from souping.search.loop import SearchResult

SHOWN_FILES = (
    "report.html",
    "report.md",
    "report.json",
    "selection.json",
    "trials.csv",
    "analyses.json",
    SAMPLES_FILE,
    "recipe.json",
    "plan.json",
    "config.yaml",
)


def execute(settings: MergeSettings) -> float | None:
    """Run, merge or rebuild, then print where everything is; the objective on the search fold if there was a search.

    A merge loads none of what a search needs.
    """
    if isinstance(settings, RunSettings) and settings.benchmark.banner:
        print(settings.benchmark.banner, flush=True)
    check_settings(settings)
    goal = None if settings.plan else settings.upload
    if goal is not None:
        check(goal, settings.out)  # who may not write to the Hub learns it before the run
    objective: float | None = None
    if isinstance(settings, RunSettings):
        outcome, winner = perform(settings)
        objective = None if winner is None else settings.evaluator.unit.raw(winner.result.objective)
    else:
        with closing(settings.merge):
            recipe = settings.recipe
            folder = rebuild(settings, recipe) if recipe else merge(settings)
            outcome = Report(experiment=settings.name, others={"soup": str(folder)})
    soup: Path | None = None
    try:
        soup = written_soup(settings, outcome)
    finally:  # also if another soup is in the way
        _show(settings, outcome, soup)
    if goal is not None:
        # one expert for everything
        absent = "nothing to send: there is no soup"
        print(f"  {'upload':16} {push(goal, soup, settings.store_path) if soup else absent}")
    return objective


def check_settings(settings: MergeSettings) -> None:
    """Refuse a target that is in use and settings that contradict each other (UserError).

    A run may find the soup of an earlier one in `out`; it is verified once the search is over.
    """
    if not isinstance(settings, RunSettings) or soup_in(settings.out) is None:
        free_target(settings.out)
    if not isinstance(settings, RunSettings):
        return
    from souping.evaluate.benchmark import OwnBenchmark

    upload = settings.upload
    if upload is not None and settings.stop_after:
        raise UserError(
            f"upload={upload.repo} needs a finished soup: leave stop_after={settings.stop_after} out"
        )
    if upload is not None and settings.limit is not None:
        raise UserError(
            f"limit={settings.limit} is a dry run, whose soup is not for the Hub: leave upload out"
        )
    if settings.evaluator.brings_items and not isinstance(settings.benchmark, OwnBenchmark):
        name = type(settings.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items: add benchmark=own")


def perform(settings: RunSettings) -> tuple[Report, SearchResult | None]:
    """Take the steps of a run and write what came of them: the report as far as it goes, and the search's result."""
    from souping.pipeline.run import Run
    from souping.pipeline.store import Store
    from souping.report.files import as_json, selection_dict, trial_rows, write_report, write_trials
    from souping.report.progress import Progress
    from souping.trackers import GuardedTracker

    unit = settings.evaluator.unit
    if settings.selects_from_table:
        return select_from_table(settings), None
    report: Report | None = None
    with ExitStack() as stack:
        for component in settings.open_parts:
            stack.callback(component.close)  # servers and ranks wait for the next soup until then
        settings = replace(settings.with_items(), tracker=GuardedTracker(settings.tracker))
        progress = stack.enter_context(Progress())
        store = stack.enter_context(Store(settings.store_path))
        run = Run(settings, store, progress)
        stack.callback(
            lambda: settings.tracker.finish(
                None if report is None else report.to_json(), settings.run_dir, run.frozen
            )
        )
        stack.callback(run.close)
        settings.tracker.start(settings.config, settings.run_dir)
        try:
            run.walk()
            write_samples(run)
            if settings.stop_after == "select":
                return _stopped(settings, selection_dict(unit, run.selection, run.scores)), None
            if settings.stop_after == "search":
                recipe = run.winner.recipe.as_dict()
                found = _stopped(settings, selection_dict(unit, run.selection), recipe)
                if run.analyses:
                    found = replace(found, analyses=run.analyses)
                    content = as_json(to_json(run.analyses)).encode()
                    write_atomically(settings.run_dir / "analyses.json", content)
                trials = trial_rows(unit, run.winner.trials, run.selection)
                write_trials(trials, found, settings.run_dir / "trials.csv")
                write_atomically(settings.run_dir / "recipe.json", as_json(recipe).encode())
                return found, run.winner
            report, trials = run.whole_report()
            write_trials(trials, report, settings.run_dir / "trials.csv")
            write_report(report, trials, settings.run_dir)
            run.replace_card(report)
            return report, run.winner
        except (UserError, OSError) as error:
            if run.frozen is None:
                raise
            raise LateError(
                f"{error_text(error)}\nthe soup is written: {nearby(run.frozen)}"
            ) from error


def _stopped(settings: RunSettings, selection: Json, recipe: Json = None) -> Report:
    """The report of a run that ended before the report fold."""
    content = {"experiment": settings.name, "selection": selection, "recipe": recipe}
    return replace(read(Report, content), unit=settings.evaluator.unit)


def select_from_table(settings: RunSettings) -> Report:
    """Published scores alone: candidates are names, no folder is opened."""
    from souping.pipeline.checks import flat_categories, not_measured, refusals
    from souping.pipeline.evidence import choose
    from souping.report.files import selection_dict
    from souping.report.progress import Progress

    unit = settings.evaluator.unit
    for error in refusals(settings, {}, ()):
        raise error
    with Progress() as progress:
        scores = settings.scores.matrix([c.name for c in settings.pool.resolve()], not_measured)
        for warning in flat_categories(unit, scores):
            progress.say(f"note: {warning}")
        selection = choose(settings, scores, progress)
        return _stopped(settings, selection_dict(unit, selection, scores))


# ------------------------------------------------------------ samples


def write_samples(run: Run) -> None:
    """Write what the store has of the run's folds; the report fold once it was opened, which is after the freeze."""
    folds = {**run.folds, "report": run.reported}
    stream = io.BytesIO()
    # no date: equal runs give equal bytes
    with gzip.GzipFile(fileobj=stream, mode="wb", mtime=0) as file:
        for fold in FOLDS:
            for line in _lines(run, fold, folds[fold]) if folds[fold] else ():
                file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    write_atomically(run.settings.run_dir / SAMPLES_FILE, stream.getvalue())


def _lines(run: Run, fold: Fold, items: Sequence[Item]) -> Iterator[dict[str, Json]]:
    """One line per item that a model answered: of the report's rows; of a run that stopped before, its candidates and
    its soup."""
    rows = dict(run.rows or ((name, run.single(name)) for name in run.pool.names))
    if run.settings.stop_after != "select":
        rows.setdefault("soup", run.winner.recipe)
    measurements = run.look.measurements if fold == "report" else ()
    answers = {
        name: run.evaluation.all_answers(recipe, items, measurements)
        for name, recipe in rows.items()
    }
    keys = {
        one.prompt_key
        for of_model in answers.values()
        for measured in of_model.values()
        for records in measured
        for one in records
    }
    prompts = run.store.prompts(keys)
    evaluator = run.settings.evaluator
    for place, item in enumerate(items):
        records = {}
        scores = {}
        for name, of_model in answers.items():
            if measured := of_model.get(item.id):
                tables = [evaluator.item_scores([item], [own])[0] for own in measured]
                scores[name] = fmean(map(float, tables))
                records[name] = [record for own in measured for record in own]
        if run.router and (route := run.router.routes.get(item.category)) in records:
            records[run.router.name] = records[route]
            scores[run.router.name] = scores[route]
        if records:
            digest_of = evaluator.scorer_digest(item)
            yield sample(place, fold, item, records, scores, prompts, digest_of)


def sample(
    place: int,
    fold: Fold,
    item: Item,
    answers: Mapping[str, Sequence[Record]],
    scores: Mapping[str, float],
    prompts: Mapping[str, str],
    scorer_hash: str = "",
) -> dict[str, Any]:
    """A line of one item; `answers` and `scores` are by model, `prompts` by `prompt_key`.

    A model's `sent_hash` is that of the prompt as it was sent to it, empty where its evaluator does not say.
    """
    own = (
        item.prompt if isinstance(item.prompt, str) else [dict(message) for message in item.prompt]
    )
    shown = {name: prompts.get(records[0].prompt_key, "") for name, records in answers.items()}
    first = next(iter(shown.values())) or (
        own if isinstance(own, str) else json.dumps(own, ensure_ascii=False)
    )
    tools = {"tools": [dict(tool) for tool in item.tools]} if item.tools else {}
    doc = {
        "id": item.id,
        "category": item.category,
        "group": item.group,
        "prompt": own,
        **tools,
    }
    models = {name: _model(records, scores[name]) for name, records in answers.items()}
    for name, text in shown.items():
        models[name]["sent_hash"] = digest(text) if text else answers[name][0].prompt_key
        # another tokenizer or template
        if text and text != first:
            models[name]["prompt"] = text
    return {
        "doc_id": place,
        "fold": fold,
        "category": item.category,
        "item": item.id,
        "doc": {**doc, "answer": item.answer, "scorer": item.scorer},
        "target": item.answer,
        "arguments": [[first, {}]],
        "doc_hash": digest(doc),
        "prompt_hash": item.identity,
        "target_hash": digest(item.answer),
        "scorer_hash": scorer_hash,
        "models": models,
    }


def _model(records: Sequence[Record], score: float) -> dict[str, Json]:
    outputs = [record.output for record in records]
    model: dict[str, Json] = {"resps": [outputs], "filtered_resps": outputs, "score": score}
    model["outcome"] = max(
        (record.outcome for record in records), key=("finished", "truncated", "unanswered").index
    )
    if len(records) > 1:
        model |= {
            "scores": [record.score for record in records],
            "outcomes": [record.outcome for record in records],
        }
    reasons = [record.reason for record in records if record.reason]
    return {**model, "reason": reasons[0]} if reasons else model


# ------------------------------------------------------------ finished runs


def add_analyses(settings: RunSettings) -> list[Path]:
    """Make the analyses of `settings` on the run in its `run_dir` and add them to its report; the files.

    The soup is left alone and no look at the report fold is counted; only models that an analysis needs are evaluated.
    With `plan` their cost is printed, and nothing is evaluated or written.

    Raises:
        UserError: the run has no report, or the items, candidates or store are not those of the run.
    """
    from souping.pipeline.run import Run
    from souping.pipeline.store import Store
    from souping.report.files import write_report
    from souping.report.progress import Progress

    report, trials = read_finished(settings.run_dir)
    if not settings.store_path.is_file():
        raise UserError(
            f"store.path={settings.store_path} does not exist: start in the folder where the run was started, or name "
            "its store"
        )
    with ExitStack() as stack:
        for one in settings.open_parts:
            stack.callback(one.close)
        progress = stack.enter_context(Progress())
        store = stack.enter_context(Store(settings.store_path))
        run = stack.enter_context(closing(Run(settings.with_items(), store, progress)))
        selection, winner = _resume(run, report, trials)
        soups = run.soups(selection.ingredients, winner)
        for name, analysis in settings.analyses.items():
            stage = run.analysis_stage(name, analysis, soups)
            if settings.plan and analysis.searches:
                run.progress.say(f"{stage.name}: searches again, at most {winner.spent:,} items")
            if settings.plan:
                run.lacking(stage)
            else:
                run.analyse(name, stage)
    if settings.plan:
        return []
    with locked(settings.run_dir):
        # another process may have added analyses meanwhile
        report, trials = read_finished(settings.run_dir)
        analyses = {**(report.analyses or {}), **run.analyses}
        return write_report(replace(report, analyses=analyses), trials, settings.run_dir)


def read_finished(run_dir: Path) -> tuple[Report, Sequence[TrialRow]]:
    """(report, trials) of a run that ended with a report (UserError if there is none)."""
    from souping.pipeline.analyses import results
    from souping.report.analyses import read_content
    from souping.report.files import read_report, read_trials

    for name in ("report.json", "trials.csv"):
        if not (run_dir / name).is_file():
            raise UserError(f"run={run_dir} has no {name}: name the folder of a finished run")
    report = read_content(read_report(run_dir / "report.json"), results())
    if report.recipe is None or not report.rows:
        raise UserError(
            f"run={run_dir}: its report.json is not of a whole run: name the folder of a finished run"
        )
    return report, read_trials(run_dir / "trials.csv")


def _resume(run: Run, report: Report, trials: Sequence[TrialRow]) -> tuple[Selection, SearchResult]:
    """Bring a run to where its last step left it.

    Raises:
        UserError: items or candidates are not those of the run: its numbers would be of other ones.
    """
    from souping.search.loop import SearchResult

    if report.items != run.cut.content:
        raise UserError(
            f"{nearby(run.settings.run_dir)}: the items are not those of the run: some were added, removed or changed; "
            "restore them"
        )
    nothing = Result(objective=0.0, categories={}, items=0)
    recipe = report.recipe or read(RecipeSummary, {})
    shares = dict(zip(recipe.ingredients, recipe.weights, strict=False))
    soup = _recipe(run, shares, recipe.id)
    tried = []
    for place, line in enumerate(trials):
        model = _recipe(run, line.weights, line.recipe_id)
        result = replace(nothing, items=line.items or 0)
        tried.append(Trial(number=place, recipe=model, weights=model.weights, result=result))
    chosen = report.selection or read(SelectionSummary, {})
    run.selection = Selection(ingredients=chosen.ingredients, metric=chosen.metric or "")
    run.winner = SearchResult(recipe=soup, result=nothing, trials=tuple(tried))
    ids = {row.recipe_id for row in report.rows or ()}
    models = [("uniform_all", run.uniform(run.pool.names)), ("soup", soup)]
    models += [(name, run.single(name)) for name in run.pool.names]
    run.rows = tuple((name, model) for name, model in models if model.id in ids)
    claim = run.opening.report_claim(soup, run.folds["report"])
    run.reported = claim.items if run.settings.limit else run.ledger.items_of(claim)
    return run.selection, run.winner


def _recipe(run: Run, weights: Mapping[str, float | None], expected: Json) -> Recipe:
    """The recipe of a run's weights (UserError if the candidates or merge settings are not those of the run)."""
    used = {name: weight for name, weight in weights.items() if weight}
    absent = [name for name in used if name not in run.pool.names]
    recipe = (
        None if absent else run.single(run.pool.names[0]) if not used else run.pool.recipe(used)
    )
    if recipe is None or recipe.id != expected:
        found = (
            f"{absent[0]} is not in the pool"
            if absent
            else f"soup {expected} is now {recipe.id if recipe else ''}"
        )
        raise UserError(
            f"{nearby(run.settings.run_dir)}: the candidates or merge settings are not those of the run: {found}"
        )
    return recipe


# ------------------------------------------------------------ the end on the terminal


def _show(settings: MergeSettings, outcome: Report, soup: Path | None) -> None:
    """The end of a run on standard output: the rows, where everything is, and what to do next."""
    run_dir = settings.run_dir
    if "soup" not in outcome.others:
        _tables(outcome)
    for name in SHOWN_FILES:
        if (run_dir / name).exists():
            print(f"  {name:16} {safe(nearby(run_dir / name))}")
    if soup is not None:
        print(f"  {'soup':16} {safe(nearby(soup))}")
        if (soup / "recipe.json").exists():
            print(f"  {'rebuild':16} {safe(settings.rebuild_command)}")
    if settings.tracker.hint:
        print(f"  {'tracker':16} {safe(settings.tracker.hint)}")
    if (run_dir / "report.html").exists():
        print(f"open {safe(shlex.quote(nearby(run_dir / 'report.html')))}")


def _tables(report: Report) -> None:
    from souping.report.analyses import analysis_sections
    from souping.report.render import also_table, output_console, report_table, show_sheet
    from souping.report.tables import nonempty

    out = output_console()
    out.print(report_table(report))
    # a report's are on its page
    if report.rows is None:
        show_sheet(nonempty(analysis_sections(report)), out)
    if report.also:
        out.print(also_table(report))
