"""./dev answers bad input with one line on standard error, and help with all of its commands."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def dev(*arguments):
    return subprocess.run([ROOT / "dev", *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_help_names_every_command():
    text = dev("help").stdout
    for command in ["demo", "test", "build", "bench", "sim", "fuzz", "lint", "fmt", "clean", "help"]:
        assert f"\n  {command} " in text


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["dmeo"], 'no command "dmeo"'),
        (["build", "--preset", "relaese"], 'no preset "relaese"'),
        (["fuzz", "soon"], 'not "soon"'),
        (["fuzz", "0"], 'not "0"'),
    ],
)
def test_bad_input_is_one_line_and_exit_1(arguments, what):
    done = dev(*arguments)
    assert done.returncode == 1
    assert what in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
