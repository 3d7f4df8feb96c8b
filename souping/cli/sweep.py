"""A multirun: where it begins, the line of each of its jobs, and the table at its end."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from souping.cli.commands import SETTINGS_FILES
from souping.cli.config_keys import named_in
from souping.cli.errors import EXPECTED, explain, format_error
from souping.cli.parts import build_part
from souping.cli.process import EXIT_STATUSES, stop
from souping.cli.run_folder import note_missing
from souping.cli.settings_from_config import unresolved
from souping.core.folders import numbered_folders
from souping.core.reading import to_json
from souping.core.system import program
from souping.core.text import safe
from souping.core.types import UserError
from souping.core.unit import Unit
from souping.report.format import quoted
from souping.runs.settings import GROUP_KINDS
from souping.trackers import GuardedTracker

if TYPE_CHECKING:
    from souping.report.jobs import SweepJob

JOB_NUMBER = re.compile(r"\$\\?\{hydra\\?:job\.num\\?\}")
"""As Hydra's sweeper quotes it."""
SWEEPER_GOALS = {
    "direction": ("minimize", "maximize"),
    "optim.maximize": (False, True),
    "ax_config.experiment.minimize": (True, False),
}
"""{key of a sweeper (Optuna's, Nevergrad's, Ax's): (its value to minimise, to maximise)}"""
_SWEEPS: list[Path] = []
"""The multirun's folder, until its table is written."""


def note_job(
    unit: Unit,
    run_dir: Path,
    hydra_config: HydraConf,
    dry_run: int | None,
    objective: float | None,
    refused: str = "",
) -> None:
    """Write a job's line of the sweep's table to a file: jobs may run in other processes.

    `refused` is the error of a job that failed.
    """
    from souping.report.jobs import SweepJob, write_job

    job = SweepJob(
        job=hydra_config.job.num,
        overrides=tuple(unresolved(hydra_config.overrides)["task"]),
        objective=objective,
        run_dir=run_dir.name,
        refused=refused,
        dry_run=dry_run,
        unit=unit,
    )
    # The job has failed already: its own error is the one to report, not one of this file.
    with suppress(UserError) if refused else nullcontext():
        write_job(run_dir, job)


class SweepEnd(Callback):
    """Hydra's callbacks: at the start, choose an empty folder for a multirun, and note which folders are new.

    At the end of a multirun, write the table of its jobs into that folder and, with `tracker=wandb`, to one W&B run.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        note_missing(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the multirun, and give it a numbered folder if its own is not empty.

        The folder is noted for `end_sweep`, and the folders above it that are not there yet as made by this process.
        """
        try:
            _refuse_swept_folder(config)
            check_goal(config)
            place = Path(config.hydra.sweep.dir)
        except (UserError, OmegaConfBaseException) as error:
            # Hydra makes a warning of a callback's exception.
            stop(*format_error(error))
        fresh = next(
            path for path in numbered_folders(place) if not path.exists() or not any(path.iterdir())
        )
        if fresh != place:
            print(f"note: {place} is not empty: this multirun is in {fresh}", file=sys.stderr)
            with read_write(config), read_write(config.hydra):
                config.hydra.sweep.dir = str(fresh)
                # Jobs are composed with the overrides, not with the configuration.
                config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(fresh))}")
        note_missing(fresh)
        _SWEEPS.append(fresh)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        end_sweep()


def _refuse_swept_folder(config: DictConfig) -> None:
    """Refuse several values of `out` (UserError): it is the folder of the whole multirun."""
    words = [
        word for word in unresolved(config.hydra.overrides)["task"] if named_in([word]) == {"out"}
    ]
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line}: a multirun has one folder; its jobs are numbered in there: give one out=DIR"
            )


def check_goal(config: DictConfig) -> None:
    """Refuse a sweeper that looks for the worst scores, as Optuna's does by default (UserError)."""
    for key, values in SWEEPER_GOALS.items():
        # Only the sweeper in use has its key.
        try:
            goal = OmegaConf.select(config, f"hydra.sweeper.{key}")
            if goal is None:
                continue
            evaluator: Any = OmegaConf.to_container(config.evaluator, resolve=True)
            unit = build_part(evaluator, GROUP_KINDS["evaluator"], "evaluator").unit
        except (UserError, OmegaConfBaseException):
            # Each job reports a broken evaluator, and Hydra a broken sweeper.
            return
        name = goal.name if isinstance(goal, Enum) else goal
        right = values[unit.higher_is_better]
        # Optuna takes a list of directions too, one per objective.
        if name not in (right, [right]):
            better = "higher" if unit.higher_is_better else "lower"
            what = f"a job returns one score, {unit.meaning}, and {better} is better"
            raise UserError(f"hydra.sweeper.{key}={name}: {what}: add hydra.sweeper.{key}={right}")


def end_sweep() -> None:
    """Print and write the table of a multirun's jobs that ended, once, also if Hydra or the user stopped it."""
    while _SWEEPS:
        sweep_dir = _SWEEPS.pop()
        try:
            _sweep_table(sweep_dir)
        except (*EXPECTED, ValueError) as error:
            EXIT_STATUSES.append(2)
            print(f"the multirun has no table: {explain(error)}", file=sys.stderr)


def _sweep_table(sweep_dir: Path) -> None:
    """Write, track and print the table of the jobs, and remove folders of failed jobs with nothing else in them."""
    from souping.report.jobs import JOB, best_jobs, read_jobs, sweep_lines, write_sweep

    jobs = read_jobs(sweep_dir)
    if not jobs:
        return
    _track(sweep_dir, jobs)
    print(f"  {'sweep':16} {write_sweep(sweep_dir, jobs)}")
    print("\n".join(sweep_lines(jobs)))
    for job in best_jobs(jobs)[:1]:
        print(f"test job {job.job} on the test split:\n{safe(final_command(job, sweep_dir))}")
    if refused := [str(job.job) for job in jobs if job.refused]:
        EXIT_STATUSES.append(2)
        print(
            f"{len(refused)} of {len(jobs)} jobs failed (job {', '.join(refused)}): see sweep.csv",
            file=sys.stderr,
        )
    for job in jobs:
        place = sweep_dir / job.run_dir
        # The table has the line of the job now.
        if job.refused and [path.name for path in place.iterdir()] == [JOB]:
            (place / JOB).unlink()
            place.rmdir()


def final_command(job: SweepJob, sweep_dir: Path) -> str:
    """The command that runs a job of a multirun to its end, by itself."""
    words = [word for word in job.overrides if named_in([word]) != {"stop_after"}]
    config = OmegaConf.load(sweep_dir / job.run_dir / "config.yaml")
    # No override was removed: a file that an override chose set `stop_after`.
    if len(words) == len(job.overrides) and OmegaConf.select(config, "stop_after"):
        words.append("stop_after=null")
    typed = get_args_parser().parse_args()
    if typed.config_dir:
        words.append(f"--config-dir={typed.config_dir}")
    words += [word for word in typed.overrides if word.startswith("hydra.searchpath=")]
    if not typed.multirun:
        words.append("hydra.mode=RUN")
    # A single run has no job number to interpolate.
    command = [JOB_NUMBER.sub(str(job.job), word) for word in words]
    for file in SETTINGS_FILES:
        command = [file.name, *(word for word in command if word not in file.words)]
    return f"{program()} {shlex.join(command)}"


def _track(sweep_dir: Path, jobs: Sequence[SweepJob]) -> None:
    """Send one summary of all jobs to the jobs' tracker, as the first job that was not refused configures it."""
    ran = [sweep_dir / job.run_dir / "config.yaml" for job in jobs if not job.refused]
    if ran:
        config = OmegaConf.to_container(OmegaConf.load(ran[0]), resolve=True)
        assert isinstance(config, dict)
        tracker = build_part(config["tracker"], GROUP_KINDS["tracker"], "tracker")
        tables: list[Any] = [to_json(job) for job in jobs]
        GuardedTracker(tracker).summarise(tables, sweep_dir)
