"""Upload of a soup and its card to the Hub (`upload=org/name`), as one commit."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from huggingface_hub import constants

from souping.checkpoints import hub, lora
from souping.checkpoints.header import parse_json, small
from souping.core.fields import MOST_JSON_BYTES, load_json, text_of
from souping.core.parsing import read_json, read_yaml
from souping.core.reading import read
from souping.core.system import program
from souping.core.text import human, listed
from souping.core.types import Json, LateError, UserError, frozen
from souping.merge.soup_files import CARD, RECIPE, file_mark
from souping.report.cells import Section, grid
from souping.report.format import escape_markdown
from souping.report.recipe import RecipeSummary
from souping.report.run_files import as_json
from souping.soups.card import public_name, public_rebuild, soup_card
from souping.soups.settings import SoupSettings, Target

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SoupContent: TypeAlias = Mapping[str, Path | bytes | int]
"""{name: path or content} of a soup's files; of weights that are not written yet, their size in bytes."""
UNTOUCHED_FILES = (".gitattributes",)
"""Files of a repository that a new soup does not remove."""
BASE_KEY = "base_model_name_or_path"
"""Key of the base model in adapter_config.json."""
LICENCE_HEADING = "\n## Licence\n\nLicences of the ingredients: "
LONGEST_FRONT = 1 << 16
"""Characters of a card's front matter at most."""
LONGEST_LICENCE = 100
LOCAL_PATH = re.compile(
    r"^(?:\.{1,2}[/\\]|\\\\\w)"
    # A path inside a text does not go on what comes before it, as in an address, a tag or `and/or`.
    r"|(?<![\w/.:<~}\\-])(?:file:/|~(?:[A-Za-z_][\w.-]*)?/|[A-Za-z]:[/\\]|/(?!v\d)[^/\s<>]+/[^/\s])"
)
"""How a path on some machine begins, but for routes of servers such as `/v1/models`."""
CARD_PATH = re.compile(
    r"(?<![\w/.:<~}\\-])(?:file:/*)?/(?:home|Users|root|mnt|media|scratch|tmp|Volumes|workspace)/[^\s\"'`<>()\[\]|]+"
)
"""A path below a folder of users or data, in the text of a card."""
TEMPLATE_KEYS = ("chat_template", "template")
"""Keys of texts that models were evaluated with, which stay whatever they hold."""
PLACE_KEYS = ("_name_or_path", "name_or_path", BASE_KEY)
"""Keys of configs that transformers and PEFT set to the folder from which a model was loaded."""


def check_target(goal: Target, out: Path) -> None:
    """Refuse, before a run, a repository that this account may not write to, or a soup in `out` that cannot be sent.

    Raises:
        UserError: `out` has a soup and other files, not logged in, a token that may only read, somebody else's name
            space, a repository that holds something other than a soup, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if (out / RECIPE).is_file():
        files_by_recipe(out)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"upload={goal.repo}: HF_HUB_OFFLINE=1 forbids uploads: unset it, or leave upload out"
        )
    with _explained(goal):
        _check_account(goal, HfApi().whoami())
        _check_repository(goal, HfApi())


def _check_account(goal: Target, who: Mapping[str, Any]) -> None:
    """Refuse a repository that an account, as the Hub's `whoami` tells of it, may not write to (UserError)."""
    space = goal.repo.split("/")[0]
    token = (who.get("auth") or {}).get("accessToken") or {}
    spaces = [who["name"]]
    for organisation in who.get("orgs") or []:
        if organisation.get("roleInOrg") != "read":
            spaces.append(organisation["name"])
    if space not in spaces:
        raise UserError(
            f"upload={goal.repo}: {spaces[0]} may not write to {space}, only to {', '.join(spaces)}"
        )
    may_write = False
    for scope in (token.get("fineGrained") or {}).get("scoped") or []:
        if (scope.get("entity") or {}).get("name") in (goal.repo, space):
            may_write |= "repo.write" in (scope.get("permissions") or [])
    if token.get("role") == "read" or (token.get("role") == "fineGrained" and not may_write):
        raise UserError(
            f"upload={goal.repo}: your token may not write there: create one that may at "
            f"{constants.ENDPOINT}/settings/tokens, then {hub.LOGIN}",
            fix=hub.SIGN_IN,
        )


def _check_repository(goal: Target, api: HfApi) -> list[str]:
    """Names of the repository's files, none if it does not exist.

    Raises:
        UserError: they are not a soup's: no other model is ever replaced.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        files = [s.rfilename for s in api.model_info(goal.repo).siblings or []]
    except RepositoryNotFoundError:
        return []
    if RECIPE not in files and any(file not in (*UNTOUCHED_FILES, CARD) for file in files):
        raise UserError(
            f"upload={goal.repo} holds a model that is not a soup: choose another name; nothing is replaced"
        )
    return files


def push(goal: Target, folder: Path, store: Path | None = None) -> str:
    """Send a soup's folder as one commit that replaces the soup before it; returns the commit's address.

    The card gets the ingredients' licences. `store` knows the folders of the ingredients.

    Raises:
        UserError: the folder is not a soup's, the Hub refuses or cannot be reached. Nothing was changed there, or a
            repository without files was made; the message has the command that sends the folder again.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder} holds no {RECIPE}: it is not a soup's folder")
    try:
        paths = files_by_recipe(folder)
    except UserError as error:
        raise LateError(f"{error}; nothing was sent") from error
    files = _public_files(goal, paths, store, online=True)
    recipe = json.loads(_bytes(files[RECIPE]))
    api = HfApi()
    try:
        with _explained(goal):
            # None leaves it to the organisation's default.
            api.create_repo(goal.repo, private=goal.private or None, exist_ok=True)
            old = _check_repository(goal, api)
            # `upload_folder` splits large folders into several commits: the repository would hold half a soup meanwhile
            operations: list[Any] = []
            for name, content in files.items():
                # Only plans have sizes in place of contents.
                assert not isinstance(content, int)
                operations.append(CommitOperationAdd(name, content))
            for name in old:
                if name not in files and name not in UNTOUCHED_FILES:
                    operations.append(CommitOperationDelete(name))
            message = f"Soup {recipe.get('id', '')}"
            commit = api.create_commit(goal.repo, operations, commit_message=message)
    except UserError as error:
        # The Hub's own command would send paths of this machine.
        command = f"{program()} upload {shlex.quote(str(folder))} {goal.repo}"
        raise LateError(f"{error}\nthe soup is complete", fix=command) from error
    return str(commit.commit_url)


def planned_upload(goal: Target, files: SoupContent, store: Path) -> Section:
    """Section of a plan with what an upload of these files would send. Uses no network."""
    from huggingface_hub import get_token

    public = _public_files(goal, files, store, online=False)
    sizes = {name: _size(content) for name, content in sorted(public.items())}
    sizes["total"] = sum(sizes.values())
    table = grid(("file", "size"), [(name, human(size)) for name, size in sizes.items()])
    visibility = (
        "private" if goal.private else "public, unless its organisation has another default"
    )
    lines = [
        f"Repository {goal.repo}: {visibility}; one that exists stays as it is. Nothing is sent now."
    ]
    text = _bytes(public[CARD]).decode()
    if get_token() is None:
        lines.append(f"This machine is not logged in to the Hub: {hub.LOGIN}.")
    if "(unknown)" in text:
        lines.append("Licences of models on the Hub are read when the soup is sent.")
    if lora.CONFIG in files and not _base_in(text):
        lines.append(
            f"base_model is left out: what the Hub calls the base model is unknown. Add it to {CARD} before you upload."
        )
    return Section("Upload", tuple(lines), grids=(table,), code=text)


def _public_files(
    goal: Target, files: SoupContent, store: Path | None, online: bool
) -> dict[str, Path | bytes | int]:
    """A soup's files as they are sent: the card has the repository and licences, and no file a path of this machine.

    Licences of models on the Hub are read only with `online`.
    """
    raw_recipe = _bytes(files[RECIPE])
    recipe = json.loads(_public_recipe(raw_recipe.decode()))
    summary = read(RecipeSummary, recipe)
    # The base model of an adapter; it is named unless it is a folder.
    base = str(_object(lora.CONFIG, _bytes(files.get(lora.CONFIG, b"{}"))).get(BASE_KEY))
    is_public = hub.is_repo(base)
    text = soup_card(summary, base=base if is_public else "")
    if CARD in files:
        text = _card_text(files[CARD])
    text = _with_licences(_public_card(text, goal.repo), _licences(summary, store, online))
    public = {**files, CARD: text.encode()}
    for name in files:
        # Words of a vocabulary may look like paths, so other JSON stays as it is.
        if not name.endswith("config.json"):
            continue
        raw = _bytes(files[name])
        before = parse_json(Path(name), raw)
        after = read_json(raw, _public_table)
        if name == lora.CONFIG:
            after[BASE_KEY] = base if is_public else _base_in(text) or public_name(base)
        if after == before:
            continue
        # recipe.json lists the digests of the files.
        content = (json.dumps(after, indent=2) + "\n").encode()
        public[name] = content
        recipe["files"][name] = hashlib.sha256(content).hexdigest()
    if recipe != json.loads(raw_recipe):
        public[RECIPE] = as_json(recipe).encode()
    return public


def _public_card(text: str, repo: str) -> str:
    """A soup's card whose commands name the repository, without paths of this machine."""
    text = re.sub(r'^folder = ".*"(?=  # this folder)', f'folder = "{repo}"', text, flags=re.M)
    # The command of a rebuild ends with its block of code: names of folders in it may hold line ends.
    text = re.sub(
        r"(?<=```bash\n)(cd|hf download org/soup) .+?(?=\n```)",
        lambda match: public_rebuild(match[0], repo) if " rebuild " in match[0] else match[0],
        text,
        flags=re.S,
    )
    return CARD_PATH.sub(lambda match: public_name(match[0]), text)


def _public_recipe(text: str) -> str:
    """A recipe.json without paths as names of ingredients, if names without them still differ."""
    names = read(RecipeSummary, json.loads(text)).ingredients
    public = {name: public_name(name) for name in names}
    if len({*public.values()}) == len(public):
        for name in names:
            text = text.replace(json.dumps(name), json.dumps(public[name]))
    return text


def _object(name: str, raw: bytes) -> dict[str, Any]:
    """The object in one of a soup's JSON files (UserError if it holds none)."""
    table = parse_json(Path(name), raw)
    if not isinstance(table, dict):
        raise UserError(f"{name} is not a JSON object: write the soup again")
    return table


def _public_table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, from its (key, value) pairs, without the pairs that name a place on some machine."""
    table = {}
    for key, value in pairs:
        is_place = key in PLACE_KEYS or any(map(LOCAL_PATH.search, _texts([key, value])))
        if key in TEMPLATE_KEYS or not is_place:
            table[key] = value
    return table


def _texts(value: Json) -> Iterator[str]:
    """The texts in a value of JSON, whose objects `_public_table` has made."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _card_text(content: Path | bytes | int) -> str:
    """The card of a soup, which a user may have edited (UserError: it is too large, or not UTF-8)."""
    if not isinstance(content, Path):
        return _bytes(content).decode()
    return text_of(content, MOST_JSON_BYTES)


def _size(content: Path | bytes | int) -> int:
    """Bytes of a file, a content, or the size itself."""
    if isinstance(content, Path):
        return content.stat().st_size
    return len(content) if isinstance(content, bytes) else content


def _bytes(content: Path | bytes | int) -> bytes:
    """The content of one of a soup's files, other than its weights."""
    if isinstance(content, Path):
        return content.read_bytes()
    # Only weights that are not written yet have a size in place of it.
    assert isinstance(content, bytes)
    return content


def _base_in(text: str) -> str:
    """The base model on the Hub that the card of an adapter names; empty if there is none."""
    front = _front_matter(text)
    # A text, or a list of one.
    base = str(front.get("base_model")).strip("[']")
    is_adapter = front.get("base_model_relation") == "adapter"
    return base if is_adapter and hub.is_repo(base) else ""


@frozen
class SoupManifest:
    """The list of a soup's files in its recipe.json, with their marks."""

    files: Mapping[str, Any]


def files_by_recipe(folder: Path) -> dict[str, Path]:
    """A soup's files, by the list in its recipe.json.

    Raises:
        UserError: the folder holds other files or links, or a file is not the one that was written.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    files = {str(path.relative_to(folder)): path for path in paths}
    marks = read(SoupManifest, load_json(folder / RECIPE, dict[str, Any])).files
    known = {RECIPE, CARD, *marks}
    # Missing, foreign and changed files. recipe.json and the card have no mark.
    wrong = sorted(marks.keys() - files.keys())
    for name, path in files.items():
        is_ours = name in known and not path.is_symlink()
        if not is_ours or marks.get(name) not in (None, file_mark(path)):
            wrong.append(name)
    if wrong:
        raise UserError(
            f"upload: {folder} is not as souping wrote it: move away or restore {listed(wrong)}"
        )
    return files


def _licences(recipe: RecipeSummary, store: Path | None, online: bool) -> dict[str, str]:
    """{model: licence}, empty if unknown, of a recipe's ingredients and of a base model that it names."""
    # A plan's recipe may have no fingerprints yet.
    fingerprints = dict(zip(recipe.ingredients, recipe.fingerprints, strict=False))
    base = recipe.settings.get("base")
    if isinstance(base, str):
        fingerprints["the base model"] = base
    sources = {**_folders(fingerprints, store), **(recipe.sources or {})}
    licences = {}
    for name in fingerprints:
        licences[public_name(name)] = _licence(str(sources.get(name, "")), online)
    return licences


def _with_licences(text: str, licences: Mapping[str, str]) -> str:
    """The card with a list of the licences at its end; a licence that all models share is in the front matter too."""
    # A soup that comes back from the Hub has the list already, the line below the heading: it is taken out.
    text, _, from_list = text.partition(LICENCE_HEADING)
    _, _, after_list = from_list.partition("\n")
    text += "\n" + after_list
    # Only one plain name goes into the front matter, and never over what a user wrote there.
    front = _front_matter(text)
    names = set(licences.values())
    common = names.pop() if len(names) == 1 else ""
    if front and re.fullmatch(r"[\w.+-]+", common) and not front.get("license"):
        text = text.lstrip().replace("\n---\n", f"\nlicense: {common}\n---\n", 1)
    words = ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in licences.items())
    line = f"{escape_markdown(words)}. Read all of them before you use or share this model."
    return f"{text.rstrip()}\n{LICENCE_HEADING}{line}\n"


def _front_matter(text: str) -> dict[str, Any]:
    """The front matter of somebody's card; empty if there is none, or none that can be read."""
    import yaml

    lines = text[:LONGEST_FRONT].removeprefix("\ufeff").lstrip().splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in lines[1:]:
        return {}
    try:
        front = read_yaml("\n".join(lines[1 : lines.index("---", 1)]))
    except (yaml.YAMLError, ValueError):
        return {}
    return front if isinstance(front, dict) else {}


def _folders(fingerprints: Mapping[str, str], store_path: Path | None) -> dict[str, str]:
    """{model: its folder, as the store knows it} of {model: fingerprint}, without models that the store does not know.

    A folder of the Hub's cache becomes the model's name there.
    """
    if store_path is None or not store_path.is_file():
        return {}
    from souping.answers.store import Store

    folders = {}
    with Store(store_path) as store:
        for name, fingerprint in fingerprints.items():
            folder = store.folder_of(fingerprint)
            if folder:
                folders[name] = hub.cached_name(folder) or folder
    return folders


def _licence(source: str, online: bool) -> str:
    """The licence that the card of a folder or of a model on the Hub names; empty if there is none.

    Models on the Hub are read only with `online`.
    """
    from huggingface_hub import hf_hub_download

    if not source:
        return ""
    name = hub.parse_name(source)
    path = Path(source) / CARD
    try:
        if name and online:
            path = Path(hf_hub_download(name.repo, CARD))
        front = _front_matter(small(path).decode("utf-8", "replace"))
    except Exception:  # anything may be wrong with somebody's card
        return ""
    licence = front.get("license")
    if licence == "other" and isinstance(front.get("license_name"), str):
        licence = f"other: {front['license_name']}"
    return licence if isinstance(licence, str) and len(licence) <= LONGEST_LICENCE else ""


def send(settings: SoupSettings, goal: Target, soup: Path) -> None:
    """Send the soup of a run or a merge, and print where it is now (UserError if `push` cannot send it)."""
    print(f"  {'upload':16} {push(goal, soup, settings.store_path)}")


@contextmanager
def _explained(goal: Target) -> Iterator[None]:
    """Errors of the Hub's client as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"upload={goal.repo}: {hub.reason(error)}", fix=hub.remedy(error)
        ) from error
