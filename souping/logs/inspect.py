"""Logs of inspect_ai, read by its own package: `.eval` and `.json` files, or a folder of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from souping.core.text import first_line, install
from souping.core.types import Json, T, UserError
from souping.logs.records import Log, LoggedAnswer, Task, metrics_of, pick_model

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.scorer import Score


def is_inspect(path: Path) -> bool:
    """Whether a file is a log of inspect_ai."""
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with path.open("rb") as file:
        start = file.read(200)
    return b'"version"' in start and b'"status"' in start


def read_inspect(path: Path, name: str, group: str) -> Log:
    """The logs of one model, each a task; of several logs of a task the newest."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise UserError(
            f"{path}: inspect_ai's logs are read by its own package", fix=install("inspect")
        ) from None
    files = [path]
    if not path.is_file():
        files = sorted(file for file in path.iterdir() if file.is_file() and is_inspect(file))
    read_header = partial(read_eval_log, header_only=True)
    headers = {str(file): _by_inspect(read_header, str(file)) for file in files}
    models = {header.eval.model for header in headers.values()}
    model = pick_model(path, sorted(models), name)

    model_logs = [pair for pair in headers.items() if pair[1].eval.model == model]
    model_logs.sort(key=lambda pair: pair[1].eval.created)
    newest = {header.eval.task: (file, header) for file, header in model_logs}
    notes = []
    if len(newest) < len(model_logs):
        notes.append(f"{path}: of {len(model_logs)} logs the newest of each task was read")
    for file, header in newest.values():
        if header.status != "success":
            raise UserError(
                f"{file}: status is {header.status}, not success: finish it with inspect eval-retry"
            )
    tasks = {task: _task(file, header, group) for task, (file, header) in newest.items()}
    return Log(
        path=path,
        harness="inspect_ai",
        model=model,
        tasks=tasks,
        requested=tuple(tasks),
        notes=tuple(notes),
    )


def _by_inspect(read: Callable[[str], T], file: str) -> T:
    """What inspect_ai reads of a file; its errors are of many kinds."""
    try:
        return read(file)
    except Exception as error:
        raise UserError(
            f"{file}: inspect_ai cannot read it, cut off or damaged: {first_line(error)}"
        ) from error


def _task(file: str, header: EvalLog, group: str) -> Task:
    spec = header.eval
    scorers = {scorer.name: scorer.options for scorer in spec.scorers or ()}
    metrics = metrics_of(Path(file), _answers(file, list(scorers), group))
    if not metrics:
        raise UserError(f"{file}: no samples")
    judges = {role: config.model for role, config in (spec.model_roles or {}).items()}
    settings = {
        "task version": str(spec.task_version),
        "epochs reducer": ", ".join(spec.config.epochs_reducer or ["mean"]),
        "judge": _options(judges),
        "task arguments": _options(spec.task_args),
    }
    for name, options in scorers.items():
        settings[f"scorer {name}"] = _options(options)
    return Task(name=spec.task, metrics=metrics, settings=settings)


def _options(options: Json) -> str:
    return json.dumps(options or {}, sort_keys=True, default=str)


def _answers(file: str, scorers: list[str], group: str) -> Iterator[tuple[str, LoggedAnswer]]:
    """(scorer, answer) of every sample; one without scores counts for each scorer as missing."""
    from inspect_ai.log import read_eval_log_sample_summaries
    from inspect_ai.scorer import value_to_float

    as_number = value_to_float()
    samples = _by_inspect(read_eval_log_sample_summaries, file)
    # summaries do not say whether an answer stopped at max_tokens
    limited = any(sample.limit for sample in samples)
    unscored: list[tuple[str, Json, str]] = [(name, None, "") for name in scorers]
    for sample in samples:
        text = sample.input
        if not isinstance(text, str):
            text = _options([message.text for message in text])
        tokens = [usage.output_tokens for usage in sample.model_usage.values()]
        for name, value, output in _values(sample.scores) if sample.scores else unscored:
            score = math.nan
            if value is not None:
                try:
                    score = as_number(value)
                except OverflowError:
                    score = math.inf
            answer = LoggedAnswer(
                item=f"{sample.id} {sha256(text.encode()).hexdigest()[:16]}",
                score=score,
                group=str(sample.metadata.get(group, "")) if group else "",
                repeat=sample.epoch - 1,
                missing=math.isnan(score) or bool(sample.error),
                truncated=bool(sample.limit) if limited else None,
                tokens=sum(tokens) if tokens else None,
                prompt=text,
                output=output,
            )
            yield name, answer


def _values(scores: Mapping[str, Score]) -> Iterator[tuple[str, Json, str]]:
    """(metric, value, answer); a score with several values is several metrics."""
    for name, score in scores.items():
        answer = score.answer or ""
        if not isinstance(score.value, dict):
            yield name, score.value, answer
            continue
        for key, value in score.value.items():
            yield f"{name}/{key}" if key else name, value, answer
