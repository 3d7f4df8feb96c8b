"""Check a release: its version stands everywhere, and the source archive has every file of the repository.

python .ci/release.py                the version in pyproject.toml, the package, CITATION.cff and CHANGELOG.md
python .ci/release.py vX.Y.Z         that it is the tag's, and that the changelog calls it released
python .ci/release.py DIST           and look into the source archive
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "souping/core/system.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "CHANGELOG.md": r"^## (\S+)",
}
NAMES = {"CITATION.cff": r"^title: (.+)$"}


def first(path: str, pattern: str) -> str:
    """The first match in a file of the repository; empty if there is none."""
    match = re.search(pattern, (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else ""


def disagreements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    faults = []
    for key, places in (("version", PLACES), ("name", NAMES)):
        for path, pattern in places.items():
            value = first(path, pattern)
            if value != project[key]:
                faults.append(f"{path} has the {key} {value!r}, pyproject.toml {project[key]!r}")
    return faults


def of_tag(tag: str) -> list[str]:
    faults = []
    if tag != f"v{first('CITATION.cff', PLACES['CITATION.cff'])}":
        faults.append(f"the tag {tag} is not the version in CITATION.cff")
    if "not yet released" in first("CHANGELOG.md", r"^(## .+)$"):
        faults.append("CHANGELOG.md: the version is not yet released")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if "Repository" not in project["urls"]:
        faults.append(
            "pyproject.toml: [project.urls] has no Repository, so README has no links on PyPI"
        )
    return faults


def of_archive(folder: Path) -> list[str]:
    """Files of the repository that the archive lacks; those with a dot in front serve the repository alone."""
    with tarfile.open(next(folder.glob("souping-*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = {name for name in listing.stdout.splitlines() if not name.startswith(".")}
    return [f"the archive has no {name}" for name in sorted(tracked - packed)]


if __name__ == "__main__":
    found = disagreements()
    for word in sys.argv[1:]:
        if Path(word).is_dir():
            found += of_archive(Path(word))
        else:
            found += of_tag(word)
    sys.exit("\n".join(found) or 0)
