"""Upload of a soup and its card to the Hub (`upload=org/name`), as one commit.

`python -m souping.pipeline.upload DIR org/name` sends a finished soup.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants

from souping.checkpoints import hub
from souping.core.text import read_json
from souping.core.types import Json, LateError, UserError
from souping.report.cards import CARD, card, public_name, relicensed

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECIPE, REPORT = "recipe.json", "report.json"
KEPT = (".gitattributes",)
"""Files of a repository that a new soup does not remove."""


@dataclass(frozen=True)
class Target:
    """Model repository for a soup. If it does not exist, it is created, `private` or public."""

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
    if isinstance(table, Mapping) and set(table) <= {"repo", "private"}:
        repo, private = table.get("repo"), table.get("private", False)
        if isinstance(repo, str) and hub.is_repo(repo) and isinstance(private, bool):
            return Target(repo, private)
    raise UserError(f"upload={value} must be org/name as the Hub allows it, or {{repo: org/name, private: true}}")


def check(goal: Target) -> None:
    """Refuse, before a run, a repository that this account may not write to.

    Raises:
        UserError: not logged in, a token that may only read, somebody else's name space, a repository that holds
            something other than a soup, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"upload={goal.repo}: HF_HUB_OFFLINE=1 forbids uploads: unset it, or leave upload out")
    with _explained(goal):
        _check_account(goal, HfApi().whoami())
        _check_repository(goal, HfApi())


def _check_account(goal: Target, who: Mapping[str, Any]) -> None:
    space, name = goal.repo.split("/")[0], str(who.get("name"))
    roles = {str(org.get("name")): str(org.get("roleInOrg") or "write") for org in who.get("orgs") or []}
    spaces = [name, *(org for org, role in roles.items() if role != "read")]
    if space not in spaces:
        raise UserError(f"upload={goal.repo}: {name} may not write to {space}, only to {', '.join(spaces)}")
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not _writes(token, goal)):
        raise UserError(
            f"upload={goal.repo}: your token may not write there: create one that may at "
            f"{constants.ENDPOINT}/settings/tokens, then {hub.LOGIN}"
        )


def _writes(token: Mapping[str, Any], goal: Target) -> bool:
    """Whether a fine-grained token may write to the repository or to all of its name space."""
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    names = {goal.repo, goal.repo.split("/")[0]}
    fits = [s for s in scopes if (s.get("entity") or {}).get("name") in names]
    return any("repo.write" in (scope.get("permissions") or []) for scope in fits)


def _check_repository(goal: Target, api: HfApi) -> list[str]:
    """The files that are there already. They must be a soup's, so that no other model is ever replaced."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        files = [s.rfilename for s in api.model_info(goal.repo).siblings or []]
    except RepositoryNotFoundError:
        return []
    if "write" in inspect.signature(api.auth_check).parameters:  # since huggingface_hub 2
        api.auth_check(goal.repo, write=True)
    if RECIPE not in files and any(file not in (*KEPT, CARD) for file in files):
        raise UserError(f"upload={goal.repo} holds a model that is no soup: choose another name; nothing is replaced")
    return files


def push(goal: Target, folder: Path, report: Path | None = None, store: Path | None = None) -> str:
    """Send a soup's folder with its card as one commit; the commit's address.

    `report` is the run's report.json (default: the one beside the folder, if it is about this soup). `store` knows the
    folders of local ingredients, whose cards name their licences. The commit removes files of an earlier soup that this
    one does not have.

    Raises:
        LateError: the Hub refused or could not be reached. The folder stays, and the message says how to go on.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    recipe = _json(folder / RECIPE)
    if "ingredients" not in recipe:
        raise UserError(f"{folder} holds no {RECIPE}: it is not a soup's folder")
    files: dict[str, Path | bytes] = {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    files[CARD] = _card(folder, recipe, report, store).encode()
    api = HfApi()
    try:
        with _explained(goal):
            api.create_repo(goal.repo, private=goal.private or None, exist_ok=True)
            old = _check_repository(goal, api)
            # `upload_folder` splits large folders into several commits: the repository would hold half a soup meanwhile
            operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
            operations += [CommitOperationDelete(name) for name in old if name not in (*files, *KEPT)]
            done = api.create_commit(goal.repo, operations, commit_message=f"Soup {recipe.get('id', '')}")
    except UserError as error:
        again = f"the soup is complete in {folder}: python -m souping.pipeline.upload {folder} {goal.repo}"
        raise LateError(f"{error}\n{again}") from error
    return str(done.commit_url)


def _card(folder: Path, recipe: Mapping[str, Any], report: Path | None, store: Path | None) -> str:
    """The card for the Hub: from the run's report, else the folder's own with the licences of the ingredients."""
    licences = _licences(recipe, store)
    written = _json(report or folder.absolute().parent / REPORT)
    if (written.get("recipe") or {}).get("id") == recipe.get("id"):
        return card(written, licences)
    own = folder / CARD
    return (
        relicensed(own.read_text("utf-8"), licences, str(own)) if own.is_file() else card({"recipe": recipe}, licences)
    )


def _licences(recipe: Mapping[str, Any], store: Path | None) -> dict[str, str]:
    """{name: licence} of a recipe's ingredients and of a base model that it names."""
    prints = dict(zip(recipe["ingredients"], recipe.get("fingerprints") or [], strict=False))
    base = (recipe.get("settings") or {}).get("base")
    prints |= {"the base model": base} if isinstance(base, str) else {}
    sources = {**_folders(prints, store), **(recipe.get("sources") or {})}
    return {public_name(name): _licence(str(sources.get(name, ""))) for name in prints}


def _folders(prints: Mapping[str, str], path: Path | None) -> dict[str, str]:
    """{name: folder} as a store knows them; a folder of the Hub's cache becomes the model's name there."""
    if path is None or not path.is_file():
        return {}
    from souping.pipeline.store import Store

    with Store(path) as store:
        folders = {name: store.folder_of(mark) for name, mark in prints.items()}
    cached = r".*/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})"
    return {name: re.sub(cached, r"\1/\2@\3", folder) for name, folder in folders.items() if folder}


def _licence(source: str) -> str:
    """The licence that the card of a folder or of a model on the Hub names; empty if there is none."""
    from huggingface_hub import HfApi, ModelCard

    name = hub.parse(source)
    try:
        if name is not None:
            data: Any = HfApi().model_info(name.repo, revision=name.revision).card_data
        else:
            data = (
                ModelCard((Path(source) / CARD).read_text("utf-8"), ignore_metadata_errors=True).data if source else {}
            )
        licence = data.get("license") or ""
        named = data.get("license_name") if licence == "other" else None
    except Exception:  # whatever is wrong with somebody's card
        return ""
    return f"other: {named}" if named else str(licence[0] if isinstance(licence, list) else licence)


def _json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; empty if there is none."""
    try:
        table = read_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


@contextmanager
def _explained(goal: Target) -> Iterator[None]:
    """Errors of the Hub's client as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"upload={goal.repo}: {hub.reason(error)}") from error


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
