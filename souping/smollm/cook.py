"""Train the fine-tunes, a process and a thread each, and look at them on development items."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from souping.smollm.items import Choice
from souping.smollm.slices import Lesson
from souping.smollm.taste import taste
from souping.smollm.tune import Settings, tune


def cook(lessons: Sequence[Lesson], settings: Settings, start: Path, out: Path, jobs: int) -> None:
    """A folder below `out` for each lesson; those that are there stay.

    Raises:
        UserError: a folder holds a fine-tune of other settings, questions or base.
    """
    with ProcessPoolExecutor(min(jobs, len(lessons)), mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(_one, lesson, settings, start, out / lesson.name) for lesson in lessons]:
            future.result()


def _one(lesson: Lesson, settings: Settings, start: Path, out: Path) -> None:
    _end_with_the_command()
    _single_thread()
    tune(lesson, settings, start, out, partial(print, flush=True))


def table(folders: Sequence[Path], items: Sequence[Choice], jobs: int) -> list[str]:
    """Lines: percent right of each model on development items, by category, then the mean of the categories."""
    with ProcessPoolExecutor(min(jobs, len(folders)), mp_context=get_context("spawn")) as pool:
        scores = list(pool.map(_tasted, folders, [tuple(items)] * len(folders)))
    counts = {category: sum(item.category == category for item in items) for category in scores[0]}
    lines = [" " * 14 + "".join(f"{category:>15}" for category in [*counts, "mean"])]
    lines.append(f"{'items':14}" + "".join(f"{n:15}" for n in [*counts.values(), len(items)]))
    for folder, found in zip(folders, scores, strict=True):
        values = [*found.values(), sum(found.values()) / len(found)]
        lines.append(f"{folder.name:14}" + "".join(f"{100 * value:15.1f}" for value in values))
    return lines


def _tasted(folder: Path, items: Sequence[Choice]) -> dict[str, float]:
    _single_thread()
    return taste(folder, items)


def _end_with_the_command() -> None:
    """A command that was killed must leave no process that trains on, into the folder of the next command."""

    def wait() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def _single_thread() -> None:
    """Sums in another order are other numbers: one thread gives the same bytes on every run."""
    import torch

    torch.set_num_threads(1)
