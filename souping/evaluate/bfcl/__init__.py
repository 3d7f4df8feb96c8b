"""Evaluator of BFCL by bfcl-eval: its prompts, sent to an OpenAI-compatible server, and its checker.

bfcl-eval pins numpy 1.26 and twenty vendor SDKs, so it has a virtual environment of its own. The pinned lists in
`requirements` make one with pip: `minimal` generates and scores the single-turn categories, `full` is all of bfcl-eval.

A result file has one line per item, a score file one line on the whole and one for each item that failed: an item is
right if it has a result and did not fail. Each result also says how its answer ended.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from souping.checkpoints.compatibility import chat_template
from souping.checkpoints.header import parse_json
from souping.core.fields import Bounds, Count, Form, Threads, component, pick
from souping.core.files import expanded
from souping.core.protocols import (
    AdapterShape,
    Evaluator,
    Hosting,
    LoadedModel,
    Prompts,
    Sampling,
    Scoring,
)
from souping.core.text import safe
from souping.core.types import (
    Folders,
    Item,
    Items,
    Json,
    JsonObject,
    Missing,
    Outcome,
    Recipe,
    Record,
    UserError,
    frozen,
)
from souping.evaluate import machine
from souping.evaluate.benchmark import outline_items
from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark, chosen_categories, needs_full
from souping.evaluate.servers.choices import Server
from souping.evaluate.servers.server_process import Process, ServerError, models_at
from souping.evaluate.templates import generation_notes
from souping.logs.bfcl import FAILED, bfcl_lines, counts
from souping.logs.bfcl_items import FILE_ITEMS, MULTI_TURN
from souping.logs.records import LogRow

BFCL_EVAL_VERSION = "2026.3.23"
BFCL_FOLDER = Path(__file__).parent
RUNNER = BFCL_FOLDER / "runner.py"
SITE = "lib/python*/site-packages"
"""Pattern of an environment's folder of packages."""
PROTOCOL = 2
"""Raised when the same settings would give other answers or scores."""
GREEDY = 0.001
"""bfcl-eval's own temperature, at which nothing but the likeliest token is drawn."""
CHAT_TEMPLATE = "chat-template"
"""Handler that prompts with the tokenizer's own chat template."""
OTHER_MODELS = "soup"
"""Name of all models that have no handler of their own."""
BATCH_SIZE = 512
"""Items that are committed to the store at once."""
PATIENCE_S = 3600.0
"""Seconds without any answer until a server counts as stuck."""
Interpreter = Annotated[
    str, Form(r".+/python[\d.]*", "the interpreter of a virtual environment, FOLDER/bin/python")
]


@frozen
class BfclPrompts(Prompts):
    """Prompts that bfcl-eval's handlers build from its own items."""

    brings_items = True

    evaluator: BfclEvaluator

    def outline(self) -> Items:
        """Items without content. Those of the same number in the multi-turn files tell one scenario, so are a group."""
        sizes = {name: FILE_ITEMS[name] for name in chosen_categories(self.evaluator.categories)}
        return outline_items(sizes, shared=MULTI_TURN)

    @property
    def benchmark(self) -> BfclBenchmark:
        """BFCL's items of the categories. Their splits and groups do not depend on which categories are chosen."""
        evaluator = self.evaluator
        return BfclBenchmark(
            data=evaluator.environment.data,
            categories=chosen_categories(evaluator.categories),
        )

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse handlers for models that are no candidates, and unknown handlers.

        Raises:
            UserError: it names the key and the nearest name.
        """
        known = (*SOUPING_HANDLERS, *registered(self.evaluator.environment.package))
        for name, handler in self.evaluator.handlers.items():
            pick(name, (OTHER_MODELS, *candidates), "evaluator.handler: name")
            pick(handler, known, "evaluator.handler")

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without a chat template if every handler needs one (UserError)."""
        handlers = set(self.evaluator.handlers.values())
        if handlers == {CHAT_TEMPLATE} and not chat_template(folder):
            raise UserError(
                f"handler {CHAT_TEMPLATE}: no template in {folder}: evaluator.handler=plain needs none"
            )

    def pool_notes(self, folders: Folders) -> list[str]:
        """Notes on the candidates' generation_configs, which are not used, and on a server that others started."""
        notes = generation_notes(folders)
        url = self.evaluator.server.host.url
        if url is not None:
            notes.append(
                f"{url} was started by others: its own defaults decode what requests leave open"
            )
        return notes


@frozen
class ServerHosting(Hosting):
    """Hosting by a server."""

    server: Server

    def check_adapters(self, shape: AdapterShape) -> None:
        self.server.check_adapters(shape)


@component
class BfclEvaluator(Evaluator):
    """bfcl-eval on a served model.

    `handler` builds the prompts and reads the answers: a model name of bfcl-eval's registry, `chat-template` (the
    tokenizer's own, below BFCL's system prompt) or `plain`; or {soup: HANDLER, CANDIDATE: HANDLER}, where
    `soup` names the handler of all models without one of their own.

    Answers are greedy: `temperature` is 0, or bfcl-eval's own, which is as good as 0. `repeats` repeats them in
    another order. `python` is the interpreter of bfcl-eval's environment.
    """

    scoring = Scoring(scored_by=BFCL_EVAL_VERSION)

    server: Server
    categories: list[str] | None = None
    handler: str | dict[str, str] = CHAT_TEMPLATE
    temperature: Annotated[float, Bounds(ge=0, le=GREEDY)] = GREEDY
    repeats: Count = 1
    max_new_tokens: Count | None = None
    num_concurrent: Threads = 100
    python: Interpreter | None = None

    def __post_init__(self) -> None:
        chosen_categories(self.categories)

    @property
    def handlers(self) -> dict[str, str]:
        """{candidate or `soup`: handler}, where `soup` stands for all models without a handler of their own."""
        if isinstance(self.handler, str):
            return {OTHER_MODELS: self.handler}
        return {OTHER_MODELS: CHAT_TEMPLATE, **self.handler}

    @property
    def settings(self) -> JsonObject:
        """What a score depends on, apart from the model and the item (which has its category)."""
        settings: dict[str, Json] = {
            "name": "bfcl",
            "protocol": PROTOCOL,
            "bfcl_eval": BFCL_EVAL_VERSION,
            "temperature": self.temperature,
            # The names that stored answers have for these.
            "max_tokens": self.max_new_tokens,
            "server": dict(self.server.settings),
        }
        handlers = self.handlers
        settings["handler"] = handlers.pop(OTHER_MODELS)
        # A copy for one model, from `for_recipe`, has no other handlers.
        if handlers:
            settings["handlers"] = dict(handlers)
        return settings

    @property
    def prompts(self) -> Prompts:
        return BfclPrompts(evaluator=self)

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            answers_per_item=self.repeats,
            # A server batches as it likes: nothing of an item's neighbours is kept.
            blocks_matter=False,
            answer_tokens=self.max_new_tokens,
            length_key="evaluator.max_new_tokens",
        )

    @property
    def hosting(self) -> Hosting:
        return ServerHosting(model_form="folder", host=self.server.host, server=self.server)

    def needs(self) -> list[Missing]:
        """bfcl-eval's environment if it is not there, and what the server lacks."""
        try:
            # Looking for it raises the error.
            _ = self.environment
        except UserError as error:
            return [Missing.from_error(error), *self.server.needs()]
        return self.server.needs()

    @property
    def environment(self) -> Environment:
        """The environment with bfcl-eval for these categories (UserError with the command that makes it)."""
        multi_turn = needs_full(chosen_categories(self.categories))
        try:
            return find_environment(place_of(self.python), full=bool(multi_turn))
        except UserError as error:
            hint = ""
            if multi_turn:
                hint = f"\n{multi_turn[0]} needs it; evaluator.categories=[single_turn] does not"
            raise UserError(f"evaluator=bfcl: {error.what}", fix=error.fix, more=hint) from error

    def for_recipe(self, recipe: Recipe) -> BfclEvaluator:
        """A copy that only has the handler of the model; it shares this evaluator's server."""
        handlers = self.handlers
        # A recipe of one ingredient is a candidate.
        name = recipe.ingredients[0] if len(recipe.ingredients) == 1 else OTHER_MODELS
        return replace(self, handler=handlers.get(name, handlers[OTHER_MODELS]))

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[Items]:
        """Batches of items in order; for every second answer in reverse, so that a server batches them differently."""
        return machine.batches(items[::-1] if repeat % 2 else items, BATCH_SIZE)

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """A record for every item, in order. An item without an answer scores 0, and its record has the reason.

        Raises:
            UserError: the server, the environment or every item failed.
        """
        adapter = model.adapter
        folder = model.folder if adapter is None else adapter.folder
        shape = None if adapter is None else adapter.shape
        _check_code(folder, self.server.trust_remote_code)
        running = self.server.current.swap(folder, self.server, shape)
        # {category: ids of its items}
        ids: dict[str, list[str]] = {}
        for item in items:
            ids.setdefault(item.category, []).append(item.id)
        request: dict[str, Json] = {
            "url": running.url,
            "model": running.model,
            "folder": str(folder),
            "threads": self.num_concurrent,
            "temperature": self.temperature,
            "max_tokens": self.max_new_tokens,
            "request": dict(self.server.request),
        }
        with tempfile.TemporaryDirectory(prefix="souping-bfcl-") as root:
            # This copy, from `for_recipe`, has no other handler.
            handler = self.handlers[OTHER_MODELS]
            run_bfcl_eval(self.environment, Path(root), handler, ids, request)
            # As bfcl-eval names its folders.
            name = handler.replace("/", "_")
            scored = records(Path(root, "result", name), Path(root, "score", name), items)
        reason = failure(scored)
        if reason:
            # transformers' own message has many lines.
            if "Cannot use chat template" in reason:
                reason = "the tokenizer has no chat template; evaluator.handler=plain needs none"
            raise UserError(f"handler {handler}: no item could be evaluated: {reason[:300]}")
        return [replace(record, repeat=repeat) for record in scored]

    def close(self) -> None:
        """Stop the server if this run started it."""
        self.server.current.stop()


def _check_code(folder: Path, trusted: bool) -> None:
    """Refuse the code of a folder's tokenizer, which bfcl-eval would run, unless it is trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        table = parse_json(path, path.read_bytes())
        if not trusted and isinstance(table, dict) and table.get("auto_map"):
            raise UserError(
                f"{path} names code of its own, which bfcl-eval would run: server.trust_remote_code=true"
            )


# The environment, and calls into it


@frozen
class Environment:
    """Virtual environment in `folder`, in which bfcl-eval is installed."""

    folder: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    @property
    def package(self) -> Path:
        """Folder of the package bfcl_eval."""
        return next(self.folder.glob(f"{SITE}/bfcl_eval"))

    @property
    def data(self) -> Path:
        return self.package / "data"

    @property
    def level(self) -> str:
        """`minimal` or `full`, the name of the list in `requirements` that is installed."""
        # qwen_agent is in the full list alone.
        return "full" if any(self.folder.glob(f"{SITE}/qwen_agent")) else "minimal"


def place_of(python: str | None = None) -> Path:
    """Folder of the environment: the one with the interpreter `python`, else $SOUPING_BFCL, else one in the user's
    cache.
    """
    if python:
        # FOLDER/bin/python, not resolved: it is a link to the interpreter that made the environment.
        return expanded(python).parent.parent
    variable = os.environ.get("SOUPING_BFCL")
    if variable:
        return expanded(variable)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(cache) / "souping" / "bfcl"


def command(level: str, place: Path) -> str:
    """The shell command that makes an environment of this level, `minimal` or `full`, in a folder."""
    deps = "--no-deps " if level == "minimal" else ""
    return f"python -m venv {place} && {place}/bin/pip install {deps}-r {BFCL_FOLDER / 'requirements' / level}.txt"


def find_environment(place: Path, full: bool = False) -> Environment:
    """The environment in a folder; with `full`, one that has all packages.

    Raises:
        UserError: bfcl-eval is not installed, or not completely; `fix` is the command.
    """
    environment = Environment(folder=place)
    if not any(place.glob(f"{SITE}/bfcl_eval-{BFCL_EVAL_VERSION}.dist-info")):
        raise UserError(
            f"bfcl-eval {BFCL_EVAL_VERSION} is not in {place}",
            fix=command("full" if full else "minimal", place),
        )
    if full and environment.level == "minimal":
        raise UserError(
            f"bfcl-eval in {place} lacks its multi-turn packages", fix=command("full", place)
        )
    return environment


def run_bfcl_eval(
    environment: Environment,
    root: Path,
    handler: str,
    ids: Mapping[str, Sequence[str]],
    generate: JsonObject | None = None,
) -> None:
    """Run bfcl-eval on items, {category: ids}, in a process of its own, which ends with this one.

    Its results and scores are files below `root`. `generate` has the settings of the answers and the server's `url`;
    without it, answers that are there already are scored.

    Raises:
        UserError: one line on what stopped it, or no answer of the server for `PATIENCE_S` seconds.
    """
    if generate:
        try:
            # Without a server, bfcl-eval would wait forever.
            models_at(str(generate["url"]).removesuffix("/v1"))
        except ServerError as error:
            raise UserError(
                f"bfcl-eval: the server at {generate['url']} does not answer: {error}"
            ) from error
    request = root / "request.json"
    log = root / "runner.log"
    # The runner writes to this file at every response.
    alive = root / "alive"
    alive.touch()
    settings = {**generate, "alive": str(alive)} if generate else None
    request.write_text(
        json.dumps({"root": str(root), "handler": handler, "ids": ids, "generate": settings})
    )
    process = Process([str(environment.python), "-I", str(RUNNER), str(request)], _variables(), log)
    if not process.ends_in(PATIENCE_S, alive):
        raise UserError(f"bfcl-eval: no answer for {PATIENCE_S:g} s: is the server stuck?")
    outcome = root / "outcome.json"
    # Without an outcome the process itself failed.
    problem = json.loads(outcome.read_text())["error"] if outcome.is_file() else process.reason()
    if problem:
        raise UserError(f"bfcl-eval: {safe(str(problem))}")


def _variables() -> dict[str, str]:
    """Environment variables of bfcl-eval: those of this process without OpenAI's, and no proxy for this machine."""
    prefixes = ("OPENAI_", "REMOTE_OPENAI_")
    variables = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    addresses = filter(None, (variables.get("NO_PROXY"), "127.0.0.1", "localhost"))
    no_proxy = ",".join(addresses)
    # Libraries read one spelling or the other.
    return {**variables, "NO_PROXY": no_proxy, "no_proxy": no_proxy}


SOUPING_HANDLERS = ("chat-template", "plain")
"""Handlers of ours: the tokenizer's chat template below BFCL's system prompt, and a short prompt without a template."""
SERVED_APIS = ("FunctionaryHandler",)
"""Handlers that use chat completions of a server of one's own; the other APIs are vendors'."""


_ENTRY = re.compile(
    r'^    "([^"]+)": ModelConfig\(.*?model_handler=(\w+)', re.MULTILINE | re.DOTALL
)
"""(name, class of its handler) of an entry of bfcl-eval's registry, in its source."""


def registered(package: Path) -> list[str]:
    """Names in bfcl-eval's model registry whose handlers can use a local server.

    They are read from the source, as importing it needs bfcl-eval's own environment.
    """
    text = (package / "constants" / "model_config.py").read_text(encoding="utf-8")
    served = [name for name, handler in _ENTRY.findall(text) if handler in SERVED_APIS]
    # All entries of this map are of local models; it stands between these two names.
    _, _, local = text.partition("local_inference_model_map")
    local, _, _ = local.partition("third_party_inference_model_map")
    return [*served, *(name for name, _ in _ENTRY.findall(local))]


TOO_LONG = "does not fit the context"
"""Words of the runner's message on a prompt that is too long."""


def records(results: Path, scores: Path, items: Sequence[Item]) -> list[Record]:
    """The records of the items, in their order, from one model's folders `result/MODEL` and `score/MODEL`.

    Raises:
        UserError: an item has no result, or its category no score.
    """
    answers = dict[str, LogRow]()
    for path in _files(results, "result"):
        answers |= {str(row["id"]): row for row in bfcl_lines(path)}
    # {file of a category: ids of its items that failed}; the first line of a file has the category's accuracy
    wrong = dict[str, set[str]]()
    for path in _files(scores, "score"):
        failures = bfcl_lines(path)[1:]
        wrong[path.name.removesuffix("_score.json")] = {str(row["id"]) for row in failures}
    scored = list[Record]()
    for item in items:
        category = f"BFCL_v4_{item.category}"
        if item.id not in answers:
            raise UserError(f"{results}: no result for item {item.id}")
        if category not in wrong:
            raise UserError(f"{scores}: no score file for {item.category}")
        right = item.id not in wrong[category]
        scored.append(_record(item, answers[item.id], right))
    return scored


def _record(item: Item, row: LogRow, right: bool) -> Record:
    """The record of an item, from its line of a result file and whether bfcl-eval says that it is right.

    An item without an answer is wrong here; bfcl-eval counts it as right if no call may be made.
    """
    text = row["result"]
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    outcome: Outcome = "truncated" if row.get("truncated") else "finished"
    reason = ""
    if text.startswith(FAILED):
        outcome = "unanswered"
        reason = safe(" ".join(text.removeprefix(FAILED).split()))[:80]
    return Record(
        item=item.id,
        score=float(right and outcome != "unanswered"),
        output=text,
        outcome=outcome,
        reason=reason,
        # The longest prompt of all turns and steps.
        prompt_tokens=int(max(counts(row.get("input_token_count")), default=0)),
    )


def failure(records: Sequence[Record]) -> str | None:
    """The reason of the first unanswered item if no item has an answer, which stops the run; else None.

    Items whose prompts are too long give no such reason: a run of these alone goes on.
    """
    unanswered = [record.output for record in records if record.outcome == "unanswered"]
    reasons = [output.removeprefix(FAILED) for output in unanswered if TOO_LONG not in output]
    if not reasons or len(unanswered) < len(records):
        return None
    return safe(reasons[0])


def _files(folder: Path, kind: str) -> list[Path]:
    """bfcl-eval's files of the kind `result` or `score` below a folder."""
    return sorted(folder.rglob(f"BFCL_v4_*_{kind}.json"))
