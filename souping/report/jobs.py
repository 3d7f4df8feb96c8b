"""Jobs of a multirun: the line of each as a file, and the table of all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from souping.core.files import write_atomically
from souping.core.reading import read, to_json
from souping.core.types import Json, Names, frozen
from souping.core.unit import Unit
from souping.report.files import as_json, write_csv
from souping.report.format import clean

JOB = "job.json"
OTHER_SCORES = re.compile(
    r"^\+*(experiment|benchmark|objective|evaluator(=|\.tasks))", re.MULTILINE
)
"""Overrides after which a score means something else."""


@frozen
class SweepJob:
    """A job of a multirun, as its job.json has it."""

    job: int | None
    """number of the job"""
    overrides: Names
    """its overrides"""
    objective: float | None
    """objective on the search split in `unit`, None if it was not reached"""
    run_dir: str
    """name of its directory"""
    refused: str
    """why it has no outcome"""
    dry_run: int | None
    """items per category and split of a dry run"""
    unit: Unit
    """unit of the objective"""

    @property
    def inner_objective(self) -> float:
        """The objective, to order by."""
        return round(self.unit.gain(self.objective), 12)


def write_job(run_dir: Path, job: SweepJob) -> None:
    """Write one job's line of the sweep's table; a file, since jobs may run in other processes."""
    write_atomically(run_dir / JOB, as_json(to_json(job)).encode())


def read_jobs(sweep_dir: Path) -> list[SweepJob]:
    """The jobs that ended, by number."""
    tables = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{JOB}")]
    jobs = [read(SweepJob, table) for table in tables]
    return sorted(jobs, key=lambda job: job.job or 0)


def write_sweep(sweep_dir: Path, jobs: Sequence[SweepJob]) -> Path:
    """sweep.csv, one line per job; dry runs have their `dry_run` in a column of its own."""
    return write_csv(sweep_dir / "sweep.csv", job_table(jobs))


def job_table(jobs: Sequence[SweepJob]) -> list[Sequence[Json]]:
    """The header and a row per job."""
    dry = any(job.dry_run for job in jobs)
    columns = ["job", "objective", "overrides", "run_dir", "refused"]
    table: list[Sequence[Json]] = [columns + ["dry_run"] * dry]
    for job in jobs:
        overrides = " ".join(job.overrides)
        row = (str(job.job), job.objective, overrides, job.run_dir, job.refused)
        table.append(row + (job.dry_run,) * dry)
    return table


def _varied(jobs: Sequence[SweepJob]) -> list[list[str]]:
    """The overrides of each job that not all jobs have."""
    common = set.intersection(*(set(job.overrides) for job in jobs))
    varied = []
    for job in jobs:
        varied.append([word for word in job.overrides if word not in common])
    return varied


def best_jobs(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """The job with the best objective and those that tie with it; none if the objectives do not compare.

    They do not in a dry run, or if the jobs have several units, items or objectives.
    """
    scored = [job for job in jobs if job.objective is not None]
    dry = any(job.dry_run for job in scored)
    units = {job.unit for job in scored}
    varied = "\n".join(map("\n".join, _varied(jobs)))
    if dry or len(units) != 1 or OTHER_SCORES.search(varied):
        return []
    best = max(job.inner_objective for job in scored)
    return [job for job in scored if job.inner_objective == best]


def sweep_lines(jobs: Sequence[SweepJob]) -> list[str]:
    """One line per job: what it reached, the overrides that differ between jobs, and whether it is the best."""
    best = best_jobs(jobs)
    mark = "  <- best"
    if len(best) > 1:
        mark += " (tie)"
    lines = []
    for job, words in zip(jobs, _varied(jobs), strict=True):
        outcome = ""
        if job.refused:
            outcome = "refused"
        elif job.objective is not None:
            outcome = job.unit.text(job.objective, more=1)
        line = f"  {outcome:>15} {clean(' '.join(words))}"
        if job.dry_run:
            line += f" (dry_run={job.dry_run})"
        if job in best:
            line += mark
        lines.append(line)
    return lines
