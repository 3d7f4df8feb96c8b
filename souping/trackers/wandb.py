"""Weights & Biases tracker: config, a point a trial, tables, plots, and the report files as an artifact.

Whatever fails at wandb becomes one warning, and nothing waits for a network without end.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from souping.core.fields import Name, Seconds, component
from souping.core.protocols import Tracker
from souping.core.text import safe
from souping.core.types import Json, Trial, entries, number, part, texts
from souping.trackers import TrackerState

if TYPE_CHECKING:
    import wandb

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
FILES = ("report.json", "report.md", "report.html", "selection.json", "trials.csv", "recipe.json")
SOUP = ("recipe.json", "README.md")
"""Files of the artifact, beside the plots, as far as the run wrote them: of its directory, of its soup."""


@dataclass
class WandbRun(TrackerState):
    """State of a tracker between its calls. `run` is wandb's, None while closed; `kept` is the environment before."""

    of: str = "wandb"
    run: wandb.Run | None = None
    hint: str = ""
    trials: list[Mapping[str, Json]] = field(default_factory=list)
    kept: dict[str, str | None] = field(default_factory=dict)

    def reset(self) -> None:
        """As new, for another run."""
        self.close(exit_code=1)
        self.failed, self.warned, self.best, self.hint, self.trials = False, False, None, "", []

    def on_run(self, action: Callable[[wandb.Run], None]) -> None:
        """Do it with the open run; without one, do nothing."""
        run = self.run
        if run is not None:
            self.attempt(lambda: action(run))

    def enter(self, run_dir: Path) -> None:
        """Keep wandb quiet and inside the run's directory: it reads these variables, not its settings."""
        home = run_dir / "wandb"
        home.mkdir(parents=True, exist_ok=True)
        wanted = {
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(home / "data"),
            "WANDB_CACHE_DIR": str(home / "cache"),
        }
        self.kept = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)

    def leave(self) -> None:
        """Give the environment back as it was."""
        for name, value in self.kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self.kept = {}

    def close(self, exit_code: int) -> None:
        """Finish the run, which waits no longer than the settings' `finish_timeout`, even after a failure."""
        run, self.run = self.run, None
        try:
            if run is not None:
                run.finish(exit_code=exit_code)
        except Exception as error:
            self.warn(f"the end was not recorded ({type(error).__name__})")
        finally:
            self.leave()


@component
class WandbTracker(Tracker):
    """Settings of a W&B run; None leaves a choice to wandb's own environment variables.

    `group` gathers the jobs of a multirun. `timeout` (seconds) bounds every wait for the server; where it does not
    answer, the run is recorded offline. wandb's files lie in the run's directory, under `wandb/`.
    """

    project: Name = "souping"
    entity: str | None = None
    group: str | None = None
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: list[str] = field(default_factory=list)
    job_type: str = "run"
    timeout: Seconds = 10.0
    _session: WandbRun = field(default_factory=WandbRun, init=False, repr=False, compare=False)

    @property
    def hint(self) -> str:
        return self._session.hint

    def start(self, config: Mapping[str, Json], run_dir: Path) -> None:
        """Open the run with the resolved plain config."""

        def action() -> None:
            here = run_dir.absolute()  # wandb's service keeps the working directory that it was started in
            session.enter(here)
            named = self if self.name else replace(self, name=f"{config.get('name', 'souping')}-{here.name}")
            session.run = _opened(named, config, here, session)
            if session.run.offline:
                session.hint = f"wandb sync {shlex.quote(str(session.run.settings.sync_dir))}"

        session = self._session
        session.reset()
        session.attempt(action)

    def log(self, trial: Trial) -> None:
        """One point. The step counts points, as trials may come late."""
        session = self._session
        point, step = session.point(trial), len(session.trials)
        session.trials.append(point)
        session.on_run(lambda run: run.log(point, step=step))

    def finish(self, report: Mapping[str, Json] | None, run_dir: Path, soup: Path | None = None) -> None:
        """Tables, plots, summary and artifact, then the end; while an error passes through, it is marked as failed."""
        session = self._session
        if report is not None:
            session.on_run(lambda run: run.summary.update(_summary(report)))
            session.on_run(lambda run: run.log({**_tables(report, session.trials), **_plots(run_dir)}))
            session.on_run(lambda run: _artifact(run, run_dir, soup))
        session.close(exit_code=0 if report is not None or sys.exc_info()[0] is None else 1)

    def summarise(self, jobs: Sequence[Mapping[str, Json]], run_dir: Path) -> None:
        """One summary run (job type `summary`) in the jobs' group: a table with a line a job, and the best job.

        `jobs` are {job, overrides (list or text), objective (fraction or None), run_dir, refused (why, where it was)};
        `run_dir` is the multirun's.
        """
        tracker = replace(self, name=f"{self.group}-summary", job_type="summary")
        tracker.start({"group": self.group, "jobs": len(jobs)}, run_dir)
        tracker._session.on_run(lambda run: _jobs(run, jobs))
        tracker._session.close(exit_code=0)


def _wanted(tracker: WandbTracker) -> str:
    return tracker.mode or os.environ.get("WANDB_MODE") or "online"


def _chosen_mode(tracker: WandbTracker, session: WandbRun, timeout: float) -> str:
    """`online` only where there is a key and the server answers; offline, with a warning, where it does not.

    Without this, `wandb.init` asks a terminal for a key, or retries a dead network for a minute and a half.
    """
    wanted = _wanted(tracker)
    if wanted != "online":
        return wanted
    import wandb

    address = wandb.Settings().base_url
    if not any(os.environ.get(name) for name in PROXIES) and not reachable(address, timeout):
        session.warn(f"{address} does not answer, so the run is recorded offline (`wandb sync` sends it later)")
        return "offline"
    if not wandb.login(prompt=False):
        session.warn("no API key (`wandb login`), so the run is recorded offline (`wandb sync` sends it later)")
        return "offline"
    return wanted


def reachable(address: str, timeout: float) -> bool:
    """Whether the server's port opens within `timeout` seconds, the look-up of its name included."""
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answers: list[bool] = []

    def knock() -> None:
        with suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=timeout):
            answers.append(True)

    # A name server that does not answer blocks far beyond any socket timeout; the thread is left to it.
    thread = Thread(target=knock, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def _opened(tracker: WandbTracker, config: Mapping[str, Json], run_dir: Path, session: WandbRun) -> wandb.Run:
    """A new wandb run in `run_dir`; where the server refuses it or is not there, an offline one."""
    try:
        return _init(tracker, _chosen_mode(tracker, session, min(tracker.timeout, 3.0)), config, run_dir)
    except Exception as error:
        if _wanted(tracker) != "online":
            raise
        session.warn(f"{type(error).__name__}, so the run is recorded offline (`wandb sync` sends it later)")
        return _init(tracker, "offline", config, run_dir)


def _init(tracker: WandbTracker, mode: str, config: Mapping[str, Json], run_dir: Path) -> wandb.Run:
    """No console capture, no git, no machine statistics, bounded waits."""
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
        init_timeout=tracker.timeout,
        finish_timeout=tracker.timeout,
    )
    return wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        group=tracker.group,
        name=tracker.name,
        tags=tracker.tags,
        job_type=tracker.job_type,
        mode=mode,  # type: ignore[arg-type]  # wandb refuses other words itself
        dir=str(run_dir),
        config=dict(config),
        settings=quiet,
        reinit="finish_previous",
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[Json]]) -> wandb.Table:
    """A wandb table; lists and mappings, which its cells cannot hold, as text."""
    import wandb

    plain = [
        [value if value is None or isinstance(value, int | float) else safe(str(value)) for value in row]
        for row in rows
    ]
    return wandb.Table(columns=[safe(name) for name in columns], data=plain, allow_mixed_types=True)


def _jobs(run: wandb.Run, jobs: Sequence[Mapping[str, Json]]) -> None:
    split = [_overrides(job) for job in jobs]
    keys = sorted({key for one in split for key in one})
    columns = ["job", "objective", *keys, "overrides", "run_dir", "refused"]
    ends = [[str(job.get("run_dir")), str(job.get("refused", ""))] for job in jobs]
    words = [" ".join(f"{key}={value}" if value else key for key, value in one.items()) for one in split]
    lines = [
        [str(job.get("job")), job.get("objective"), *map(one.get, keys), said, *end]
        for job, one, said, end in zip(jobs, split, words, ends, strict=True)
    ]
    run.log({"jobs": _table(columns, lines)})
    reached = [(value, job) for job in jobs if (value := number(job.get("objective"))) is not None]
    if reached:
        best, job = max(reached, key=lambda pair: pair[0])
        run.summary.update({"best_objective": best, "best_job": str(job.get("job"))})


def _overrides(job: Mapping[str, Json]) -> dict[str, str]:
    """`key=value` texts as a dict; a text without `=` keeps its name."""
    given = job.get("overrides")
    words = given.split() if isinstance(given, str) else texts(job, "overrides")
    return {key: value for key, _, value in (word.partition("=") for word in words)}


def _summary(report: Mapping[str, Json]) -> dict[str, Json]:
    verdict = part(report, "verdict")
    flat = {
        "claim": verdict.get("claim"),
        "verdict": verdict.get("sentence"),
        "p_value": verdict.get("p_value"),
        "recipe_id": part(report, "recipe").get("id"),
        "search_objective": part(report, "objective").get("search"),
        **{f"cost/{name}": value for name, value in part(report, "cost").items() if not isinstance(value, Mapping)},
        **{f"cost/search/{name}": number(value) for name, value in part(part(report, "cost"), "search").items()},
    }
    for row in entries(report, "rows"):
        if row["kind"] in ("soup", "best_single"):
            flat[f"report/{row['kind']}"] = part(row, "objective").get("mean")
    return {name: value for name, value in flat.items() if value is not None}


def _tables(report: Mapping[str, Json], trials: Sequence[Mapping[str, Json]]) -> dict[str, wandb.Table]:
    """Rows, comparisons and trials, each where there are any."""
    rows, compared = entries(report, "rows"), entries(report, "comparisons")
    categories = list(dict.fromkeys(name for row in rows for name in part(row, "scores")))
    whole = ("mean", "low", "high", "n")
    lines = [
        [row["name"], row["kind"], *(part(row, "objective").get(key) for key in whole)]
        + [part(part(row, "scores"), name).get("mean") for name in categories]
        for row in rows
    ]
    pairs, points = list(compared[0]) if compared else [], list(dict.fromkeys(k for t in trials for k in t))
    built = {
        "rows": (["name", "kind", "objective", *whole[1:], *categories], lines),
        "comparisons": (pairs, [[one.get(key) for key in pairs] for one in compared]),
        "trials": (points, [[one.get(key) for key in points] for one in trials]),
    }
    return {name: _table(columns, filled) for name, (columns, filled) in built.items() if filled}


def _plots(run_dir: Path) -> dict[str, wandb.Image]:
    """The report's pictures, as it wrote them."""
    import wandb

    return {f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted((run_dir / "plots").glob("*.png"))}


def _artifact(run: wandb.Run, run_dir: Path, soup: Path | None) -> None:
    """The report's files where they lie: `immutable` spares a copy of each in a staging area."""
    import wandb

    artifact = wandb.Artifact(f"report-{run.id}", type="report")
    files = {name: run_dir / name for name in FILES}
    files |= {f"plots/{path.name}": path for path in sorted((run_dir / "plots").glob("*.png"))}
    files |= {f"soup/{name}": soup / name for name in SOUP if soup is not None}
    for name, path in files.items():
        if path.is_file():
            artifact.add_file(str(path), name=name, policy="immutable")
    run.log_artifact(artifact)
