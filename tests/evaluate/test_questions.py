"""Questions from JSON Lines, CSV and parquet files, from folders in the Hub's layout and from a Hub; `columns`."""

from __future__ import annotations

import csv
import datetime
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from souping.core.types import Items, UserError
from souping.evaluate.benchmark import Benchmark, assign
from tests.support.hub import Hub, serving

COLUMNS = {"prompt": "question", "answer": "answer", "category": "subject"}
Row = Mapping[str, Any]
ROWS: Sequence[Row] = [
    {"question": f"{n} + 1 =\r\n", "answer": n + 1, "subject": "sums", "note": None}
    for n in range(12)
]


def jsonl(rows: Sequence[Row]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """As a spreadsheet would: nulls are empty cells, and messages are JSON."""
    names = dict.fromkeys(name for row in rows for name in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    for row in rows:
        cells = {}
        for name, value in row.items():
            cells[name] = json.dumps(value) if isinstance(value, list) else value
        writer.writerow(cells)
    path.write_bytes(out.getvalue().encode())


def write_all(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """The rows as a JSON Lines file, a CSV file, a parquet file and a data set folder."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    (folder / "set" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(list(rows))
    for path in (folder / "q.parquet", folder / "set/data/test-00000-of-00001.parquet"):
        parquet.write_table(table, path)
    (folder / "q.jsonl").write_text(jsonl(rows))
    write_csv(folder / "q.csv", rows)
    return [folder / "q.jsonl", folder / "q.csv", folder / "q.parquet", folder / "set"]


def read(path: object, columns: Mapping[str, str] | None = None) -> Items:
    return Benchmark(path=str(path), columns=columns).items()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pytest.importorskip("datasets").config
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


# The same rows

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": TEXTS},
        optional={"name": st.text("ab", min_size=1)},
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def tables(draw: st.DrawFn) -> list[Row]:
    """Rows of one type in each column, with nulls and line ends, some of them equal."""
    prompts = draw(st.sampled_from([MESSAGES, TEXTS.map("p{}".format)]))
    answers = draw(
        st.sampled_from([st.integers(-9, 9), TEXTS.map("a{}".format), st.sampled_from([0.5, 2.0])])
    )
    row = st.fixed_dictionaries(
        {
            "question": prompts,
            "answer": answers,
            "subject": st.sampled_from(["x", "y\r\nz"]),
            "passage": st.none() | st.text("cd\r\n", max_size=2),
        }
    )
    return draw(st.lists(row, min_size=1, max_size=5))


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=tables())
def test_the_same_rows_are_the_same_items_in_every_format(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = {**COLUMNS, "group": "passage"}
    first, *others = write_all(tmp_path_factory.mktemp("rows"), rows)
    items = read(first, columns)
    assert len(items) == len(rows)
    for path in others:
        assert read(path, columns) == items


def test_rows_with_keys_of_items_are_the_same_items_without_columns(tmp_path: Path) -> None:
    rows = [
        {"id": n, "category": "c", "prompt": f"p{n}\r\n", "answer": "a", "group": None}
        for n in range(5)
    ]
    first, *others = write_all(tmp_path, rows)
    assert [item.id for item in read(first)] == list("01234")
    assert all(read(path) == read(first) for path in others)


def test_a_parquet_files_nulls_inside_messages_are_no_keys(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "4"},
    ]
    rows = [{"prompt": messages, "answer": ["a", "b"], "category": "c"}]
    paths = write_all(tmp_path, rows)
    (item,) = read(paths[0])
    assert item.prompt[2] == messages[2]
    assert [read(path) for path in paths[2:]] == [(item,), (item,)]


def test_a_number_and_its_text_are_one_answer(tmp_path: Path) -> None:
    for name, answer in (("n", 7), ("t", "7")):
        (tmp_path / f"{name}.jsonl").write_text(jsonl([{**ROWS[0], "answer": answer}]))
    number, text = (read(tmp_path / f"{name}.jsonl", COLUMNS) for name in "nt")
    assert number == text
    assert number[0].answer == "7"


# Ids


def test_an_item_without_an_id_has_the_digest_of_its_prompt_numbered_where_it_repeats(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(jsonl([ROWS[0], ROWS[1], ROWS[0]]))
    one, two, again = read(path, COLUMNS)
    assert one.id == one.prompt_digest[:16]
    assert again.id == f"{one.id}-2"
    assert (again.group, two.id) == (one.group, two.prompt_digest[:16])


def test_an_inserted_row_loses_no_answer_and_moves_no_item(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    write_csv(path, ROWS)
    before = read(path, COLUMNS)
    new = {**ROWS[0], "question": "new"}
    write_csv(path, [new, *ROWS[:5], new, *ROWS[5:]])
    after = {item.answer_digest: item for item in read(path, COLUMNS)}
    assert len(after) == len(before) + 2
    for item in before:
        assert after[item.answer_digest] == item
        assert assign(after[item.answer_digest].group) == assign(item.group)


def test_json_lines_without_columns_keep_the_content_that_stores_know(tmp_path: Path) -> None:
    """Nulls inside messages and numbers as answers are part of digests that exist."""
    path = tmp_path / "q.jsonl"
    message = {"role": "user", "content": "x", "name": None}
    path.write_text(jsonl([{"id": "1", "category": "c", "prompt": [message], "answer": 42}]))
    (item,) = read(path)
    assert item.prompt == (message,)
    assert item.answer == 42
    # As it was before there were `columns`.
    assert item.fingerprint.startswith("47a1d118ed0d4ff534480abbe58ffde6")


# Hostile columns


@pytest.mark.parametrize(
    ("columns", "needles"),
    [
        ({"prompt": "qestion"}, ["benchmark.columns.prompt=qestion", "question, answer, subject"]),
        ({"promt": "question"}, ["benchmark.columns=promt", "prompt"]),
        ({"prompt": "question", "answer": "answer"}, ["row 1", "`category` is missing"]),
        ({**COLUMNS, "id": "subject"}, ["row 2", "'sums' appears twice"]),
        ({**COLUMNS, "answer": "note"}, ["row 1", "`answer` is missing"]),
        ({**COLUMNS, "answer": ""}, ["benchmark.columns.answer=", "question, answer, subject"]),
        ({**COLUMNS, "prompt": "question.text"}, ["benchmark.columns.prompt=question.text"]),
        ({**COLUMNS, "scorer": "subject"}, ["row 1", "scorer=sums"]),
        ({**COLUMNS, "tools": "subject"}, ["row 1", "`tools`"]),
    ],
)
def test_columns_that_do_not_fit_are_refused(
    tmp_path: Path, columns: dict[str, str], needles: list[str]
) -> None:
    write_csv(tmp_path / "q.csv", ROWS)
    with pytest.raises(UserError) as refusal:
        read(tmp_path / "q.csv", columns)
    assert all(needle in str(refusal.value) for needle in needles)


def test_with_columns_no_other_column_is_read(tmp_path: Path) -> None:
    """A table's own `language`, `text` or `source` means something else."""
    foreign = {"language": "en", "text": "a passage", "source": "web", "scorer": "rouge", "id": "1"}
    path = tmp_path / "q.jsonl"
    path.write_text(jsonl([{**ROWS[0], **foreign}]))
    with_foreign = read(path, COLUMNS)
    path.write_text(jsonl(ROWS[:1]))
    assert read(path, COLUMNS) == with_foreign


@pytest.mark.parametrize(
    "column",
    ["a.b", "a,b", "a b ", "\u00fc\U0001f372", "a\nb", "{a: b}", "${a}", "1", "null", "prompt"],
)
def test_a_column_may_have_any_name(column: str, tmp_path: Path) -> None:
    named = [{column: row["question"], "answer": row["answer"], "subject": "s"} for row in ROWS]
    for path in write_all(tmp_path, named):
        items = read(path, {**COLUMNS, "prompt": column})
        assert [item.prompt for item in items] == [row["question"] for row in ROWS]


# Hostile tables


def test_values_that_are_not_json_are_refused_with_their_row(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for value in (datetime.date(2026, 1, 1), b"x"):
        rows = [ROWS[0], {**ROWS[0], "answer": value}]
        parquet.write_table(pyarrow.Table.from_pylist(rows[1:]), tmp_path / "q.parquet")
        with pytest.raises(UserError, match=r"q\.parquet: row 1: `answer`"):
            read(tmp_path / "q.parquet", COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "needle"),
    [
        ("q.csv", b"question,answer\nq", "row 1 has 1 of 2 columns"),
        ("q.csv", b"question,question\n", "two columns are called question"),
        ("q.csv", b"question,answer,subject\n\xff,1,s\n", "not a table"),
        ("q.csv", b"question,answer,subject\n", "holds no items"),
        ("q.parquet", b"PAR1 and no more", "not a table"),
        ("q.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, name: str, content: bytes, needle: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=needle):
        read(tmp_path / name, COLUMNS)


# Data sets


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        yield server


def files(rows: Sequence[Row], readme: str = "") -> dict[str, bytes]:
    return {"README.md": readme.encode(), "data/test.jsonl": jsonl(rows).encode()}


def refused(address: str, *needles: str) -> None:
    with pytest.raises(UserError) as refusal:
        read(address, COLUMNS)
    assert all(needle in str(refusal.value) for needle in needles), str(refusal.value)


def test_a_data_set_of_the_hub_has_the_items_of_its_revision_and_reports_it(
    hub: Hub, tmp_path: Path
) -> None:
    old = hub.add("org/sums", files(ROWS[:3]))
    new = hub.add("org/sums", files(ROWS))
    (tmp_path / "q.jsonl").write_text(jsonl(ROWS))
    main = Benchmark(path="hf://org/sums", columns=COLUMNS)
    assert main.items() == read(tmp_path / "q.jsonl", COLUMNS)
    assert main.note == f"org/sums@{new}"
    pinned = Benchmark(path=f"hf://org/sums@{old}:test", columns=COLUMNS)
    assert len(pinned.items()) == 3
    assert (pinned.note, pinned.title) == (f"org/sums@{old}", "sums")


def test_a_new_readme_is_another_revision_of_the_same_items(hub: Hub) -> None:
    hub.add("org/sums", files(ROWS))
    first = Benchmark(path="hf://org/sums", columns=COLUMNS)
    items = first.items()
    note = first.note
    hub.add("org/sums", files(ROWS, "More about sums."))
    second = Benchmark(path="hf://org/sums", columns=COLUMNS)
    assert second.items() == items
    assert second.note != note


def test_without_the_hub_only_the_revision_that_was_asked_for_is_taken_from_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = hub.add("org/sums", files(ROWS[:3]))
    new = hub.add("org/sums", files(ROWS))
    read("hf://org/sums", COLUMNS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for address in ("hf://org/sums", f"hf://org/sums@{new}"):
        assert len(read(address, COLUMNS)) == len(ROWS)
    refused(f"hf://org/sums@{old}", "benchmark.path", "HF_HUB_OFFLINE")
    refused("hf://org/sums@v2", "benchmark.path", "HF_HUB_OFFLINE")


def test_data_sets_that_cannot_be_read_are_refused(hub: Hub) -> None:
    hub.add("org/sums", files(ROWS))
    hub.add("org/code", {"README.md": b"", "code.py": b"raise SystemExit"})
    hub.add("org/odd", {"README.md": b"", "data/test.jsonl": b'{"question": \n[[['})
    key = "benchmark.path"
    refused("hf://org/none", key, "org/none", "hf auth login")
    refused("hf://org/sums@v9", key, "no revision v9")
    refused("hf://org/sums:valid", key, "split=valid", "test")
    refused("hf://org/sums:other/test", key, "'other' not found")
    refused("hf://sums", key, "hf://ORG/NAME")
    refused("hf://../sums", key, "hf://ORG/NAME")
    refused("hf://org/code", key, "org/code")
    refused("hf://org/odd", key, "org/odd")
    hub.add("org/gated", files(ROWS))
    hub.repos["org/gated"].gated = True
    refused("hf://org/gated", key, "org/gated", "authenticated")
    refused("org/sums", f"{key}=org/sums", "hf://ORG/NAME")


def test_folders_without_a_row_that_counts_are_refused(tmp_path: Path) -> None:
    contents = {
        "nothing": {},
        "readme": {"README.md": b"# Sums"},
        "empty": {"test.jsonl": b""},
        "script": {"script.py": b"raise SystemExit"},
        "configurations": {"README.md": b"---\nconfigs: 7\n---\n", "a.jsonl": b"{}"},
        "cut": {"test.parquet": b"PAR1 and no more"},
    }
    for name, held in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        for file, content in held.items():
            (folder / file).write_bytes(content)
        with pytest.raises(UserError, match=f"benchmark.path={folder}: .*[a-z]") as refusal:
            read(folder, COLUMNS)
        assert len(str(refusal.value).splitlines()) == 1


def test_a_folder_in_the_hubs_layout_has_configurations_and_splits(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: easy\n  data_files:\n  - {split: train, path: a.jsonl}\n"
        "- config_name: hard\n  data_files:\n"
        "  - {split: train, path: a.jsonl}\n  - {split: dev, path: b.jsonl}\n---\n"
    )
    (folder / "a.jsonl").write_text(jsonl(ROWS[:2]))
    (folder / "b.jsonl").write_text(jsonl(ROWS[:7]))
    assert len(read(f"{folder}:easy/", COLUMNS)) == 2
    assert len(read(f"{folder}:hard/dev", COLUMNS)) == 7
    refused(f"{folder}:hard/", "train, dev")
    refused(str(folder), "easy", "hard")
    assert Benchmark(path=f"{folder}:easy/").note == ""


def test_data_sets_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf://org/sums", "benchmark.path=hf://org/sums", "pip install", "datasets")
    refused(str(tmp_path), "benchmark.path", "pip install")
