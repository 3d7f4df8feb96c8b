"""The message and the exit status of every error, by where it arose."""

from __future__ import annotations

import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from souping.cli.config import PARTS, USER_CODE, key_of, near_key
from souping.cli.help import choices, groups
from souping.core.files import error_text
from souping.core.text import first_line, nearest, safe
from souping.core.types import UserError

EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
PACKAGE = Path(__file__).resolve().parents[1]
READERS = ("transformers", "tokenizers", "jinja2", "huggingface_hub", "safetensors", "lm_eval", "datasets", "sacrebleu")
"""Libraries that meet a model's files and templates first: what they raise is about those."""


def composition(error: Exception) -> Exception:
    """An error that arose while the configuration was composed: odd values come out of Hydra in many ways."""
    if isinstance(error, EXPECTED) or not isinstance(error, ValueError | TypeError | RecursionError):
        return error
    odd = [a for a in sys.argv[1:] if re.fullmatch(rf"({'|'.join(PARTS)})=[^a-zA-Z]*", a)]
    return UserError(f"cannot compose the configuration{f' ({odd[0]})' if odd else ''}: {explain(error)}")


def format_error(error: Exception, run_dir: Path | None = None) -> tuple[str, int]:
    """(message, exit status) of any error: the one place that decides.

    What the user can fix takes a line or two. Anything else is a fault of a component of the user's or of this package:
    then the traceback is kept, in the run's directory if there is one.
    """
    if isinstance(error, EXPECTED):
        return safe(explain(error)), 2
    if isinstance(error, MemoryError):
        return f"out of memory: {first_line(error)}", 2
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, RuntimeError) and frames and "pathlib" in Path(frames[-1].filename).with_suffix("").parts:
        return safe(first_line(error)), 2  # a loop of links, which it names
    place = keep_traceback(error, run_dir)
    what = safe(f"{type(error).__name__}: {first_line(error)}")
    user_lines = [
        f"{USER_CODE[frame.filename]}, line {frame.lineno}" for frame in frames if frame.filename in USER_CODE
    ]
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    foreign = [f"{frame.filename}:{frame.lineno}" for frame in own[-1:] if PACKAGE not in Path(frame.filename).parents]
    for culprit in (*user_lines[-1:], *foreign):
        return f"{culprit}: {what}\nthis component is not part of souping; the traceback is in {place}", 2
    if library := _refuser(error, frames):
        return f"{library} cannot use a model's files or this request: {what}\nthe traceback is in {place}", 2
    if USER_CODE:
        return f"{what}\na fault in souping or in {', '.join(USER_CODE.values())}: see {place}", 1
    return f"sorry, this is a fault in souping: {what}\nplease report it with the traceback in {place}", 1


def _refuser(error: Exception, frames: Sequence[traceback.FrameSummary]) -> str:
    """The library that reads models' files and templates and raised this, if one did."""
    if type(error) is Exception:  # what its compiled code raises
        return "tokenizers"
    raised = type(error).__module__.split(".")[0]
    inside = [name for name in READERS if frames and f"/site-packages/{name}/" in frames[-1].filename]
    return raised if raised in READERS else "".join(inside[:1])


def _is_library(file: Path) -> bool:
    """Whether a line of a traceback is an installed package's or Python's own."""
    if PACKAGE in file.parents:
        return False
    installed = [Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return not file.is_absolute() or any(place in file.parents for place in installed)


def keep_traceback(error: Exception, run_dir: Path | None) -> Path:
    """The file that holds the whole traceback from now on."""
    text = "".join(traceback.format_exception(error))
    if run_dir is not None:
        with suppress(OSError):
            (run_dir / "traceback.txt").write_text(text, "utf-8", "backslashreplace")
            return run_dir / "traceback.txt"
    handle, name = tempfile.mkstemp(prefix="souping-", suffix=".txt")
    with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)


def explain(error: BaseException) -> str:
    """An error as one or two lines: what, where, what to do."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        key = key_of(str(error.filename)) if error.filename else ""
        return f"{key}={error_text(error)}" if key else error_text(error)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override}\n"
            "values that hold ( ) , = ~ or spaces need quotes inside the shell's own: 'key=\"a (b)\"'"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    group, _, asked = str(getattr(error, "missing_cfg_file", "") or "").rpartition("/")  # Hydra's
    options = getattr(error, "options", None) or (choices(group) if group in groups() else None)  # Hydra's
    if options:  # an unknown choice of a group
        typed = f"{'+' * (group == 'experiment')}{group}={asked}: there is no such choice"
        where = typed if group and lines[0].startswith("In 'config'") else lines[0]
        return f"{where}{nearest(asked, options)}\nchoices: {', '.join(options)}"
    dull = ("full_key:", "object_type=", "reference_type=", "To append to your config", "See https", "Environment")
    kept = [line for line in lines if not line.startswith(dull)][:2] or [type(error).__name__]
    kept[0] = kept[0].rstrip(".") + _nearest_key(error)
    return "\n".join(kept) + _reason(error, kept)


def _nearest_key(error: BaseException) -> str:
    """The nearest name to the key that OmegaConf did not know."""
    cause: BaseException | None = error
    while cause is not None:
        node = getattr(cause, "parent_node", None)  # OmegaConf's
        match = re.search(r"Key '([^']+)' (?:is )?not in", str(cause))
        if node is not None and match and OmegaConf.is_dict(node):
            keys = [str(k) for k in node if not str(k).startswith("_")]
            return near_key(match.group(1), node, keys) or f"; known keys: {', '.join(keys) or 'none'}"
        cause = cause.__cause__
    return ""


def _reason(error: BaseException, kept: list[str]) -> str:
    """Hydra names the override, its cause the fault (a wrong type)."""
    cause = error.__cause__
    first = str(cause).strip().splitlines()[0] if cause is not None and str(cause).strip() else ""
    return f"\n{first}" if first and len(kept) == 1 and "Key '" not in first else ""
