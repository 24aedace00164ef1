#!/usr/bin/env python3
"""Runs every test of a build and counts them one by one.

    tools/run_tests.py BUILD_DIR [PATTERN...]     PATTERN: part of a program's or test file's name

Test programs (GoogleTest) are those that BUILD_DIR/tests.txt names; test files (pytest) are test/**/test_*.py and
tools/test_*.py. The last line is `N passed, N failed, N skipped`; exit 1 when something failed, 2 when nothing ran.
"""

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UNIT_DEADLINE_S = 300  # For one test program.
FILE_DEADLINE_S = 600  # For one pytest file, which may start real clusters.
SHOWN_OUTPUT_LINES = 60  # Of a program that failed.
PASSED_TEST = re.compile(r"^\[ RUN      \] (\S+)\n(?:(?!\[ RUN ).*\n)*?\[       OK \] \1 .*\n", re.M)
TERMINAL = sys.stdout.isatty()


@dataclass
class Program:
    """One process that runs tests and leaves a JUnit file."""

    name: str
    command: list[str]
    report: Path
    deadline_s: float
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    output: str = ""
    seconds: float = 0.0


def colour(text, code):
    return f"\033[{code}m{text}\033[0m" if TERMINAL else text


def read_report(path):
    """The outcome that a JUnit file tells, of GoogleTest or pytest; None when it is not there or cut short."""
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        return None
    outcome = Outcome()
    for case in tree.iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed.append(name)
        elif skip is not None or case.get("result") == "skipped":
            # pytest gives the reason as `message`; GoogleTest puts "file:line\nreason" there.
            message = (skip.get("message") or skip.text or "") if skip is not None else ""
            lines = [line.strip() for line in message.splitlines() if line.strip()]
            outcome.skipped.append((name, lines[-1] if lines else "no reason given"))
        elif case.get("status") != "notrun":
            outcome.passed += 1
    return outcome


def read_cut_short(output, how):
    """The outcome of a GoogleTest program that died: what its output says had passed, and the test it died in."""
    outcome = Outcome(passed=len(re.findall(r"^\[       OK \]", output, re.M)))
    outcome.failed = re.findall(r"^\[  FAILED  \] ([\w./]+)(?:,.*)? \(\d+ ms\)$", output, re.M)
    last = re.findall(r"^\[ RUN      \] (\S+)", output, re.M)
    finished = re.findall(r"^\[ *(?:OK|FAILED|SKIPPED) *\] ([\w./]+)", output, re.M)
    where = f" in {last[-1]}" if last and last[-1] not in finished else ""
    outcome.failed.append(f"({how}{where})")
    return outcome


def run(program):
    """Runs `program` in a process group of its own, and ends all of the group at the deadline."""
    program.report.unlink(missing_ok=True)
    began = time.monotonic()
    how = ""
    with subprocess.Popen(
        program.command,
        cwd=ROOT,
        env={**os.environ, **program.env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            raw, _ = process.communicate(timeout=program.deadline_s)
        except subprocess.TimeoutExpired:
            how = f"no end within {program.deadline_s:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)
            raw, _ = process.communicate()
        status = process.returncode
    output = raw.decode(errors="replace")

    outcome = None if how else read_report(program.report)
    if outcome is None:
        if not how:
            how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit {status} without a report"
        outcome = read_cut_short(output, how)
    elif status not in (0, 5) and not outcome.failed:  # 5: pytest found no test.
        outcome.failed.append(f"(exit {status} after its tests)")
    outcome.output = output
    outcome.seconds = time.monotonic() - began
    return outcome


def find_programs(build, patterns):
    """(programs that may run side by side, programs that run alone)"""
    reports = build / "test-reports"
    reports.mkdir(parents=True, exist_ok=True)
    env = {
        "HOLO_BUILD_DIR": str(build),
        # A program that dies of a signal is to be seen to: some tests are about that.
        "ASAN_OPTIONS": "handle_segv=0:handle_sigbus=0:handle_abort=0",
        "TSAN_OPTIONS": f"suppressions={ROOT}/tools/tsan.supp:handle_segv=0:handle_sigbus=0:handle_abort=0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    unit = []
    for line in (build / "tests.txt").read_text().split():
        name, report = Path(line).name, reports / f"{Path(line).name}.xml"
        command = [line, f"--gtest_output=xml:{report}", "--gtest_color=no", "--gtest_brief=0"]
        unit.append(Program(name, command, report, UNIT_DEADLINE_S, env))

    alone = []
    for path in sorted([*ROOT.glob("test/**/test_*.py"), *ROOT.glob("tools/test_*.py")]):
        name = str(path.relative_to(ROOT))
        report = reports / (name.replace("/", "_") + ".xml")
        command = ["/usr/bin/python3", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider",
                   f"--junitxml={report}", name]  # fmt: skip
        alone.append(Program(name, command, report, FILE_DEADLINE_S, env))

    def wanted(program):
        return not patterns or any(pattern in program.name for pattern in patterns)

    return [p for p in unit if wanted(p)], [p for p in alone if wanted(p)]


def show(program, outcome):
    """One line for what went well, and the output of what did not."""
    mark = colour("FAILED", 31) if outcome.failed else colour("ok", 32) + "    "
    counts = f"{outcome.passed} passed"
    counts += f", {len(outcome.failed)} failed" if outcome.failed else ""
    counts += f", {len(outcome.skipped)} skipped" if outcome.skipped else ""
    print(f"  {mark} {program.name:<40} {counts:<28} {outcome.seconds:6.1f} s", flush=True)
    if outcome.failed:
        lines = PASSED_TEST.sub("", outcome.output).splitlines()
        if len(lines) > SHOWN_OUTPUT_LINES:
            log = program.report.with_suffix(".log")
            log.write_text(outcome.output)
            print(f"         ... the last {SHOWN_OUTPUT_LINES} lines of {log}")
        for line in lines[-SHOWN_OUTPUT_LINES:]:
            print(f"         {line}")


def main(build, patterns):
    side_by_side, alone = find_programs(build, patterns)
    total = Outcome()

    def add(program, outcome):
        show(program, outcome)
        total.passed += outcome.passed
        total.failed += [f"{program.name}: {name}" for name in outcome.failed]
        total.skipped += [(f"{program.name}: {name}", why) for name, why in outcome.skipped]

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        for program, outcome in zip(side_by_side, pool.map(run, side_by_side)):
            add(program, outcome)
    for program in alone:
        add(program, run(program))

    for name, why in total.skipped:
        print(f"  skipped {name}: {why}")
    for name in total.failed:
        print(f"  {colour('failed', 31)} {name}")
    print(f"{total.passed} passed, {len(total.failed)} failed, {len(total.skipped)} skipped")
    if total.failed:
        return 1
    return 0 if total.passed else 2


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
