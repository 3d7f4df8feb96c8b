"""Models of the Hub, downloaded by huggingface_hub into its own cache.

Everything that talks to the Hub runs in a child process (`core.child.call`), which Ctrl-C ends within seconds. What the
Hub says (lists, small files, headers) is read within bounds of time and memory; weights take what they need, so that
they can come by Xet, the Hub's fast path. A revision becomes a commit when its files are listed. From that list souping
picks weights, config, tokenizer and chat templates by name, and never code.
"""

from __future__ import annotations

import errno
import fnmatch
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import huggingface_hub
from huggingface_hub import constants

from souping.checkpoints import lora
from souping.checkpoints.checkpoint import Checkpoint
from souping.checkpoints.folder import (
    INDEX,
    MAX_SIDE,
    NOT_SIDE,
    PICKLED,
    PICKLED_INDEX,
    SIDE_FILES,
    SINGLE,
    weight_map,
)
from souping.checkpoints.header import header_bytes
from souping.core.child import CHILD_MEMORY_BYTES, call, limit_file_size
from souping.core.files import disk_space, expanded, near_folder, write_atomically
from souping.core.text import first_line, shown
from souping.core.types import Folders, ProgressCallback, T, UserError

Check = Callable[[Folders], None]
"""check({candidate: folder}) raises UserError if these models do not fit each other."""
SIGN_IN = "hf auth login"
LOGIN = f"`{SIGN_IN}`"
WORKERS = 8
CLIENT_FILE_BYTES = 4 << 20
"""Bytes that a small file of the Hub's client may have."""
LISTING = 600.0
"""Seconds within which the lists, small files and headers of a pool must arrive."""

# Names

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
REPO_NAME = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>\w[\w./-]{{0,254}}))?")
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """Repository of a model or data set and a revision of it: a branch, a tag or a commit."""

    repo: str
    revision: str = "main"
    kind: Literal["model", "dataset"] = "model"

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"

    @property
    def name(self) -> str:
        """Default name of a candidate from here."""
        return self.repo.rpartition("/")[2]

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never moves."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def cache(self) -> Path:
        """Folder of the repository in the Hub's cache, which all tools share."""
        return expanded(constants.HF_HUB_CACHE) / f"{self.kind}s--{self.repo.replace('/', '--')}"

    @property
    def ref(self) -> Path:
        """File with the commit of a branch or tag in the cache."""
        return self.cache / "refs" / self.revision

    def note_commit(self, commit: str) -> None:
        """Note the commit of a branch or tag, so that HF_HUB_OFFLINE=1 finds it later."""
        if not self.pinned:
            write_atomically(self.ref, commit.encode())


def hub_name(text: str, kind: Literal["model", "dataset"] = "model") -> HubName | None:
    """The Hub name in a text; None if it cannot be one."""
    match = REPO_NAME.fullmatch(text)
    if match is None or not is_repo(match["repo"]) or ".." in text:
        return None
    return HubName(match["repo"], match["revision"] or "main", kind)


def parse_name(text: str | Path) -> HubName | None:
    """The name of a model in a text; None if it cannot be one, or if a path of this name exists."""
    name = hub_name(str(text))
    return None if name is None or Path(text).exists() else name


def cached_name(folder: str | Path) -> str | None:
    """`org/name@commit` of a folder in the Hub's cache; None for any other."""
    match = re.fullmatch(r".*/models--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})", str(folder))
    return f"{match[1]}/{match[2]}@{match[3]}" if match else None


def is_repo(text: str) -> bool:
    """Whether a text can be the name of a repository, `org/name`, by the Hub's rules."""
    if ".." in text or "--" in text or text.endswith(".git"):
        return False
    return re.fullmatch(f"{PART}/{PART}", text) is not None


# Downloads, as the rest of the package sees them


@dataclass(frozen=True)
class Fetched:
    """Model in a folder of the Hub's cache. The revision of `name` is its commit; `note` is for the report."""

    name: HubName
    folder: Path
    note: str = ""


def fetch(
    names: Mapping[str, HubName],
    allow_pickle: bool = False,
    check: Check | None = None,
    report: ProgressCallback | None = None,
) -> dict[str, Fetched]:
    """Download models, {candidate: name} to {candidate: folder}; cached files are not downloaded again.

    Before any weights travel, `check` gets {candidate: folder} and may raise. The folders hold the real small files and
    hollow weight files: real headers, no data. It is not called for pickles, whose headers cannot be read alone.
    `report(done, total)` counts bytes.

    Raises:
        UserError: a model is missing, private or gated, has no such revision or no weights that souping reads, the Hub
            cannot be reached or is too slow to list it, HF_HUB_OFFLINE=1 and the model is not cached, the disk is too
            small, or `check` refused.
    """
    with tempfile.TemporaryDirectory(prefix="souping-headers-") as scratch:
        place = None if check is None else Path(scratch)
        sources = _in_child(prepare_models, (list(names.values()), allow_pickle, place))
        models = dict(zip(names, sources, strict=True))
        listings = [source for source in sources if isinstance(source, Listing)]
        need = _total(listing.absent_weights for listing in listings)
        if need:
            _check_disk(need)
            # Weights that are missing have a hollow copy, unless they are pickled.
            readable = all(listing.sketch or not listing.absent_weights for listing in listings)
            if check is not None and readable:
                _check_headers(models, check)
            _in_child(download, (listings,), bounded=False, report=report)
    fetched = dict[str, Fetched]()
    for key, model in models.items():
        if isinstance(model, Listing):
            model = Fetched(model.name, model.folder)
        fetched[key] = model
    return fetched


def fetch_one(
    name: HubName, allow_pickle: bool = False, report: ProgressCallback | None = None
) -> Fetched:
    """`fetch` of one model, without a check."""
    return fetch({name.name: name}, allow_pickle, check=None, report=report)[name.name]


def download_sizes(name: HubName, allow_pickle: bool = False) -> dict[str, int]:
    """{file: bytes} of the files that souping uses of a model, in the cache or not. Downloads no more than an index.

    Raises:
        UserError: as `fetch`.
    """
    scratch = None
    small_files = False
    (source,) = _in_child(prepare_models, ([name], allow_pickle, scratch, small_files))
    # The Hub cannot be reached, but the cache has the model.
    if isinstance(source, Fetched):
        return {path.name: path.stat().st_size for path in source.folder.iterdir()}
    return {**source.side, **source.weights}


def cached(name: HubName, allow_pickle: bool = False) -> Path | None:
    """The folder of a model, if the Hub's cache holds it whole. Uses no network."""
    for config, kind in (("config.json", Checkpoint), (lora.CONFIG, lora.Adapter)):
        path = huggingface_hub.try_to_load_from_cache(name.repo, config, revision=name.revision)
        if isinstance(path, str):
            folder = Path(path).parent
            # Opening the folder fails if a file is missing or broken: then the model is not cached whole.
            with suppress(UserError):
                kind.open(folder, allow_pickle)
                return folder
    return None


def _in_child(
    function: Callable[..., T],
    arguments: tuple[object, ...],
    *,
    bounded: bool = True,
    report: ProgressCallback | None = None,
) -> T:
    """The result of a function that talks to the Hub, run in a child process. Offline it runs in this process, since it
    only looks into the cache.

    A `bounded` call has limits of time and memory; `report(done, total)` counts bytes.
    """
    if constants.HF_HUB_OFFLINE:
        return function(*arguments)
    settings = {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,
        "HF_HUB_OFFLINE": "0",
    }
    seconds = math.inf
    memory = sys.maxsize
    if bounded:
        settings["HF_HUB_DISABLE_XET"] = "1"  # it takes more memory
        seconds = LISTING
        memory = CHILD_MEMORY_BYTES
    try:
        return call(
            function,
            arguments,
            seconds=seconds,
            memory=memory,
            environment=settings,
            report=report,
        )
    except TimeoutError:
        raise UserError(
            f"the Hub ({constants.ENDPOINT}) did not finish its answer within {seconds:.0f} s"
        ) from None
    except MemoryError:
        raise UserError(
            f"the Hub ({constants.ENDPOINT}): its answer took too much memory "
            "(weights take less with HF_HUB_DISABLE_XET=1)"
        ) from None


def _check_disk(need: int) -> None:
    """Raises UserError if the disk of the Hub's cache has no room for `need` bytes, and 100 MB to spare."""
    place = expanded(constants.HF_HUB_CACHE).absolute()
    free, _ = disk_space(place)
    if need + 100_000_000 > free:
        what = f"the pool needs {need / 1e9:.1f} GB more in the Hub's cache ({place})"
        raise UserError(
            f"{what}, the disk has {free / 1e9:.1f} GB free: make room, or set HF_HOME to a larger disk"
        )


def _check_headers(models: Mapping[str, Fetched | Listing], check: Check) -> None:
    """Call `check` with the folders of models or of their hollow copies; its messages get the models' names instead."""
    sketches = dict[str, Path]()
    for key, model in models.items():
        if isinstance(model, Listing) and model.sketch:
            sketches[key] = model.sketch
    try:
        check({key: sketches.get(key, model.folder) for key, model in models.items()})
    except UserError as error:
        text = str(error)
        for key, sketch in sketches.items():
            text = text.replace(str(sketch), str(models[key].name))
        raise UserError(text) from None


# Files of a repository

FETCHED_FILE = re.compile(r"(additional_chat_templates/)?[\w.-]+")
"""What may be downloaded is in the root, or a chat template."""
SIDE = re.compile(
    "|".join(map(fnmatch.translate, [*SIDE_FILES, "additional_chat_templates/*.jinja"]))
)
INDEXES = {INDEX, PICKLED_INDEX}
ADAPTERS = {lora.ADAPTER_WEIGHTS, lora.PICKLED_ADAPTER_WEIGHTS}
Sizes = Mapping[str, int]
"""{file: bytes}"""


@dataclass(frozen=True)
class Listing:
    """Files of a model at a commit. `main` is the weight file or the index of its shards.

    `sketch` is the folder of a hollow copy: its real small files, and weight files with headers but no data.
    """

    name: HubName
    files: Sizes
    main: str
    sketch: Path | None = None

    @property
    def folder(self) -> Path:
        return self.name.cache / "snapshots" / self.name.revision

    @property
    def side(self) -> Sizes:
        """Config, tokenizer, chat templates and the index (UserError: one is too large).

        An adapter's config is one of them only if `main` is the adapter: a full model beside it is the one to use.
        """
        names = {n for n in self.files if SIDE.match(n) and not n.endswith(NOT_SIDE)}
        if self.main in INDEXES:
            names.add(self.main)
        if self.main in ADAPTERS:
            names |= {lora.CONFIG} & set(self.files)
        huge = next((name for name in names if self.files[name] > MAX_SIDE), None)
        if huge is not None:
            raise UserError(
                f"{self.name}: {huge} is larger than {MAX_SIDE:,} bytes: it cannot be read"
            )
        return {name: self.files[name] for name in sorted(names)}

    @property
    def weights(self) -> Sizes:
        """The weight files. An index of shards (`main`) has to be in the cache, and the shards in the list of files."""
        if self.main not in INDEXES:
            return {self.main: self.files[self.main]}
        names = sorted(set(weight_map(self.folder / self.main).values()))
        # Shards have the index's own suffix: an index of safetensors brings no pickles.
        suffix = Path(self.main.removesuffix(".index.json")).suffix
        for name in names:
            if name not in self.files or not name.endswith(suffix):
                raise UserError(f"{self.name}: {self.main} lists {shown(name)}, which is not there")
        return {name: self.files[name] for name in names}

    @property
    def absent_weights(self) -> Sizes:
        """The weight files that the cache does not have in their listed sizes."""
        return self.absent(self.weights)

    def absent(self, files: Sizes) -> Sizes:
        """Those of the given files that the cache does not have in their listed sizes."""
        return {path: size for path, size in files.items() if _size(self.folder / path) != size}


def weight_file(names: Collection[str], allow_pickle: bool) -> str:
    """The file that holds the weights, or the index of their shards; empty if there is none.

    The order is that in which a folder is read: one file before an index, safetensors before pickles, a full model
    before an adapter.
    """
    order = [SINGLE, INDEX, lora.ADAPTER_WEIGHTS]
    if allow_pickle:
        order = [SINGLE, INDEX, PICKLED, PICKLED_INDEX]
        order += [lora.ADAPTER_WEIGHTS, lora.PICKLED_ADAPTER_WEIGHTS]
    return next((name for name in order if name in names), "")


def _total(files: Iterable[Sizes]) -> int:
    """Bytes of the files of several models."""
    return sum(sum(sizes.values()) for sizes in files)


def _size(path: Path) -> int:
    """Bytes of a file; -1, which no file has, if it is missing."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return -1


# In the child process


def prepare_models(
    names: Sequence[HubName], allow_pickle: bool, scratch: Path | None, small_files: bool = True
) -> list[Fetched | Listing]:
    """A listing of each model's files, or the cached model if the Hub cannot be reached.

    Downloads the small files (without `small_files`, the indexes of shards alone). With a folder for `scratch` it
    downloads the headers of missing weights too.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        models = list(pool.map(lambda name: _listing(name, allow_pickle), names))
        listings = [model for model in models if isinstance(model, Listing)]
        # Everything is in the cache. Nothing is limited then: offline, this is the run's own process and no child.
        if not listings:
            return models
        small = list[Sizes]()
        for listing in listings:
            side = listing.side
            if not small_files:
                # `main` is a small file only if it is an index.
                side = {name: size for name, size in side.items() if name == listing.main}
            small.append(side)
        _limit(small)
        list(pool.map(_download, listings, small))
        if scratch is None:
            return models
        # Hollow files of weights have the sizes of the whole ones.
        _limit([listing.weights for listing in listings])
        places = [scratch / str(number) for number in range(len(models))]
        return list(pool.map(_sketch, models, places))


def download(listings: Sequence[Listing], report: ProgressCallback | None = None) -> None:
    """Download the weights that are missing. If that fails or is interrupted, the files in flight are removed."""
    missing = [listing.absent_weights for listing in listings]
    total = _total(missing)
    _limit(missing)
    # The client downloads in a thread, and this one reports how far it is.
    work = ThreadPoolExecutor(1).submit(lambda: list(map(_download, listings, missing)))
    try:
        while not work.done():
            wait([work], 0.2)
            if report is not None:
                complete = total - _total(map(Listing.absent, listings, missing))
                report(min(total, complete + sum(map(_written, _parts()))), total)
        work.result()
    except BaseException:
        for part in _parts():
            part.unlink(missing_ok=True)
        raise


def _parts() -> set[Path]:
    """Incomplete files that this process has open for its downloads; those of other processes must stay."""
    import psutil

    # As a set: the client and Xet both open the same file.
    files = psutil.Process().open_files()
    return {Path(file.path) for file in files if file.path.endswith(".incomplete")}


def _written(path: Path) -> int:
    """Bytes of a file that is being written, in blocks of 512: the size counts holes, and Xet writes in any order."""
    with suppress(FileNotFoundError):
        return path.stat().st_blocks * 512
    return 0


def _limit(files: Sequence[Sizes]) -> None:
    """Let this process write no file larger than the largest of these: a server may send more than it listed.

    The margin is for small files of the client.
    """
    largest = max((max(sizes.values(), default=0) for sizes in files), default=0)
    limit_file_size(CLIENT_FILE_BYTES + largest)


def _listing(name: HubName, allow_pickle: bool) -> Fetched | Listing:
    """The list of a model's files at its commit, or the cached model if the Hub cannot be reached.

    Raises:
        UserError: it is neither listed nor cached, or has no weights that may be read.
    """
    try:
        pinned, files = _commit_and_files(name)
    except UserError as error:
        folder = None
        if error.__cause__ and unreachable(error.__cause__):
            folder = cached(name, allow_pickle)
        if folder is None:
            raise
        pinned = HubName(name.repo, folder.name)
        # A user who asked for HF_HUB_OFFLINE=1 need not be told.
        note = ""
        if not constants.HF_HUB_OFFLINE:
            note = f"{pinned} is taken from the cache: the Hub cannot be reached"
        return Fetched(pinned, folder, note)
    name.note_commit(pinned.revision)
    main = weight_file(files, allow_pickle)
    if main:
        return Listing(pinned, files, main)
    if weight_file(files, allow_pickle=True):
        raise UserError(
            f"{pinned} has only pickled weights: name another revision, or set merge.allow_pickle=true"
        )
    endings = {PurePosixPath(file).suffix for file in files} - {"", ".md", ".json", ".py", ".txt"}
    raise UserError(
        f"{pinned} has no safetensors weights; it has {', '.join(sorted(endings)) or 'none of any kind'}"
    )


def _commit_and_files(name: HubName) -> tuple[HubName, Sizes]:
    """(name with the commit as its revision, sizes of the files that may be fetched), as the Hub answers."""
    api = huggingface_hub.HfApi()
    with hub_errors(name):
        info = api.model_info(name.repo, revision=name.revision, files_metadata=True)
        # The list of a gated model is public, its files are not.
        if info.gated:
            api.auth_check(name.repo)
        files = dict[str, int]()
        for sibling in info.siblings or []:
            if FETCHED_FILE.fullmatch(sibling.rfilename):
                files[sibling.rfilename] = int(sibling.size or 0)
        possible = all(0 <= size < 1 << 62 for size in files.values())
        if not possible or not COMMIT.fullmatch(str(info.sha)):
            raise ValueError("no commit, or impossible sizes")
    return HubName(name.repo, str(info.sha)), files


def _download(listing: Listing, files: Sizes) -> None:
    """Download the files that the cache lacks (UserError: one arrives with another size than listed)."""
    name = listing.name
    absent = list(listing.absent(files))
    if absent:
        with hub_errors(name):
            huggingface_hub.snapshot_download(
                name.repo, revision=name.revision, allow_patterns=absent, max_workers=WORKERS
            )
    wrong = next(iter(listing.absent(files)), None)
    if wrong is not None:
        raise UserError(f"{name}, {wrong}: its size is not the listed one")


def _sketch(model: Fetched | Listing, place: Path) -> Fetched | Listing:
    """The model with a hollow copy in the folder `place`, if the cache lacks weights; pickles get none."""
    if isinstance(model, Fetched) or not model.absent_weights:
        return model
    if not model.main.endswith((".safetensors", INDEX)):
        return model
    for path in model.side:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model.folder / path, place / path)
    for path in model.weights:
        with hub_errors(model.name):
            _write_hollow(model.name, path, place / path)
    return replace(model, sketch=place)


def _write_hollow(name: HubName, path: str, target: Path) -> None:
    """Write a safetensors file to `target`: the header of the Hub's file `path`, and a hole in place of its data."""
    api = huggingface_hub.HfApi()
    table = api.parse_safetensors_file_metadata(name.repo, path, revision=name.revision)
    tensors = list[tuple[str, str, Sequence[int], int, int]]()
    data_bytes = 0
    for tensor, info in table.tensors.items():
        begin, end = info.data_offsets
        tensors.append((tensor, info.dtype, info.shape, begin, end - begin))
        data_bytes = max(data_bytes, end)
    header = header_bytes(tensors)
    target.write_bytes(header)
    os.truncate(target, len(header) + data_bytes)


# Errors of huggingface_hub

STATUS = {
    401: f"your token is not valid: {LOGIN} again (HF_TOKEN takes precedence)",
    403: f"your token may not do this: {LOGIN} with one that may",
}


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Raises UserError, one line about the repository, for any error of the Hub's client or of what a server sent."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        raise _explain(name, error) from error


def _explain(name: HubName, error: Exception) -> UserError:
    """What an error of the Hub's client means for a model, with what to do."""
    from huggingface_hub import errors

    folder = "datasets/" if name.kind == "dataset" else ""
    page = f"{constants.ENDPOINT}/{folder}{name.repo}"
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{name.repo} is gated and you have no access: ask for it at {page}, then {LOGIN}",
            fix=SIGN_IN,
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        what = f"neither a folder here nor a {name.kind} on the Hub that you may see: check the name, or {LOGIN}"
        return UserError(
            f"{name.repo} is {what} if it is private{near_folder(name.repo)}", fix=SIGN_IN
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{name.repo} on the Hub has no revision {name.revision}: {page}/tree/main lists them"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError(
            f"{name} is neither a folder here nor complete in the Hub's cache ({name.cache.parent}), and "
            f"HF_HUB_OFFLINE=1 forbids downloads: unset it, or run `hf download {name.repo}` elsewhere"
            f"{near_folder(name.repo)}"
        )
    if unreachable(error):
        return UserError(
            f"{name} is not a folder here, and {reason(error)}{near_folder(name.repo)}"
        )
    if isinstance(error, OSError) and error.errno:
        what = str(error.strerror)
        if error.errno == errno.EFBIG:
            what = "the Hub sends more bytes than it listed"
        return UserError(f"{name}: {name.cache} cannot be written: {what}")
    return UserError(f"{name}: {reason(error)}", fix=remedy(error))


def _status(error: Exception) -> int:
    """The HTTP status of an error of huggingface_hub, or 0."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def remedy(error: Exception) -> str:
    """The command that helps after an error of the Hub's client, or empty."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    signed_out = isinstance(error, LocalTokenNotFoundError) or _status(error) in STATUS
    return SIGN_IN if signed_out else ""


def reason(error: Exception) -> str:
    """An error of the Hub's client in one line, with what to do."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    status = _status(error)
    if isinstance(error, LocalTokenNotFoundError):
        return f"you are not logged in: {LOGIN}"
    if unreachable(error):
        cause = first_line(error.__cause__ or error)
        return f"the Hub ({constants.ENDPOINT}) cannot be reached ({cause}): run this again; complete files are kept"
    if status:
        return f"the Hub answered {status}: {STATUS.get(status) or first_line(error)}"
    return f"the Hub's answer cannot be used: {shown(first_line(error))}"


def unreachable(error: BaseException) -> bool:
    """Whether no answer came: no network, no such host, a proxy, a timeout."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # httpx or its successor, whichever this version of huggingface_hub uses
    library = type(error).__module__.split(".")[0]
    network = library in ("httpx", "httpx2", "httpcore", "httpcore2")
    return network or isinstance(error, ConnectionError | TimeoutError | LocalEntryNotFoundError)
