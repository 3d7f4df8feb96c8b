"""README and docs: the pages, links, files, commands and keys that they name exist, and numbers are in claims.csv."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import yaml

import souping as library
from souping.cli.commands import COMMANDS, PLANNED, as_overrides, has_parser
from souping.cli.config_keys import GROUPS, Config
from souping.cli.settings_file import with_file
from souping.core.unit import Unit
from souping.evaluate.benchmark import Benchmark
from souping.report import content
from souping.report.content import Report
from tests.conftest import ROOT, Cli
from tests.support.composition import compose
from tests.support.pages import DOCS, FENCE, README, blocks
from tests.support.report import sample
from tests.support.scripts import script

PAGES = [
    README,
    *sorted((ROOT / "docs").rglob("*.md")),
    *(
        ROOT / name
        for name in ("CONTRIBUTING.md", "AGENTS.md", "benchmarks/README.md", "tests/README.md")
    ),
    *(
        ROOT / name
        for name in ("sweeps/README.md", "sweeps/paper/README.md", "notebooks/README.md")
    ),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
OPTIONAL = (
    "power.more",  # sampled answers
    "dry_run",
    "expected_check",
    "extra_benchmarks",
    "rebuild",
    "variance",
    "search",
    "slice",
    "engine",
    "cost.unchecked_weights",
    "selection.clusters",
    "similarity.truncation",
    "recipe.s",
    "splits.left_out",
    "splits.shown",
    "verdict.sensitivity",
    "cost.lost",
    "trajectory",
)
"""Keys of report.json that only some runs have, by their beginning."""


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
    """Whether a dotted name is a module, what a module holds, or a group of entry points."""
    if name in ("souping.conf", "souping.logs", "souping.layouts"):
        return True
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def commands(page: Path) -> Iterator[list[str]]:
    """Overrides of every run on a page, of a multirun the first; without those that other tests run."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    for line in (re.sub(r"\s#.*", "", line).split("&&")[-1].strip() for line in lines):
        found = re.search(r"(?:^|python -m )souping (.*)", line)
        if found is None or "..." in found[1] or "$MODELS" in line or "--config-dir" in line:
            continue
        words = shlex.split(found[1])
        name = words.pop(0) if words[0] in COMMANDS else "run"
        if has_parser(name) or {*words[:1]} & {*PLANNED}:
            continue
        words = as_overrides(name, words)
        words = [word for word in words if word != "-m" and "hydra" not in word]
        words = [re.sub(r"=range\((\d+),\d+\)", r"=\1", word) for word in words]
        yield [re.sub(r"(?<=\]),\[.*|(?<=[\w.]),\w[^\]\}]*$", "", word) for word in words]


def test_every_page_of_the_docs_is_reachable_from_the_readme() -> None:
    reached = {README}
    waiting = [README]
    while waiting:
        pages = {
            path for path, _ in links(waiting.pop()) if path.suffix == ".md" and path.exists()
        } - reached
        reached |= pages
        waiting += pages
    assert names_of([page for page in PAGES if page not in reached]) == []


@pytest.mark.parametrize("page", PAGES, ids=names_of(PAGES))
class TestPage:
    def test_links_lead_somewhere(self, page: Path) -> None:
        assert [str(path) for path, _ in links(page) if not path.exists()] == []
        lost = [
            f"{p.name}#{anchor}" for p, anchor in links(page) if anchor and anchor not in anchors(p)
        ]
        assert lost == []

    def test_named_files_and_modules_are_there(self, page: Path) -> None:
        text = page.read_text()
        named = re.findall(
            r"(?<![\w./~])((?:souping|tests|benchmarks|docs|examples|sweeps)/[\w./-]*\w)", text
        )
        places = [
            path
            for path in named
            if path.rpartition(".")[2] in ("py", "md", "csv", "jsonl", "txt", "sh", "yaml")
        ]
        assert [path for path in places if not (ROOT / path).exists()] == []
        modules = set(re.findall(r"(?<![\w./-])(souping(?:\.[A-Za-z_]\w*)+)(?!/)", text))
        assert [name for name in sorted(modules) if not exists(name)] == []

    def test_modules_of_commands_can_be_started(self, page: Path) -> None:
        for name in set(re.findall(r"-m ((?:souping|examples)(?:\.\w+)*)", page.read_text())):
            assert importlib.util.find_spec(f"{name}.__main__") is not None, name

    def test_commands_of_a_page_compose(
        self, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # the folder of logs whose names are the candidates
        monkeypatch.chdir(tmp_path)
        Path("evals").mkdir()
        Path("evals", "A.csv").touch()
        for words in commands(page):
            # Settings files are named from the root of the repository.
            paths = [str(ROOT / word) if word.endswith(".yaml") else word for word in words]
            assert compose(with_file(paths))["name"], words

    def test_items_of_a_page_load(self, page: Path, tmp_path: Path) -> None:
        (tmp_path / "items.jsonl").write_text(
            "".join(blocks(page, "json")) if page.stem != "extending" else ""
        )
        count = len((tmp_path / "items.jsonl").read_text().splitlines())
        assert count == 0 or len(Benchmark(path=str(tmp_path / "items.jsonl")).items()) == count


def test_the_page_selects_from_a_table(souping: Cli) -> None:
    page = ROOT / "docs" / "your-models.md"
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile("".join(blocks(page, "python")), page.name, "exec"), {})
    assert "xLAM-2-8b-fc-r" in printed.getvalue()
    with_table = [words for words in commands(page) if "bfcl_8b.csv" in " ".join(words)]
    done = souping(*with_table[0])
    assert done.code == 0, done.err
    assert "xLAM-2-8b-fc-r, ToolACE-2-8B, watt-tool-8B" in done.out


def test_the_functions_exist_that_compute_the_numbers() -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("**Which function computes it**")
    table, _, _ = rest.partition("## Analyses")
    names = re.findall(r"`([a-z_]+\.\w+(?:\.\w+)?)`", table.partition("|---|---|")[2])
    assert len(names) > 15
    for name in names:
        module, _, member = name.partition(".")
        assert callable(resolve_name(f"souping.statistics.{module}:{member}")), name


def test_the_items_by_gain_are_what_the_script_prints() -> None:
    power = script(ROOT / "docs" / "make_power.py")
    assert power.table() in (ROOT / "docs" / "reading-a-report.md").read_text()


def test_the_references_are_what_the_script_writes() -> None:
    reference = script(ROOT / "docs" / "make_reference.py")
    pages = {"reference.md": reference.page(), "reference-files.md": reference.files_page()}
    texts = {ROOT / "docs" / name: text for name, text in pages.items()}
    texts[reference.SCHEMA] = reference.settings_schema()
    for path, text in texts.items():
        assert path.read_text() == text, "run: python docs/make_reference.py"


def test_every_key_of_the_reference_has_a_meaning() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    assert [line for line in page.splitlines() if line.endswith("|  |")] == []


def test_keys_of_one_name_that_mean_different_things_have_a_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {
        "ant": "k: null  # most ingredients\npath: ???  # a table\n",
        "bee": "k: null  # number of clusters\npath: ???  # a table\n",
        "cat": "# @package group.cat\nk: null  # number of clusters\nk2: 3\n",
    }
    (tmp_path / "group").mkdir()
    for name, text in choices.items():
        (tmp_path / "group" / f"{name}.yaml").write_text(text)
    reference = script(ROOT / "docs" / "make_reference.py")
    monkeypatch.setattr(reference, "CONF", tmp_path)
    rows = [line for line in reference.group("group") if line.startswith("| `")]
    assert rows == [
        "| `group.cat.k` | `null` | cat | number of clusters |",
        "| `group.cat.k2` | `3` | cat |  |",
        "| `group.k` | `null` | ant | most ingredients |",
        "| `group.k` | `null` | bee | number of clusters |",
        "| `group.path` | `???` | ant, bee | a table |",
    ]


def test_the_reference_has_every_root_key_and_name() -> None:
    known = yaml.safe_load((ROOT / "docs" / "reference.yaml").read_text())
    assert set(known["python"]) == set(library.__all__)
    # Commands set the action.
    keys = {field.name for field in fields(Config)} - {*GROUPS, "analysis", "action"}
    assert keys <= set(known["root"])


def test_the_reference_has_every_key_of_a_report_and_no_other_key() -> None:
    reference = script(ROOT / "docs" / "make_reference.py")
    known = yaml.safe_load((ROOT / "docs" / "reference.yaml").read_text())
    keys = [*dict(reference.report_rows(Report, "", set())), *known["analyses"]]
    reports = [
        json.loads((ROOT / "tests" / "data" / "main_job" / "report.json").read_text()),
        sample(columns=2)[0],
    ]
    paths = {path for report in reports for path in paths_of(report)}
    pairs = [(path, key) for path in paths for key in keys if below(path, key)]
    assert paths - {path for path, _ in pairs} == set()
    # A word in capitals stands for a name.
    unmet = set(keys) - {key for _, key in pairs}
    unmet = {key for key in unmet if not re.search(r"\.[A-Z]+", key)}
    assert {
        key for key in unmet if not key.startswith((*OPTIONAL, "analyses.", "stability."))
    } == set()


def test_every_field_of_a_report_has_its_meaning_below() -> None:
    reference = script(ROOT / "docs" / "make_reference.py")
    classes = [kind for kind in vars(content).values() if isinstance(kind, type)]
    kinds = [
        kind
        for kind in classes
        if is_dataclass(kind) and kind is not Unit and "statistics" not in kind.__module__
    ]
    assert len(kinds) > 30
    for kind in kinds:
        documented = set[str]().union(
            *(reference.field_docs(base) for base in kind.__mro__ if is_dataclass(base))
        )
        known = {field.name for field in fields(kind) if "rest" not in field.metadata}
        assert known == documented, kind


def below(path: str, key: str) -> bool:
    return path == key or path.startswith((f"{key}.", f"{key}["))


def paths_of(value: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of a report; `[]` marks a list of objects."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from paths_of(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for inner in value:
            yield from paths_of(inner, f"{path}[]")
    else:
        yield path


with (ROOT / "benchmarks" / "claims.csv").open(encoding="utf-8", newline="") as _file:
    CLAIMS = list(csv.DictReader(_file))
CLAIMING = ["README.md", "benchmarks/README.md", *DOCS]
for _generated in ("docs/reference.md", "docs/reference-files.md"):
    CLAIMING.remove(_generated)  # from conf/ and classes, whose numbers are defaults
UNITS = r"%|x|m?s|min|minutes|hours|px|[kMG]i?B|times|points?|items?|tokens?|models|searches|runs|repetitions|questions"
NUMBER = re.compile(
    rf"(?<![\w.])\d[\d,.]*(?: to \d[\d,.]*)? ?(?:{UNITS})(?![\w])|(?<![\w.])\d*\.\d+(?![\w.])"
)


def flat(text: str) -> str:
    return " ".join(text.split())


def numbered_blocks(text: str) -> list[str]:
    """Outputs of commands, paragraphs, list items and table rows. Code is left out."""
    outputs = [
        output for language, output in FENCE.findall(text) if language in ("text", "console")
    ]
    return [
        flat(part)
        for part in [*outputs, *re.split(r"\n\s*\n|\n(?=\||- |\d+\. )", FENCE.sub("\n", text))]
    ]


def prose(block: str) -> str:
    """A block without inline code, the targets of links and the number of the paper."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv [\d.]+", "", block)


@pytest.mark.parametrize("page", CLAIMING)
def test_each_number_of_a_page_has_a_row(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    excerpts = [row["claim"] for row in CLAIMS if row["file"] == page]
    assert [excerpt for excerpt in excerpts if flat(text).count(excerpt) != 1] == []
    bare = []
    for block in numbered_blocks(text):
        claimed = any(excerpt in block for excerpt in excerpts)
        if NUMBER.search(prose(block)) and not claimed:
            bare.append(block)
    assert bare == []


def test_each_row_names_what_shows_it() -> None:
    assert {row["file"] for row in CLAIMS} <= set(CLAIMING)
    assert {row["how"] for row in CLAIMS} <= {"test", "script", "source", "format"}
    for row in CLAIMS:
        path, _, function = row["shown_by"].split(" ")[0].partition("::")
        assert bool(path) == (row["how"] != "format"), row
        if row["how"] in ("test", "script"):
            assert (ROOT / path).is_file(), row
            assert not function or f"def {function}(" in (ROOT / path).read_text(
                encoding="utf-8"
            ), row
