"""Checkpoints of a training run: where trainers put them, which are complete, and at which learning rate they stand."""

from __future__ import annotations

import csv
import filecmp
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from souping.checkpoints.folder import weight_map
from souping.checkpoints.layouts import installed_trainers, model_places, weight_places
from souping.checkpoints.pool import RowKind
from souping.checkpoints.sharded import RANK_FILE
from souping.checkpoints.trainers import (
    MODEL_PLACES,
    TRAINER_STATE,
    TRAINERS,
    WEIGHT_PLACES,
    Trainer,
    folders_in,
    step_pattern,
    weight_files,
)
from souping.core.fields import text_of
from souping.core.files import near_folder
from souping.core.json_fields import entries, finite_number
from souping.core.parsing import read_json
from souping.core.text import first_line, listed
from souping.core.types import Candidate, JsonObject, UserError, frozen

FALLEN = 0.5
"""Share of the first learning rate below which the rate has fallen."""
FELL = "averages of decayed checkpoints seldom gain"
"""Words of `rate_sentence` for that case."""


@frozen
class Member:
    """Checkpoint of a training run.

    `folder` is its own, `model` the one to open, `weights` the one with the weight files. The trainer logged the
    learning `rate` and the number of `tokens` up to its step.
    """

    name: str
    folder: Path
    model: Path
    weights: Path
    step: int
    rate: float | None = None
    tokens: float | None = None

    def same_weights(self, folder: Path) -> bool:
        """Whether a folder has the same weight files, byte for byte."""
        files = weight_files(self.weights)
        if files != weight_files(folder):
            return False
        return all(filecmp.cmp(self.weights / file, folder / file, shallow=False) for file in files)


@frozen
class TrainingRun:
    """Complete checkpoints of a run, oldest first.

    `notes` say what was left out. `best` is the checkpoint that the trainer calls the best, `extent` the steps of
    the oldest and the newest checkpoint, chosen or not.
    """

    folder: Path
    trainer: str
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()
    best: Member | None = None
    extent: tuple[int, int] = (0, 0)

    @property
    def steps(self) -> list[int]:
        return [member.step for member in self.members]

    def chosen(
        self, steps: Sequence[int] | None, until: int | None, every: int, last: int | None
    ) -> TrainingRun:
        """The run with some of its members: those at `steps`, up to step `until`, every `every`-th counted back from
        the newest, of these the `last`.

        Raises:
            UserError: there is no checkpoint at one of the steps.
        """
        missing = set(steps or ()) - set(self.steps)
        if missing:
            names = listed(map(str, self.steps))
            raise UserError(
                f"pool.steps: {self.folder} has no complete checkpoint {min(missing)}: {names}"
            )
        members = list(self.members)
        if steps:
            members = [member for member in members if member.step in steps]
        if until:
            members = [member for member in members if member.step <= until]
        newest_first = members[::-1][::every][:last]
        return replace(self, members=tuple(newest_first[::-1]))


def find_run(path: Path, rates_file: Path | None = None) -> TrainingRun:
    """The run in a folder, with the learning rates of its trainer_state.json or of `rates_file`.

    Raises:
        UserError: it is not a folder, or holds no checkpoint of a known layout.
    """
    if not path.is_dir():
        raise UserError(f"pool.path={path} is not a folder{near_folder(path)}")
    # `left_out` is {name: why}.
    trainer, checkpoints, left_out = _checkpoints(path)
    for checkpoint in checkpoints:
        why = incomplete(checkpoint, trainer.mark, checkpoints)
        if why:
            left_out[checkpoint.name] = why

    complete = [checkpoint for checkpoint in checkpoints if checkpoint.name not in left_out]
    members, copies = _distinct(complete)
    for name, member_name in copies.items():
        left_out[name] = f"the same weights as {member_name}"

    state = _state(checkpoints)
    log = entries(state, "log_history") if rates_file is None else read_rates(rates_file)
    notes = [f"{name}: left out, {why}" for name, why in sorted(left_out.items())]
    steps = [checkpoint.step for checkpoint in checkpoints]
    notes += _missing_steps(steps, finite_number(state.get("save_steps")))
    notes += _root(path, members)
    best = Path(str(state.get("best_model_checkpoint") or "")).name
    # The trainer's best may be a copy that was left out: then the member with the same weights is the best.
    best = copies.get(best, best)
    return TrainingRun(
        folder=path,
        trainer=trainer.name,
        members=tuple(_logged(member, log) for member in members),
        notes=tuple(f"{path}: {note}" for note in notes),
        best=next((member for member in members if member.name == best), None),
        extent=(members[0].step, members[-1].step) if members else (0, 0),
    )


def _distinct(checkpoints: Sequence[Member]) -> tuple[list[Member], dict[str, str]]:
    """(checkpoints of distinct weights, {name of a copy: name of the checkpoint that stands for it}), oldest first.

    Of checkpoints with the same weights, the newest stands for all.
    """
    newest_first = list[Member]()
    copies = dict[str, str]()
    for checkpoint in reversed(checkpoints):
        for member in newest_first:
            if checkpoint.same_weights(member.weights):
                copies[checkpoint.name] = member.name
                break
        else:
            newest_first.append(checkpoint)
    return newest_first[::-1], copies


def _checkpoints(path: Path) -> tuple[Trainer, list[Member], dict[str, str]]:
    """(trainer, its checkpoints by step, {folder left out: why}) of the trainer whose names most folders have."""
    layouts, left_out = _by_trainer(path, TRAINERS)
    if not layouts:
        layouts, left_out = _by_trainer(path, installed_trainers())
    if not layouts:
        looked_for = ", ".join(f"{trainer.folders[0]}N" for trainer in TRAINERS)
        raise UserError(f"pool.path={path} holds no checkpoints: looked for {looked_for}")
    trainer = max(layouts, key=lambda trainer: len(layouts[trainer]))
    for other_trainer in layouts.keys() - {trainer}:
        for member in layouts[other_trainer]:
            left_out[member.name] = f"most checkpoints here are {trainer.name}'s"
    return trainer, sorted(layouts[trainer], key=lambda member: member.step), left_out


def _by_trainer(
    path: Path, trainers: Sequence[Trainer]
) -> tuple[dict[Trainer, list[Member]], dict[str, str]]:
    """({trainer: its checkpoints}, {folder left out: why}) by the names of the folders in `path`."""
    layouts = dict[Trainer, list[Member]]()
    left_out = dict[str, str]()
    for folder in folders_in(path):
        for trainer in trainers:
            pattern = step_pattern(trainer)
            match = pattern.fullmatch(folder.name)
            if match:
                layouts.setdefault(trainer, []).append(member_in(folder, int(match[1])))
            elif pattern.search(folder.name) and re.search("tmp|part", folder.name):
                left_out[folder.name] = "incomplete: its name is a temporary one"
    return layouts, left_out


def member_in(folder: Path, step: int) -> Member:
    """The checkpoint in a folder; its weights are in the first of the trainers' places that has weight files."""
    # souping's own places for models first, as these need no config and tokenizer from elsewhere.
    places = chain(MODEL_PLACES, weight_places(), model_places())
    place = next((place for place in places if weight_files(folder / place)), "")
    weights = folder / place
    # In this order, as `model_places` imports the packages that bring further trainers.
    is_model = place in MODEL_PLACES or (place not in WEIGHT_PLACES and place in model_places())
    return Member(
        name=folder.name,
        folder=folder,
        model=weights if is_model else folder,
        weights=weights,
        step=step,
    )


def incomplete(member: Member, mark: str = "", siblings: Sequence[Member] = ()) -> str:
    """Why a checkpoint is not whole; empty if it is.

    `mark` is the file that the trainer writes last. It is only required if a sibling has it.
    """
    if not weight_files(member.weights):
        return "no weights in it"
    names = {path.name for path in member.weights.iterdir()}
    if any(name.endswith(".distcp") for name in names) and ".metadata" not in names:
        return "incomplete: no .metadata"
    for index in names:
        if not index.endswith(".index.json"):
            continue
        try:
            missing = sorted(set(weight_map(member.weights / index).values()) - names)
        except UserError:  # the index cannot be read
            missing = ["a part of the index"]
        if missing:
            return f"incomplete: {missing[0]} is missing"
    matches = [RANK_FILE.fullmatch(name) for name in names]
    ranks = [match[1] for match in matches if match and match[1]]
    if ranks and len(ranks) < int(ranks[0]):
        return f"incomplete: {len(ranks)} of {ranks[0]} rank files"
    marked = any((sibling.folder / mark).exists() for sibling in siblings)
    if marked and not (member.folder / mark).exists():
        return f"incomplete: no {mark}"
    return ""


def _root(path: Path, members: Sequence[Member]) -> list[str]:
    """A note if the run's folder itself holds weights, and not those of the last checkpoint, `members[-1]`."""
    if not weight_files(path) or not members:
        return []
    name = next((member.name for member in members if member.same_weights(path)), None)
    if name is None:
        return ["the folder itself holds weights of no checkpoint: they are not used"]
    if name == members[-1].name:
        return []
    return [f"the folder itself holds {name}, not the last checkpoint"]


def _missing_steps(steps: Sequence[int], interval: float | None) -> list[str]:
    """A note on steps of the saving interval that have no checkpoint.

    The interval is the trainer's, else the smallest distance of two checkpoints. There is no note if a checkpoint is
    not at a multiple of the interval; the newest need not be, as it may be the end of training.
    """
    distance = int(interval or 0) or min((b - a for a, b in itertools.pairwise(steps)), default=0)
    if distance < 1 or any(step % distance for step in steps[:-1]):
        return []
    # Steps are numbers in names, which may be huge: missing ones are counted, and only the first are listed.
    present = {step for step in steps if 0 < step < steps[-1]}
    missing = (steps[-1] - 1) // distance - len(present)
    if missing < 1:
        return []
    expected = itertools.count(distance, distance)
    first = itertools.islice((step for step in expected if step not in present), min(missing, 10))
    more = f" and {missing - 10} more" if missing > 10 else ""
    return [
        f"no checkpoint at steps {listed(map(str, first))}{more} (deleted by save_total_limit?)"
    ]


# ------------------------------------------------------------ learning rates


def _state(checkpoints: Sequence[Member]) -> JsonObject:
    """The trainer_state.json of the newest checkpoint that has a readable one."""
    for member in reversed(checkpoints):
        with suppress(ValueError, UserError, FileNotFoundError):
            state = read_json(text_of(member.folder / TRAINER_STATE))
            return state if isinstance(state, Mapping) else {}
    return {}


def read_rates(path: Path) -> list[JsonObject]:
    """Learning rates as a trainer logs them, from a CSV with the columns step and lr, or from JSON {step: rate}.

    Raises:
        UserError: it is neither.
    """
    text = text_of(path)
    try:
        if path.suffix == ".json":
            pairs = read_json(text).items()
        else:
            pairs = [(row["step"], row["lr"]) for row in csv.DictReader(text.splitlines())]
        return [{"step": int(step), "learning_rate": float(rate)} for step, rate in pairs]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        form = "a CSV with the columns step and lr, or JSON {step: rate}"
        raise UserError(f"pool.lr_path={path} must be {form}: {first_line(error)}") from error


def _logged(member: Member, log: Sequence[JsonObject]) -> Member:
    """The checkpoint with the learning rate and tokens that were logged last up to its step."""

    def last(key: str) -> float | None:
        """The value of a key at the largest step so far; None if it was not logged."""
        values = list[tuple[float, float]]()
        for entry in log:
            step = finite_number(entry.get("step"))
            value = finite_number(entry.get(key))
            if step is not None and value is not None and step <= member.step:
                values.append((step, value))
        # The pair with the largest step.
        return max(values)[1] if values else None

    return replace(member, rate=last("learning_rate"), tokens=last("num_input_tokens_seen"))


def rate_sentence(members: Sequence[Member]) -> str:
    """How the learning rate changed over the members, and what that means for their average."""
    rates = [member.rate for member in members if member.rate is not None]
    if len(rates) < len(members) or not rates:
        return "The learning rates are not known: give them with pool.lr_path=FILE (step,lr)."
    first = rates[0]
    last = rates[-1]
    if last < FALLEN * first:
        these = f"over these {len(members)}"
        return f"The rate fell from {first:g} to {last:g} {these}: {FELL}."
    if first == last:
        return f"The learning rate is {first:g}."
    return f"The learning rate is {first:g} to {last:g}."


@frozen
class Trajectory:
    """Candidates that are the checkpoints of training runs; those of the first run can become ingredients.

    `rows` are (kind, model) of further rows of the report; a model may be a candidate too. `others` are the checkpoints
    of each further run, at the steps of the first run.
    """

    runs: tuple[TrainingRun, ...]
    rows: tuple[tuple[RowKind, Candidate], ...]
    others: tuple[tuple[Candidate, ...], ...]

    @property
    def models(self) -> tuple[Candidate, ...]:
        """All models of `rows` and `others` that are not candidates."""
        names = {member.name for member in self.runs[0].members}
        rows = [candidate for _, candidate in self.rows if candidate.name not in names]
        return (*rows, *itertools.chain.from_iterable(self.others))

    @property
    def sentences(self) -> list[str]:
        """What a run prints of the checkpoints: how many, at which learning rates, and what is compared besides."""
        run = self.runs[0]
        steps = [member.step for member in self.runs[0].members]
        sentences = [
            f"{run.folder}: {len(steps)} checkpoints ({run.trainer}), steps {steps[0]:,} to {steps[-1]:,}.",
            rate_sentence(run.members),
        ]
        if len(self.runs) > 1:
            names = ", ".join(str(run.folder) for run in self.runs[1:])
            sentences.append(f"The report tests the weights on the same steps of {names} too.")
        averages = [row.name for kind, row in self.rows if kind == "trainer_average"]
        if averages:
            sentences.append(
                f"The report scores the trainer's own average too: {listed(averages)}."
            )
        return sentences

    @property
    def notes(self) -> list[str]:
        """What a reader of the report must know."""
        notes = list(itertools.chain.from_iterable(run.notes for run in self.runs))
        rate = rate_sentence(self.runs[0].members)
        if FELL in rate:
            notes.append(rate)
        return notes
