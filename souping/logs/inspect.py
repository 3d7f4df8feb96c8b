"""Logs of inspect_ai, read by its own package: `.eval` and `.json` files, or a folder of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile, is_zipfile

from souping.core.files import unpacked_limit
from souping.core.text import first_line, human, install
from souping.core.types import Json, T, UserError
from souping.logs.records import Log, LoggedAnswer, Task, metrics_of, pick_model

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.scorer import Score


def is_inspect(path: Path) -> bool:
    """Whether a file is a log of inspect_ai: by its suffix, or by the first keys of a JSON file."""
    if path.suffix != ".json":
        return path.suffix == ".eval"
    with path.open("rb") as file:
        start = file.read(200)
    return b'"version"' in start and b'"status"' in start


def read_inspect(path: Path, name: str, group: str) -> Log:
    """The log of one model from a file, or from a folder of files, of which the newest of each task is read.

    `name` picks one of several models, and `group` is a field of the samples' metadata.

    Raises:
        UserError: inspect_ai is not installed, or a file is damaged, unfinished or of another model.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise UserError(
            f"{path}: inspect_ai's logs are read by its own package", fix=install("inspect")
        ) from None
    files = [path]
    if not path.is_file():
        files = sorted(file for file in path.iterdir() if file.is_file() and is_inspect(file))
    for log_path in files:
        _check_size(log_path)
    read_header = partial(read_eval_log, header_only=True)
    headers = {str(file): _by_inspect(read_header, str(file)) for file in files}
    models = {header.eval.model for header in headers.values()}
    model = pick_model(path, sorted(models), name)

    model_files = [file for file, header in headers.items() if header.eval.model == model]
    model_files.sort(key=lambda file: headers[file].eval.created)
    # Of one task, the dict keeps the last file.
    newest = {headers[file].eval.task: file for file in model_files}
    notes = []
    if len(newest) < len(model_files):
        notes.append(f"{path}: of {len(model_files)} logs the newest of each task was read")
    for file in newest.values():
        status = headers[file].status
        if status != "success":
            raise UserError(
                f"{file}: status is {status}, not success: finish it with inspect eval-retry"
            )
    tasks = {task: _task(file, headers[file], group) for task, file in newest.items()}
    return Log(
        path=path,
        harness="inspect_ai",
        model=model,
        tasks=tasks,
        requested=tuple(tasks),
        notes=tuple(notes),
    )


def _check_size(path: Path) -> None:
    """Refuse a zip whose members no memory holds (UserError)."""
    unpacked = _by_inspect(_unpacked_bytes, str(path))
    if unpacked > unpacked_limit(path):
        packed = path.stat().st_size
        raise UserError(f"{path}: {human(packed)} unpack to {human(unpacked)}, too much to read")


def _unpacked_bytes(file: str) -> int:
    """Bytes of all members of a zip; 0 for any other file."""
    if not is_zipfile(file):
        return 0
    with ZipFile(file) as archive:
        return sum(member.file_size for member in archive.infolist())


def _by_inspect(read: Callable[[str], T], file: str) -> T:
    """`read(file)`, a call of inspect_ai, whose errors of many kinds become a UserError."""
    try:
        return read(file)
    except Exception as error:
        raise UserError(
            f"{file}: inspect_ai cannot read it, cut off or damaged: {first_line(error)}"
        ) from error


def _task(file: str, header: EvalLog, group: str) -> Task:
    """The task of a log, with the settings that change its scores. `group` is a field of the samples' metadata."""
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
    """Options as JSON text with sorted keys, so that equal options are equal texts."""
    return json.dumps(options or {}, sort_keys=True, default=str)


def _score(as_number: Callable[[Any], float], value: Json) -> float:
    """A score by inspect_ai's conversion; nan for none."""
    if value is None:
        return math.nan
    try:
        return as_number(value)
    except OverflowError:
        # An integer beyond floats: refused like other scores that are too large.
        return math.inf


def _answers(file: str, scorers: list[str], group: str) -> Iterator[tuple[str, LoggedAnswer]]:
    """(metric, answer) of every sample. A sample without scores has a missing answer by each of the `scorers`.

    `group` is a field of the samples' metadata.
    """
    from inspect_ai.log import read_eval_log_sample_summaries
    from inspect_ai.scorer import value_to_float

    as_number = value_to_float()
    samples = _by_inspect(read_eval_log_sample_summaries, file)
    # Summaries do not say whether an answer stopped at max_tokens. Only a limit of some sample shows that limits are
    # logged.
    limited = any(sample.limit for sample in samples)
    unscored: list[tuple[str, Json, str]] = [(name, None, "") for name in scorers]
    for sample in samples:
        text = sample.input
        if not isinstance(text, str):
            text = _options([message.text for message in text])
        tokens = [usage.output_tokens for usage in sample.model_usage.values()]
        for name, value, output in values_of(sample.scores) if sample.scores else unscored:
            score = _score(as_number, value)
            answer = LoggedAnswer(
                # inspect_ai may number samples by their order: with the hash, an item is the same in other logs.
                item=f"{sample.id} {sha256(text.encode()).hexdigest()[:16]}",
                score=score,
                group=str(sample.metadata.get(group, "")) if group else "",
                repeat=sample.epoch - 1,  # epochs are numbered from 1
                missing=math.isnan(score) or bool(sample.error),
                truncated=bool(sample.limit) if limited else None,
                tokens=sum(tokens) if tokens else None,
                prompt=text,
                output=output,
            )
            yield name, answer


def values_of(scores: Mapping[str, Score]) -> Iterator[tuple[str, Json, str]]:
    """(metric, value, text of the answer) of {scorer: score} of one sample; each value of a score is a metric."""
    for name, score in scores.items():
        answer = score.answer or ""
        if not isinstance(score.value, dict):
            yield name, score.value, answer
            continue
        for key, value in score.value.items():
            yield f"{name}/{key}" if key else name, value, answer
