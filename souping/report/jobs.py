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
from souping.report.format import clean
from souping.report.run_files import as_json, write_csv

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
        """The objective to order by: higher is better, and rounded, so that equal scores tie."""
        return round(self.unit.gain(self.objective), 12)


def write_job(run_dir: Path, job: SweepJob) -> None:
    """Write one job's line of the sweep's table into its folder; a file, since jobs may run in other processes."""
    write_atomically(run_dir / JOB, as_json(to_json(job)).encode())


def read_jobs(sweep_dir: Path) -> list[SweepJob]:
    """The jobs of a sweep that ended, in the order of their numbers."""
    contents = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{JOB}")]
    jobs = [read(SweepJob, content) for content in contents]
    # A file that somebody edited may lack the number.
    return sorted(jobs, key=lambda job: job.job or 0)


def write_sweep(sweep_dir: Path, jobs: Sequence[SweepJob]) -> Path:
    """Write sweep.csv, one line per job; its path."""
    return write_csv(sweep_dir / "sweep.csv", job_table(jobs))


def job_table(jobs: Sequence[SweepJob]) -> list[Sequence[Json]]:
    """The header, then a row per job; `dry_run` is a column if a job has one."""
    has_dry_run = any(job.dry_run for job in jobs)
    header = ["job", "objective", "overrides", "run_dir", "refused"]
    if has_dry_run:
        header.append("dry_run")
    table: list[Sequence[Json]] = [header]
    for job in jobs:
        overrides = " ".join(job.overrides)
        row: list[Json] = [str(job.job), job.objective, overrides, job.run_dir, job.refused]
        if has_dry_run:
            row.append(job.dry_run)
        table.append(row)
    return table


def _varied(jobs: Sequence[SweepJob]) -> list[list[str]]:
    """For each job, the overrides that not all jobs have."""
    common = set.intersection(*(set(job.overrides) for job in jobs))
    varied = []
    for job in jobs:
        varied.append([override for override in job.overrides if override not in common])
    return varied


def best_jobs(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """The job with the best objective and those that tie with it; empty if the objectives cannot be compared.

    They cannot in a dry run, if the jobs differ in unit, benchmark, evaluator or objective, or if no job has a score.
    """
    scored = [job for job in jobs if job.objective is not None]
    is_dry_run = any(job.dry_run for job in scored)
    units = {job.unit for job in scored}
    # One override per line, as the expression expects them.
    varied = "\n".join(map("\n".join, _varied(jobs)))
    if is_dry_run or len(units) != 1 or OTHER_SCORES.search(varied):
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
    for job, overrides in zip(jobs, _varied(jobs), strict=True):
        outcome = ""
        if job.refused:
            outcome = "refused"
        elif job.objective is not None:
            outcome = job.unit.text(job.objective, more=1)
        line = f"  {outcome:>15} {clean(' '.join(overrides))}"
        if job.dry_run:
            line += f" (dry_run={job.dry_run})"
        if job in best:
            line += mark
        lines.append(line)
    return lines
