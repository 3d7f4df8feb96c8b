"""Averages of the weights that a trainer keeps itself, beside a run's checkpoints, inside the last one, or in its
optimiser state. They are compared with, never averaged."""

from __future__ import annotations

import re
from pathlib import Path

from souping.checkpoints.compatibility import has_tokenizer, preflight
from souping.checkpoints.folder import Like
from souping.checkpoints.lora import is_adapter, open_model
from souping.checkpoints.sharded import has_average
from souping.checkpoints.trainers import TRAINERS
from souping.checkpoints.trajectory import Member, TrainingRun, folders_in, incomplete, member_in
from souping.core.files import error_text
from souping.core.text import first_line, shown
from souping.core.types import EMA_KEY, UserError

TRAINERS_OWN = [trainer.average for trainer in TRAINERS if trainer.average]
BESIDE = re.compile(
    "|".join([r"(.*[-_])?(ema|swa|averaged?)([-_].*)?", *TRAINERS_OWN]), re.IGNORECASE
)
"""Folder of an average beside the checkpoints."""
INSIDE_LAST = re.compile(r"ema|swa|averaged?", re.IGNORECASE)
"""Folder of an average inside a checkpoint."""
WHOLE_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.])")
"""A whole number in a name. 0.999 is a rate."""


def find_averages(run: TrainingRun) -> tuple[dict[str, Path], list[str]]:
    """({name: path} of the trainer's averages at the last member, a note on each folder that is not one)."""
    last = run.members[-1]
    folders = {f.name: f for f in folders_in(run.folder) if BESIDE.fullmatch(f.name)}
    for folder in folders_in(last.folder):
        if INSIDE_LAST.fullmatch(folder.name):
            folders[f"{last.name}-{folder.name}"] = folder
    averages = dict[str, Path]()
    notes = list[str]()
    for name, folder in folders.items():
        try:
            why = _unfit(folder, run)
        except (UserError, OSError) as error:
            why = first_line(UserError(error_text(error)))
        if why:
            notes.append(f"{run.folder}: {name}: not compared as the trainer's average, {why}")
        else:
            averages[name] = folder
    # The optimiser state of the last checkpoint may hold one more.
    if has_average(last.weights):
        averages[f"{last.name}{EMA_KEY}"] = Path(f"{last.model}{EMA_KEY}")
    return averages, notes


def _unfit(folder: Path, run: TrainingRun) -> str:
    """Why a folder cannot be compared with the last member; empty if it can.

    Raises:
        UserError, OSError: it cannot be read, or its tensors, config or tokenizer do not fit.
    """
    last = run.members[-1]
    why = incomplete(member_in(folder, last.step))
    if why:
        return why
    # An average inside a checkpoint has the checkpoint's step; others have a step in their names.
    step = last.step if folder.parent == last.folder else _step_of(folder.name, run)
    if step != last.step:
        return f"it is of step {step}, and the last checkpoint here of step {last.step}"
    return _unlike(folder, last)


def _unlike(folder: Path, last: Member) -> str:
    """Why tensors, config or tokenizer of a folder do not fit the last member; empty if they do.

    Raises:
        UserError, OSError: it cannot be read, or its config or tokenizer does not fit.
    """
    stored = Like(stored=True)
    try:
        checkpoint = open_model(last.model, allow_pickle=True, like=stored)
    except (UserError, OSError):
        # The checkpoint itself is broken: opening it as a candidate reports that.
        return ""
    if is_adapter(folder) != is_adapter(last.model):
        return f"one of it and {last.name} is an adapter"
    average = open_model(folder, allow_pickle=True, like=stored)
    for tensor in average.tensors.values():
        # A tensor that only the average has fits.
        shape = checkpoint.tensors.get(tensor.name, tensor).shape
        if shape != tensor.shape:
            return f"{shown(tensor.name)} is {list(tensor.shape)}, and {list(shape)} in {last.name}"
    # The names of sharded weights without a config are not those of the models.
    if checkpoint.config and average.config and not is_adapter(folder):
        preflight({last.name: checkpoint, folder.name: average})
        if has_tokenizer(checkpoint.home) and not has_tokenizer(average.home):
            return "no tokenizer in it"
    return ""


def _step_of(name: str, run: TrainingRun) -> int:
    """The first whole number in a name that may be a step: none is below that of the oldest checkpoint.

    An average without one is of the end of training, the newest step.
    """
    oldest, newest = run.extent
    numbers = [int(number) for number in WHOLE_NUMBER.findall(name)]
    return next((number for number in numbers if number >= oldest), newest)
