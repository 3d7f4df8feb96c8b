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


def require() -> None:
    """Refuse, in one line, where the extra is not installed."""
    absent = [name for name in ("lm_eval", "sacrebleu") if find_spec(name) is None]
    if absent:
        raise UserError(f'evaluator=lm_eval needs {absent[0]}: pip install "souping[lm_eval]"')


def harness_version() -> str:
    require()
    return version("lm_eval")


class Skipped(logging.Handler):
    """Collects the task files that the harness passes over without a word."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.files: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("Skip"):
            self.files.append(" ".join(record.getMessage().split())[:200])


@contextmanager
def quiet() -> Iterator[Skipped]:
    """Silence for the body; what the harness skipped is kept."""
    import datasets

    datasets.disable_progress_bars()
    skipped, index = Skipped(), logging.getLogger("lm_eval.tasks._index")
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    own, propagate = index.level, index.propagate
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    index.addHandler(skipped)
    index.setLevel(logging.DEBUG)
    index.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield skipped
    finally:
        index.removeHandler(skipped)
        index.setLevel(own)
        index.propagate = propagate
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
