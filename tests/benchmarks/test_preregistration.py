"""The preregistration: confirmatory families wait for one committed version of the page, and have its seeds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.soup_families import preregistration
from benchmarks.soup_families.__main__ import main
from benchmarks.soup_families.design import confirmatory, exploratory, larger
from benchmarks.soup_families.matrices import FOLDER, SUFFIX, load
from benchmarks.soup_families.preregistration import (
    PAGE,
    ROOT,
    blob_id,
    committed_versions,
    page_id,
    registered,
)
from souping.core.types import UserError

WHO = ("-c", "user.name=a", "-c", "user.email=a@b")


def git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *WHO, *words], cwd=root, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / PAGE).parent.mkdir()
    commit(tmp_path, "the page\n")
    return tmp_path


def commit(root: Path, text: str) -> None:
    (root / PAGE).write_text(text)
    git(root, "add", PAGE)
    git(root, "commit", "--quiet", "--message", "page")


def test_the_id_of_the_page_is_git_s(repository: Path) -> None:
    assert blob_id(b"the page\n") == git(repository, "hash-object", PAGE)
    assert (
        registered(repository)
        == page_id(repository)
        == git(repository, "rev-parse", f"HEAD:{PAGE}")
    )


def test_a_changed_page_is_refused(repository: Path) -> None:
    (repository / PAGE).write_text("another page\n")
    with pytest.raises(UserError, match="differs"):
        registered(repository)


def test_a_second_version_is_refused(repository: Path) -> None:
    commit(repository, "another page\n")
    with pytest.raises(UserError, match="2 versions"):
        registered(repository)
    # also if the first one is back
    commit(repository, "the page\n")
    with pytest.raises(UserError, match="3 versions"):
        registered(repository)


def test_a_page_that_is_not_committed_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / PAGE).parent.mkdir()
    (tmp_path / PAGE).write_text("the page\n")
    with pytest.raises(UserError):
        registered(tmp_path)


def test_training_is_refused_without_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preregistration.registered, "__defaults__", (tmp_path,))
    for part in ("confirmatory", "larger"):
        with pytest.raises(SystemExit) as refusal:
            main(["train", part, "--folder", str(tmp_path)])
        assert refusal.value.code == 2
        assert PAGE in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_stored_families_have_the_seeds_of_the_page() -> None:
    families = {family.name: family for family in exploratory()}
    if (ROOT / PAGE).exists():
        page = page_id()
        for family in (*confirmatory(page), *larger(page)):
            families[family.name] = family
    for path in FOLDER.glob(f"*{SUFFIX}"):
        facts = load(path).facts
        assert path.name == facts.name + SUFFIX
        expected = families[facts.name]
        assert (facts.seed, facts.levels) == (expected.seed, expected.levels)


def test_stored_families_take_at_most_6_mb() -> None:
    assert sum(path.stat().st_size for path in FOLDER.glob(f"*{SUFFIX}")) <= 6_000_000


def test_git_has_one_version_of_the_page() -> None:
    """An unpacked archive has no history, and before the page is written there is nothing to see."""
    if (ROOT / ".git").exists() and (ROOT / PAGE).exists():
        assert committed_versions() == [page_id()]


def test_families_are_younger_than_the_page_they_wait_for() -> None:
    if not (ROOT / ".git").exists():
        return  # an unpacked archive has no history
    for path in FOLDER.glob(f"*{SUFFIX}"):
        added = git(ROOT, "log", "--diff-filter=A", "--format=%H", "--", str(path)).split()
        if added and not path.name.startswith("exploratory"):
            page = git(ROOT, "log", "--format=%H", "--", PAGE)
            git(ROOT, "merge-base", "--is-ancestor", page, added[-1])
