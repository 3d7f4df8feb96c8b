"""The pages keep together: each is reachable from the README, and what they link to, name or import exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "benchmarks/README.md", "tests/README.md")),
    *(ROOT / name for name in ("sweeps/README.md", "notebooks/README.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
"""CHANGELOG.md is left out: it names what is gone."""
EXPERIMENTS = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


def names_of(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def links(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor or "") of every relative link on a page."""
    targets = re.findall(r"\]\((?!https?://)([^)\s]*)\)", page.read_text())
    parts = [target.partition("#") for target in targets]
    return [((page.parent / path).resolve() if path else page, anchor) for path, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def exists(name: str) -> bool:
    """Whether a dotted name is a module, or what a module holds."""
    module, rest = name, ""
    while not _is_module(module):
        module, _, last = module.rpartition(".")
        rest = f"{last}.{rest}".rstrip(".")
        if not module:
            return False
    value = importlib.import_module(module)
    for part in filter(None, rest.split(".")):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


def test_every_page_of_the_docs_is_reachable_from_the_readme() -> None:
    reached, waiting = {README}, [README]
    while waiting:
        pages = {path for path, _ in links(waiting.pop()) if path.suffix == ".md" and path.exists()} - reached
        reached |= pages
        waiting += pages
    assert names_of([page for page in PAGES if page not in reached]) == []


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
class TestPage:
    def test_links_lead_somewhere(self, page: Path) -> None:
        dead = [str(path) for path, _ in links(page) if not path.exists()]
        assert dead == []
        lost = [f"{p.name}#{anchor}" for p, anchor in links(page) if anchor and anchor not in anchors(p)]
        assert lost == []

    def test_named_files_are_there(self, page: Path) -> None:
        named = re.findall(r"(?<![\w./~])((?:souping|tests|benchmarks|docs|examples)/[\w./-]*\w)", page.read_text())
        places = [path for path in named if path.rpartition(".")[2] in ("py", "md", "csv", "jsonl")]
        assert [path for path in places if not (ROOT / path).exists()] == []

    def test_named_modules_are_there(self, page: Path) -> None:
        named = set(re.findall(r"(?<![\w./-])(souping(?:\.[A-Za-z_]\w*)+)(?!/)", page.read_text()))
        assert [name for name in sorted(named) if not exists(name)] == []

    def test_commands_are_modules_that_run(self, page: Path) -> None:
        for name in set(re.findall(r"-m ((?:souping|examples)(?:\.\w+)*)", page.read_text())):
            spec = importlib.util.find_spec(name)
            assert spec is not None, name
            main = importlib.util.find_spec(f"{name}.__main__") if spec.submodule_search_locations else spec
            assert main is not None, name
            assert Path(str(main.origin)).read_text().count("__main__") or main.name.endswith("__main__"), name

    def test_python_imports_what_there_is(self, page: Path) -> None:
        for node in (node for block in python_blocks(page) for node in ast.walk(ast.parse(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("souping"):
                assert all(exists(f"{node.module}.{alias.name}") for alias in node.names), ast.unparse(node)


def test_the_python_of_merging_and_distributed_runs(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    for link, name in (("A", "ant"), ("B", "bee"), ("models/a", "ant"), ("models/b", "bee")):
        (tmp_path / link).symlink_to(family / name)
    monkeypatch.chdir(tmp_path)
    for page in ("merging.md", "distributed.md"):
        for block in python_blocks(ROOT / "docs" / page):
            exec(compile(block, page, "exec"), {})
    assert (tmp_path / "soup" / "model.safetensors").exists()
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_what_it_is(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first == "# @package _global_"
    assert re.match(r"# (Demo|Paper|Tool): \w.{10,}", second), second


def test_experiments_are_flat() -> None:
    assert [str(path) for path in (ROOT / "conf" / "experiment").iterdir() if path.suffix != ".yaml"] == []


CHOICES = sorted((ROOT / "conf").glob("*/*.yaml"))


@pytest.mark.parametrize("path", CHOICES, ids=names_of(CHOICES))
def test_the_reference_names_every_group_and_choice(path: Path) -> None:
    rows = [line.split(" | ") for line in (ROOT / "docs/reference.md").read_text().splitlines() if line[:3] == "| `"]
    row = {cells[0].strip("| `"): " ".join(cells[1:2]) for cells in rows}
    assert f"`{path.stem}`" in row[path.parent.name]


def test_what_is_not_there_is_found() -> None:
    """The checks above can fail."""
    assert exists("souping.core.objectives.Mean")
    assert not exists("souping.core.objectives.Median")
    assert not exists("souping.objective")
    assert "other-benchmarks-also" in anchors(ROOT / "docs" / "planning.md")
