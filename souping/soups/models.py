"""Candidates of a run: fetched, opened and checked; recipes of them, and their soups for evaluators."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from souping.answers.store import Store, parts_of
from souping.checkpoints import hub, remote
from souping.checkpoints.archives import is_checkpoint
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.compatibility import check_tokenizer, preflight
from souping.checkpoints.fingerprints import weights_of
from souping.checkpoints.folder import Like
from souping.checkpoints.header import MAX_RECIPE, small
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.lora import is_adapter, open_model, read_settings
from souping.core.fields import pick
from souping.core.files import expanded, folder_at, near_folder
from souping.core.parsing import read_json
from souping.core.protocols import Evaluator, LoadedModel
from souping.core.types import (
    Candidate,
    Folders,
    Names,
    ProgressCallback,
    Recipe,
    TokenIds,
    UserError,
    frozen,
)
from souping.core.weight_similarity import PoolSimilarity
from souping.merge.backend import MergeBackend
from souping.merge.digests import StandIns
from souping.report.progress import Throughput, say
from souping.soups.serving import SoupServer

if TYPE_CHECKING:
    from souping.answers.evaluation import EvaluatorWorker

Aside = Callable[[], AbstractContextManager[None]]
"""Makes room on the terminal for another display, such as a download's bar."""


@frozen
class FetchedCandidates:
    """Models in folders here, of which the first `count` are the candidates, and the backend, whose base model is in a
    folder here too."""

    models: tuple[Candidate, ...]
    count: int
    merge: MergeBackend
    notes: Names = ()


def fetch_candidates(
    models: Sequence[Candidate],
    count: int,
    merge: MergeBackend,
    aside: Aside = nullcontext,
    tokenizers: bool = False,
) -> FetchedCandidates:
    """The models, of which the first `count` are the candidates, as folders, with notes for the report.

    The Hub's models are fetched; with `tokenizers`, one without a tokenizer is refused before its weights are fetched.

    Raises:
        UserError: a model is neither a folder nor one that can be fetched, they do not fit each other by their
            headers, or the disk is too small; nothing large was fetched then.
    """
    hub_names = _hub_names(models)
    like = like_of(models)
    if like is not None:
        like = folder_of(str(like), merge.allow_pickle, aside)

    def check(folders: Folders) -> None:
        """Check the pool once the small files of the Hub's models are in `folders`."""
        pool = {model.name: folders.get(model.name, model.path) for model in models}
        _check_headers(pool, merge, like, tokenizers)

    fetched: Mapping[str, hub.Fetched] = {}
    if hub_names:
        with aside(), Throughput("download") as report:
            fetched = hub.fetch(hub_names, merge.allow_pickle, check, report)
    local = []
    for model in models:
        model = replace(model, like=like)
        if copy := fetched.get(model.name):
            model = replace(model, path=copy.folder, source=str(copy.name))
        local.append(model)
    notes = tuple(copy.note for copy in fetched.values() if copy.note)
    merge = with_base(merge, [model.path for model in local], aside)
    return FetchedCandidates(models=tuple(local), count=count, merge=merge, notes=notes)


def _hub_names(candidates: Iterable[Candidate]) -> dict[str, hub.HubName]:
    """{candidate: name on the Hub} of the candidates that are not folders (UserError if one is neither)."""
    names = {}
    for candidate in candidates:
        path = candidate.path
        if name := hub.parse_name(path):
            names[candidate.name] = name
        elif not is_checkpoint(path):
            raise UserError(
                f"candidate {candidate.name}: {path} is not a folder: give the path of a saved Hugging Face model or "
                f"org/name{near_folder(path)}"
            )
    return names


def _check_headers(
    folders: Folders, merge: MergeBackend, like: Path | None, tokenizers: bool
) -> None:
    """Refuse a pool by its headers, configs and tokenizers, before the weights are fetched (UserError)."""
    # Adapters are checked when the pool is opened, with their base model.
    if any(map(is_adapter, folders.values())):
        return
    shared = Like(like, rules_of(merge.name_rules))
    models = {}
    for name, folder in folders.items():
        models[name] = Checkpoint.open(folder, merge.allow_pickle, shared)
    preflight(models, merge.vocab, merge.tokenizer_from)
    if tokenizers:
        for name, checkpoint in models.items():
            check_tokenizer(name, checkpoint.home)


def from_bucket(
    candidate: Candidate, allow_pickle: bool, stream: bool, aside: Aside = nullcontext
) -> Candidate:
    """The candidate. If it is in a bucket, it is fetched into a folder here, without its weights if these `stream`."""
    url = remote.parse_url(candidate.path)
    if url is None:
        return candidate
    with aside():
        say(f"{url}: {'reading headers' if stream else 'fetching'}")
        folder = remote.remote_folder(url, allow_pickle, weights=not stream)
        return replace(candidate, path=folder, source=url)


def with_base(
    merge: MergeBackend, folders: Sequence[Path], aside: Aside = nullcontext
) -> MergeBackend:
    """The backend with its base model on this disk: `merge.base_model`, or the one that adapters in `folders` name.

    Raises:
        UserError: the base model cannot be fetched.
    """
    base = merge.base_model
    if base and (url := remote.parse_url(base)):
        folder = remote.remote_folder(url, merge.allow_pickle, weights=True)
        return merge.with_settings({"base_model": str(folder)})
    if base and base.startswith("~"):
        return merge.with_settings({"base_model": str(expanded(base, "merge.base_model"))})
    if base:
        name = hub.parse_name(base)
        title = f"merge.base_model={base}"
    else:
        name = _base_of_adapters(folders)
        title = f"the adapters' base model {name}"
    # There is no base model, or it is in a folder already.
    if name is None:
        return merge
    try:
        folder = folder_of(name, merge.allow_pickle, aside)
    except UserError as error:
        raise UserError(
            f"{title} is not a folder here: set merge.base_model=FOLDER\n{error}"
        ) from error
    return merge.with_settings({"base_model": str(folder)})


def folder_of(
    name: hub.HubName | str, allow_pickle: bool = False, aside: Aside = nullcontext
) -> Path:
    """The folder of one model: `name` is a path, or a bucket's URL or a name on the Hub, which is fetched."""
    if url := remote.parse_url(str(name)):
        return remote.remote_folder(url, allow_pickle)
    parsed = hub.parse_name(str(name))
    if parsed is None:
        return Path(str(name))
    with aside(), Throughput(f"download of {parsed.name}") as report:
        return hub.fetch_one(parsed, allow_pickle, report).folder


def _base_of_adapters(folders: Sequence[Path]) -> hub.HubName | None:
    """The Hub name of the base that the first adapter was trained on, unless a folder of that name is here."""
    # The others must name the same base: they are compared when the pool is opened.
    first = next((folder for folder in folders if is_adapter(folder)), None)
    if first is None:
        return None
    settings = read_settings(first)
    if settings is None or settings.base is None or folder_at(settings.base) is not None:
        return None
    return hub.parse_name(f"{settings.base}@{settings.revision or 'main'}")


def like_of(candidates: Iterable[Candidate]) -> Path | None:
    """The folder from which sharded candidates take config and tokenizer, the same for all; None without one."""
    return next((candidate.like for candidate in candidates if candidate.like is not None), None)


class RunPool:
    """Candidates of a run, opened (headers only) and checked against each other.

    No weight is loaded before the first `serve`: a run that finds all its results in the store loads none, nor torch.
    """

    @classmethod
    def fetch(
        cls,
        candidates: Sequence[Candidate],
        merge: MergeBackend,
        store: Store | None = None,
        hashes: MutableMapping[str, str] | None = None,
        aside: Aside = nullcontext,
        tokenizers: bool = True,
        hash_later: bool = False,
        stream: bool = False,
        further_models: Sequence[Candidate] = (),
    ) -> RunPool:
        """Fetch the Hub's models and, unless their weights `stream`, those of buckets, open and check them, then take
        their fingerprints.

        `store` remembers where the models are. `hashes` are {file: digest}, by default those of the store. With
        `hash_later`, files without a known digest are hashed by `write_late`, if the backend can do that. With
        `tokenizers`, every model must have one. `further_models` can be evaluated like the candidates, but are not
        candidates.

        Raises:
            UserError: a folder is absent or broken, a model cannot be fetched, or the candidates do not fit each other.
        """
        if merge.tokenizer_from is not None:
            pick(merge.tokenizer_from, [c.name for c in candidates], "merge.tokenizer_from")
        models = (*candidates, *further_models)
        local = [from_bucket(model, merge.allow_pickle, stream, aside) for model in models]
        fetched = fetch_candidates(local, len(candidates), merge, aside, tokenizers=tokenizers)
        if hashes is None:
            hashes = {} if store is None else store.hashes
        pool = cls(fetched, hashes, store, hash_later)
        pool.take_fingerprints()
        return pool

    def __init__(
        self,
        fetched: FetchedCandidates,
        hashes: MutableMapping[str, str],
        store: Store | None = None,
        hash_later: bool = False,
    ) -> None:
        """Open every candidate's headers and check them against each other (UserError).

        `hashes`, `store` and `hash_later` are described at `fetch`.
        """
        merge = fetched.merge
        self.base = merge.base_model
        self.folders = {c.name: c.path for c in fetched.models}
        adapters = any(map(is_adapter, self.folders.values()))
        self._fetched = fetched
        self._hashes = hashes
        # Digests in place of those of files that are hashed only while a soup is written.
        self._stand_ins: StandIns | None = None
        digests = hashes
        if hash_later and merge.hashes_while_reading and not adapters:
            self._stand_ins = StandIns(hashes)
            digests = self._stand_ins
        self._like = Like(
            like_of(fetched.models), rules_of(merge.name_rules), merge.format == "same"
        )
        self.merge_pool = merge.open(self.folders, digests, self._like)
        self._notes = [*self.merge_pool.warnings, *fetched.notes]
        self._store = store
        self._server = SoupServer(self.merge_pool)

    def take_fingerprints(self) -> None:
        """Hash the candidates, unless `write_late` does, and let the store remember where they are."""
        # Hashes files without a known digest or gives them stand-ins, which `hashes_later` looks for.
        _ = self.models
        if not self.hashes_later:
            self._note(self.merge_pool.known_folders)

    @cached_property
    def models(self) -> tuple[Candidate, ...]:
        """The candidates, then the models that are evaluated like them, with their fingerprints."""
        fingerprints = self.merge_pool.fingerprints
        return tuple(replace(c, fingerprint=fingerprints[c.name]) for c in self._fetched.models)

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        return self.models[: self._fetched.count]

    @cached_property
    def hashes_later(self) -> bool:
        """Whether files have no digest yet, which only `write_late` computes."""
        return self._stand_ins is not None and self._stand_ins.pending

    @cached_property
    def similarity(self) -> PoolSimilarity | None:
        """How similar the weights of the candidates are, and what their uniform soup loses when it is stored."""
        return self.similarity_of({})

    def similarity_of(self, weights: Mapping[str, float]) -> PoolSimilarity | None:
        """How similar the weights of the candidates are, and what a soup of them loses when it is stored: the soup with
        these weights {candidate: weight}, or the uniform soup for empty weights."""
        names = [c.name for c in self._fetched.models[: self._fetched.count]]
        shares = weights or dict.fromkeys(names, 1.0)
        return self.merge_pool.similarity({name: shares.get(name, 0.0) for name in names})

    @property
    def warnings(self) -> list[str]:
        return [*self._notes, *_copies({c.name: c.fingerprint for c in self.candidates})]

    @property
    def names(self) -> Names:
        return tuple(c.name for c in self.candidates)

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        """The recipe of {candidate: weight}, with ingredients in the pool's order, and where they came from."""
        recipe = self.merge_pool.recipe(weights)
        sources = {c.name: c.source for c in self.candidates if c.source and weights.get(c.name)}
        if not sources:
            return recipe
        return replace(recipe, sources=sources)

    def uniform(self, names: Names) -> Recipe:
        return self.recipe({name: 1.0 / len(names) for name in names})

    def eos_token_ids(self, recipe: Recipe) -> TokenIds:
        """Tokens that end the soup's answers."""
        return self.merge_pool.eos_token_ids(recipe)

    def bound(self, evaluator: Evaluator) -> Evaluator:
        """The evaluator with the architecture and the folders of the candidates, from which it takes tokenizers and
        settings of generation."""
        homes = {c.name: c.home for c in self._fetched.models}
        return evaluator.for_pool(self.merge_pool.architecture_folder, homes)

    def serving(self, evaluator: Evaluator) -> Callable[[Recipe], LoadedModel]:
        """Function that makes this pool's soups ready for an evaluator, in its `model_form`."""
        return partial(self._server.serve, evaluator)

    def serving_all(
        self, evaluators: Mapping[str, Evaluator]
    ) -> dict[str, tuple[Evaluator, Callable[[Recipe], LoadedModel]]]:
        """{benchmark: its evaluator with the function that serves it}"""
        return {
            name: (evaluator, self.serving(evaluator)) for name, evaluator in evaluators.items()
        }

    @property
    def unchecked_weights(self) -> Sequence[str]:
        """What was not compared with the recipes' weights after it was loaded here."""
        return self._server.unchecked_weights

    def close(self) -> None:
        """Remove the soup that was last written for an evaluator, and close the merge backend."""
        self._server.close()
        self.merge_pool.close()

    def write_late(
        self,
        recipe: Recipe,
        out: Path,
        files: Callable[[Recipe], Mapping[str, str]],
        progress: ProgressCallback | None = None,
    ) -> tuple[Path, list[str]]:
        """Write a soup whose ingredients are not hashed yet (`hashes_later`): they are while they are read.

        Returns (folder `out` with the soup, notes on its ingredients). `files` makes the text files of the soup,
        {name: text}, from the recipe with its final fingerprints.
        """
        from souping.merge.plan import MergePlan
        from souping.merge.writer import write_hashed

        plan = self.merge_pool.plan(recipe)
        # Only backends with such plans hash while they read.
        assert isinstance(plan, MergePlan)
        hashed = write_hashed(plan, out, files, known=self._hashes, progress=progress)
        fingerprints = dict(zip(hashed.ingredients, hashed.fingerprints, strict=True))
        self._note({content: self.folders[name] for name, content in fingerprints.items()})
        return out, _copies(fingerprints)

    def _note(self, folders: Folders) -> None:
        """Note in the store where checkpoints {fingerprint: folder} are, and what they are made of."""
        if self._store is None:
            return
        for content, folder in folders.items():
            self._store.remember_folder(content, folder, self.weights_in(folder), _mixture(folder))

    def weights_in(self, folder: Path) -> str:
        """Digest of the weights alone."""
        return weights_of(
            open_model(folder, self._fetched.merge.allow_pickle, self._like), self._hashes
        )


def _mixture(folder: Path) -> str:
    """{fingerprint of an ingredient: weight}, as JSON, of a folder with a soup's recipe.json; else an empty text."""
    # Somebody else's recipe.json may hold anything.
    try:
        shares = parts_of(Recipe.from_dict(read_json(small(folder / "recipe.json", MAX_RECIPE))))
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return ""
    if not all(map(math.isfinite, shares.values())):
        return ""
    return json.dumps(shares)


def _copies(fingerprints: Mapping[str, str]) -> list[str]:
    """A note on each model in {name: fingerprint} that has the content of an earlier one."""
    notes = []
    first_names: dict[str, str] = {}
    for name, content in fingerprints.items():
        first = first_names.setdefault(content, name)
        if first != name:
            notes.append(
                f"{first} and {name} hold the same bytes: they are one model under two names"
            )
    return notes


def open_worker(
    home: Path,
    candidates: tuple[Candidate, ...],
    merge: MergeBackend,
    evaluators: Mapping[str, Evaluator],
    digests: Mapping[str, str],
) -> EvaluatorWorker:
    """A worker in another process; paths are relative to `home`, and `digests` are those of files that the store knows.

    On another machine `home` may not exist; then paths must be absolute.
    """
    # Merges do without evaluation.
    from souping.answers.evaluation import EvaluatorWorker

    if home.is_dir():
        os.chdir(home)
    pool = RunPool.fetch(candidates, merge, hashes=dict(digests))
    return EvaluatorWorker(pool.serving_all(evaluators))
