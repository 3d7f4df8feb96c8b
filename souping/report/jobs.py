"""Jobs of a multirun: the line of each as a file, and the table of all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from souping.core.files import write_atomically
from souping.core.types import Json, number, texts
from souping.core.unit import Unit, unit_of
from souping.report.files import as_json, write_csv
from souping.report.format import clean
from souping.report.tables import JsonRow

JOB = "job.json"
OTHER_SCORES = re.compile(
    r"^\+*(experiment|benchmark|objective|evaluator(=|\.tasks))", re.MULTILINE
)
"""Overrides after which a score means something else."""


def write_job(unit: Unit, run_dir: Path, job: JsonRow) -> None:
    """Write one job's line of the sweep's table; a file, since jobs may run in other processes."""
    line = {**job, "run_dir": run_dir.name, "unit": asdict(unit)}
    write_atomically(run_dir / JOB, as_json(line).encode())


def read_jobs(sweep_dir: Path) -> list[JsonRow]:
    """The jobs that ended, by number; `refused` says why one has no outcome."""
    jobs: list[JsonRow] = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{JOB}")]
    return sorted(jobs, key=lambda job: number(job["job"]) or 0)


def write_sweep(sweep_dir: Path, jobs: Sequence[JsonRow]) -> Path:
    """sweep.csv, one line per job; dry runs have their `limit` in a column of its own."""
    return write_csv(sweep_dir / "sweep.csv", job_table(jobs))


def job_table(jobs: Sequence[JsonRow]) -> list[list[Json]]:
    """The header and a row per job."""
    columns = ["job", "objective", "overrides", "run_dir", "refused"]
    columns += ["limit"] if any(job.get("limit") for job in jobs) else []
    table: list[list[Json]] = [[*columns]]
    for job in jobs:
        overrides = " ".join(texts(job, "overrides"))
        row = {"refused": "", **job, "job": str(job["job"]), "overrides": overrides}
        table.append([row.get(column) for column in columns])
    return table


def _varied(jobs: Sequence[JsonRow]) -> list[list[str]]:
    """The overrides of each job that not all jobs have."""
    overrides = [texts(job, "overrides") for job in jobs]
    common = set.intersection(*map(set, overrides))
    return [[word for word in words if word not in common] for words in overrides]


def best_jobs(jobs: Sequence[JsonRow]) -> list[JsonRow]:
    """The job with the best objective and those that tie with it; none if the objectives do not compare.

    They do not in a dry run, or if the jobs have several units, items or objectives.
    """
    scored = [job for job in jobs if number(job["objective"]) is not None]
    dry = any(job.get("limit") for job in scored)
    units = {unit_of(job) for job in scored}
    varied = "\n".join(map("\n".join, _varied(jobs)))
    if dry or len(units) != 1 or OTHER_SCORES.search(varied):
        return []
    best = max(map(_merit, scored))
    return [job for job in scored if _merit(job) == best]


def _merit(job: JsonRow) -> float:
    return round(unit_of(job).gain(number(job["objective"])), 12)


def sweep_lines(jobs: Sequence[JsonRow]) -> list[str]:
    """One line per job: what it reached, the overrides that differ between jobs, and whether it is the best."""
    best = best_jobs(jobs)
    mark = "  <- best" if len(best) == 1 else "  <- best (tie)"
    lines = []
    for job, words in zip(jobs, _varied(jobs), strict=True):
        value = number(job["objective"])
        shown = "refused" if job["refused"] else ""
        if value is not None and not shown:
            shown = unit_of(job).text(value, more=1)
        dry = f" (dry run, limit={job['limit']})" if job.get("limit") else ""
        lines.append(f"  {shown:>15} {clean(' '.join(words))}{dry}{mark if job in best else ''}")
    return lines
