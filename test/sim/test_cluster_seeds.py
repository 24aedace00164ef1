"""Whole simulated clusters over many seeds, and the same seed twice. HOLO_SIM_SEEDS: how many (docs/simulation.md)."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HOLO_BUILD_DIR", ROOT / "build" / "release"))
SIM = BUILD / "bin" / "holo-sim"
SEEDS = {"release": 1000, "dev": 30}


def sim(*arguments, timeout=550):
    return subprocess.run([SIM, "--scenario", "cluster", *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def test_every_seed_keeps_every_promise():
    seeds = int(os.environ.get("HOLO_SIM_SEEDS", SEEDS.get(BUILD.name, 10)))
    done = sim("--seeds", seeds)
    print(done.stdout, file=sys.stderr)
    assert done.returncode == 0, done.stdout
    words = done.stdout.split()
    for what in ("crashes", "pauses", "splits", "one_way_cuts", "full_disks", "bad_disks", "wall_jumps", "joins", "leaves", "deaths"):
        assert what in words and int(words[words.index(what) + 1]) > 0, f"no {what}"


def test_a_seed_gives_the_same_trace_byte_for_byte():
    first, second = sim("--seed", 11, "--trace", "--seconds", 10), sim("--seed", 11, "--trace", "--seconds", 10)

    def story(out):  # All but the last line, which says how long it took.
        return out[: out.rstrip().rfind("\n")]

    assert first.returncode == 0 and first.stdout.count("\n") > 1000
    assert story(first.stdout) == story(second.stdout)
    other = sim("--seed", 12, "--trace", "--seconds", 10)
    assert story(other.stdout) != story(first.stdout)
