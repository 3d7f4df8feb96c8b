"""`pool=trajectory`: the checkpoints of training runs, and what the report compares their average with.

The averages of the weights that a trainer keeps itself are found beside a run's checkpoints, inside the last one, or in
its optimiser state. They are compared with, never averaged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from souping.analysis.trajectory import CheckpointScores, describe
from souping.checkpoints.compatibility import has_tokenizer, preflight
from souping.checkpoints.folder import Like
from souping.checkpoints.layouts import all_trainers
from souping.checkpoints.lora import is_adapter, open_model
from souping.checkpoints.pool import CandidateSource, MeasuredSoup, PoolRow, RowKind
from souping.checkpoints.sharded import has_average
from souping.checkpoints.trainers import TRAINERS, folders_in
from souping.checkpoints.trajectory import (
    Member,
    TrainingRun,
    Trajectory,
    find_run,
    incomplete,
    member_in,
)
from souping.core.fields import Count, component
from souping.core.files import error_text, expanded
from souping.core.reading import to_json
from souping.core.text import first_line, shown
from souping.core.types import EMA_KEY, Candidate, JsonObject, UserError, Weights
from souping.search.windows import shuffled
from souping.statistics.corrections import Level

TRAINERS_OWN = [trainer.average for trainer in TRAINERS if trainer.average]
BESIDE = re.compile(
    "|".join([r"(.*[-_])?(ema|swa|averaged?)([-_].*)?", *TRAINERS_OWN]), re.IGNORECASE
)
"""Folder of an average beside the checkpoints."""
INSIDE_LAST = re.compile(r"ema|swa|averaged?", re.IGNORECASE)
"""Folder of an average inside a checkpoint."""
WHOLE_NUMBER = re.compile(r"(?<![\d.])\d+(?![\d.])")
"""A whole number in a name. 0.999 is a rate."""


@component
class TrajectoryPool(CandidateSource):
    """Checkpoints of a training run, oldest first. With several paths, the soup is made of the first run's.

    conf/pool/trajectory.yaml explains the settings. `lr_path` serves all runs.
    """

    path: str | list[str]
    last: Count | None = None
    every: Count = 1
    until: Count | None = None
    steps: list[int] | None = None
    lr_path: str | None = None
    decayed: str | None = None
    reference_model: str | None = None

    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """The chosen checkpoints of the first run (UserError: there are fewer than `at_least`)."""
        members = self.trajectory.runs[0].members
        if len(members) < at_least:
            # The first note says which checkpoint was left out, and why.
            note = "".join(f"; {line}" for line in self.trajectory.notes[:1])
            needed = f"{len(members)} of the {at_least} checkpoints that are needed"
            raise UserError(f"pool.path={self.path} gives {needed}{note}")
        return tuple(self._candidate(member.name, member.model) for member in members)

    @cached_property
    def trajectory(self) -> Trajectory:
        """The runs as the folders are now.

        Raises:
            UserError: a path holds no checkpoints, or the runs were not saved at the same steps.
        """
        paths = [self.path] if isinstance(self.path, str) else self.path
        rates_file = expanded(self.lr_path, "pool.lr_path") if self.lr_path else None
        complete_runs = [find_run(expanded(path, "pool.path"), rates_file) for path in paths]
        runs = [run.chosen(self.steps, self.until, self.every, self.last) for run in complete_runs]
        if not runs:
            raise UserError("pool.path is empty: give the folder of a training run")
        for run in runs[1:]:
            if run.steps != runs[0].steps:
                raise UserError(
                    f"pool.path: {run.folder} has other steps than {runs[0].folder}: choose pool.steps"
                )
        # The checkpoints of each further run: no candidates, but `replicates` averages them as the soup's were.
        others = list[tuple[Candidate, ...]]()
        for n, run in enumerate(runs[1:], start=2):
            prefix = f"run{n}-"
            others.append(
                tuple(self._candidate(prefix + member.name, member.model) for member in run.members)
            )
        averages: dict[str, Path] = {}
        if runs[0].members:
            averages, notes = find_averages(runs[0])
            runs[0] = replace(runs[0], notes=(*runs[0].notes, *notes))
        rows = self._rows(runs[0], averages)
        return Trajectory(runs=tuple(runs), rows=tuple(rows), others=tuple(others))

    @property
    def sentences(self) -> Sequence[str]:
        return self.trajectory.sentences

    @property
    def notes(self) -> Sequence[str]:
        return self.trajectory.notes

    @property
    def further_models(self) -> tuple[Candidate, ...]:
        return self.trajectory.models

    def check_weights(self, digest: Callable[[Path], str]) -> None:
        """Refuse training runs that share a checkpoint, by its weights: they are not independent runs (UserError).

        They may share their first checkpoint, as a common start.
        """
        # {digest of a checkpoint's weights: the first run that has it}
        owners: dict[str, TrainingRun] = {}
        models_of = [self.resolve(), *self.trajectory.others]
        for run, models in zip(self.trajectory.runs, models_of, strict=True):
            # A run of one checkpoint has no other to compare.
            for model in models[1:] or models:
                owner = owners.setdefault(digest(model.path), run)
                if owner is not run:
                    raise UserError(
                        f"pool.path: {owner.folder} and {run.folder} share the weights of {model.path.name}: "
                        "give each training run once"
                    )

    def rows(self, weights: Weights) -> Iterator[PoolRow]:
        """The last checkpoint, the rows of the pool's settings, and the soup's weights on other checkpoints."""
        names = [member.name for member in self.trajectory.runs[0].members]
        yield PoolRow(name=names[-1], kind="last", weights={names[-1]: 1.0})
        for kind, model in self.trajectory.rows:
            yield PoolRow(name=model.name, kind=kind, weights={model.name: 1.0})
        in_other_order = dict(zip(names, shuffled(weights), strict=True))
        yield PoolRow(name="shuffled", kind="shuffled", weights=in_other_order)

    def replicates(self, weights: Weights) -> list[Mapping[str, float]]:
        """The average by the soup's weights and the last checkpoint of each further run, in turns."""
        mixtures = list[Mapping[str, float]]()
        for checkpoints in self.trajectory.others:
            names = [checkpoint.name for checkpoint in checkpoints]
            mixtures += [dict(zip(names, weights, strict=True)), {names[-1]: 1.0}]
        return mixtures

    def report(self, soup: MeasuredSoup) -> JsonObject:
        """The chosen average beside the checkpoints, on the search and test splits."""
        names = [member.name for member in self.trajectory.runs[0].members]
        on_search = [soup.search[name] for name in names]
        on_test = [soup.test({name: 1.0}) for name in names]
        replicates = list(map(soup.test, self.replicates(soup.weights)))
        result = describe(
            self.trajectory,
            soup.weights,
            CheckpointScores.of(soup.unit, on_search, soup.objective),
            soup.trials,
            CheckpointScores.of(soup.unit, on_test, soup.objective),
            soup.soup,
            list(zip(replicates[::2], replicates[1::2], strict=True)),
            Level(soup.look),
        )
        table = to_json(result)
        assert isinstance(table, dict)
        last = PoolRow(name="last", kind="last", weights={names[-1]: 1.0})
        return {"trajectory": {**table, "categories": soup.by_category("average", last)}}

    def _candidate(self, name: str, path: Path) -> Candidate:
        return Candidate(name=name, path=path, like=self.home)

    def _rows(
        self, run: TrainingRun, averages: Mapping[str, Path]
    ) -> Iterator[tuple[RowKind, Candidate]]:
        """(kind, model) of further rows: the trainer's best checkpoint, its `averages` {name: path}, and `decayed`."""
        if run.best is not None:
            yield "trainer_best", self._candidate(run.best.name, run.best.model)
        for name, path in averages.items():
            yield "trainer_average", self._candidate(name, path)
        if self.decayed is not None:
            yield "decayed", self._candidate("decayed", expanded(self.decayed, "pool.decayed"))


def find_averages(run: TrainingRun) -> tuple[dict[str, Path], list[str]]:
    """({name: path} of the trainer's averages at the last member, a note on each folder that is not one)."""
    last = run.members[-1]
    trainer = next(trainer for trainer in all_trainers() if trainer.name == run.trainer)
    # BESIDE lacks trainers of installed packages. `(?!)` fits no name.
    beside = re.compile(f"{BESIDE.pattern}|{trainer.average or '(?!)'}", re.IGNORECASE)
    folders = {f.name: f for f in folders_in(run.folder) if beside.fullmatch(f.name)}
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
