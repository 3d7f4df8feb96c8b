"""Errors in words: a line or two for what the user can fix, the place of a traceback for anything else."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigTypeError, OmegaConfBaseException, ValidationError

from souping.cli.advice import joined_override, key_advice, value_advice
from souping.cli.choice_files import choices, groups, installed_choices, package_faults
from souping.cli.commands import COMMANDS, TYPED, misplaced
from souping.cli.config_keys import PACKAGE, USER_CODE, RunKeys, key_of, setting_mismatch
from souping.core.fields import hints_of
from souping.core.files import error_text
from souping.core.text import first_line, nearest, one_line, safe, stripped_lines
from souping.core.types import UserError

EXPECTED = (UserError, HydraException, OmegaConfBaseException, OSError)
READERS = (
    "transformers",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "safetensors",
    "lm_eval",
    "datasets",
    "sacrebleu",
)
"""Libraries that read models' files and templates: their exceptions mean a bad file, not a bug here."""
PLUGIN = re.compile(r'File "(.*/hydra_plugins)/(\w+)')
"""Line of a traceback that is in a plugin of Hydra's."""


def format_error(error: Exception, run_dir: Path | None = None) -> tuple[str, int]:
    """(message, exit status) of any error: the one place that decides.

    What the user can fix takes a line or two. Anything else is a fault of a component of the user's or of this package:
    then the traceback is kept, in the run's directory if there is one.
    """
    if advice := _broken_plugin(error):
        return advice, 2
    if isinstance(error, EXPECTED):
        return safe(explain(error)), 2
    if isinstance(error, MemoryError):
        return f"out of memory: {first_line(error)}", 2
    frames = traceback.extract_tb(error.__traceback__)
    place = keep_traceback(error, run_dir)
    what = safe(f"{type(error).__name__}: {first_line(error)}")
    culprit = _user_line(frames)
    if culprit:
        return (
            f"{culprit}: {what}\nthis component is not part of souping; the traceback is in {place}",
            2,
        )
    library = _library_at_fault(error, frames)
    if library:
        return (
            f"{library} cannot use a file or this request: {what}\nthe traceback is in {place}",
            2,
        )
    if USER_CODE:
        return f"{what}\na fault in souping or in {', '.join(USER_CODE.values())}: see {place}", 1
    return (
        f"sorry, this is a fault in souping: {what}\nplease report it with the traceback in {place}",
        1,
    )


def _user_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The line of the user's code that is to blame by a traceback, the innermost frame last; empty if there is none.

    It is the innermost line of a component. Without one, it is the innermost line outside libraries, unless that is
    souping's.
    """
    for frame in reversed(frames):
        if frame.filename in USER_CODE:
            return f"{USER_CODE[frame.filename]}, line {frame.lineno}"
    for frame in reversed(frames):
        file = Path(frame.filename)
        if not _is_library(file):
            return "" if PACKAGE in file.parents else f"{frame.filename}:{frame.lineno}"
    return ""


def _library_at_fault(error: Exception, frames: Sequence[traceback.FrameSummary]) -> str:
    """The library that cannot use a file or a request; empty if there is none.

    One of READERS is at fault if the exception is its own, wherever it was raised, or was raised in its code. Other
    libraries only if it was raised in their code: Hydra's and OmegaConf's own exceptions are EXPECTED.
    """
    raised_by = type(error).__module__.split(".")[0]
    if type(error) is Exception:
        # The Rust code of tokenizers raises the base class itself.
        raised_by = "tokenizers"
    if raised_by in READERS:
        return raised_by
    for name in (*READERS, "hydra", "nevergrad", "omegaconf"):
        if frames and f"/{name}/" in frames[-1].filename:
            return name
    return ""


def _broken_plugin(error: Exception) -> str:
    """A message on a plugin of Hydra's that cannot be imported, and how to remove it; empty if the error is another."""
    trace = "".join(traceback.format_exception(error))
    places = PLUGIN.findall(trace)
    if "_scan_all_plugins" not in trace or not places:
        return ""
    folder, name = places[-1]
    remedy = f"remove it from {folder}"
    for package in distributions():
        if any(file.parts[:2] == ("hydra_plugins", name) for file in package.files or ()):
            remedy = f"pip uninstall {package.name}"
    return safe(
        f"hydra_plugins.{name}: {type(error).__name__}: {first_line(error)}\n"
        f"Hydra imports every plugin that is installed, and this one fails: {remedy}"
    )


def _is_library(file: Path) -> bool:
    """Whether a line of a traceback is an installed package's or Python's own."""
    if PACKAGE in file.parents:
        return False
    installed = {"site-packages", "dist-packages"}.intersection(file.parts)
    return (
        not file.is_absolute()
        or bool(installed)
        or Path(sysconfig.get_path("stdlib")) in file.parents
    )


def keep_traceback(error: Exception, run_dir: Path | None) -> Path:
    """Write the whole traceback to a file in the run's folder, else to a temporary one; its path."""
    text = "".join(traceback.format_exception(error))
    if run_dir is not None:
        # The folder may be gone, or its disk full.
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
    # One of Hydra's errors, for a choice that is missing, is an OSError too.
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        key = key_of(str(error.filename)) if error.filename else ""
        if key:
            return f"{key}={error_text(error)}"
        return error_text(error)
    if wrong := _wrong_type(error):
        return wrong
    if isinstance(error, OverrideParseException):
        return _unreadable_override(str(error.override))
    if unknown := _unknown_choice(error):
        return unknown
    # `Could not override 'KEY'`, or `Error merging override KEY=x` for a key below a plain value, such as `store.path`.
    match = re.match(
        r"(?:Could not override '|Error merging override \+*(?=\w+\.))([^'=]+)", str(error)
    )
    if match and match[1] in COMMANDS and match[1] not in groups():
        return misplaced(match[1])
    if match and match[1] not in groups():
        return f"{match[1]} is not a key here{key_advice(match[1], _known_keys(error))}"
    return _library_message(error)


def _library_message(error: BaseException) -> str:
    """A message of Hydra's or OmegaConf's: its first two lines that help, or its first line and that of its cause."""
    # Beginnings of lines that do not help.
    remarks = (
        "full_key:",
        "object_type=",
        "reference_type=",
        "To append to your config",
        "See https",
        "Environment",
    )
    lines = stripped_lines(error)
    message = [line for line in lines if not line.startswith(remarks)][:2]
    if not message:
        message = [type(error).__name__]
    message[0] = message[0].rstrip(".")
    # Hydra's own error names the override, and its cause says what is wrong, unless it is only that a key is unknown.
    if len(message) == 1 and error.__cause__ is not None:
        cause = first_line(error.__cause__)
        if "Key '" not in cause:
            message.append(cause)
    return "\n".join(message)


def _unreadable_override(word: str) -> str:
    """A message on a word that Hydra cannot parse as an override."""
    if word in (*COMMANDS, "help"):
        return misplaced(word)
    # `souping.cli.job.opened` may have put two pluses in front of it.
    typed = word.removeprefix("++")
    if typed in TYPED:
        word = typed
    override = joined_override(TYPED if word in TYPED else sys.argv[1:], word)
    word = one_line(word)
    if override:
        return f"{word}: an override has no spaces: write {override}"
    if "=" not in word:
        return f"{word} is not an override: write KEY=VALUE"
    if fault := _bracket_fault(word.partition("=")[2]):
        return f"{word}: {fault}"
    return (
        f"cannot read the override {word}\n"
        "values with spaces, ( ) , = ~ # or letters beyond a to z need quotes inside the shell's own: "
        "'key=\"a (b)\"'"
    )


def _bracket_fault(value: str) -> str:
    """What is missing in a list or a mapping that cannot be read; empty if the fault is another one."""
    if value[:1] not in ("[", "{") and value[-1:] not in ("]", "}"):
        return ""
    # Quoted texts may hold brackets.
    bare = re.sub(r"\"[^\"]*\"|'[^']*'", "''", value)
    for opening, closing in ("[]", "{}"):
        if surplus := bare.count(opening) - bare.count(closing):
            return f"`{closing if surplus > 0 else opening}` is missing"
    if gap := re.search(r"[\]}']\s*([\[{'\w])", bare):
        return f"a comma is missing between {gap[0][0]} and {gap[1]}"
    return ""


def _wrong_type(error: BaseException) -> str:
    """A message on a root key's value that the schema refuses; empty if the error is another one."""
    cause = error.__cause__ or error.__context__
    if not isinstance(cause, ValidationError | ConfigTypeError):
        return ""
    key = str(cause.full_key)
    hint = hints_of(RunKeys).get(key)
    # From a file of settings, there is no override.
    value = repr(cause.value)
    if typed := re.match(r"Error merging override \+*([^=]+)=(.*)", str(error), re.DOTALL):
        name, value = typed.groups()
        # A name below a key that holds no mapping is no wrong value.
        if name != key:
            return ""
    wrong = setting_mismatch(cause.value, hint) if hint else ""
    return f"{key}={value:.60} {wrong}" if wrong else ""


def _unknown_choice(error: BaseException) -> str:
    """A message on a choice that a group lacks, with what to type instead; empty if the error is another one."""
    # Hydra's errors have these attributes, others do not.
    group, _, choice = str(getattr(error, "missing_cfg_file", "") or "").rpartition("/")
    # A path has slashes too.
    if group.split("/")[0] in groups():
        group, _, choice = f"{group}/{choice}".partition("/")
    options = getattr(error, "options", None)
    if not options and group in groups():
        options = choices(group)
    if not options:
        return ""
    options = [*options, *(each.name for each in installed_choices(group))]
    plus = "+" * (group == "experiment")
    near = nearest(choice, options)
    # A path or a number: a value for one of the group's keys.
    if not near or re.search("[./]", choice) or os.path.exists(choice):
        key = value_advice(group, choice)
        near = f"; for a value write {key}" if key else near
    lines = [f"{plus}{group}={choice}: there is no such choice{near}"]
    return "\n".join([*lines, f"choices: {', '.join(options)}", *package_faults()])


def _known_keys(error: BaseException) -> list[str]:
    """The known keys of the node in which OmegaConf did not know a key; empty if the error has no such node."""
    node = getattr(error.__cause__, "parent_node", None)
    if not isinstance(node, DictConfig):
        return []
    # These are not for users.
    return [str(key) for key in node if key not in ("_target_", "action", "hydra")]
