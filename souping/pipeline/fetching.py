"""Candidates and base models as folders on this disk.

Folders are used as they are; models of the Hub are fetched once cheap checks have passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from souping.checkpoints import hub, remote
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import check_tokenizer, preflight
from souping.checkpoints.folder import Like
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.lora import is_adapter, read_settings
from souping.core.files import expanded, folder_at, near_folder
from souping.core.types import Candidate, Folders, Names, UserError, frozen
from souping.merge import MergeBackend
from souping.report.progress import Throughput, say

Aside = Callable[[], AbstractContextManager[None]]
"""Makes room on the terminal for another display, such as a download's bar."""


@frozen
class FetchedPool:
    """Candidates in folders here, the first `count` of them the pool's own; the backend with its base model in one."""

    models: tuple[Candidate, ...]
    count: int
    merge: MergeBackend
    notes: Names = ()


def fetch_candidates(
    candidates: Sequence[Candidate],
    merge: MergeBackend,
    aside: Aside = nullcontext,
    tokenizers: bool = False,
) -> FetchedPool:
    """The candidates as folders, with notes for the report.

    The Hub's models are fetched; with `tokenizers`, one without a tokenizer is refused before its weights travel.

    Raises:
        UserError: a candidate is neither a folder nor a model that can be fetched, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    hub_names = _hub_names(candidates)
    like = like_of(candidates)
    if like is not None:
        like = folder_of(str(like), merge.allow_pickle, aside)

    def check(folders: Folders) -> None:
        pool = {c.name: folders.get(c.name, c.path) for c in candidates}
        _check_headers(pool, merge, like, tokenizers)

    fetched: Mapping[str, hub.Fetched] = {}
    if hub_names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(hub_names, merge.allow_pickle, check, report)
    models = []
    for candidate in candidates:
        candidate = replace(candidate, like=like)
        if model := fetched.get(candidate.name):
            candidate = replace(candidate, path=model.folder, source=str(model.name))
        models.append(candidate)
    notes = tuple(model.note for model in fetched.values() if model.note)
    merge = with_base(merge, [model.path for model in models], aside)
    return FetchedPool(models=tuple(models), count=len(models), merge=merge, notes=notes)


def _hub_names(candidates: Iterable[Candidate]) -> dict[str, hub.HubName]:
    """{candidate: name on the Hub} of those that are not folders (UserError if one is neither)."""
    names = {}
    for candidate in candidates:
        path = candidate.path
        if name := hub.parse(path):
            names[candidate.name] = name
        elif not is_checkpoint(path):
            raise UserError(
                f"candidate {candidate.name}: {path} is not a folder: give the path of a saved Hugging Face model or "
                f"org/name{near_folder(path)}"
            )
    return names


def _check_headers(
    folders: Folders, merge: MergeBackend, like: Path | None, tokenizers: bool
) -> None:
    """Check what headers, configs and tokenizers show of the whole pool, before its weights travel."""
    if any(map(is_adapter, folders.values())):
        return
    shared = Like(like, rules_of(merge.names))
    models = {}
    for name, folder in folders.items():
        models[name] = Checkpoint.open(folder, merge.allow_pickle, shared)
    preflight(models, merge.vocab, merge.carry)
    if tokenizers:
        for name, checkpoint in models.items():
            check_tokenizer(name, checkpoint.home)


def from_bucket(
    candidate: Candidate, allow_pickle: bool, stream: bool, aside: Aside = nullcontext
) -> Candidate:
    """The candidate in a folder here if it is in a bucket, with its weights unless they `stream`."""
    url = remote.parse(candidate.path)
    if url is None:
        return candidate
    with aside():
        say(f"{url}: {'reading headers' if stream else 'fetching'}")
        return replace(candidate, path=remote.folder_of(url, allow_pickle, not stream), source=url)


def with_base(
    merge: MergeBackend, folders: Sequence[Path], aside: Aside = nullcontext
) -> MergeBackend:
    """The backend with its base model on this disk: `merge.base`, or the one that adapters in `folders` name."""
    base = merge.base
    if base and (url := remote.parse(base)):
        folder = remote.folder_of(url, merge.allow_pickle, weights=True)
        return merge.with_settings({"base": str(folder)})
    if base and base.startswith("~"):
        return merge.with_settings({"base": str(expanded(base, "merge.base"))})
    if base:
        name = hub.parse(base)
        title = f"merge.base={base}"
    else:
        name = _base_of_adapters(folders)
        title = f"the adapters' base model {name}"
    if name is None:
        return merge
    try:
        folder = folder_of(name, merge.allow_pickle, aside)
    except UserError as error:
        raise UserError(f"{title} is not a folder here: set merge.base=FOLDER\n{error}") from error
    return merge.with_settings({"base": str(folder)})


def folder_of(
    name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext
) -> Path:
    """The folder of one model, which is fetched if the Hub's name is given."""
    if url := remote.parse(str(name)):
        return remote.folder_of(url, allow_pickle)
    parsed = hub.parse(str(name))
    if parsed is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {parsed.name}") as report:
        return hub.fetch_one(parsed, allow_pickle, report).folder


def _base_of_adapters(folders: Sequence[Path]) -> hub.HubName | None:
    """The Hub name of the base that the first adapter was trained on, unless a folder of that name is here."""
    first = next((folder for folder in folders if is_adapter(folder)), None)
    if first is None:
        return None
    settings = read_settings(first)
    if settings is None or settings.base is None or folder_at(settings.base) is not None:
        return None
    return hub.parse(f"{settings.base}@{settings.revision or 'main'}")


def like_of(candidates: Iterable[Candidate]) -> Path | None:
    """The folder that sharded candidates have their config and tokenizer from."""
    return next((candidate.like for candidate in candidates if candidate.like is not None), None)
