"""Evaluator of BFCL by bfcl-eval: its prompts, sent to an OpenAI-compatible server, and its checker."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from souping.checkpoints.compatibility import chat_template
from souping.checkpoints.header import parse_json
from souping.core.fields import Count, Seconds, Seed, Share, Temperature, Threads, component, pick
from souping.core.protocols import Evaluator, LoadedModel, ModelForm, ModelHost
from souping.core.types import FloatArray, Item, Json, Missing, Recipe, Record, UserError
from souping.evaluate.benchmark import outline_items
from souping.evaluate.bfcl.benchmark import MULTI_TURN, SIZES, BfclBenchmark, Version, chosen, needs_full, prerequisites
from souping.evaluate.bfcl.environment import (
    VERSION,
    Environment,
    call,
    check_handlers,
    failure,
    find,
    place_of,
    records,
)
from souping.evaluate.decoding import Decoding, check_sampling, combined, generation_notes
from souping.evaluate.servers import RunningServer, Server

PROTOCOL = 2
"""Raised when the same settings would give other answers or scores."""
GREEDY = 0.001
"""bfcl-eval's own temperature, at which nothing but the likeliest token is drawn."""
CHAT_TEMPLATE = "chat-template"
"""Handler that prompts with the tokenizer's own chat template."""


@dataclass
class ServerSlot:
    """Server that runs, and the folder it serves."""

    running: RunningServer | None = None
    folder: Path | None = None

    def serve(self, server: Server, folder: Path) -> RunningServer:
        """The server of this model; the one of another model is stopped first."""
        if self.running is None or self.folder != folder:
            self.close()
            self.running, self.folder = server.start(folder, folder.name), folder
        return self.running

    def close(self) -> None:
        running, self.running, self.folder = self.running, None, None
        if running is not None:
            running.stop()


@component
class BfclEvaluator(Evaluator):
    """bfcl-eval on a served model.

    `handler` builds the prompts and reads the answers: a model name of bfcl-eval's registry, `chat-template` (the
    tokenizer's own, below BFCL's system prompt) or `plain`. `handlers` gives candidates one of their own,
    `soup_handlers` are the ones that are tried for soups (default: `handler`); each is a trial. `ids` are the items to
    evaluate, `limit` the first so many of each category.

    Above bfcl-eval's own `temperature` answers are drawn: `samples` of each item, each by a seed that the server gets
    (from `sampling_seed`, the item and the number of the answer), and `aggregate` says how they become the item's
    score, their `mean` or `pass` (the best). `replicates` repeats greedy answers in another order. A server that
    answers nothing for `timeout` seconds counts as stuck.
    """

    brings_items = True
    length_key = "evaluator.max_tokens"
    blocks_matter = False  # a server batches as it likes: nothing of an item's neighbours is kept

    server: Server
    version: Version = "v3"
    categories: list[str] | None = None
    ids: list[str] = field(default_factory=list)
    limit: Count | None = None
    handler: str = CHAT_TEMPLATE
    handlers: dict[str, str] | None = None
    soup_handlers: list[str] = field(default_factory=list)
    temperature: Temperature = GREEDY
    top_p: Share = 1.0
    top_k: Count | None = None
    samples: Count = 1
    sampling_seed: Seed = 0
    aggregate: Literal["mean", "pass"] = "mean"
    replicates: Count = 1
    max_tokens: Count | None = None
    timeout: Seconds = 3600.0
    threads: Threads = 100
    batch_size: Count = 512
    dir: str | None = None
    _slot: ServerSlot = field(init=False, repr=False, compare=False, default_factory=ServerSlot)

    def __post_init__(self) -> None:
        chosen(self.version, self.categories)
        check_sampling(self.decoding.temperature, self.samples, self.replicates)
        if self.decoding.samples and not self.server.draws:
            raise UserError(
                f"evaluator.temperature={self.temperature}: {self.server.title} draws no answer by a seed of its own: "
                f"server=vllm does, or leave the temperature at {GREEDY}"
            )
        if len(set(self.soup_handlers)) < len(self.soup_handlers):
            raise UserError("evaluator.soup_handlers names a handler twice")

    @property
    def settings(self) -> dict[str, Json]:
        """What a score depends on, apart from the model and the item. Categories belong to the items."""
        choice: dict[str, Json] = {"handlers": dict(self.handlers or {}), "soup_handlers": list(self.soup_handlers)}
        return {
            "name": "bfcl",
            "protocol": PROTOCOL,
            "bfcl_eval": VERSION,
            "handler": self.handler,
            **{key: value for key, value in choice.items() if value},
            "temperature": self.temperature,
            **({"top_p": self.top_p, "top_k": self.top_k, "seed": self.sampling_seed} if self.decoding.samples else {}),
            "max_tokens": self.max_tokens,
            "server": dict(self.server.settings),
        }

    @property
    def decoding(self) -> Decoding:
        """How tokens are picked; bfcl-eval's own temperature is as good as greedy."""
        drawn = 0.0 if 0 <= self.temperature <= GREEDY else self.temperature
        return Decoding(temperature=drawn, top_p=self.top_p, top_k=self.top_k or 0, seed=self.sampling_seed)

    @property
    def answers(self) -> int:
        return max(self.samples, self.replicates)

    def pool_notes(self, folders: Mapping[str, Path]) -> list[str]:
        """What the candidates' own generation_config would have done, and what a server of others may do."""
        notes = generation_notes(folders, instead="")
        if self.host.url is not None:
            notes.append(f"{self.host.url} was started by others: its own defaults decode what requests leave open")
        return notes

    @property
    def model_form(self) -> ModelForm:
        return "folder"

    @property
    def host(self) -> ModelHost:
        return self.server.host

    @property
    def answer_tokens(self) -> int | None:
        return self.max_tokens

    def needs(self) -> list[Missing]:
        """The environment, and what the server lacks."""
        try:
            _ = self.environment
        except UserError as error:
            return [Missing.from_error(error), *self.server.needs()]
        return self.server.needs()

    @cached_property
    def environment(self) -> Environment:
        full = needs_full(chosen(self.version, self.categories))
        try:
            return find(place_of(self.dir), full=bool(full))
        except UserError as error:
            without = f"\n{full[0]} needs it; evaluator.categories=[single_turn] does not" if full else ""
            raise UserError(f"evaluator=bfcl: {error}{without}") from error

    def check(self, candidates: Sequence[str]) -> None:
        """Refuse, before any work, handlers of candidates that are not there, and unknown handlers.

        Raises:
            UserError: the key and the nearest name.
        """
        own = self.handlers or {}
        for name in own:
            pick(name, candidates, "evaluator.handlers")
        check_handlers(self.environment, [self.handler, *own.values(), *self.soup_handlers])

    def outline(self) -> tuple[Item, ...]:
        """Items without content, of the categories whose sizes are known."""
        names = chosen(self.version, self.categories)
        sizes = {name: SIZES[name] for name in names} if set(names) <= set(SIZES) else {}
        return outline_items(sizes, self.limit, shared=MULTI_TURN)

    @property
    def benchmark(self) -> BfclBenchmark:
        """Its own items: their folds and groups do not depend on the categories that are evaluated."""
        return BfclBenchmark(
            environment=self.environment,
            categories=chosen(self.version, self.categories),
            ids=tuple(self.ids),
            limit=self.limit,
        )

    def check_tokenizer(self, folder: Path, items: Sequence[Item]) -> None:
        """Refuse a tokenizer without a chat template if every handler needs one (UserError)."""
        handlers = {self.handler, *(self.handlers or {}).values(), *self.soup_handlers}
        if handlers == {CHAT_TEMPLATE} and not chat_template(folder):
            raise UserError(f"handler {CHAT_TEMPLATE}: no template in {folder}: evaluator.handler=plain needs none")

    def handlers_for(self, recipe: Recipe) -> tuple[str, ...]:
        """The handlers for this model: a candidate has one, a soup those of `soup_handlers`."""
        if len(recipe.ingredients) == 1:
            return ((self.handlers or {}).get(recipe.ingredients[0], self.handler),)
        return tuple(self.soup_handlers) or (self.handler,)

    def with_handler(self, handler: str) -> BfclEvaluator:
        """This evaluator with that handler for everything; the two share their server."""
        copy = replace(self, handler=handler, handlers=None, soup_handlers=[])
        object.__setattr__(copy, "_slot", self._slot)
        return copy

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        """Items in their order, every second time in the opposite one, so that a server batches them otherwise."""
        order = items[::-1] if replicate % 2 else items
        return [tuple(order[i : i + self.batch_size]) for i in range(0, len(order), self.batch_size)]

    def evaluate(self, model: LoadedModel, items: Sequence[Item], replicate: int = 0) -> list[Record]:
        """Generate and score. An item without an answer scores 0, and its record has the reason.

        Raises:
            UserError: the server, the environment or every item failed.
        """
        _check_code(model.folder, self.server.trust_remote_code)
        running = self._slot.serve(self.server, model.folder)
        request = {"url": running.url, "model": running.model, **self._request(model.folder, items, replicate)}
        with tempfile.TemporaryDirectory(prefix="souping-bfcl-") as root:
            call(self.environment, Path(root), self.handler, self._ids(items), request, self.timeout)
            name = self.handler.replace("/", "_")
            scored = records(Path(root, "result", name), Path(root, "score", name), items)
        if reason := failure(scored):
            bare = "Cannot use chat template" in reason  # transformers' words; it goes on for lines
            why = "the tokenizer has no chat template; evaluator.handler=plain needs none" if bare else reason[:300]
            raise UserError(f"handler {self.handler}: no item could be evaluated: {why}")
        return [replace(record, replicate=replicate) for record in scored]

    def _request(self, folder: Path, items: Sequence[Item], replicate: int) -> dict[str, Json]:
        drawn = self.decoding.samples
        request: dict[str, Json] = {"top_p": self.top_p, "top_k": self.top_k or 0} if drawn else {}
        return {
            "folder": str(folder),
            "threads": self.threads,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "request": {**self.server.request, **request},
            "seeds": {item.id: self.decoding.seed_of(item, replicate) for item in items} if drawn else {},
        }

    def item_scores(self, items: Sequence[Item], records: Sequence[Sequence[Record]]) -> FloatArray:
        """[I] scores by `aggregate`."""
        return np.array([combined(self.aggregate, [record.score for record in answers]) for answers in records])

    def _ids(self, items: Sequence[Item]) -> dict[str, list[str]]:
        ids: dict[str, list[str]] = {}
        for item in items:
            ids.setdefault(item.category, []).append(item.id)
        return {name: [*prerequisites(self.environment, name, own), *own] for name, own in ids.items()}

    def close(self) -> None:
        self._slot.close()


def _check_code(folder: Path, trusted: bool) -> None:
    """Refuse the code of a folder's tokenizer, which bfcl-eval would run, unless it is trusted."""
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        table = parse_json(path, path.read_bytes()) if path.is_file() else {}
        if not trusted and isinstance(table, dict) and table.get("auto_map"):
            raise UserError(f"{path} names code of its own, which bfcl-eval would run: server.trust_remote_code=true")
