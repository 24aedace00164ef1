"""What fuzzing may do without: cryptography, but in the fuzz presets alone."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MARKER = re.search(r'kMarker\[\] = "(.*)"', (ROOT / "fuzz/stub/stub.h").read_text())[1].encode()


def test_no_program_of_this_build_is_without_cryptography():
    build = Path(os.environ["HOLO_BUILD_DIR"])
    programs = [p for p in [*build.glob("bin/*"), *build.glob("test/*"), *build.glob("lib/*.a")] if p.is_file()]
    assert programs
    for program in programs:
        assert MARKER not in program.read_bytes(), program


def test_nothing_but_the_fuzz_programs_names_the_stub():
    files = subprocess.run(["git", "ls-files", "src", "include", "sim", "bench", "examples"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split()
    named = [f for f in files if re.search(r"HOLO_FUZZ_STUB|stub/stub\.h|fuzz/stub", (ROOT / f).read_text(errors="replace"))]
    assert named == []


@pytest.mark.parametrize("more", [["-DHOLO_TESTS=ON"], ["-DHOLO_TESTS=OFF", "-DHOLO_SANITIZE="]])
def test_it_cannot_be_switched_on_elsewhere(tmp_path, more):
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", "-DHOLO_FUZZ=ON", "-DHOLO_PCH=OFF", *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "for the fuzz presets alone" in " ".join(done.stderr.split())
