"""The preregistration: one version of one page in git, whose blob id gives the seeds of the families."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from souping.core.types import UserError

ROOT = Path(__file__).parents[2]
PAGE = "benchmarks/preregistration.md"


def blob_id(content: bytes) -> str:
    """The id that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def page_id(root: Path = ROOT) -> str:
    """Blob id of the page as it is on the disk."""
    return blob_id((root / PAGE).read_bytes())


def committed_versions(root: Path = ROOT) -> list[str]:
    """Blob ids that the page has had in the history, the oldest first; a removal counts as a version."""
    command = ("git", "log", "--reverse", "--format=", "--raw", "--no-abbrev", "--", PAGE)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{PAGE}: its history cannot be read: {done.stderr.strip()}")
    # :old mode, new mode, old blob, new blob, status, path
    return [line.split()[3] for line in done.stdout.splitlines()]


def registered(root: Path = ROOT) -> str:
    """Blob id of the preregistration.

    Raises:
        UserError: the page is not committed, has had another version, or differs from the committed one.
    """
    if not (root / PAGE).exists():
        raise UserError(f"{PAGE} does not exist: these families wait for the preregistration")
    versions = committed_versions(root)
    if len(versions) != 1:
        raise UserError(f"{PAGE} has {len(versions)} versions in git, and must have one")
    if page_id(root) != versions[0]:
        raise UserError(f"{PAGE} differs from its committed version: git restore {PAGE}")
    return versions[0]
