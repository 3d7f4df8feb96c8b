"""Client of the Hub: names of models (`org/name`, `org/name@revision`), and errors as a line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from souping.core.files import near_folder
from souping.core.text import first_line
from souping.core.types import UserError

LOGIN = "`hf auth login`"


@contextmanager
def told(name: HubName) -> Iterator[None]:
    """Errors of the Hub's client about a model, as UserErrors; others pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        known = explain(name, error)
        if known is None:
            raise
        raise known from None


def explain(name: HubName, error: BaseException) -> UserError | None:
    """One line about an error of the Hub's client, or None where it is not one."""
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return _gated(name)
    if isinstance(error, hub.RepositoryNotFoundError):
        return _missing(name)
    if isinstance(error, hub.RevisionNotFoundError):
        return UserError(f"{name.repo} on the Hub has no revision {name.revision}{_revisions(name)}")
    if isinstance(error, hub.OfflineModeIsEnabled | hub.LocalEntryNotFoundError) and offline():
        return not_cached(name)
    if isinstance(error, hub.HfHubHTTPError):
        return _status(name, error)
    if isinstance(error, hub.LocalEntryNotFoundError) or unreachable(error):
        why = f"the Hub ({endpoint()}) cannot be reached: {_reason(error)}{near_folder(name.repo)}"
        return UserError(f"{name} is no folder here, and {why}")
    if isinstance(error, hub.HFValidationError | hub.FileMetadataError):
        return UserError(f"{name}: {first_line(error)}")
    return None


def offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def not_cached(name: HubName, what: str = "") -> UserError:
    from huggingface_hub import constants

    revision = "" if name.revision == "main" else f" --revision {name.revision}"
    return UserError(
        f"{name} is {what or 'neither a folder here nor'} in the Hub's cache ({Path(constants.HF_HUB_CACHE)}), and "
        f"HF_HUB_OFFLINE=1 forbids to fetch it: unset it, or run `hf download {name.repo}{revision}` elsewhere"
        f"{near_folder(name.repo)}"
    )


def unreachable(error: BaseException) -> bool:
    """Whether no answer came: no network, no such host, a proxy, a time-out."""
    library = type(error).__module__.split(".")[0]
    return library in ("httpx", "httpx2", "httpcore", "httpcore2") or isinstance(error, ConnectionError | TimeoutError)


def logged_in() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _gated(name: HubName) -> UserError:
    page = f"{endpoint()}/{name.repo}"
    if logged_in():
        return UserError(f"{name.repo} is gated and your account has no access to it: ask for it at {page}")
    return UserError(f"{name.repo} is gated: ask for access at {page}, then {LOGIN}")


def _missing(name: HubName) -> UserError:
    if logged_in():
        return UserError(
            f"{name.repo} is neither a folder here nor a model that your account may see on the Hub: check the name, "
            f"or {LOGIN} with another account{near_folder(name.repo)}"
        )
    return UserError(
        f"{name.repo} is neither a folder here nor a public model on the Hub: check the name, or {LOGIN} "
        f"if it is private{near_folder(name.repo)}"
    )


def _status(name: HubName, error: Exception) -> UserError:
    code = getattr(getattr(error, "response", None), "status_code", 0)  # huggingface_hub's
    if code == 401:
        return UserError(f"{name.repo}: the Hub does not know your token: {LOGIN} again (HF_TOKEN goes before it)")
    if code == 403:
        return UserError(f"{name.repo}: your token may not read it: {LOGIN} with one that may ({first_line(error)})")
    if code == 429:
        return UserError(f"{name.repo}: the Hub asks for fewer requests (429): wait some minutes, or {LOGIN}")
    return UserError(f"{name.repo}: the Hub answered {code or 'an error'}: try again later ({first_line(error)})")


def _revisions(name: HubName) -> str:
    """Some revisions that there are."""
    from huggingface_hub import HfApi

    with suppress(Exception):
        refs = HfApi().list_repo_refs(name.repo)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
        return f"; it has {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}" if names else ""
    return ""


def _reason(error: BaseException) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return first_line(cause)


PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>\w[\w./-]{{0,254}}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """Model repository and a revision of it: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def name(self) -> str:
        """What a candidate of this name is called by default."""
        return self.repo.rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return COMMIT.fullmatch(self.revision) is not None

    def at(self, commit: str) -> HubName:
        return HubName(self.repo, commit)


def parse(text: str | Path) -> HubName | None:
    """The Hub name in a text, or None where it cannot be one, or where a path of this name exists: a folder wins."""
    match = NAME.fullmatch(str(text))
    if match is None or not is_repo(match["repo"]) or ".." in str(text) or Path(text).exists():
        return None
    return HubName(match["repo"], match["revision"] or "main")


def is_repo(text: str) -> bool:
    """Whether a text can be the name of a repository, `org/name`, by the Hub's rules."""
    return re.fullmatch(f"{PART}/{PART}", text) is not None and ".." not in text and "--" not in text
