"""Errors that carry their remedy."""

from __future__ import annotations

import pickle

import pytest

from souping.core.types import LateError, Missing, UserError
from souping.evaluate.bfcl import find_environment
from souping.runs.requirements import Requirement


def test_a_remedy_is_a_field_and_ends_the_message() -> None:
    error = UserError("no tool", fix="pip install tool", more="\nor do without")
    assert str(error) == "no tool: pip install tool\nor do without"
    assert str(UserError("no tool")) == "no tool"
    assert str(UserError("then `log in` again", fix="log in")) == "then `log in` again"


def test_a_remedy_stays_with_an_error_that_gets_a_place() -> None:
    error = UserError("no tool", fix="pip install tool").at("extra_benchmarks: side")
    assert (str(error), error.fix) == (
        "extra_benchmarks: side: no tool: pip install tool",
        "pip install tool",
    )
    assert Missing.from_error(error) == Missing(
        what="extra_benchmarks: side: no tool", fix="pip install tool"
    )


def test_a_remedy_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(LateError("no tool", fix="pip install tool", more="!")))
    assert isinstance(error, LateError)
    assert (str(error), error.what, error.fix) == (
        "no tool: pip install tool!",
        "no tool",
        "pip install tool",
    )


def test_no_command_is_read_out_of_a_sentence() -> None:
    text = "the item says pip install tool, and that is wrong"
    assert Missing.from_error(UserError(text)) == Missing(what=text)


def test_a_missing_package_or_disk_space_is_refused_with_its_remedy(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.raises(UserError, match="python -m venv") as refused:
        find_environment(tmp_path_factory.mktemp("empty"))
    assert str(refused.value) == Missing.from_error(refused.value).sentence()
    assert refused.value.fix.startswith("python -m venv")
    small = Requirement(kind="disk", where="a disk", sizes={"soup": 2}, have=1, fix="free some")
    assert small.lack().error().at("here").fix == "free some"
