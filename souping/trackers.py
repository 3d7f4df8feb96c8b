"""Trackers record a run elsewhere: nowhere (the default), in Weights & Biases, or in trackio."""

from __future__ import annotations

import inspect
import io
import logging
import os
import shlex
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from souping.core.fields import Name, component, pick
from souping.core.protocols import Tracker
from souping.core.reading import read
from souping.core.text import first_line, install, named, safe
from souping.core.types import Json, JsonObject, Missing, Trial

if TYPE_CHECKING:
    from souping.report.content import Report

FILES = (
    "report.json",
    "report.md",
    "report.html",
    "router.json",
    "selection.json",
    "trials.csv",
    "recipe.json",
)
SOUP = ("recipe.json", "README.md")
"""Files of the artifact, if the run wrote them: `FILES` from its directory, `SOUP` from its soup's. Plots are added."""
TIMEOUT = 10.0
"""Seconds to wait for wandb's server, to open a run and to close it; else the run is recorded offline."""
OWN_ARGUMENTS = {
    "project",
    "name",
    "group",
    "config",
    "entity",
    "mode",
    "dir",
    "settings",
    "reinit",
}
"""Arguments of `wandb.init` that souping sets."""
log = logging.getLogger(__name__)


@component
class NoTracker(Tracker):
    """Tracker that records nothing: everything a run writes is in its directory."""

    def start(self, config: JsonObject, run_dir: Path) -> None: ...

    def log(self, trial: Trial) -> None: ...

    def finish(
        self, report: JsonObject | None, run_dir: Path, soup: Path | None = None
    ) -> None: ...


@dataclass
class GuardedTracker(Tracker):
    """Another tracker whose first failure is a warning and ends its recording, but not the run.

    A tracker that started is finished once, even after a failure: it may hold a file or a session. A `held` tracker
    gets no call before the end of the run, and none at all if `forget` is called.
    """

    inner: Tracker
    held: bool = False
    # Calls that a held tracker still has to get.
    _records: list[Callable[[], None]] = field(default_factory=list, init=False)
    _started: bool = field(default=False, init=False)
    _failed: bool = field(default=False, init=False)

    def start(self, config: JsonObject, run_dir: Path) -> None:
        self._try(lambda: self.inner.start(config, run_dir))
        self._started = not self._failed

    def log(self, trial: Trial) -> None:
        if not self._failed:
            self._try(lambda: self.inner.log(trial))

    def finish(self, report: JsonObject | None, run_dir: Path, soup: Path | None = None) -> None:
        """Finish a tracker that started, after the calls that were held."""
        if not self._started:
            return
        self._started = False
        self.held = False
        for action in self._records:
            if not self._failed:
                self._try(action)
        self._try(lambda: self.inner.finish(report, run_dir, soup))

    def forget(self) -> None:
        self._started = False

    def summarise(self, jobs: Sequence[JsonObject], run_dir: Path) -> None:
        self._try(lambda: self.inner.summarise(jobs, run_dir))

    def _try(self, action: Callable[[], None]) -> None:
        """Call the tracker, or keep the call while the tracker is held. Only the first failure is a warning."""
        if self.held:
            self._records.append(action)
            return
        try:
            action()
        except Exception as error:  # any failure of a tracker is a warning, by contract
            if not self._failed:
                what = f"{named(self.inner)}: {type(error).__name__}: {first_line(error)}"
                log.warning("tracker %s; the run goes on without it", what)
            self._failed = True


@dataclass
class Session:
    """State of a tracker between its calls: `run` is the module's own, None while closed.

    `hint` is a command that shows or sends the recorded run, `trials` are the logged points, `exits` closes the run.
    """

    run: Any = None
    hint: str = ""
    job_type: str | None = None
    exit_code: int = 0
    trials: list[dict[str, Json]] = field(default_factory=list)
    exits: ExitStack = field(default_factory=ExitStack)


@component
class ModuleTracker(Tracker):
    """Recording of a run by wandb, or by another module with its interface.

    `group` gathers the jobs of a multirun; the name defaults to the run's name and directory.
    """

    module: ClassVar[str]
    project: Name = "souping"
    group: str | None = None
    name: str | None = None
    _session: Session = field(default_factory=Session, init=False, repr=False, compare=False)

    def needs(self) -> list[Missing]:
        if find_spec(self.module):
            return []
        return [Missing(what=self.module, fix=install(self.module))]

    @property
    def hint(self) -> str:
        return self._session.hint

    def start(self, config: JsonObject, run_dir: Path) -> None:
        """Open a run that holds the resolved configuration."""
        session = self._session
        # wandb's service keeps the directory it was started in.
        folder = run_dir.absolute()
        session.exits.close()
        session.hint = ""
        session.trials = []
        with ExitStack() as exits:
            exits.enter_context(self._environment(folder))
            session.run = self._open(config, folder)
            exits.push(self._close)
            # The run stays open after this block, unless it failed.
            session.exits = exits.pop_all()

    def log(self, trial: Trial) -> None:
        """Log one point. The step counts points, since trials may arrive out of order."""
        session = self._session
        if session.run is not None:
            session.trials.append(_point(trial))
            with _silence():
                session.run.log(session.trials[-1], step=len(session.trials) - 1)

    def finish(self, report: JsonObject | None, run_dir: Path, soup: Path | None = None) -> None:
        """Log summary, tables, plots and artifact, then close the run, as failed if an error is passing through."""
        from souping.report.content import Report

        session = self._session
        session.exit_code = int(report is None and sys.exc_info()[0] is not None)
        with session.exits:
            if report is not None and session.run is not None:
                self._log_report(read(Report, report), run_dir, soup)

    def _log_report(self, report: Report, run_dir: Path, soup: Path | None) -> None:
        """Log the report's numbers, tables and plots, then its files."""
        api = import_module(self.module)
        pictures = sorted((run_dir / "plots").glob("*.png"))
        values: dict[str, Any] = _summary(report)
        for name, (columns, rows) in _tables(report, self._session.trials).items():
            values[name] = self._table(columns, rows)
        with _silence():
            for path in pictures:
                values[f"plots/{path.stem}"] = api.Image(str(path))
            self._session.run.log(values)
        self._log_files(run_dir, soup, pictures)

    def summarise(self, jobs: Sequence[JsonObject], run_dir: Path) -> None:
        """Add one run (job type `summary`) to the jobs' group: a table with one row per job, and the best job.

        `jobs` are the written form of `SweepJob`; `run_dir` is the multirun's.
        """
        from souping.report.jobs import SweepJob, best_jobs, job_table

        sweep_jobs = [read(SweepJob, job) for job in jobs]
        # The copy has a session of its own.
        tracker = replace(self, name=f"{self.group}-summary")
        tracker._session.job_type = "summary"
        tracker.start({"group": self.group, "jobs": len(jobs)}, run_dir)
        with tracker._session.exits, _silence():
            header, *rows = job_table(sweep_jobs)
            summary = {"jobs": tracker._table(list(map(str, header)), rows)}
            for job in best_jobs(sweep_jobs)[:1]:
                summary |= {"best_objective": job.objective, "best_job": str(job.job)}
            tracker._session.run.log(summary)

    def _open(self, config: JsonObject, folder: Path) -> Any:
        """Open the module's own run, with its name, project, group and configuration."""
        name = self.name or f"{config.get('name', 'souping')}-{folder.name}"
        common = {
            "project": self.project,
            "name": name,
            "group": self.group,
            "config": dict(config),
        }
        return self._begin(common, folder)

    def _environment(self, folder: Path) -> AbstractContextManager[None]:
        """Context that is entered while a run is open, such as environment variables; `folder` is the run's."""
        return nullcontext()

    @abstractmethod
    def _begin(self, common: Mapping[str, Any], folder: Path) -> Any:
        """Open the module's own run, with the arguments that all modules take (`common`)."""

    @abstractmethod
    def _end(self, run: Any) -> None: ...

    def _log_files(self, run_dir: Path, soup: Path | None, pictures: Sequence[Path]) -> None:
        """Add the run's files, if the module keeps any."""

    def _close(self, *_: object) -> None:
        """End the module's run; takes the arguments of `__exit__`."""
        run = self._session.run
        self._session.run = None
        with _silence():
            self._end(run)

    def _table(self, columns: Sequence[str], rows: Sequence[Sequence[Json]]) -> Any:
        """The module's own table of these columns and rows."""
        names = [safe(name) for name in columns]
        cells = [[*map(_cell, row)] for row in rows]
        return import_module(self.module).Table(columns=names, data=cells, allow_mixed_types=True)


@component
class WandbTracker(ModuleTracker):
    """Recording of a run by wandb, with its files in the run's directory, under `wandb/`.

    None leaves a choice to wandb's environment variables. `args` are further arguments of `wandb.init`, such as
    `{tags: [nightly], notes: ...}`.

    Raises:
        UserError: `args` has a name that `wandb.init` does not take, or that souping sets.
    """

    module = "wandb"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Importing wandb takes time, and `needs` tells that it is missing.
        if not self.args or not find_spec("wandb"):
            return
        import wandb

        allowed = inspect.signature(wandb.init).parameters.keys() - OWN_ARGUMENTS
        for name in self.args:
            pick(name, sorted(allowed), "tracker.args")

    def _environment(self, folder: Path) -> AbstractContextManager[None]:
        return _wandb_environment(folder / "wandb")

    def _begin(self, common: Mapping[str, Any], folder: Path) -> Any:
        """An online run only if there is a key and the server accepts it, else an offline one and a warning.

        Without the login first, `wandb.init` would ask a terminal for a key.
        """
        import wandb

        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online":
            try:
                with _silence():
                    if wandb.login(prompt=False):
                        return self._init(common, "online", folder)
                why = "no API key (`wandb login`)"
            except Exception as error:  # a server or a network may raise anything
                why = f"{type(error).__name__}: {first_line(error)}"
            log.warning("wandb: %s; recording offline, `wandb sync` sends it later", why)
            mode = "offline"
        with _silence():
            run = self._init(common, mode, folder)
        if run.offline:
            self._session.hint = f"wandb sync {shlex.quote(str(run.settings.sync_dir))}"
        return run

    def _init(self, common: Mapping[str, Any], mode: Any, folder: Path) -> Any:
        """Open wandb's run: no console capture, no git, no machine statistics, bounded waits."""
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=TIMEOUT,
            finish_timeout=TIMEOUT,
        )
        arguments = {"job_type": "run", **self.args}
        # A multirun's summary keeps its job type, whatever `args` say.
        if self._session.job_type is not None:
            arguments["job_type"] = self._session.job_type
        return wandb.init(
            **common,
            **arguments,
            entity=self.entity,
            mode=mode,
            dir=str(folder),
            settings=quiet,
            reinit="finish_previous",
        )

    def _end(self, run: Any) -> None:
        run.finish(exit_code=self._session.exit_code)

    def _log_files(self, run_dir: Path, soup: Path | None, pictures: Sequence[Path]) -> None:
        """Add an artifact with the files of the run and its soup that exist."""
        import wandb

        run = self._session.run
        artifact = wandb.Artifact(f"report-{run.id}", type="report")
        files = {name: run_dir / name for name in FILES}
        files |= {f"plots/{path.name}": path for path in pictures}
        if soup is not None:
            files |= {f"soup/{name}": soup / name for name in SOUP}
        for name, path in files.items():
            if path.is_file():
                # Without a copy in a staging area.
                artifact.add_file(str(path), name=name, policy="immutable")
        run.log_artifact(artifact)


@component
class TrackioTracker(ModuleTracker):
    """Recording of a run by trackio: on this machine, or in the Space `space_id` of the Hub."""

    module = "trackio"
    space_id: str | None = None

    def _begin(self, common: Mapping[str, Any], folder: Path) -> Any:
        """A run on this machine or in the Space; one on this machine has a hint on how to see it."""
        import trackio

        if not self.space_id:
            self._session.hint = f"trackio show --project {shlex.quote(self.project)}"
        with _silence():
            return trackio.init(
                **common,
                space_id=self.space_id,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def _end(self, run: Any) -> None:
        run.finish()


def _cell(value: Json) -> Json:
    """A value as a table can hold it: lists and mappings as text."""
    if value is None or isinstance(value, int | float):
        return value
    return safe(str(value))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what a tracker prints off the terminal."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _wandb_environment(folder: Path) -> Iterator[None]:
    """Keep wandb's data and cache in a folder. wandb has no settings for these, only environment variables."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
    }
    previous = {name: os.environ.pop(name, None) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


def _point(trial: Trial) -> dict[str, Json]:
    """A trial as {name: number}: objective, best so far, categories, weights, items.

    A soup that was dropped early has no score: means over a few items cannot be compared.
    """
    result = trial.result
    point: dict[str, Json] = {"trial": trial.number}
    if trial.whole:
        point |= {"objective": result.objective, "best": trial.best}
        point |= {f"category/{name}": value for name, value in result.categories.items()}
    point |= {f"weight/{name}": weight for name, weight in trial.recipe.shares.items()}
    return point | {"items": result.items, "reused": trial.reused}


def _summary(report: Report) -> dict[str, Json]:
    """{name: value} of a report: claim, recipe, objectives and costs, without the empty ones."""
    flat = dict[str, Json]()
    if report.verdict is not None:
        flat["claim"] = report.verdict.claim
        flat["verdict"] = report.verdict.sentence
        flat["p_value"] = report.verdict.p_value
    if report.recipe is not None:
        flat["recipe_id"] = report.recipe.id
    if report.objective is not None:
        flat["search_objective"] = report.objective.search
    # The cost holds that of the search as a mapping of its own.
    costs = dict(report.to_json()["cost"]) if report.cost else {}
    search = costs.pop("search", {})
    flat |= {f"cost/{name}": value for name, value in costs.items()}
    flat |= {f"cost/search/{name}": value for name, value in search.items()}
    for kind in ("soup", "best_candidate"):
        row = report.row(kind)
        if row is not None:
            flat[f"report/{kind}"] = row.objective.mean
    return {name: value for name, value in flat.items() if isinstance(value, str | int | float)}


def _tables(
    report: Report, trials: Sequence[Mapping[str, Json]]
) -> dict[str, tuple[list[str], list[list[Json]]]]:
    """{name: (columns, rows)} of the report's rows, comparisons and trials, without the empty tables."""
    from souping.report.content import PairedDifference

    models = report.rows or ()
    categories = list(dict.fromkeys(chain.from_iterable(row.scores for row in models)))
    lines = list[list[Json]]()
    for row in models:
        score = row.objective
        line: list[Json] = [row.name, row.kind, score.mean, score.low, score.high, score.n]
        for name in categories:
            line.append(row.scores[name].mean if name in row.scores else None)
        lines.append(line)
    columns = ["name", "kind", "objective", "low", "high", "n", *categories]
    tables: dict[str, tuple[list[str], list[list[Json]]]] = {"rows": (columns, lines)}

    # Corrected p-values stand last, after the model's role.
    columns = [field.name for field in fields(PairedDifference)]
    columns += ("kind", "p_look", "p_holm")
    tables["comparisons"] = _table(columns, map(vars, report.comparisons or ()))
    tables["trials"] = _table(list(dict.fromkeys(chain.from_iterable(trials))), trials)
    return {name: (columns, rows) for name, (columns, rows) in tables.items() if rows}


def _table(
    columns: list[str], entries: Iterable[Mapping[str, Json]]
) -> tuple[list[str], list[list[Json]]]:
    """(columns, rows) of entries {column: value}, with None for a value that an entry lacks."""
    return columns, [list(map(entry.get, columns)) for entry in entries]
