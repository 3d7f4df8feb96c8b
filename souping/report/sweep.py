"""The table of a multirun: what each job set and what it reached."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.report.files import as_json, put

JOB = "job.json"


def write_job(run_dir: Path, number: int, overrides: Sequence[str], objective: float | None) -> None:
    """What the sweep's table needs of one job; a file, since jobs may run in other processes."""
    job = {"job": number, "overrides": list(overrides), "objective": objective, "run_dir": run_dir.name}
    put(run_dir / JOB, as_json(job).encode())


def read_jobs(sweep_dir: Path) -> list[dict[str, Any]]:
    """The jobs that ended well, by number."""
    jobs = [json.loads(path.read_text()) for path in sweep_dir.glob(f"*/{JOB}")]
    return sorted(jobs, key=lambda job: int(job["job"]))


def write_sweep(sweep_dir: Path, jobs: Sequence[Mapping[str, Any]]) -> Path:
    """sweep.csv, a line a job."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["job", "objective", "overrides", "run_dir"])
    for job in jobs:
        value = job["objective"]
        shown = "" if value is None else repr(value)
        writer.writerow([job["job"], shown, " ".join(job["overrides"]), job["run_dir"]])
    return put(sweep_dir / "sweep.csv", stream.getvalue().encode())
