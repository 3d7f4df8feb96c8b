"""Results of BFCL, held against the run: model, handler, version of the data, questions; and scored anew.

What `bfcl generate` and `bfcl evaluate` leave: result files below result/MODEL, score files below score/MODEL.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from souping.core.imported import CandidateFacts, Difference, ImportedAnswers, compare
from souping.core.types import Item, Record, UserError
from souping.evaluate.bfcl.environment import Environment, Row, call, failed, read_rows, records

DATA = "v4"
"""The version of the data files that the pinned bfcl-eval brings; v3's categories are read from them too."""
SILENT = "BFCL's files hold neither the weights' hash nor temperature, max_tokens, server or bfcl-eval's version"


def read_bfcl(
    files: BfclFiles,
    handler: str,
    environment: Callable[[], Environment],
    items: Sequence[Item],
    candidate: CandidateFacts,
) -> Iterator[ImportedAnswers]:
    """What one model's folder holds for the run's categories, category by category."""
    wanted: dict[str, dict[str, Item]] = {}
    for item in items:
        wanted.setdefault(item.category, {})[item.id] = item
    ours = {key: files.answers(key) for key in files.results if key[1] in wanted}
    about_model = compare("handler", files.model, handler.replace("/", "_"))
    usable = {
        category: {name: row for name, row in rows.items() if name in wanted[category] and not failed(row)}
        for (version, category), rows in ours.items()
        if version == DATA
    }
    judged = {} if about_model else _judge(environment, handler, usable, wanted)
    for key, rows in ours.items():
        version, category = key
        own = {name: record for name, record in judged.items() if name in usable.get(category, {})}
        differences = [
            *about_model,
            *compare("version of the data", version, DATA),
            *_dates(files.results[key], candidate),
        ]
        differences += _questions(files.failures(key), wanted[category])
        yield ImportedAnswers(
            task=category,
            source=files.results[key],
            records=own,
            differences=tuple(differences),
            skipped=_skipped(rows, wanted[category]),
            unchecked=(SILENT, *_disagreement(files, key, own)),
        )


def _judge(
    environment: Callable[[], Environment],
    handler: str,
    usable: Mapping[str, Mapping[str, Row]],
    wanted: Mapping[str, Mapping[str, Item]],
) -> dict[str, Record]:
    """{item id: record}: bfcl-eval's own checker, run once on all of these answers."""
    items = [wanted[category][name] for category, rows in usable.items() for name in rows]
    if not items:
        return {}
    name = handler.replace("/", "_")
    with tempfile.TemporaryDirectory(prefix="souping-adopt-") as root:
        results = Path(root, "result", name)
        results.mkdir(parents=True)
        for category, rows in usable.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
            whole = lines.encode("utf-8", "replace")  # half a character stops bfcl-eval when it writes
            (results / f"BFCL_{DATA}_{category}_result.json").write_bytes(whole)
        ids = {category: list(rows) for category, rows in usable.items() if rows}
        call(environment(), Path(root), handler, ids)
        judged = records(results, Path(root, "score", name), items)
    return {record.item: record for record in judged}


def _dates(path: Path, candidate: CandidateFacts) -> Iterator[Difference]:
    """Results that are older than the weights are of other weights, unless the weights were copied since."""
    measured = path.stat().st_mtime
    if candidate.written and candidate.written > measured:
        times = (measured, candidate.written)
        then, now = (datetime.fromtimestamp(t, UTC).isoformat(timespec="minutes") for t in times)
        yield Difference(key="weights", in_files=f"measured {then}", in_run=f"written {now}", mild=True)


def _questions(failures: Sequence[Row] | None, items: Mapping[str, Item]) -> list[Difference]:
    """The first question that is not what it was. Score files quote the questions of the items that failed."""
    for row in failures or ():
        item, quoted = items.get(str(row["id"])), row.get("prompt")
        turns = quoted.get("question") if isinstance(quoted, Mapping) else quoted
        if item is None or not isinstance(turns, list):
            continue
        messages = [message for turn in turns if isinstance(turn, list) for message in turn]
        then = [message.get("content") for message in messages if isinstance(message, Mapping)]
        now = [message["content"] for message in item.prompt if isinstance(message, Mapping)]
        if then != now:
            return [Difference(key=f"question of {item.id}", in_files=then, in_run=now)]
    return []


def _skipped(rows: Mapping[str, Row], items: Mapping[str, Item]) -> dict[str, int]:
    counts = {
        "not in the run": sum(name not in items for name in rows),
        "not in the files": sum(name not in rows for name in items),
        "without an answer (the server failed)": sum(failed(row) for name, row in rows.items() if name in items),
    }
    return {why: count for why, count in counts.items() if count}


def _disagreement(files: BfclFiles, key: tuple[str, str], own: Mapping[str, Record]) -> Iterator[str]:
    """Where the checker says something else now than it said then."""
    failures = files.failures(key)
    if failures is None:
        return
    failed = {str(row["id"]) for row in failures}
    apart = [name for name, record in own.items() if (name in failed) == bool(record.score)]
    if apart:
        yield f"{key[1]}: the score file judges {len(apart)} items otherwise ({apart[0]}); the judgement of now counts"


FILE = re.compile(r"BFCL_(?P<version>v\d+)_(?P<category>.+)_(?P<kind>result|score)\.json")
GROUPS = frozenset(
    ("non_live", "live", "multi_turn", "agentic", "format_sensitivity", "memory", "kv", "vector", "rec_sum")
)
"""Folders of bfcl-eval between a model's folder and its files."""


@dataclass(frozen=True, kw_only=True)
class BfclFiles:
    """One model's folder: {(version of the data, category): file} of its results, and of its scores."""

    path: Path
    results: Mapping[tuple[str, str], Path]
    scores: Mapping[tuple[str, str], Path]

    @property
    def model(self) -> str:
        """The name in bfcl-eval's registry, its slash written as an underscore."""
        return self.path.name

    def answers(self, key: tuple[str, str]) -> dict[str, Row]:
        """{item id: line} of a result file; of an item that was asked twice the later line.

        Raises:
            UserError: the file cannot be read, or a line is no result of BFCL.
        """
        path = self.results[key]
        lines = {}
        for number, row in enumerate(read_rows(path), start=1):
            if "id" not in row or "result" not in row:
                raise UserError(f"{path}:{number}: no result of BFCL: a line has an id and a result")
            lines[str(row["id"])] = row
        return lines

    def failures(self, key: tuple[str, str]) -> list[Row] | None:
        """The items that a score file has as failed, with their questions; None without the file."""
        path = self.scores.get(key)
        return None if path is None else [row for row in read_rows(path) if "id" in row]


def find_bfcl(paths: Sequence[Path]) -> list[BfclFiles]:
    """The models whose results lie below these folders; score/MODEL is looked for beside result/MODEL.

    Raises:
        UserError: a path is not there.
    """
    results: dict[Path, dict[tuple[str, str], Path]] = {}
    for path in sorted({p.resolve() for given in paths for p in _below(given)}):
        match = FILE.fullmatch(path.name)
        if match and match["kind"] == "result":
            results.setdefault(_home(path), {})[match["version"], match["category"]] = path
    return [BfclFiles(path=home, results=own, scores=_scores(home, paths)) for home, own in results.items()]


def _below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (p for p in path.rglob("BFCL_v*.json") if p.is_file())
    elif path.is_file():
        yield path
    else:
        raise UserError(f"{path}: there is no such file or folder")


def _home(path: Path) -> Path:
    """The model's folder: the nearest that is none of bfcl-eval's groups."""
    return next(folder for folder in path.parents if folder.name not in GROUPS)


def _scores(home: Path, given: Sequence[Path]) -> dict[tuple[str, str], Path]:
    folders = [home.parent.parent / "score" / home.name, *(p / home.name for p in given if p.name == "score")]
    scores = {}
    for path in (p for folder in folders if folder.is_dir() for p in folder.rglob("BFCL_v*_score.json")):
        match = FILE.fullmatch(path.name)
        if match:
            scores[match["version"], match["category"]] = path
    return scores
