"""Upload of a soup and its card to the Hub (`upload=org/name`), in one commit, by someone who may write there.

`python -m souping.pipeline.upload DIR org/name` sends a soup that lies there already.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.checkpoints import hub
from souping.checkpoints.hub.client import LOGIN
from souping.core.text import first_line, read_json
from souping.core.types import Json, LateError, UserError

if TYPE_CHECKING:
    from huggingface_hub import CardData, HfApi

CARD, RECIPE, REPORT = "README.md", "recipe.json", "report.json"
KEPT = (".gitattributes",)
"""Files of a repository that a new soup does not remove."""


@dataclass(frozen=True)
class Target:
    """Model repository to send a soup to; it is created, `private` or not, where it does not exist."""

    repo: str
    private: bool = False


def target(value: Json) -> Target | None:
    """The target of the configuration's `upload`: org/name, or {repo: org/name, private: true}.

    Raises:
        UserError: it is neither.
    """
    if value is None:
        return None
    table = {"repo": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping) or "repo" not in table or not set(table) <= {"repo", "private"}:
        raise UserError(f"upload={value} must be org/name, or {{repo: org/name, private: true}}")
    repo, private = table["repo"], table.get("private", False)
    if not isinstance(private, bool):
        raise UserError(f"upload={value} must be org/name, or {{repo: org/name, private: true}}")
    if not isinstance(repo, str) or not hub.is_repo(repo):
        raise UserError(f"upload={repo} must be org/name: letters, digits, dashes, dots and underscores, one slash")
    return Target(repo, private)


def check(goal: Target) -> None:
    """Find out, before a run, whether this account may write there.

    Raises:
        UserError: not logged in, a token that may only read, somebody else's name space, a repository that holds
            something that is no soup, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if hub.offline():
        raise UserError(f"upload={goal.repo}: HF_HUB_OFFLINE=1 forbids to reach the Hub: unset it, or leave upload out")
    try:
        _check_account(goal, HfApi().whoami())
        _check_repository(goal, HfApi())
    except UserError:
        raise
    except Exception as error:
        raise _refused(goal, error) from error


def _check_account(goal: Target, who: Mapping[str, Any]) -> None:
    """The name space has to be the account's own or that of an organisation where it may write, by this token."""
    space, name = goal.repo.split("/")[0], str(who.get("name"))
    roles = {str(org.get("name")): str(org.get("roleInOrg") or "write") for org in who.get("orgs") or []}
    if space != name and space not in roles:
        mine = ", ".join([name, *roles])
        raise UserError(f"upload={goal.repo}: you are {name} and cannot write to {space}, but to {mine}")
    if roles.get(space) == "read":
        raise UserError(f"upload={goal.repo}: {name} may only read in {space}: ask its admin for a role that writes")
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not _writes(token, goal)):
        raise UserError(
            f"upload={goal.repo}: your token may not write there: make one that may at "
            f"{hub.endpoint()}/settings/tokens, then {LOGIN}"
        )


def _writes(token: Mapping[str, Any], goal: Target) -> bool:
    """Whether a fine-grained token may write to the repository or to all of its name space."""
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    names = {goal.repo, goal.repo.split("/")[0]}
    fits = [s for s in scopes if (s.get("entity") or {}).get("name") in names]
    return any("repo.write" in (scope.get("permissions") or []) for scope in fits)


def _check_repository(goal: Target, api: HfApi) -> None:
    """What is there already must be a soup or empty, so that no other model is ever replaced."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        files = [s.rfilename for s in api.model_info(goal.repo).siblings or []]
    except RepositoryNotFoundError:
        return
    if "write" in inspect.signature(api.auth_check).parameters:  # huggingface_hub 1 does not ask that
        api.auth_check(goal.repo, write=True)
    if RECIPE not in files and any(file not in (*KEPT, CARD) for file in files):
        raise UserError(f"upload={goal.repo} holds a model that is no soup: choose another name; nothing is replaced")


def push(goal: Target, folder: Path, report: Path | None = None, store: Path | None = None) -> str:
    """Send a soup's folder, with the card that its report makes, as one commit; the commit's address.

    `report` is the run's report.json (default: the one beside the folder, if it is of this soup). `store` knows the
    folders of ingredients that are not from the Hub: their licences are read there. The same commit removes files of
    an earlier soup that this one does not have.

    Raises:
        LateError: the Hub refused or could not be reached; the folder is as it was and the line says how to go on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    recipe = _json(folder / RECIPE)
    if recipe is None or "ingredients" not in recipe:
        raise UserError(f"{folder} holds no {RECIPE}: it is not a soup's folder")
    files: dict[str, Path | bytes] = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files[CARD] = card_of(folder, recipe, report, store).encode()
    api = HfApi()
    try:
        api.create_repo(goal.repo, private=goal.private or None, exist_ok=True)
        _check_repository(goal, api)
        old = [s.rfilename for s in api.model_info(goal.repo).siblings or []]
        # `upload_folder` makes several commits of a large folder: a repository would hold half a soup meanwhile
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations += [CommitOperationDelete(name) for name in old if name not in (*files, *KEPT)]
        done = api.create_commit(goal.repo, operations, commit_message=f"Soup {recipe.get('id', '')}")
    except UserError:
        raise
    except Exception as error:
        again = f"it lies whole at {folder}: python -m souping.pipeline.upload {folder} {goal.repo}"
        raise LateError(f"{_refused(goal, error)}\n{again}") from error
    return str(done.commit_url)


def card_of(folder: Path, recipe: Mapping[str, Any], report: Path | None, store: Path | None) -> str:
    """The card for the Hub: from the run's report, else the folder's own with the licences of the ingredients."""
    from souping.report.cards import card, relicensed

    licences = licences_of(recipe, store)
    written = _json(report or folder.absolute().parent / REPORT) or {}
    if (written.get("recipe") or {}).get("id") == recipe.get("id"):
        return card(written, licences)
    own = folder / CARD
    try:
        return relicensed(own.read_text("utf-8") if own.is_file() else card({"recipe": recipe}), licences)
    except ValueError as error:
        raise UserError(
            f"{own}: cannot be read as a model card: {first_line(error)}: correct it, or delete it"
        ) from error


def licences_of(recipe: Mapping[str, Any], store: Path | None = None) -> dict[str, str]:
    """{name: licence} of a recipe's ingredients and of a base model that it names."""
    from souping.report.cards import public_name

    prints = dict(zip(recipe["ingredients"], recipe.get("fingerprints") or [], strict=False))
    base = (recipe.get("settings") or {}).get("base")
    prints |= {"the base model": base} if isinstance(base, str) else {}
    sources = {**_folders(prints, store), **(recipe.get("sources") or {})}
    return {public_name(name): _licence(str(sources.get(name, ""))) for name in prints}


def _folders(prints: Mapping[str, str], path: Path | None) -> dict[str, str]:
    """{name: folder} of what a store has seen; one of the Hub's cache is that model's name."""
    if path is None or not path.is_file():
        return {}
    from souping.pipeline.store import Store

    with Store(path) as store:
        folders = {name: store.folder_of(mark) for name, mark in prints.items()}
    cached = r".*/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})"
    return {name: re.sub(cached, r"\1/\2@\3", folder) for name, folder in folders.items() if folder}


def _licence(source: str) -> str:
    """The licence that a folder's card or a model's card on the Hub names; empty where none does."""
    from huggingface_hub import HfApi, ModelCard

    name = hub.parse(source)
    try:
        if name is not None:
            data: CardData | None = HfApi().model_info(name.repo, revision=name.revision).card_data
        else:
            text = (Path(source) / CARD).read_text("utf-8") if source else ""
            data = ModelCard(text, ignore_metadata_errors=True).data
    except Exception:  # a card that cannot be had or read names no licence
        return ""
    licence = (data.get("license") or "") if data is not None else ""
    named = data.get("license_name") if data is not None and licence == "other" else None
    return f"other: {named}" if named else str(licence[0] if isinstance(licence, list) and licence else licence or "")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        table = read_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def _refused(goal: Target, error: BaseException) -> UserError:
    """What the Hub's client raised, as one line."""
    from huggingface_hub import errors

    code = getattr(getattr(error, "response", None), "status_code", 0)  # huggingface_hub's
    if isinstance(error, errors.LocalTokenNotFoundError):
        return UserError(f"upload={goal.repo}: you are not logged in: {LOGIN} with a token that may write")
    if code == 401:
        return UserError(f"upload={goal.repo}: the Hub does not know your token: {LOGIN} again, or mend HF_TOKEN")
    if hub.unreachable(error):
        return UserError(f"upload={goal.repo}: the Hub ({hub.endpoint()}) cannot be reached: {first_line(error)}")
    return UserError(f"upload={goal.repo}: the Hub refused ({code or type(error).__name__}): {first_line(error)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one or two lines on standard error."""
    parser = argparse.ArgumentParser(prog="python -m souping.pipeline.upload", description=__doc__)
    parser.add_argument("folder", type=Path, help="a soup's folder")
    parser.add_argument("repo", help="org/name on the Hub")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--report", type=Path, help="the run's report.json (default: the one beside the folder)")
    parser.add_argument("--store", type=Path, default=Path("outputs/store.sqlite"), help="the results store of the run")
    options = parser.parse_args(arguments)
    try:
        goal = target({"repo": options.repo, "private": options.private})
        assert goal is not None
        check(goal)
        print(push(goal, options.folder, options.report, options.store))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
