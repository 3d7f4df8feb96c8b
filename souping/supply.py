"""Candidates and base model on this disk: folders as they are, models of the Hub fetched once cheap checks passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from souping.core import Candidate, UserError
from souping.merge import hub
from souping.merge.adapters.adapter import is_adapter
from souping.merge.adapters.settings import read_settings
from souping.merge.checkpoint import Checkpoint
from souping.merge.preflight import preflight
from souping.report.throughput import Throughput

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
Aside = Callable[[], AbstractContextManager[Any]]
"""Makes room on the terminal while something else is shown there."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """Candidates whose paths are folders, a merge backend whose base is one, and notes for the report."""

    candidates: tuple[Candidate, ...]
    merge: Any
    notes: tuple[str, ...] = ()


def supply(candidates: Sequence[Candidate], merge: Any, aside: Aside = nullcontext, tokenizers: bool = False) -> Supply:
    """Fetch what is named by the Hub; with `tokenizers`, a model that has none is refused before its weights travel.

    Raises:
        UserError: a candidate is neither a folder nor a model that can be had, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    names = {c.name: found for c in candidates if (found := hub.parse(c.path))}
    for c in candidates:
        if c.name not in names and not c.path.is_dir():
            raise UserError(
                f"candidate {c.name}: {c.path} is not a folder: give the path of a saved Hugging Face model or org/name"
            )
    pickle = getattr(merge, "allow_pickle", False)
    fetched: Mapping[str, hub.Fetched] = {}
    if names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(names, pickle, _judge(candidates, merge, tokenizers), report)
    here = tuple(_placed(c, fetched.get(c.name)) for c in candidates)
    notes = tuple(f.note for f in fetched.values() if f.note)
    return Supply(candidates=here, merge=with_base(merge, [c.path for c in here], aside), notes=notes)


def with_base(merge: Any, folders: Sequence[Path], aside: Aside = nullcontext) -> Any:
    """The merge backend with its base model on this disk: `merge.base`, or the one that adapters in `folders` name."""
    base = getattr(merge, "base", None)
    name = hub.parse(base) if base else _base_of_adapters(folders)
    if name is None:
        return merge
    try:
        found = folder_of(name, getattr(merge, "allow_pickle", False), aside)
    except UserError as error:
        whose = f"merge.base={base}" if base else f"the adapters' base model {name}"
        raise UserError(f"{whose} is not a folder here: set merge.base=FOLDER to where it lies\n{error}") from error
    return replace(merge, base=str(found))


def folder_of(name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext) -> Path:
    """The folder of one model: fetched where it is named by the Hub, else the path that it is."""
    found = hub.parse(str(name))
    if found is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {found.name}") as report:
        return hub.fetch_one(found, allow_pickle, report).folder


def _placed(candidate: Candidate, found: hub.Fetched | None) -> Candidate:
    return candidate if found is None else replace(candidate, path=found.folder, source=str(found.name))


def check_tokenizer(name: str, folder: Path) -> None:
    """Refuse a model that has no tokenizer to be evaluated with."""
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise UserError(f"candidate {name}: {folder} has no tokenizer: copy its base model's tokenizer files")


def _judge(candidates: Sequence[Candidate], merge: Any, tokenizers: bool) -> Callable[[Mapping[str, Path]], None]:
    """What headers, configs and tokenizers can tell of the whole pool before its weights travel."""

    def check(folders: Mapping[str, Path]) -> None:
        pool = {c.name: folders.get(c.name, c.path) for c in candidates}
        if not any(is_adapter(folder) for folder in pool.values()):
            opened = {name: Checkpoint.open(folder, merge.allow_pickle) for name, folder in pool.items()}
            preflight(opened, vocab=merge.vocab)
            for name, folder in pool.items() if tokenizers else ():
                check_tokenizer(name, folder)

    return check


def _base_of_adapters(folders: Sequence[Path]) -> hub.HubName | None:
    """The Hub name of the base that the first adapter was trained on, where no folder of that name is here."""
    first = next((folder for folder in folders if is_adapter(folder)), None)
    if first is None:
        return None
    settings = read_settings(first)
    return hub.parse(f"{settings.base}@{settings.revision or 'main'}") if not _folder(settings.base) else None


def _folder(path: str | None) -> bool:
    return path is None or "\0" in path or Path(path).expanduser().exists()
