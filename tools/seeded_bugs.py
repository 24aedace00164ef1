#!/usr/bin/env python3
"""Puts one known mistake after the other into the code, and counts the seeds until the simulator finds each.

`./dev seeded-bugs` builds build/seeded and calls it. Exit 0: every mistake was found. docs/simulation.md keeps the table.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def names():
    text = (ROOT / "src" / "base" / "seeded_bugs.h").read_text()
    body = re.search(r"enum class SeededBug[^{]*\{(.*?)\}", text, re.S).group(1)
    return [n for n in re.findall(r"\w+", body) if n not in ("none", "count")]


def hunt(sim, number, seeds):
    """(seeds that it took, what broke) or None."""
    batch = 8
    for first in range(1, seeds + 1, batch):
        done = subprocess.run([sim, "--scenario", "cluster", "--bug", str(number), "--first-seed", str(first), "--seeds", str(batch)],
                              capture_output=True, text=True)
        found = re.findall(r"FAILED  cluster: (.*)\n +replay: .* --seed (\d+)", done.stdout)
        if found:
            what, seed = min(found, key=lambda f: int(f[1]))
            return int(seed), what
        if done.returncode != 0:
            raise SystemExit(f"seeded-bugs: {done.stdout}{done.stderr}")
    return None


def main():
    parser = argparse.ArgumentParser(prog="./dev seeded-bugs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=400, help="then it counts as not found")
    parser.add_argument("--sim", type=Path, default=ROOT / "build" / "seeded" / "bin" / "holo-sim")
    parser.add_argument("name", nargs="*")
    options = parser.parse_args()
    missed = 0
    print("| mistake | seeds | what the simulator says |\n|---|---|---|")
    for number, name in enumerate(names(), start=1):
        if options.name and name not in options.name:
            continue
        began = time.monotonic()
        found = hunt(options.sim, number, options.seeds)
        missed += found is None
        seeds, what = found or (f"not in {options.seeds}", "")
        print(f"| {name.replace('_', ' ')} | {seeds} | {what[:110]} |", flush=True)
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
