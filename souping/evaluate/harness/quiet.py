"""Keep lm-evaluation-harness's log, progress bars and advice out of the run's own display."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec

from souping.core import UserError

LOGGERS = ("lm_eval", "datasets", "sacrebleu", "huggingface_hub")
LISTENED = ("lm_eval.tasks._index", "lm_eval.models.huggingface")


def require() -> None:
    """Refuse, in one line, where the extra is not installed."""
    absent = [name for name in ("lm_eval", "sacrebleu") if find_spec(name) is None]
    if absent:
        raise UserError(f'evaluator=lm_eval needs {absent[0]}: pip install "souping[lm_eval]"')


def harness_version() -> str:
    require()
    return version("lm_eval")


class Heard(logging.Handler):
    """What of the harness's log a user must know: task files that it passes over, and prompts that it cuts."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.skipped: list[str] = []
        self.cut = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        if text.startswith("Skip"):
            self.skipped.append(text[:200])
        self.cut += "runcat" in text


@contextmanager
def quiet() -> Iterator[Heard]:
    """Silence for the body; `Heard` listens."""
    import datasets

    datasets.disable_progress_bars()
    heard = Heard()
    ears = [logging.getLogger(name) for name in LISTENED]
    every = [logging.getLogger(name) for name in LOGGERS] + ears
    before = [(logger, logger.level, logger.propagate, logger.disabled) for logger in every]
    for logger in every:
        logger.setLevel(logging.CRITICAL)
    for logger in ears:
        logger.addHandler(heard)
        logger.setLevel(logging.DEBUG)
        logger.propagate = logger.disabled = False  # Hydra disables the loggers that it finds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield heard
    finally:
        for logger in ears:
            logger.removeHandler(heard)
        for logger, level, propagate, disabled in before:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
