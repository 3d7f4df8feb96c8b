"""Candidates: which checkpoints may become ingredients, and how large they are (no weight is read)."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

from souping.checkpoints import hub, remote
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.averages import find_averages
from souping.checkpoints.folder import Like
from souping.checkpoints.header import ITEM
from souping.checkpoints.lora import is_adapter, open_model, read_settings
from souping.checkpoints.trajectory import FELL, TrainingRun, find_run, rate_sentence
from souping.core.fields import Count, component
from souping.core.files import expanded, near_folder
from souping.core.text import first_line, listed
from souping.core.types import Candidate, Missing, UserError, frozen

RowKind = Literal["trainer_best", "trainer_average", "decayed"]


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
        return (*rows, *chain.from_iterable(self.others))

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
        notes = list(chain.from_iterable(run.notes for run in self.runs))
        rate = rate_sentence(self.runs[0].members)
        if FELL in rate:
            notes.append(rate)
        return notes


class CandidateSource(ABC):
    """Source of the pool's candidates; `reference_model` has the config and tokenizer of sharded ones."""

    reference_model: str | None = None

    @property
    def home(self) -> Path | None:
        """`reference_model` as a path: a folder, or a name on the Hub."""
        return (
            None
            if self.reference_model is None
            else expanded(self.reference_model, "pool.reference_model")
        )

    @abstractmethod
    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """Names and folders, not yet opened.

        Raises:
            UserError: fewer than `at_least` candidates, or a path or name that cannot be used.
        """

    @property
    def trajectory(self) -> Trajectory | None:
        """The training runs that the candidates are checkpoints of; None if they are not."""
        return None


@component
class Pool(CandidateSource):
    """Candidates as paths, Hub names (`org/name@revision`), `s3://` or `gs://`, or as `{name: NAME, path: PATH}`.

    A path is a folder, a file of `torch.save` (FILE, or FILE#KEY if its weights are below another key), or FOLDER#ema,
    the average in the optimiser state of a trainer's checkpoint. It is named by its last component, a model of the Hub
    by the part after the slash. A folder takes precedence over a model of the Hub. `reference_model` is a Hugging Face
    folder of the same model, or its name on the Hub: sharded checkpoints have its config and tokenizer, and have to
    have its names and shapes.
    """

    candidates: list[str | dict[str, str]]
    reference_model: str | None = None

    def __post_init__(self) -> None:
        self.resolve(at_least=0)

    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """Names and folders, not yet opened.

        Raises:
            UserError: fewer than `at_least` candidates, one listed twice, or two of one name.
        """
        candidates: list[Candidate] = []
        for number, entry in enumerate(self.candidates):
            candidate = replace(_candidate(entry, f"pool.candidates[{number}]"), like=self.home)
            for earlier in candidates:
                # Unlike `resolve`, `realpath` raises no error for a loop of links.
                if os.path.realpath(earlier.path) == os.path.realpath(candidate.path):
                    raise UserError(
                        f"pool.candidates: {earlier.path} is listed twice, as the same folder"
                    )
                if earlier.name == candidate.name:
                    names = f"{earlier.path} and {candidate.path} share the name {earlier.name!r}"
                    raise UserError(
                        f"pool.candidates: {names}: rename one with {{name: NAME, path: PATH}}"
                    )
            candidates.append(candidate)
        if len(candidates) < at_least:
            advice = "; is a comma missing?" * any(" " in each.name for each in candidates)
            raise UserError(
                f"pool.candidates has {len(candidates)} candidate(s): souping needs at least two{advice}"
            )
        return tuple(candidates)


@component
class TrajectoryPool(CandidateSource):
    """Checkpoints of a training run, oldest first. With several paths, the soup is made of the first run's."""

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
        rates = expanded(self.lr_path, "pool.lr_path") if self.lr_path else None
        complete_runs = [find_run(expanded(path, "pool.path"), rates) for path in paths]
        runs = [run.chosen(self.steps, self.until, self.every, self.last) for run in complete_runs]
        if not runs:
            raise UserError("pool.path is empty: give the folder of a training run")
        for run in runs[1:]:
            if run.steps != runs[0].steps:
                raise UserError(
                    f"pool.path: {run.folder} has other steps than {runs[0].folder}: choose pool.steps"
                )
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


def _candidate(entry: str | dict[str, str], key: str) -> Candidate:
    """The candidate of an entry of `pool.candidates` (UserError: it is of another form); messages name its `key`."""
    if isinstance(entry, str):
        table = {"path": entry}
        keys = {"path"}
    else:
        table = entry
        keys = {"name", "path"}
    if set(table) != keys or not all(isinstance(v, str) and v.strip() for v in table.values()):
        raise UserError(f"{key} must be a path or {{name: NAME, path: PATH}}, not {entry!r}")
    path = expanded(table["path"], key)
    hub_name = hub.parse_name(table["path"])
    if hub_name:
        name = hub_name.name
    else:
        # The path `.` has no last component.
        name = path.name or Path(os.path.realpath(path)).name
    return Candidate(name=table.get("name", name.split("@")[0]), path=path)


Basis = Literal["headers", "Hub", "name", "unknown"]
WEIGHT_SUFFIXES = (".safetensors", ".bin")
BITS16 = 2
"""Bytes per parameter of a model of which only the files' sizes are known: all large ones are published in 16 bits."""


@frozen
class ModelSize:
    """Size of a candidate; `basis` says where it is known from.

    `nbytes` is the size of the weights as stored, `download` that of all files which have to be fetched. `trouble` is
    why the candidate cannot be used here, `fix` the command that helps; both are empty if it can be used.
    """

    name: str
    path: str
    basis: Basis
    nbytes: int = 0
    parameters: int = 0
    download: int = 0
    adapter: bool = False
    trouble: str = ""
    fix: str = ""


def weigh(candidate: Candidate, allow_pickle: bool = False, rules: Path | None = None) -> ModelSize:
    """Size of one candidate, from its headers, from the Hub's list of files, or guessed by its name.

    Why a model cannot be read is in the size's `trouble`. Raises UserError only for a path that looks mistyped.
    """
    hub_name = hub.parse_name(candidate.path)
    trouble = ""
    fix = ""
    files = {}
    try:
        if url := remote.parse_url(candidate.path):
            candidate = replace(candidate, path=remote.remote_folder(url, allow_pickle))
        folder = candidate.path if hub_name is None else hub.cached(hub_name, allow_pickle)
        if folder is not None:
            like = Like(candidate.like, rules)
            return replace(
                _of_folder(candidate.name, folder, allow_pickle, like),
                path=str(hub_name or url or folder),
            )
        files = hub.download_sizes(hub_name, allow_pickle) if hub_name else {}
    except (UserError, OSError) as error:
        near = near_folder(candidate.path)
        if near and not candidate.path.exists():
            # A name that is on the Hub, or in its cache, has no error.
            what = f"candidate {candidate.name}: {candidate.path} is not a folder"
            raise UserError(f"{what}{near}") from error
        trouble = first_line(error)
        if isinstance(error, UserError):
            lack = Missing.from_error(error)
            trouble = lack.what
            fix = lack.fix
        if hub_name is not None:
            trouble = f"{candidate.name}: {trouble}"
            fix = fix or f"hf download {hub_name.repo}, where the network is"
    basis: Basis = "unknown"
    nbytes = sum(size for file, size in files.items() if file.endswith(WEIGHT_SUFFIXES))
    if files:
        basis = "Hub"
    elif hub_name and (parameters := parameters_in(str(candidate.path))):
        basis = "name"
        nbytes = parameters * BITS16
    return ModelSize(
        name=candidate.name,
        path=str(hub_name or candidate.path),
        basis=basis,
        nbytes=nbytes,
        parameters=nbytes // BITS16,
        download=sum(files.values()) or nbytes,
        trouble=trouble,
        fix=fix,
    )


def _of_folder(name: str, folder: Path, allow_pickle: bool, like: Like) -> ModelSize:
    """Size of the candidate of this name, from the headers in its folder."""
    if not is_checkpoint(folder):
        raise UserError(
            f"candidate {name}: {folder} is not a folder: give a path or org/name{near_folder(folder)}"
        )
    model = open_model(folder, allow_pickle, like)
    return ModelSize(
        name=name,
        path=str(folder),
        basis="headers",
        nbytes=model.nbytes,
        parameters=model.parameters,
        adapter=is_adapter(folder),
    )


def largest_bytes(models: Sequence[ModelSize], dtype: str | None) -> int:
    """The largest model's weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
    largest = max(models, key=lambda model: model.parameters)
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def parameters_in(name: str) -> int:
    """Number of parameters in a name such as `Llama-3.1-8B` or `SmolLM2-135M`; 0 if the name has no such number."""
    # The last number of billions or millions: earlier ones may belong to the name of the model family.
    words = re.sub(r"[-_/@]", " ", name)
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z0-9])", words)
    if not sizes:
        return 0
    figure, letter = sizes[-1]
    return int(float(figure) * {"b": 1e9, "m": 1e6}[letter.lower()])


def base_of(models: Sequence[ModelSize], merge_base: str | None) -> str | None:
    """The base model of a pool, a path or a Hub name: merge.base_model (`merge_base`), else the first adapter's."""
    first = next((model for model in models if model.adapter), None)
    if first is None:
        return merge_base
    settings = read_settings(Path(first.path))
    if merge_base or not settings.base:
        return merge_base or None
    return f"{settings.base}@{settings.revision or 'main'}"
