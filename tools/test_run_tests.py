"""The runner counts what it should, also when a test program dies or hangs."""

import importlib.util
import stat
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("run_tests", Path(__file__).with_name("run_tests.py"))
run_tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_tests)

REPORT = """<testsuites><testsuite name="S">
<testcase name="a" classname="S" status="run" result="completed"/>
<testcase name="b" classname="S" status="run" result="completed"><failure message="x"/></testcase>
<testcase name="c" classname="S" status="run" result="skipped"><skipped message="x_test.cc:3&#x0A;no GPU here"/></testcase>
<testcase name="d" classname="S" status="notrun" result="suppressed"/>
</testsuite></testsuites>"""


@pytest.fixture
def program(tmp_path):
    """Makes a Program out of a shell script; $REPORT is where its report goes."""

    def make(script, deadline_s=10):
        path = tmp_path / "x_test"
        path.write_text(f"#!/bin/sh\nREPORT={tmp_path}/report.xml\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return run_tests.Program("x_test", [str(path)], tmp_path / "report.xml", deadline_s)

    return make


def test_every_test_is_counted_with_the_reason_of_a_skip(program):
    outcome = run_tests.run(program(f"cat > $REPORT <<'X'\n{REPORT}\nX\nexit 1"))
    assert (outcome.passed, outcome.failed, outcome.skipped) == (1, ["S.b"], [("S.c", "no GPU here")])


def test_a_crash_is_a_failure_and_names_the_test(program):
    outcome = run_tests.run(program("echo '[ RUN      ] S.a\n[       OK ] S.a (0 ms)\n[ RUN      ] S.b'; kill -SEGV $$"))
    assert (outcome.passed, outcome.failed) == (1, ["(killed by SIGSEGV in S.b)"])


def test_a_hang_is_ended_with_all_its_children_and_is_a_failure(program):
    outcome = run_tests.run(program("echo '[ RUN      ] S.a'; sleep 60 & sleep 60", deadline_s=0.3))
    assert outcome.failed == ["(no end within 0 s in S.a)"]
    assert outcome.seconds < 10


def test_a_bad_exit_after_good_tests_is_a_failure(program):
    good = REPORT.replace('<failure message="x"/>', "")
    outcome = run_tests.run(program(f"cat > $REPORT <<'X'\n{good}\nX\nexit 23"))
    assert (outcome.passed, outcome.failed) == (2, ["(exit 23 after its tests)"])
