"""The promises name tests that exist, and a promise that does not is told where it stands."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("check_spec", Path(__file__).with_name("check_spec.py"))
check_spec = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_spec)


def breaches_of(tmp_path, *rows):
    files = {
        "docs/spec.md": "| # | promise | held by |\n|---|---|---|\n" + "\n".join(rows) + "\n",
        "src/sim/scenarios.cc": '{"storm", run_storm},\n',
        "src/base/base_test.cc": "TEST(Bytes, AreCounted) {\nRC_GTEST_PROP(Bytes, GoThereAndBack,\n  ()) {\n",
        "test/e2e/test_x.py": "class TestIt:\n    def test_works(self):\ndef test_ends():\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return check_spec.check(tmp_path)


def test_the_promises_of_this_tree_name_tests():
    breaches = check_spec.check(Path(__file__).resolve().parent.parent)
    if breaches:
        pytest.fail("\n".join(breaches), pytrace=False)


def test_names_that_are_there(tmp_path):
    rows = [
        "| 1.1 | x | `Bytes.AreCounted`, `All/Bytes.*`, sim:storm |",
        "| 1.2 | x | `test/e2e/test_x.py::TestIt::test_works`, `::test_ends`, `test/e2e/test_x.py`, `Bytes.GoThereAndBack` |",
        "| 1.3 | [pending] x | - |",
    ]
    assert breaches_of(tmp_path, *rows) == []


@pytest.mark.parametrize(
    "row, what",
    [
        ("| 1.1 | x | `Bytes.AreLost` |", "no test Bytes.AreLost"),
        ("| 1.1 | x | `Words.*` |", "no test Words.*"),
        ("| 1.1 | x | `test/e2e/test_x.py::test_works_not` |", "no test test/e2e/test_x.py::test_works_not"),
        ("| 1.1 | x | `test/e2e/test_x.py::test_ends`, `::test_begins` |", "no test test/e2e/test_x.py::test_begins"),
        ("| 1.1 | x | `test/e2e/test_y.py::test_ends` |", "no test test/e2e/test_y.py::test_ends"),
        ("| 1.1 | x | sim:calm |", "no scenario sim:calm"),
        ("| 1.1 | x | `somewhere` |", "no test somewhere"),
        ("| 1.1 | x | `test/e2e/test_y.py` |", "no test test/e2e/test_y.py"),
        ("| 1.1 | x | by hand |", "nothing holds 1.1, and it is not [pending]"),
        ("| 1.0 | x | sim:storm |", "1.0 stands here twice"),
    ],
)
def test_a_breach_is_told_with_its_line(tmp_path, row, what):
    assert breaches_of(tmp_path, "| 1.0 | x | sim:storm |", row) == [f"docs/spec.md:4: {what}"]


def test_a_specification_without_promises_is_none(tmp_path):
    assert breaches_of(tmp_path) == ["docs/spec.md:1: no promise in it"]
