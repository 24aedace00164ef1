#!/usr/bin/env python3
"""Holds docs/spec.md to the tests: each promise has a number of its own, and the tests that it names are there.

    tools/check_spec.py [ROOT]

Prints one line per breach (`docs/spec.md:line: what is wrong`), exit 1 when there is any.
"""

import re
import sys
from pathlib import Path

ROW = re.compile(r"\| (\d+\.\d+) \|.*\| ([^|]+) \|$")
GOOGLE_TEST = re.compile(r"\b(?:TEST|TEST_F|TEST_P|RC_GTEST_PROP|RC_GTEST_FIXTURE_PROP)\(\s*(\w+),\s*(\w+)")
NAME = re.compile(r"`([^`]+)`|\bsim:(\w+)")


def google_tests(root):
    """{suite: {names}} of every *_test.cc."""
    found = {}
    for path in (root / "src").rglob("*_test.cc"):
        for suite, name in GOOGLE_TEST.findall(path.read_text()):
            found.setdefault(suite, set()).add(name)
    return found


def in_file(root, file, name):
    """`file`::A::b, where A may be a class."""
    path = root / file
    text = path.read_text() if path.is_file() else ""
    return all(re.search(rf"^\s*(?:def|class) {part}\b", text, re.M) for part in name.split("::"))


def check_row(root, suites, scenarios, held_by):
    file = ""
    for quoted, scenario in NAME.findall(held_by):
        if scenario:
            if f'"{scenario}"' not in scenarios:
                yield f"no scenario sim:{scenario}"
        elif "::" in quoted:
            named, _, name = quoted.partition("::")
            file = named or file  # `::name` is in the file named before it.
            if not in_file(root, file, name):
                yield f"no test {file}::{name}"
        elif match := re.fullmatch(r"(?:\w+/)?(\w+)\.(\w+|\*)", quoted):
            names = suites.get(match[1], set())
            if not names or match[2] not in {*names, "*"}:
                yield f"no test {quoted}"
        elif not re.fullmatch(r"(?:.*/)?test_\w+\.py", quoted) or not (root / quoted).is_file():
            yield f"no test {quoted}"


def check(root):
    spec = root / "docs/spec.md"
    suites = google_tests(root)
    scenarios = (root / "src/sim/scenarios.cc").read_text()
    breaches, numbers = [], set()
    for at, line in enumerate(spec.read_text().splitlines(), 1):
        if not (row := ROW.fullmatch(line.strip())):
            continue
        number, held_by = row.groups()
        problems = list(check_row(root, suites, scenarios, held_by))
        if number in numbers:
            problems.append(f"{number} stands here twice")
        numbers.add(number)
        if not NAME.search(held_by) and "[pending]" not in line:
            problems.append(f"nothing holds {number}, and it is not [pending]")
        breaches += [f"docs/spec.md:{at}: {problem}" for problem in problems]
    return breaches if numbers else ["docs/spec.md:1: no promise in it"]


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
