"""Rules of the scorers case by case: calls in three languages, their types and values; texts and numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from souping.core.types import Item, UserError, UserScorer
from souping.evaluate.scoring import (
    call_reader,
    calls,
    check_item,
    chosen_letter,
    last_number,
    score,
    user_scores,
)
from souping.evaluate.scoring.call_reader import depth, number, pieces, unescape
from souping.evaluate.scoring.calls import Unparsable, parse_calls, plain_value, standardise


def item(answer: Any, scorer: str = "call", language: str = "python", **more: Any) -> Item:
    return Item(
        id="q", category="c", prompt="p", answer=answer, scorer=scorer, language=language, **more
    )


def right(answer: Any, output: str, language: str = "python") -> bool:
    return score(item(answer, "call", language), output) == 1.0


def typed(kind: str, allowed: list[Any], **more: Any) -> dict[str, Any]:
    """An answer whose one parameter has this documented type."""
    properties = {"a": {"type": kind, **more}}
    docs = [{"name": "f", "parameters": {"properties": properties, "required": ["a"]}}]
    return {"calls": [{"f": {"a": allowed}}], "functions": docs}


@pytest.mark.parametrize(
    ("kind", "allowed", "source", "expected"),
    [
        ("boolean", True, "true", True), ("boolean", True, "false", False), ("boolean", True, '"true"', False),
        ("integer", 5, "5", True), ("integer", 5, "5L", False), ("integer", 5, "+5", False),
        ("integer", -5, "-5", True),
        ("byte", 5, "5", True), ("short", 5, "5.0", False), ("long", 5, "5L", True), ("long", 5, "5l", True),
        ("float", 2.5, "2.5f", True), ("float", 2.5, "2.5", False), ("double", 2.5, "2.5", True),
        ("double", 2.0, "2", True), ("double", 2.5, "2.5d", False), ("double", 2500.0, "2.5e3", True),
        ("double", 5.0, "5.", False), ("double", 0.5, ".5", False), ("integer", 1000, "1_000", False),
        ("char", "x", "'x'", True), ("String", "a b", '"A-b"', True), ("String", "5", "5", True),
        ("ArrayList", [1, 2], "new ArrayList<>(Arrays.asList(1, 2))", True),
        ("ArrayList", [1, 2], "Arrays.asList(1, 2)", False), ("ArrayList", [1, 2], "new int[]{1, 2}", False),
        ("Array", [1, 2], "new int[]{1, 2}", True), ("Array", [1, 2], "new int[]{2, 1}", False),
        ("HashMap", {"k": [1]}, 'new HashMap<>(Map.of("k", 1))', True),
        ("HashMap", {"k": [1]}, 'Map.of("k", 1)', False),
        ("Set", [1, 2], "new HashSet<>(Set.of(1, 2))", True), ("Set", [1, 2], "12", False),
    ],
)  # fmt: skip
def test_a_value_of_java_is_right_only_in_its_type(
    kind: str, allowed: Any, source: str, expected: bool
) -> None:
    assert right(typed(kind, [allowed]), f"f(a={source})", "java") is expected


@pytest.mark.parametrize(
    ("kind", "allowed", "source", "expected"),
    [
        ("Boolean", True, "true", True), ("Boolean", False, "true", False), ("integer", 5, "5", True),
        ("integer", 5, "5n", False), ("Bigint", 5, "5n", True), ("Bigint", 5, "5", False), ("float", 5.0, "5", True),
        ("float", 2.5, "2.5", True), ("float", 5.0, "5n", False), ("String", "x", "'x'", True),
        ("dict", {"k": [1]}, "{k: 1}", True),
        ("array", [1, "a"], "[1, 'a']", True), ("array", [1], "[1, 2]", False),
    ],
)  # fmt: skip
def test_a_value_of_javascript_is_right_only_in_its_type(
    kind: str, allowed: Any, source: str, expected: bool
) -> None:
    assert right(typed(kind, [allowed]), f"f(a={source})", "javascript") is expected


@pytest.mark.parametrize(
    ("allowed", "element", "output", "expected"),
    [
        ([1, 2], "integer", "f(a=[1, 2])", True), ([1, 2], "integer", "f(a=[1, 2.0])", False),
        ([1.0], "float", "f(a=[1])", False), ([], "integer", "f(a=[])", True), ([], "integer", "f(a=[1])", False),
        ([1, 2.5], "float", "f(a=[1, 2.5])", True), ([1, 2.5], "float", "f(a=[1.0, 2.5])", True),
        ([1, 2.5], "float", "f(a=[1.0, 2])", False), ([1.5, 2], "float", "f(a=[1.5, 2])", False),
    ],
)  # fmt: skip
def test_elements_have_the_documented_type(
    allowed: list[Any], element: str, output: str, expected: bool
) -> None:
    answer = typed("array", [allowed], items={"type": element})
    assert right(answer, output) is expected


@pytest.mark.parametrize(
    "output",
    ["f(a=1)", "var x = f(a=1);", "int x = f(a=1)", "x = f(a=1);", "return f(a=1);", "{ f(a=1); }",
     "Object o = (Object) f(a=1);", "[var x = f(a=1)]"],
)  # fmt: skip
def test_the_first_call_of_a_java_statement_counts(output: str) -> None:
    assert right(typed("integer", [1]), output, "java")
    assert not right(typed("integer", [1]), output.replace("1", "2"), "java")
    assert not right(typed("integer", [1]), f"const x = {output}", "javascript")


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_two_calls_where_one_is_expected_are_wrong(language: str) -> None:
    """BFCL takes the first."""
    for output in ("f(a=1); f(a=1)", "f(a=1); g(b=2)", "f(a=1), f(a=1)"):
        assert not right(typed("integer", [1]), output, language)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ("new X(\n1,\n  2)", True), ("new X(\r\n1,\t2)", True), ("new X(1, 2)", True), ("new X(\n2, 1)", False),
        ("new X(\n1, 2, g(\n))", False),
    ],
)  # fmt: skip
def test_line_breaks_between_the_tokens_of_java_do_not_count(value: str, same: bool) -> None:
    for kind in ("any", "String"):
        assert right(typed(kind, ["new X(1, 2)"]), f"f(a={value})", "java") is same
    assert right("f(a=new X(1, 2))", f"f(a={value})", "java") is same
    assert right(typed("any", ["new X(1, 2, g())"]), "f(a=new X(1,\n2, g()))", "java")
    # As in BFCL, a call as a value stays as written.
    assert not right(typed("any", ["new X(g(1))"]), "f(a=new X(g(\n1)))", "java")
    assert not right(typed("any", ["new X(1)"]), "f(a=new X(\n1))", "javascript")


def test_java_elements_are_read_by_their_documented_type() -> None:
    answer = typed("ArrayList", [[1, 2]], items={"type": "long"})
    assert right(answer, "f(a=new ArrayList<>(Arrays.asList(1L, 2L)))", "java")
    assert not right(answer, "f(a=new ArrayList<>(Arrays.asList(1, 2)))", "java")


def values(source: str, language: str) -> Any:
    (call,) = parse_calls(f"f(x={source})", language)
    return plain_value(call.arguments["x"])


@pytest.mark.parametrize(
    ("language", "source", "value"),
    [
        ("java", "new int[][]{{1, 2}, {3}}", [[1, 2], [3]]), ("java", "new int[]{}", []), ("java", "(1)", "(1)"),
        ("java", "new ArrayList<>(List.of())", []), ("java", "new HashSet<>(Set.of(1))", [1]),
        ("java", "new int[3]", "new int[3]"), ("java", "Map.of()", {}),
        ("java", 'Map.of("a", 1, "b", 2)', {"a": 1, "b": 2}),
        ("java", "new HashMap<>(List.of(1))", "new HashMap<>(List.of(1))"), ("java", "a.b.c()", "a.b.c()"),
        ("java", 'new ArrayList<String>() {{ add("x"); add("y"); }}', ["x", "y"]),
        ("java", 'new ArrayList<String>() {{ put("x"); }}', 'new ArrayList<String>() {{ put("x"); }}'),
        ("java", "new Point(1)", "new Point(1)"), ("java", "1 + 2", "1 + 2"), ("java", "x ? 1 : 2", "x ? 1 : 2"),
        ("java", "false", False), ("java", "-.5", -0.5), ("java", "1_000", 1000),
        ("javascript", "[]", []), ("javascript", "[1, , 2]", [1, 2]), ("javascript", "{}", {}),
        ("javascript", "{'a b': 1, c: [2], 3: null}", {"a b": 1, "c": [2], "3": None}),
        ("javascript", "{...x}", "{...x}"), ("javascript", "new Map()", "new Map()"), ("javascript", "a?.b", "a?.b"),
        ("javascript", "undefined", None), ("javascript", "!x", "!x"), ("javascript", "() => 1", "() => 1"),
        ("javascript", "(a, b) => a", "(a, b) => a"), ("java", "() -> 1", "() -> 1"),
        ("java", "(a, b) -> a", "(a, b) -> a"),
    ],
)  # fmt: skip
def test_values_of_java_and_javascript(language: str, source: str, value: Any) -> None:
    assert values(source, language) == value


@pytest.mark.parametrize(
    ("language", "source"),
    [
        ("java", "new ArrayList<>(1, )"), ("java", "()"), ("java", "(1, 2)"), ("java", "1 2"), ("java", "x ? 1"),
        ("javascript", "1 2"), ("javascript", "x ? 1"), ("javascript", "()"), ("java", "[1]"),
    ],
)  # fmt: skip
def test_text_that_is_no_expression_is_refused(language: str, source: str) -> None:
    with pytest.raises(Unparsable):
        parse_calls(f"f(x={source})", language)


@pytest.mark.parametrize("text", ["f(x y)(a=1)", "f(x ? 1).g(a=1)", "new F(1 2).g(a=1)"])
@pytest.mark.parametrize("language", ["java", "javascript"])
def test_text_before_a_call_must_be_an_expression_too(text: str, language: str) -> None:
    with pytest.raises(Unparsable):
        parse_calls(text, language)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("'a' + 'b'", "ab"), ("[1] + [2]", [1, 2]), ("2 ** 64", 2**64), ("7 // 2", 3), ("7 % 4", 3), ("7 - 2", 5),
        ("7 / 2", 3.5), ("-(3)", -3), ("+3", 3), ("not True", False), ("{'a': 1}", {"a": 1}), ("...", "..."),
        ("(10 ** 6) ** 2", 10**12), ("a[0]", "a[0]"), ("g(1)", "g(1)"), ("g(x=1)", {"g": {"x": 1}}),
    ],
)  # fmt: skip
def test_arithmetic_of_python_is_computed(source: str, value: Any) -> None:
    assert values(source, "python") == value


@pytest.mark.parametrize(
    "source",
    ["'a' - 'b'", "'a' * 3", "[1] - [1]", "2 ** 65", "(10 ** 6 + 1) ** 2", "x + 'a'", "-True", "~3", "not 1", "{**x}",
     "'a' + [1]"],
)  # fmt: skip
def test_operations_that_only_code_could_resolve_are_refused(source: str) -> None:
    with pytest.raises(Unparsable):
        parse_calls(f"f(x={source})")


def test_names_beside_the_arguments_are_wrong_except_in_python() -> None:
    answer = [{"f": {"a": [1]}}]
    assert right(answer, "f(x, a=1)")
    for language in ("java", "javascript"):
        assert not right(answer, "f(x, a=1)", language)
        assert right(answer, "f(2, a=1)", language)


def test_a_string_counts_as_it_is_written_too() -> None:
    for allowed in ("a\nb", "a\\nb"):
        assert right([{"f": {"a": [allowed]}}], 'f(a="a\\nb")', "java")
        assert right(typed("String", [allowed]), 'f(a="a\\nb")', "java")
    assert not right([{"f": {"a": ["a\\n"]}}], 'f(a="a\\nb")', "java")


def test_an_argument_may_be_left_out_only_where_the_answer_allows_it() -> None:
    optional = [{"f": {"a": [1], "b": [2, ""]}}]
    assert right(optional, "f(a=1)")
    assert right(optional, "f(a=1, b=2)")
    assert not right(optional, "f(a=1, b=3)")
    assert not right(optional, "f(b=2)")
    answer = typed("integer", [1, ""])
    assert not right(answer, "f()")
    assert right(answer, "f(a=1)")


def test_calls_are_paired_one_to_one() -> None:
    either = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}]
    assert right(either, "[f(a=1), f(a=2)]")
    assert right(either, "[f(a=1), f(a=1)]")
    assert not right(either, "[f(a=2), f(a=2)]")
    assert not right(either, "[f(a=1), f(a=1), f(a=1)]")


def test_an_output_is_read_up_to_8000_characters_and_40_brackets() -> None:
    assert parse_calls("f(a='" + "x" * (8000 - 7) + "')")
    with pytest.raises(Unparsable):
        parse_calls("f(a='" + "x" * (8000 - 6) + "')")
    assert depth("f(a=[[1], (2)], b='((((')") == 3
    assert depth(")(") == 0
    assert parse_calls("f(a=" + "[" * 39 + "]" * 39 + ")")
    with pytest.raises(Unparsable):
        parse_calls("f(a=" + "[" * 40 + "]" * 40 + ")")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", "int", 3), ("-3", "int", -3), ("+ 3", None, None), ("3L", "long", 3), ("3n", "long", 3),
        ("1_0", "int", 10),
        ("3.5", "double", 3.5), ("3.5f", "float", 3.5), ("3f", "float", 3.0), ("3F", "float", 3.0),
        ("3d", "double", 3.0),
        ("1e3", "double", 1000.0), ("-2.5e-1", "double", -0.25), ("x", None, None), ("3.5L", None, None),
    ],
)  # fmt: skip
def test_numbers_by_their_spelling(text: str, kind: str | None, value: float | None) -> None:
    literal = number(text)
    if kind is None:
        assert literal is None or literal.value == 3
        return
    assert literal is not None
    assert (literal.kind, literal.value) == (kind, value)


def test_texts_are_cut_at_calls_and_compared_without_punctuation() -> None:
    assert pieces('f(a="x, y"), g(b=[1, 2]); h()\ni()') == [
        'f(a="x, y")',
        "g(b=[1, 2])",
        "h()",
        "i()",
    ]
    assert pieces("[f(), g({a: 1})]") == ["f()", "g({a: 1})"]
    assert unescape(r"a\nb\tc\"d\q") == 'a\nb\tc"dq'
    assert standardise("A b,c./-_*^'d") == 'abc"d'


# Texts and numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x-4", 4), ("item-12", 12), ("(-4)", -4), ("a -4", -4), ("-", None), ("1.5.2", 1.5), ("2e400", None),
        ("1,234,56", 56), ("7 e", 7), ("\u22122.5", -2.5), ("+.5", 0.5),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text: str, value: float | None) -> None:
    found = last_number(text)
    assert found == value or (value is None and found is None)


@pytest.mark.parametrize(
    ("answer", "output", "expected"),
    [
        (1.0, "1.0000000001", 1.0), (1.0, "1.00000001", 0.0), (0, "0.0000000000001", 1.0), (0, "0.00000000001", 0.0),
        ("1,000", "1000", 1.0), ("-3", "3", 0.0),
    ],
)  # fmt: skip
def test_numbers_are_equal_to_nine_digits(answer: Any, output: str, expected: float) -> None:
    assert score(item(answer, "number"), output) == expected


@pytest.mark.parametrize("answer", ["1,00", "12,34", True, "inf", "nan", [1], None, ""])
def test_answers_that_are_no_number(answer: Any) -> None:
    with pytest.raises(UserError, match="finite number"):
        check_item(item(answer, "number"))


@pytest.mark.parametrize(
    ("answer", "output", "f1"),
    [
        ("red green blue", "red green", 2 * 2 / 5), ("red red", "red", 2 / 3), ("red", "blue", 0.0), ("the", "a", 1.0),
        ("the", "red", 0.0), (["red", "green blue"], "green", 2 / 3), ("Red!", "red", 1.0),
    ],
)  # fmt: skip
def test_f1_is_twice_the_common_words_over_all(answer: Any, output: str, f1: float) -> None:
    assert score(item(answer, "f1"), output) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        (r"\boxed{A} or \boxed{b}", "B"), ("answer: A. answer: B", "B"), ("C, because", "C"), ("Well, A or D", "D"),
        ("I. think", "I"), (r"\boxed{\text{C}}", "C"), ("option (d)", "D"), ("choice must be E", "E"), ("Zebra", ""),
    ],
)  # fmt: skip
def test_the_last_letter_of_the_surest_form(output: str, letter: str) -> None:
    assert chosen_letter(output) == letter


@pytest.mark.parametrize(
    ("scorer", "answer", "usable"),
    [
        ("exact", "", True), ("contains", "", False), ("exact", [1, "a"], True), ("exact", [True], False),
        ("choice", "(b).", True), ("choice", "bc", False), ("choice", ["A", "5"], False), ("exact", [1, None], False),
    ],
)  # fmt: skip
def test_answers_that_can_be_scored(scorer: str, answer: Any, usable: bool) -> None:
    if usable:
        check_item(item(answer, scorer))
        return
    with pytest.raises(UserError):
        check_item(item(answer, scorer))


@pytest.mark.parametrize("threads", [1, 3])
def test_own_scorers_score_equal_answers_once_and_stop_at_an_error(threads: int) -> None:
    called = list[str]()

    def length(own: Item, output: str) -> float:
        called.append(output)
        if output == "bad":
            raise ValueError("no")
        return len(output) / 10

    scorer = UserScorer(name="length", function=length, digest="d", threads=threads)
    asked = item("x", "length", user_scorer=scorer)
    outputs = ["ab", "abc", "ab"]
    known = {(asked.answer_digest, asked.scorer_digest, "abc"): 0.75}
    scores, error = user_scores([asked] * 3, outputs, known)
    assert (scores, error) == ([0.2, 0.75, 0.2], None)
    assert called == ["ab"]
    scores, error = user_scores([asked] * 2, ["bad", "abc"], known)
    assert isinstance(error, UserError)
    assert math.isnan(scores[0])
    assert scores[1] == 0.75


@pytest.mark.parametrize(
    ("value", "taken"),
    [(0, True), (1, True), (0.5, True), (-0.1, False), (1.1, False), ("1", False)],
)
def test_own_scores_are_from_0_to_1(value: Any, taken: bool) -> None:
    scorer = UserScorer(name="own", function=lambda own, output: value, digest="d", threads=1)
    asked = item("x", "own", user_scorer=scorer)
    if taken:
        assert score(asked, "y") == float(np.float64(value))
        return
    with pytest.raises(UserError, match="not 0 to 1"):
        score(asked, "y")


def test_an_answer_of_a_text_without_a_call_cannot_be_read() -> None:
    with pytest.raises(UserError, match="a text without a call"):
        check_item(item("[]"))
    with pytest.raises(UserError, match="call"):
        check_item(item(["f(a=1)", ""]))


def test_values_of_objects_in_an_answer_are_the_only_ones_allowed() -> None:
    answer = {"name": "f", "arguments": {"a": {"b": [1, {"c": 2}]}}}
    assert right(answer, "f(a={'b': [1, {'c': 2}]})")
    assert not right(answer, "f(a={'b': [1, {'c': 3}]})")
    assert not right(answer, "f(a={'b': [2, {'c': 2}]})")
    assert not right(answer, "f(a={'b': [1, {'d': 2}]})")
    assert not right(answer, "f(a={})")


def test_a_type_of_another_language_is_refused() -> None:
    with pytest.raises(UserError, match="'HashMap' is not known"):
        check_item(item(typed("HashMap", [{}]), language="javascript"))


def test_a_list_may_be_empty_where_it_may_be_left_out() -> None:
    answer = [{"f": {"a": [""], "b": [1]}}]
    assert right(answer, "f(a=[], b=1)")
    assert right(answer, "f(b=1)")
    assert not right(answer, "f(a=[1], b=1)")


def test_elements_are_free_where_a_variable_is_allowed() -> None:
    answer = typed("array", ["names", [1, 2]], items={"type": "integer"})
    assert right(answer, "f(a=[1, 2])")
    assert not right(answer, "f(a=[1, 3])")
    only_lists = typed("array", [[1, 2]], items={"type": "integer"})
    assert not right(only_lists, "f(a=['1', '2'])")


def test_the_limits_of_a_text_of_calls_are_those_of_earlier_scores() -> None:
    assert (calls.LONGEST_OUTPUT_CHARS, calls.DEEPEST, call_reader.MOST_CHECKS) == (
        8_000,
        40,
        2_000,
    )
