"""The rebuild command is one that Hydra's grammar and a shell take, whatever the models are called."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from souping.report.sections import rebuild


@pytest.mark.parametrize(
    "name",
    [
        "plain-1.2",
        "org/name@rev",
        "/a/b c",
        "it's",
        'a"b',
        "x,y",
        "a=(b)",
        "{c}",
        "$HOME",
        "back\\slash",
        "ends in \\",
        "a:b",
        "[d]",
    ],
)
def test_any_name_comes_back_out_of_the_command(name: str) -> None:
    command = rebuild({"recipe": {"ingredients": [name, "other"], "weights": [0.5, 0.5]}})
    overrides = shlex.split(command)[3:]
    assert overrides[0] == "+experiment=rebuild"
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(overrides)}
    names = [str(value) if not hasattr(value, "text") else value.text for value in parsed["pool.candidates"]]
    assert names == [name, "other"]


def test_one_selected_candidate_leaves_nothing_to_rebuild() -> None:
    report = {"recipe": {"ingredients": ["a"]}, "selection": {"ingredients": ["a"]}}
    assert rebuild(report) == ""
    assert rebuild({**report, "selection": {"ingredients": ["a", "b"]}}) != ""
