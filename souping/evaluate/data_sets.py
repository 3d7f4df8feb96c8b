"""Data sets of the Hub and folders in the Hub's layout, read by the library `datasets`.

An address is a folder or `hf://ORG/NAME[@REVISION]`, with `:SPLIT`, `:CONFIG/` or `:CONFIG/SPLIT` if there are several.
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub

from souping.checkpoints.hub import HubName, hub_errors, hub_name, unreachable
from souping.core.fields import pick
from souping.core.files import expanded, folder_at
from souping.core.text import install, stripped_lines
from souping.core.types import JsonObject, UserError, frozen

HUB = "hf://"


@frozen
class DataSet:
    """Rows of a split; `note` says for a report at which commit of the Hub they are."""

    rows: tuple[JsonObject, ...]
    note: str


def is_data_set(address: str) -> bool:
    """Whether this is the address of a data set rather than of a file."""
    if address.startswith(HUB) or folder_at(address) is not None:
        return True
    # A file may have a colon in its name.
    return not Path(address).is_file() and folder_at(_parts(address)[0]) is not None


def data_set_title(address: str) -> str:
    """The name of a data set without its revision."""
    return Path(_parts(address)[0].partition("@")[0]).name


def _parts(address: str) -> tuple[str, str, str]:
    """The source in an address, and its configuration and split, which may be empty."""
    source, _, part = address.removeprefix(HUB).partition(":")
    config, _, split = part.rpartition("/")
    return source, config, split


def load_data_set(address: str) -> DataSet:
    """The rows of the split that the address names: by default of `test`, or of the only one.

    Raises:
        UserError: the library is not installed, or there is no such data set, revision, configuration or split.
    """
    key = f"benchmark.path={address}"
    try:
        import datasets
    except ImportError:
        raise UserError(f"{key} is read by the library datasets", fix=install("datasets")) from None
    source, config, split = _parts(address)
    commit = None
    if address.startswith(HUB):
        name = hub_name(source.removeprefix("datasets/"), "dataset")
        if name is None:
            raise UserError(f"{key} must be hf://ORG/NAME, with @REVISION for another than main")
        source = name.repo
        commit = _commit(name)
    bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(
            str(expanded(source)), config or None, revision=commit
        )
        # If the library cannot reach the Hub, it takes whichever revision was used last.
        if commit and builder.hash != commit:
            raise _not_cached(key)
        builder.download_and_prepare()
        splits = builder.as_dataset()
        if not split:
            # With several splits and no `test` among them, the error of `pick` below names them.
            split = "test" if "test" in splits or len(splits) > 1 else next(iter(splits))
        rows = tuple(splits[pick(split, splits, f"{key}: split")])
    except UserError:
        raise
    except Exception as error:  # data may raise anything
        lines = " ".join(stripped_lines(error.__cause__ or error)[:2])
        lines = lines or "a file is empty or damaged"
        raise UserError(f"{key}: datasets cannot read it: {lines:.300}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    return DataSet(rows=rows, note=f"{source}@{commit}" if commit else "")


def _commit(name: HubName) -> str:
    """The commit of a revision, from the Hub's cache if the Hub cannot be reached."""
    try:
        with hub_errors(name):
            commit = str(
                huggingface_hub.HfApi().dataset_info(name.repo, revision=name.revision).sha
            )
    except UserError as error:
        if error.__cause__ is None or not unreachable(error.__cause__):
            raise error.at("benchmark.path") from error
        # A pinned revision is a commit itself; the cache has a file with the commit of a branch or tag.
        if name.pinned:
            return name.revision
        if not name.ref.is_file():
            raise _not_cached(f"benchmark.path={HUB}{name}") from error
        return name.ref.read_text().strip()
    name.note_commit(commit)
    return commit


def _not_cached(key: str) -> UserError:
    return UserError(
        f"{key}: the Hub cannot be reached, and this revision is not the one in the cache of datasets: "
        "connect, and unset HF_HUB_OFFLINE"
    )
