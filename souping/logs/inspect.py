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
    files = (
        [path]
        if path.is_file()
        else sorted(file for file in path.iterdir() if file.is_file() and is_inspect(file))
    )
    headers = [
        (str(file), _by_inspect(partial(read_eval_log, header_only=True), str(file)))
        for file in files
    ]
    model = pick_model(path, sorted({header.eval.model for _, header in headers}), name)
    own = [(file, header) for file, header in headers if header.eval.model == model]
    newest = {
        header.eval.task: (file, header)
        for file, header in sorted(own, key=lambda pair: pair[1].eval.created)
    }
    notes = (
        [f"{path}: of {len(own)} logs the newest of each task was read"]
        if len(newest) < len(own)
        else []
    )
    for file, head in newest.values():
        if head.status != "success":
            raise UserError(
                f"{file}: status is {head.status}, not success: finish it with inspect eval-retry"
            )
    tasks = {task: _task(file, header, group) for task, (file, header) in newest.items()}
    return Log(
        path=path,
        harness="inspect_ai",
        model=model,
        tasks=tasks,
        asked=tuple(tasks),
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
    own = header.eval
    scorers = {scorer.name: scorer.options for scorer in own.scorers or ()}
    metrics = metrics_of(Path(file), _answers(file, list(scorers), group))
    if not metrics:
        raise UserError(f"{file}: no samples")
    settings = {
        "task version": str(own.task_version),
        "epochs reducer": ", ".join(own.config.epochs_reducer or ["mean"]),
        "judge": _options({role: config.model for role, config in (own.model_roles or {}).items()}),
        "task arguments": _options(own.task_args),
        **{f"scorer {name}": _options(options) for name, options in scorers.items()},
    }
    return Task(name=own.task, metrics=metrics, settings=settings)


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
    for sample in samples:
        scores = sample.scores or {}
        text = (
            sample.input
            if isinstance(sample.input, str)
            else _options([m.text for m in sample.input])
        )
        tokens = [usage.output_tokens for usage in sample.model_usage.values()]
        for name, value, output in (
            _values(scores) if scores else ((name, None, "") for name in scorers)
        ):
            try:
                score = math.nan if value is None else as_number(value)
            except OverflowError:
                score = math.inf
            yield (
                name,
                LoggedAnswer(
                    item=f"{sample.id} {sha256(text.encode()).hexdigest()[:16]}",
                    score=score,
                    group=str(sample.metadata.get(group, "")) if group else "",
                    replicate=sample.epoch - 1,
                    missing=math.isnan(score) or bool(sample.error),
                    cut=bool(sample.limit) if limited else None,
                    tokens=sum(tokens) if tokens else None,
                    prompt=text,
                    output=output,
                ),
            )


def _values(scores: Mapping[str, Score]) -> Iterator[tuple[str, Json, str]]:
    """(metric, value, answer); a score with several values is several metrics."""
    for name, score in scores.items():
        values = score.value if isinstance(score.value, dict) else {"": score.value}
        for key, value in values.items():
            yield f"{name}/{key}" if key else name, value, score.answer or ""
