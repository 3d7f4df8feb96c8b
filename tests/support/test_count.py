"""The signs of dense sentences, counted on small texts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.count import Comprehensions, is_nested, is_packed, measure, signs

TEXT = '''"""A module."""

# above a line
a, b = 1, 2  # beside it
c, d = (f(x) for x in pair)
e, g = f(a)
h = a if b else c
i = [x for x in a]
j = {y for x in a for y in x}
k = [[y for y in x] for x in a]
'''


@pytest.mark.parametrize(
    ("line", "packed"),
    [
        ("a, b = x, y", True),
        ("[a, b] = [x, y]", True),
        ("a, b = b, a", True),
        ("self.a, self.b = 0, 1", True),
        ("a, (b, c) = x, y", True),
        ("a, *b = x, y, z", True),
        ("a = b, c = x, y", True),
        ("a, b = (f(p) for p in ps)", True),
        ("a, b = f(p)", False),
        ("a, b = p", False),
        ("(a,) = [x for x in p]", False),
        ("a = x, y", False),
        ("a = b = 0", False),
        ("a: int = 0", False),
    ],
)
def test_an_assignment_is_packed_if_it_sets_several_values_at_once(line: str, packed: bool) -> None:
    (statement,) = ast.parse(line).body
    assert is_packed(statement) is packed


@pytest.mark.parametrize(
    ("line", "nested"),
    [
        ("[x for x in a]", False),
        ("[y for x in a for y in x]", False),
        ("[[y for y in x] for x in a]", True),
        ("[x for x in (y for y in a)]", True),
        ("{x: f(y for y in x) for x in a}", True),
        ("f([x for x in a], [x for x in b])", False),
    ],
)
def test_a_comprehension_is_nested_if_it_holds_another(line: str, nested: bool) -> None:
    nodes = ast.walk(ast.parse(line))
    assert any(is_nested(node) for node in nodes if isinstance(node, Comprehensions)) is nested


def test_signs_are_those_of_1000_code_lines() -> None:
    assert signs({"souping.a": TEXT}) == {
        "packed": round(2000 / 7, 1),
        "ternaries": round(1000 / 7, 1),
        "comprehensions": round(5000 / 7, 1),
        "comments": round(2000 / 7, 1),
        "nested": 1,
        "several_for": 1,
        "long_functions": [],
    }


@pytest.mark.parametrize(("additions", "names"), [(195, []), (205, ["souping.a:long"])])
def test_functions_above_400_tokens_are_named(additions: int, names: list[str]) -> None:
    body = " +\\\n        ".join(["1"] * additions)
    text = f'class A:\n    def long(self):\n        """Say."""\n        return {body}\n'
    assert signs({"souping.a": text})["long_functions"] == names


def test_each_room_has_its_signs(tmp_path: Path) -> None:
    for place in ("souping/core/a.py", "souping/plan/b.py", "tests/c.py"):
        file = tmp_path / place
        file.parent.mkdir(parents=True)
        file.write_text("def f():\n    raise E\n")
    (tmp_path / "souping/plan/b.py").write_text(f"{TEXT}\ndef f():\n    raise E\n")
    by_room = measure(tmp_path)["signs"]
    assert list(by_room) == ["souping", "core", "plan"]
    assert [by_room[name]["nested"] for name in by_room] == [1, 0, 1]
