"""bfcl-eval's own virtual environment: where it is, calls into it, and the records of its answers.

bfcl-eval pins numpy 1.26 and twenty vendor SDKs, so it never shares an environment with souping. The pinned lists in
`requirements` make one with pip: `minimal` generates and scores the single-turn categories, `full` is all of bfcl-eval.

A result file has one line per item, a score file one line on the whole and one for each item that failed: an item is
right if it has a result and did not fail. Each result also says how its answer ended.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from souping.core.fields import pick
from souping.core.files import expanded
from souping.core.text import safe
from souping.core.types import Item, Json, Record, UserError
from souping.evaluate.servers.process import Process, ServerError, models_at

Level = Literal["minimal", "full"]
Row = Mapping[str, Json]
"""A line of BFCL's files."""
VERSION = "2026.3.23"
HERE = Path(__file__).parent
RUNNER = HERE / "runner.py"
SITE = "lib/python*/site-packages"


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Virtual environment that holds bfcl-eval."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def package(self) -> Path:
        """bfcl-eval's own folder, which has its data."""
        return next(self.folder.glob(f"{SITE}/bfcl_eval"))

    @property
    def level(self) -> Level:
        return "full" if any(self.folder.glob(f"{SITE}/qwen_agent")) else "minimal"

    @property
    def complete(self) -> bool:
        return any(self.folder.glob(f"{SITE}/bfcl_eval-{VERSION}.dist-info"))


def place_of(folder: str | Path | None = None) -> Path:
    """The environment that was named, the one of $SOUPING_BFCL, or the one in the user's cache."""
    named = folder or os.environ.get("SOUPING_BFCL")
    if named:
        return expanded(named)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(cache) / "souping" / "bfcl"


def command(level: Level, place: Path) -> str:
    """The command that makes an environment."""
    deps = "--no-deps " if level == "minimal" else ""
    return f"python -m venv {place} && {place}/bin/pip install {deps}-r {HERE / 'requirements' / level}.txt"


def find(place: Path, full: bool = False) -> Environment:
    """The environment in a folder.

    Raises:
        UserError: bfcl-eval is not installed, or not completely; the message has the command.
    """
    environment = Environment(folder=place)
    if not environment.complete:
        raise UserError(f"bfcl-eval {VERSION} is not in {place}: {command('full' if full else 'minimal', place)}")
    if full and environment.level == "minimal":
        raise UserError(f"bfcl-eval in {place} lacks its multi-turn and agentic packages: {command('full', place)}")
    return environment


def call(
    environment: Environment,
    root: Path,
    handler: str,
    ids: Mapping[str, Sequence[str]],
    generate: Mapping[str, Json] | None = None,
    patience: float = 3600.0,
) -> None:
    """Run bfcl-eval on these ids in its own process, which ends with this one; its files are below `root`.

    Raises:
        UserError: one line on what stopped it, or no answer of the server for `patience` seconds.
    """
    if generate:
        try:
            models_at(str(generate["url"]).removesuffix("/v1"))  # bfcl-eval would wait for it for ever
        except ServerError as error:
            raise UserError(f"bfcl-eval: the server at {generate['url']} does not answer: {error}") from error
    request, log, alive = root / "request.json", root / "runner.log", root / "alive"
    alive.touch()
    settings = {**generate, "alive": str(alive)} if generate else None
    request.write_text(json.dumps({"root": str(root), "handler": handler, "ids": ids, "generate": settings}))
    own = {key: value for key, value in os.environ.items() if not key.startswith(("OPENAI_", "REMOTE_OPENAI_"))}
    own["NO_PROXY"] = own["no_proxy"] = ",".join(filter(None, (own.get("NO_PROXY"), "127.0.0.1", "localhost")))
    process = Process([str(environment.python), "-I", str(RUNNER), str(request)], own, log)
    try:
        _wait(process, alive, patience)
    finally:
        process.stop()
    outcome = root / "outcome.json"
    stopped = json.loads(outcome.read_text())["error"] if outcome.is_file() else process.reason()
    if stopped:
        raise UserError(f"bfcl-eval: {safe(str(stopped))}")


def _wait(process: Process, alive: Path, patience: float) -> None:
    """Wait for the process's end, for as long as answers come."""
    answers, since = 0, time.monotonic()
    while process.alive:
        time.sleep(0.05)
        if (now := alive.stat().st_size) != answers:
            answers, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise UserError(f"bfcl-eval: no answer for {patience:g} s: raise evaluator.timeout if it is just slow")


OWN = ("chat-template", "plain")
"""Handlers of ours: the tokenizer's chat template below BFCL's system prompt, and a short prompt without a template."""
SERVED_APIS = ("FunctionaryHandler",)
"""Handlers that use chat completions of a server of one's own; the other APIs are vendors'."""


@lru_cache(maxsize=4)
def registered(package: Path) -> tuple[str, ...]:
    """Names of bfcl-eval's model registry whose handlers can use a local server."""
    tree = ast.parse((package / "constants" / "model_config.py").read_text(encoding="utf-8"))
    return tuple(name for table, name, kind in _entries(tree) if "local" in table or kind in SERVED_APIS)


def _entries(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """(table, model name, handler's class) of every entry of the registry."""
    for node in tree.body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)):
            continue
        table = ast.unparse(node.targets[0])
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                kinds = [ast.unparse(k.value) for k in value.keywords if k.arg == "model_handler"]
                yield table, str(key.value), kinds[0] if kinds else ""


def check_handlers(environment: Environment, names: Sequence[str]) -> None:
    """Refuse, before any work, a handler that is not there.

    Raises:
        UserError: the nearest name is named.
    """
    known = (*OWN, *registered(environment.package))
    for name in names:
        pick(name, known, "evaluator.handler")


FAILED = "Error during inference: "
"""How bfcl-eval's generation marks an item that has no answer; such an item counts as wrong in every
category (bfcl-eval counts it as right where no call may be made)."""
TOO_LONG = "does not fit the context"


def records(results: Path, scores: Path, items: Sequence[Item]) -> list[Record]:
    """The records of the items, in their order, from one model's folders `result/MODEL` and `score/MODEL`.

    Raises:
        UserError: an item has no result, or its category no score.
    """
    answers = {str(row["id"]): row for path in _files(results, "result") for row in _rows(path)}
    judged = {path.name.removesuffix("_score.json"): _rows(path) for path in _files(scores, "score")}
    wrong = {category: {str(row["id"]) for row in found[1:]} for category, found in judged.items()}
    scored = []
    for item in items:
        if item.id not in answers:
            raise UserError(f"{results}: no result for item {item.id}")
        if f"BFCL_v4_{item.category}" not in wrong:
            raise UserError(f"{scores}: no score file for {item.category}")
        scored.append(_record(item, answers[item.id], item.id not in wrong[f"BFCL_v4_{item.category}"]))
    return scored


def _record(item: Item, row: Row, right: bool) -> Record:
    text = row["result"] if isinstance(row["result"], str) else json.dumps(row["result"], ensure_ascii=False)
    none = text.startswith(FAILED)
    return Record(
        item=item.id,
        score=float(right and not none),
        output=text,
        outcome="unanswered" if none else "truncated" if row.get("truncated") else "finished",
        reason=safe(" ".join(text.removeprefix(FAILED).split()))[:80] if none else "",
        prompt_tokens=max(_counts(row.get("input_token_count")), default=0),
    )


def _counts(value: Json) -> list[int]:
    """Counts of tokens: one, or those of each step of each turn."""
    if isinstance(value, list):
        return [count for one in value for count in _counts(one)]
    return [int(value)] if isinstance(value, int | float) else []


def failure(records: Sequence[Record]) -> str | None:
    """Why no item at all could be answered, if that is so and it is not for want of context."""
    reasons = [record.output.removeprefix(FAILED) for record in records if record.outcome == "unanswered"]
    other = [reason for reason in reasons if TOO_LONG not in reason]
    return safe(other[0]) if other and len(reasons) == len(records) else None


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.rglob(f"BFCL_v4_*_{kind}.json"))


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]
