"""Errors and log of lm-evaluation-harness: kept out of the run's own display, told in one or two lines."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from importlib.util import find_spec

from souping.core.text import first_line, install
from souping.core.types import UserError

LOGGERS = ("lm_eval", "datasets", "sacrebleu", "huggingface_hub")
HARNESS = "/lm_eval/tasks/"
"""Where the harness's own files lie: that some cannot be read is no news to the user."""
OFFLINE = {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError", "MaxRetryError"}
LISTENED = "lm_eval.tasks._index"


def require() -> None:
    """Refuse, in one line, where the extra is not installed."""
    absent = [name for name in ("lm_eval", "sacrebleu") if find_spec(name) is None]
    if absent:
        raise UserError(f"evaluator=lm_eval needs {absent[0]}: {install('lm_eval')}")


def harness_version() -> str:
    require()
    return version("lm_eval")


class LogListener(logging.Handler):
    """Listener to the harness's log for task files that it passes over."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.skipped: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text.startswith("Skip"):
            self.skipped.append(text[:200])


@contextmanager
def silence() -> Iterator[LogListener]:
    """Silence for the body; `LogListener` listens."""
    import datasets

    datasets.disable_progress_bars()
    heard = LogListener()
    ear = logging.getLogger(LISTENED)
    every = [*(logging.getLogger(name) for name in LOGGERS), ear]
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in every]
    for logger in every:
        logger.setLevel(logging.CRITICAL)
    ear.addHandler(heard)
    ear.setLevel(logging.DEBUG)
    ear.propagate = ear.disabled = False  # Hydra disables the loggers that it finds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield heard
    finally:
        ear.removeHandler(heard)
        for logger, level, propagate, disabled in before:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled


def unknown(name: str, known: Sequence[str], skipped: Sequence[str]) -> str:
    """A name that is no task: the nearest names, and a file that could not be read where that may be why."""
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    where = f"; did you mean {' or '.join(near)}?" if near else ": set evaluator.include_path for your own YAML"
    own = [file for file in skipped if name in file] or [file for file in skipped if HARNESS not in file]
    return f"evaluator.tasks: no task, group or tag is named {name}{where}" + (f"\n{own[0]}" if own else "")


def not_loaded(name: str, source: str | None, error: BaseException) -> str:
    """A task that fails while it is loaded; `source` is its YAML file."""
    if isinstance(error, StopIteration):
        return f"evaluator.tasks: {name} has no documents\nlook at its dataset_path and splits in {source or name}"
    wrapped = type(error).__name__ == "DatasetGenerationError"  # datasets'
    told = error.__cause__ if wrapped and error.__cause__ else error
    line = f"evaluator.tasks: {name} cannot be loaded: {type(told).__name__}: {first_line(told)}"
    if "Sample larger than population" in line:
        return f"{line}\nit has fewer few-shot examples than evaluator.num_fewshot (or its own num_fewshot) asks for"
    kinds = {type(e).__name__ for e in _causes(error)}
    if kinds & OFFLINE:
        return f"{line}\nits data is not in the cache of `datasets`: load it once with access to the Hub"
    if kinds & {"DatasetNotFoundError", "FileNotFoundError"}:
        return f"{line}\nlook at dataset_path and dataset_kwargs in {source or name}"
    return line


def stopped(names: Sequence[str], error: BaseException) -> str:
    """The harness's loop failed: what to do where it is known."""
    line = f"evaluator=lm_eval stopped in {', '.join(names):.100}: {type(error).__name__}: {first_line(error)}"
    if isinstance(error, AssertionError) and not str(error):  # HFLM's, of what it is to score
        return f"{line}\nis a choice empty, or longer than the model's context (evaluator.max_length)?"
    if "chat_template" in line or "chat template" in line:
        return f"{line}\nthe tokenizer has no chat template: set evaluator.apply_chat_template=false, or give it one"
    if "max tokens to generate" in line or "maximum sequence length" in line:
        return f"{line}\nset evaluator.gen_kwargs={{max_gen_toks: N}} or evaluator.max_length"
    return line


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
