"""Pool: which checkpoints may become ingredients, and how large they are (no weight is read)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from souping.checkpoints import hub
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.dtypes import FLOATS, ITEM
from souping.checkpoints.lora import Adapter, is_adapter, read_settings
from souping.core.fields import component
from souping.core.files import expanded, near_folder
from souping.core.types import Candidate, UserError


@component
class Pool:
    """Candidates as paths or Hub names (`org/name@revision`), or as `{name: NAME, path: PATH}`.

    A path's name is its last component, a Hub name's the part behind the slash; a folder that exists goes before a
    model of the Hub.
    """

    candidates: list[str | dict[str, str]]

    def __post_init__(self) -> None:
        self.resolve(at_least=0)

    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """Names and folders, not yet opened.

        Raises:
            UserError: fewer than `at_least` candidates, one given twice, or two of one name.
        """
        candidates: dict[str, Candidate] = {}
        for number, entry in enumerate(self.candidates):
            candidate = _candidate(entry, number)
            twin = candidates.get(candidate.name)
            if twin and twin.path.resolve() == candidate.path.resolve():
                raise UserError(f"pool.candidates: {candidate.name} is given twice; list each candidate once")
            if twin:
                raise UserError(
                    f"pool.candidates: {twin.path} and {candidate.path} share the name {candidate.name!r}; "
                    "name them apart with {name: NAME, path: PATH}"
                )
            same = [c.name for c in candidates.values() if c.path.resolve() == candidate.path.resolve()]
            if same:
                raise UserError(f"pool.candidates: {same[0]} and {candidate.name} are the same folder; list it once")
            candidates[candidate.name] = candidate
        if len(candidates) < at_least:
            raise UserError(f"pool.candidates has {len(candidates)} candidate(s): souping needs at least two")
        return tuple(candidates.values())


def _candidate(entry: str | dict[str, str], number: int) -> Candidate:
    if isinstance(entry, dict):
        if set(entry) != {"name", "path"} or not all(isinstance(v, str) and v for v in entry.values()):
            raise UserError(f"pool.candidates[{number}] must be a path or {{name: NAME, path: PATH}}, not {entry}")
        return Candidate(name=entry["name"], path=expanded(entry["path"], f"pool.candidates[{number}]"))
    if not isinstance(entry, str) or not entry.strip():
        raise UserError(f"pool.candidates[{number}] must be a path or {{name: NAME, path: PATH}}, not {entry!r}")
    path = expanded(entry, f"pool.candidates[{number}]")
    online = hub.parse(entry)
    name = online.name if online else path.name or path.resolve().name
    return Candidate(name=name.split("@")[0], path=path)


Basis = Literal["headers", "Hub", "name", "unknown"]
WEIGHTS = (".safetensors", ".bin")
BITS16 = 2
"""Bytes a parameter of a model that is known by its files' sizes alone: all large ones are published in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Model of the pool. `nbytes` are its weights as they lie on disk, `download` what has to be fetched of all its
    files, both in bytes; `trouble` says why it cannot be had here."""

    name: str
    path: str
    basis: Basis
    nbytes: int = 0
    parameters: int = 0
    download: int = 0
    adapter: bool = False
    trouble: str = ""
    mends: str = ""


def weigh(candidate: Candidate, allow_pickle: bool = False) -> ModelSize:
    """One candidate. A folder that is broken, and a model that the Hub does not give, carry their trouble."""
    name = hub.parse(candidate.path)
    try:
        if name is None:
            return _folder(candidate.name, candidate.path, allow_pickle)
        here = hub.cached(name, allow_pickle)
        if here is not None:
            return replace(_folder(candidate.name, here, allow_pickle), path=str(name))
        return _remote(candidate.name, name, allow_pickle)
    except (UserError, OSError) as error:
        guess = parameters_in(str(candidate.path)) if name else 0
        return ModelSize(
            name=candidate.name,
            path=str(candidate.path),
            basis="name" if guess else "unknown",
            nbytes=guess * BITS16,
            parameters=guess,
            download=guess * BITS16,
            trouble=f"{candidate.name}: {_short(error)}" if name else str(error).splitlines()[0],
            mends=_mends(name, error) if name else "",
        )


def _short(error: Exception) -> str:
    """What the Hub's part of the code says, without its advice."""
    text = str(error).splitlines()[0]
    if "HF_HUB_OFFLINE" in text:
        return "not in the Hub's cache, and HF_HUB_OFFLINE=1 forbids to fetch it"
    return "the Hub cannot be reached" if "cannot be reached" in text else text


def _mends(name: hub.HubName, error: Exception) -> str:
    login = "hf auth login"
    return login if login in str(error) else f"hf download {name.repo}, where the network is"


def _folder(name: str, folder: Path, allow_pickle: bool) -> ModelSize:
    if not folder.is_dir():
        raise UserError(f"candidate {name}: {folder} is not a folder: give a path or org/name{near_folder(folder)}")
    if is_adapter(folder):
        opened, adapter = Adapter.open(folder, allow_pickle).checkpoint, True
    else:
        opened, adapter = Checkpoint.open(folder, allow_pickle), False
    return replace(measured(name, opened), path=str(folder), adapter=adapter)


def measured(name: str, checkpoint: Checkpoint) -> ModelSize:
    """The size of a model that is open."""
    floats = [tensor.count for tensor in checkpoint.tensors.values() if tensor.dtype in FLOATS]
    path = str(checkpoint.folder)
    return ModelSize(name=name, path=path, basis="headers", nbytes=checkpoint.nbytes, parameters=sum(floats))


def largest_bytes(models: Sequence[ModelSize], dtype: str | None) -> int:
    """The largest model's weights in `dtype` (auto and None: as stored), in memory or as a soup on disk."""
    largest = max(models, key=lambda model: model.parameters)
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def _remote(name: str, remote: hub.HubName, allow_pickle: bool) -> ModelSize:
    files = hub.sizes(remote, allow_pickle)
    nbytes = sum(size for file, size in files.items() if file.endswith(WEIGHTS))
    return ModelSize(
        name=name,
        path=str(remote),
        basis="Hub",
        nbytes=nbytes,
        parameters=nbytes // BITS16,
        download=sum(files.values()),
    )


def parameters_in(name: str) -> int:
    """Parameters by a name such as `Llama-3.1-8B` or `SmolLM2-135M`; 0 where it says nothing."""
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
