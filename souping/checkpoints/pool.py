"""Candidates: which checkpoints may become ingredients, and how large they are (no weight is read)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from souping.checkpoints import Checkpoint, hub, remote
from souping.checkpoints.folder import Like
from souping.checkpoints.header import ITEM
from souping.checkpoints.lora import Adapter, is_adapter, read_settings
from souping.core.fields import component
from souping.core.files import expanded, near_folder
from souping.core.text import first_line
from souping.core.types import Candidate, UserError


@component
class Pool:
    """Candidates as paths, Hub names (`org/name@revision`), `s3://` or `gs://`, or as `{name: NAME, path: PATH}`.

    A path is named by its last component, a model of the Hub by the part after the slash. A folder takes precedence
    over a model of the Hub. `like` is a Hugging Face folder of the same model, or its name on the Hub: sharded
    checkpoints have its config and tokenizer, and have to have its names and shapes.
    """

    candidates: list[str | dict[str, str]]
    like: str | None = None

    def __post_init__(self) -> None:
        self.resolve(at_least=0)

    @property
    def home(self) -> Path | None:
        """The folder `like`, or its name on the Hub."""
        if self.like is None:
            return None
        return expanded(self.like, "pool.like")

    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """Names and folders, not yet opened.

        Raises:
            UserError: fewer than `at_least` candidates, one listed twice, or two of one name.
        """
        candidates: list[Candidate] = []
        for number, entry in enumerate(self.candidates):
            candidate = replace(_candidate(entry, f"pool.candidates[{number}]"), like=self.home)
            for other in candidates:
                if os.path.realpath(other.path) == os.path.realpath(candidate.path):  # of links in a circle too
                    raise UserError(f"pool.candidates: {other.path} is listed twice, as the same folder")
                if other.name == candidate.name:
                    names = f"{other.path} and {candidate.path} share the name {other.name!r}"
                    raise UserError(f"pool.candidates: {names}: rename one with {{name: NAME, path: PATH}}")
            candidates.append(candidate)
        if len(candidates) < at_least:
            raise UserError(f"pool.candidates has {len(candidates)} candidate(s): souping needs at least two")
        return tuple(candidates)


def _candidate(entry: str | dict[str, str], key: str) -> Candidate:
    table = {"path": entry} if isinstance(entry, str) else entry
    wanted = {"path"} if isinstance(entry, str) else {"name", "path"}
    if set(table) != wanted or not all(isinstance(v, str) and v.strip() for v in table.values()):
        raise UserError(f"{key} must be a path or {{name: NAME, path: PATH}}, not {entry!r}")
    path, online = expanded(table["path"], key), hub.parse(table["path"])
    name = online.name if online else path.name or Path(os.path.realpath(path)).name
    return Candidate(name=table.get("name", name.split("@")[0]), path=path)


Basis = Literal["headers", "Hub", "name", "unknown"]
WEIGHTS = (".safetensors", ".bin")
BITS16 = 2
"""Bytes per parameter of a model that is known by its files' sizes alone: all large ones are published in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Size of a candidate. `nbytes` are its weights as stored, `download` is what has to be fetched of all its files,
    both in bytes; `trouble` is why it cannot be used here, `fix` the command that helps."""

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
    """Size of one candidate, from its headers, from the Hub's list of files, or guessed by its name."""
    online, trouble, fix = hub.parse(candidate.path), "", ""
    files: dict[str, int] = {}
    try:
        if url := remote.parse(candidate.path):
            candidate = replace(candidate, path=remote.folder_of(url, allow_pickle))
        folder = candidate.path if online is None else hub.cached(online, allow_pickle)
        if folder is not None:
            like = Like(candidate.like, rules)
            return replace(_of_folder(candidate.name, folder, allow_pickle, like), path=str(online or url or folder))
        files = hub.sizes(online, allow_pickle) if online else {}
    except (UserError, OSError) as error:
        trouble = first_line(error)
        if online is not None:
            trouble = f"{candidate.name}: {trouble}"
            fix = "hf auth login" if hub.LOGIN in str(error) else f"hf download {online.repo}, where the network is"
    guess = parameters_in(str(candidate.path)) if online and not files else 0
    nbytes = sum(size for file, size in files.items() if file.endswith(WEIGHTS)) or guess * BITS16
    return ModelSize(
        name=candidate.name,
        path=str(online or candidate.path),
        basis="Hub" if files else "name" if guess else "unknown",
        nbytes=nbytes,
        parameters=nbytes // BITS16,
        download=sum(files.values()) or nbytes,
        trouble=trouble,
        fix=fix,
    )


def _of_folder(name: str, folder: Path, allow_pickle: bool, like: Like) -> ModelSize:
    if not folder.is_dir():
        raise UserError(f"candidate {name}: {folder} is not a folder: give a path or org/name{near_folder(folder)}")
    adapter = is_adapter(folder)
    opened = Adapter.open(folder, allow_pickle).checkpoint if adapter else Checkpoint.open(folder, allow_pickle, like)
    return ModelSize(
        name=name,
        path=str(folder),
        basis="headers",
        nbytes=opened.nbytes,
        parameters=opened.parameters,
        adapter=adapter,
    )


def largest_bytes(models: Sequence[ModelSize], dtype: str | None) -> int:
    """The largest model's weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
    largest = max(models, key=lambda model: model.parameters)
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def parameters_in(name: str) -> int:
    """Number of parameters in a name such as `Llama-3.1-8B` or `SmolLM2-135M`; 0 if there is none."""
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z0-9])", re.sub(r"[-_/@]", " ", name))
    scale = {"b": 1e9, "m": 1e6}
    return int(float(sizes[-1][0]) * scale[sizes[-1][1].lower()]) if sizes else 0


def base_of(models: Sequence[ModelSize], merge_base: str | None) -> str | None:
    """The base model that a pool of adapters needs, as a path or a Hub name."""
    first = next((model for model in models if model.adapter), None)
    if first is None:
        return merge_base
    settings = read_settings(Path(first.path))
    return merge_base or (f"{settings.base}@{settings.revision or 'main'}" if settings.base else None)
