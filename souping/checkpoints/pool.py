"""Candidates: which checkpoints may become ingredients, and how large they are (no weight is read)."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from souping.checkpoints import hub, remote
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.folder import Like
from souping.checkpoints.header import ITEM
from souping.checkpoints.hub import HubName
from souping.checkpoints.lora import is_adapter, open_model, read_settings
from souping.core.fields import component
from souping.core.files import expanded, folder_at, near_folder
from souping.core.protocols import Objective
from souping.core.text import first_line
from souping.core.types import (
    Candidate,
    ItemScores,
    Json,
    JsonObject,
    Missing,
    Trial,
    UserError,
    Weights,
    frozen,
)
from souping.core.unit import Unit

RowKind = Literal["last", "trainer_best", "trainer_average", "decayed", "shuffled"]


@frozen
class PoolRow:
    """Row of the report that a pool adds: a mixture {model: weight} of its candidates and further models."""

    name: str
    kind: RowKind
    weights: Mapping[str, float]


@frozen
class MeasuredSoup:
    """What a pool's part of the report is made of, once the soup is tested.

    `weights` are the soup's of all candidates [K], with sum 1. `search` are {candidate: scores on the search split},
    `test` gives the scores of a mixture {model: weight} on the test split, of which this is the look number `look`.
    `by_category(name, row)` gives the soup, under that name, minus another row in each category, as the report's
    `losses.categories`.
    """

    unit: Unit
    objective: Objective
    weights: Weights
    trials: Sequence[Trial]
    search: Mapping[str, ItemScores]
    soup: ItemScores
    test: Callable[[Mapping[str, float]], ItemScores]
    by_category: Callable[[str, PoolRow], Json]
    look: int


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
    def sentences(self) -> Sequence[str]:
        """What a run prints of the candidates when it starts."""
        return ()

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the report must know of the candidates."""
        return ()

    @property
    def further_models(self) -> tuple[Candidate, ...]:
        """Models that are evaluated like the candidates, but are none."""
        return ()

    def check_weights(self, digest: Callable[[Path], str]) -> None:
        """Refuse models by the digests of the weights in their folders (UserError)."""
        return None

    def rows(self, weights: Weights) -> Iterable[PoolRow]:
        """Further rows of the report on a soup with these weights of the candidates [K]."""
        return ()

    def replicates(self, weights: Weights) -> Sequence[Mapping[str, float]]:
        """Mixtures {model: weight} that are tested with such a soup, but are no rows of the report."""
        return ()

    def report(self, soup: MeasuredSoup) -> JsonObject:
        """Further keys of the report on a tested soup."""
        return {}


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
                # Unlike `Path.resolve`, `realpath` raises no error for a loop of links.
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

    `nbytes` is the size of the weights as stored, `download` that of all files which have to be fetched. `base` is the
    base model that an `adapter` names, a path or a Hub name. `trouble` is why the candidate cannot be used here, `fix`
    the command that helps; both are empty if it can be used.
    """

    name: str
    path: str
    basis: Basis
    nbytes: int = 0
    parameters: int = 0
    download: int = 0
    adapter: bool = False
    base: str | None = None
    trouble: str = ""
    fix: str = ""


def weigh(candidate: Candidate, allow_pickle: bool = False, rules: Path | None = None) -> ModelSize:
    """Size of one candidate: of its folder if that is here, else as the Hub lists it, else guessed by its name.

    Why a model cannot be read is in the size's `trouble`. Raises UserError only for a path that looks mistyped.
    """
    hub_name = hub.parse_name(candidate.path)
    try:
        if url := remote.parse_url(candidate.path):
            candidate = replace(candidate, path=remote.remote_folder(url, allow_pickle))
        folder = candidate.path
        if hub_name is not None:
            cached_folder = hub.cached(hub_name, allow_pickle)
            if cached_folder is None:
                return _listed_size(candidate.name, hub_name, allow_pickle)
            folder = cached_folder
        size = _measured_size(candidate, folder, allow_pickle, rules)
        return replace(size, path=str(hub_name or url or folder))
    except (UserError, OSError) as error:
        near = near_folder(candidate.path)
        # A path that could be a Hub name gets here only if the Hub does not have it, or cannot be reached.
        if near and not candidate.path.exists():
            what = f"candidate {candidate.name}: {candidate.path} is not a folder"
            raise UserError(f"{what}{near}") from error
        return _guessed_size(candidate, hub_name, error)


def _listed_size(name: str, hub_name: HubName, allow_pickle: bool) -> ModelSize:
    """Size of a model that is not here, from the Hub's list of its files."""
    files = hub.download_sizes(hub_name, allow_pickle)
    nbytes = sum(size for file, size in files.items() if file.endswith(WEIGHT_SUFFIXES))
    return ModelSize(
        name=name,
        path=str(hub_name),
        basis="Hub",
        nbytes=nbytes,
        parameters=nbytes // BITS16,
        download=sum(files.values()),
    )


def _guessed_size(candidate: Candidate, hub_name: HubName | None, error: Exception) -> ModelSize:
    """Size of a candidate that cannot be read because of an `error`: guessed by its Hub name, if it has one."""
    trouble = Missing(what=first_line(error))
    if isinstance(error, UserError):
        trouble = Missing.from_error(error)
    size = ModelSize(
        name=candidate.name,
        path=str(candidate.path),
        basis="unknown",
        trouble=trouble.what,
        fix=trouble.fix,
    )
    if hub_name is None:
        return size
    parameters = parameters_in(str(candidate.path))
    nbytes = parameters * BITS16
    return replace(
        size,
        path=str(hub_name),
        basis="name" if parameters else "unknown",
        nbytes=nbytes,
        parameters=parameters,
        download=nbytes,
        trouble=f"{candidate.name}: {trouble.what}",
        fix=trouble.fix or f"hf download {hub_name.repo}, where the network is",
    )


def _measured_size(
    candidate: Candidate, folder: Path, allow_pickle: bool, rules: Path | None
) -> ModelSize:
    """Size of a candidate from the headers in its folder."""
    if not is_checkpoint(folder):
        raise UserError(
            f"candidate {candidate.name}: {folder} is not a folder: "
            f"give a path or org/name{near_folder(folder)}"
        )
    model = open_model(folder, allow_pickle, Like(candidate.like, rules))
    adapter = is_adapter(folder)
    return ModelSize(
        name=candidate.name,
        path=str(folder),
        basis="headers",
        nbytes=model.nbytes,
        parameters=model.parameters,
        adapter=adapter,
        base=_named_base(folder) if adapter else None,
    )


def _named_base(folder: Path) -> str | None:
    """The base model that an adapter's config names, if any: a path that is here, or a Hub name."""
    settings = read_settings(folder)
    if not settings.base or folder_at(settings.base) is not None:
        return settings.base
    return f"{settings.base}@{settings.revision or 'main'}"


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
    return merge_base or next((model.base for model in models if model.adapter), None)
