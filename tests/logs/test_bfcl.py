"""What the items of BFCL's logs share, and its overall accuracy by version."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from souping.core.groups import groups_of
from souping.core.types import UserError
from souping.logs.bfcl_average import categories_of, coefficients_of, overall
from souping.logs.bfcl_items import FILE_ITEMS, MULTI_TURN, shared_content
from souping.logs.match import Matched, matched
from souping.logs.sources import read_logs
from tests.support.bfcl_logs import calls, variants, write_project


def groups(common: Matched) -> dict[str, str]:
    group_of = dict[str, str]()
    for (metric,) in common.metrics.values():
        group_of.update(zip(metric.items, metric.groups, strict=True))
    return group_of


class TestGroups:
    def test_variants_of_a_scenario_are_one_group_in_whatever_files_and_whoever_solves_them(
        self, tmp_path: Path
    ) -> None:
        files = variants(MULTI_TURN[:3], 4)
        logs = {
            name: read_logs(write_project(tmp_path / name, files, failed))
            for name, failed in (("a", ["multi_turn_base_1"]), ("b", []))
        }
        group_of = groups(matched(logs))
        assert set(Counter(group_of.values()).values()) == {3}
        assert group_of["multi_turn_base_2"] == group_of["multi_turn_miss_param_2"]

    def test_a_function_document_joins_items_that_failed_in_different_logs(
        self, tmp_path: Path
    ) -> None:
        files = {
            "simple_python": calls("simple_python", ["f", "g", "h"]),
            "multiple": calls("multiple", ["g", "f"]),
        }
        failures = {"a": ["simple_python_0", "simple_python_1"], "b": ["multiple_1"]}
        logs = {
            name: read_logs(write_project(tmp_path / name, files, failed))
            for name, failed in failures.items()
        }
        group_of = groups(matched(logs))
        assert group_of["simple_python_0"] == group_of["multiple_1"]
        # nobody failed multiple_0, so its document is not known; it adds nothing to a difference
        assert Counter(group_of.values()).most_common(2)[1][1] == 1
        assert groups(matched(dict(reversed(logs.items())))).keys() == group_of.keys()

    def test_an_entry_that_is_no_object_says_nothing(self, tmp_path: Path) -> None:
        project = write_project(tmp_path, {"multiple": calls("multiple", ["f", "f"])}, [])
        (log,) = read_logs(project)
        assert log.shared == {"multiple_0": (), "multiple_1": ()}
        assert list(shared_content("multi_turn_base_3", {"question": []})) == ["story multi_turn 3"]
        assert list(shared_content("simple_0", {"function": {"name": "f"}})) == [
            'function {"name": "f"}'
        ]

    def test_a_field_to_group_by_is_refused(self, tmp_path: Path) -> None:
        project = write_project(tmp_path, {"multiple": calls("multiple", ["f", "g"])}, [])
        with pytest.raises(UserError, match="--group and --category"):
            read_logs(project, group="subject")

    @pytest.mark.slow
    def test_logs_in_which_all_fail_have_the_groups_of_the_evaluator(
        self, bfcl: Any, tmp_path: Path
    ) -> None:
        from souping.evaluate.bfcl.bfcl_benchmark import _entries, _groups

        files = {}
        for name in FILE_ITEMS:
            rows = _entries(bfcl.data / f"BFCL_v4_{name}.json")
            files[name] = {row["id"]: row for row in rows}
        evaluated = Counter(_groups(bfcl.data).values())
        (log,) = read_logs(write_project(tmp_path, files, list(chain(*files.values()))))
        logged = Counter(groups_of(log.shared.items()).values())
        assert sorted(logged.values()) == sorted(evaluated.values())


class TestOverall:
    def test_version_4_by_hand(self) -> None:
        shares = coefficients_of(overall("v4"), set(categories_of(overall("v4"))))
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["simple_java"] == pytest.approx(0.1 / 4 / 3)
        assert shares["live_multiple"] == pytest.approx(0.1 * 1053 / 1351)
        assert shares["live_irrelevance"] == pytest.approx(0.05)
        assert shares["multi_turn_base"] == pytest.approx(0.3 / 4)
        assert shares["memory_kv"] == pytest.approx(0.4 / 6)
        assert "live_relevance" not in shares

    def test_version_3_is_the_mean_of_three_parts(self) -> None:
        shares = coefficients_of(overall("v3"), FILE_ITEMS)
        assert shares["live_relevance"] == pytest.approx(16 / 2251 / 3)
        assert shares["multi_turn_base"] == pytest.approx(1 / 12)

    def test_the_weight_of_what_is_absent_goes_to_its_siblings(self) -> None:
        shares = coefficients_of(
            overall("v4"), {"multi_turn_base", "multi_turn_miss_func", "irrelevance"}
        )
        assert shares == pytest.approx(
            {"multi_turn_base": 0.375, "multi_turn_miss_func": 0.375, "irrelevance": 0.25}
        )

    def test_an_unknown_version_is_refused(self) -> None:
        with pytest.raises(UserError, match="v9"):
            overall("v9")
