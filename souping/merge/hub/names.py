"""Names of models on the Hub: `org/name`, `org/name@revision`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>\w[\w./-]{{0,254}}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A model repository and a revision of it: a branch, a tag or a commit."""

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
    found = NAME.fullmatch(str(text))
    if found is None or not is_repo(found["repo"]) or ".." in str(text) or Path(text).exists():
        return None
    return HubName(found["repo"], found["revision"] or "main")


def is_repo(text: str) -> bool:
    """Whether a text can be the name of a repository, `org/name`, by the Hub's rules."""
    return re.fullmatch(f"{PART}/{PART}", text) is not None and ".." not in text and "--" not in text
