#!/usr/bin/env python3
"""Runs the fuzz targets that are built, and says what they did.

    tools/fuzz.py BUILD_DIR [--seconds N | --runs N] [--keep] [--coverage] [NAME...]

Each target begins with the inputs kept in fuzz/corpus/NAME and with what earlier runs found (BUILD_DIR/found/NAME), for
N seconds (20) or N executions. One line for each: executions, executions a second, edges and features reached, inputs.
--keep: the fewest small inputs that reach all of it become fuzz/corpus/NAME/seed-*, to be committed.
--coverage: no fuzzing; which edges of which source files the inputs reach.
NAME: part of a target's name. Exit 1 when a target found something: the input lies in BUILD_DIR, and is named.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT_BYTES = 40_000  # Of one target's kept inputs.
KEPT_INPUTS = 150
LONGEST_INPUT = {"control_command_fuzz": 4096, "memory_fuzz": 4096, "handshake_fuzz": 2048}
DEFAULT_LONGEST = 512


def positive(text):
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f'a number from 1 up, not "{text}"')
    return int(text)


def corpus_of(name):
    """The stubbed programs share the inputs of those with cryptography."""
    return ROOT / "fuzz/corpus" / name.replace("_stub_fuzz", "_fuzz")


def command(program, build, *more):
    longest = LONGEST_INPUT.get(program.name, DEFAULT_LONGEST)
    return [
        program,
        f"-max_len={longest}",
        "-timeout=20",
        "-rss_limit_mb=2048",
        # The scheduler's bookkeeping is a fifth of the time where an execution reaches much.
        f"-entropic={int('packet_session' not in program.name)}",
        f"-artifact_prefix={build}/{program.name}-",
        *more,
    ]


def fuzz(program, build, limit):
    """Runs one target; its last words, or None when it found something."""
    found = build / "found" / program.name
    found.mkdir(parents=True, exist_ok=True)
    corpus_of(program.name).mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command(program, build, "-print_final_stats=1", limit, found, corpus_of(program.name)),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    log = done.stderr
    (build / f"{program.name}.log").write_text(log)
    if done.returncode:
        return None

    def last(pattern):
        matches = re.findall(pattern, log)
        return matches[-1] if matches else "0"

    return {
        "executions": int(last(r"stat::number_of_executed_units: +(\d+)")),
        "a second": int(last(r"stat::average_exec_per_sec: +(\d+)")),
        "edges": int(last(r" cov: (\d+)")),
        "features": int(last(r" ft: (\d+)")),
        "inputs": int(last(r" corp: (\d+)/")),
    }


def keep(program, build):
    """Makes the kept inputs anew: few and small ones that reach what all of them reach."""
    corpus = corpus_of(program.name)
    (build / "found" / program.name).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        least = Path(folder)
        subprocess.run(
            command(program, build, "-merge=1", least, build / "found" / program.name, corpus),
            capture_output=True,
            check=True,
        )
        inputs = {f"seed-{hashlib.sha256(p.read_bytes()).hexdigest()[:12]}": p.read_bytes() for p in least.iterdir()}
    if not program.name.endswith("_stub_fuzz"):  # Those come before the others, and theirs are added to.
        for old in corpus.glob("seed-*"):
            if re.fullmatch(r"seed-[0-9a-f]{12}", old.name):
                old.unlink()
    # When they are too many some are left out, whichever; the shortest alone would be the shallow ones.
    total = 0
    for name, data in sorted(inputs.items())[:KEPT_INPUTS]:
        total += len(data)
        if total > KEPT_BYTES:
            break
        (corpus / name).write_bytes(data)


def coverage(program, build):
    """{source file: [functions reached, functions, edges reached, edges]} of our sources."""
    inputs = [str(p) for p in (corpus_of(program.name), build / "found" / program.name) if p.is_dir()]
    done = subprocess.run(
        command(program, build, "-runs=0", "-print_coverage=1", *inputs),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    out = defaultdict(lambda: [0, 0, 0, 0])
    for line in done.stderr.splitlines():
        match = re.match(r"(?:UN)?COVERED_FUNC: hits: \d+ edges: (\d+)/(\d+) .* (\S+?):\d+", line)
        if match and (place := re.search(r"\bsrc/(?!.*\.pb\.)(\S+)", match[3])):
            row = (int(match[1]) > 0, 1, int(match[1]), int(match[2]))
            out[place[1]] = [a + b for a, b in zip(out[place[1]], row, strict=True)]
    return out


def show_coverage(program, build):
    files = coverage(program, build)
    modules = defaultdict(lambda: [0, 0, 0, 0])
    for name, row in files.items():
        for key in (name.rsplit("/", 1)[0], "all"):
            modules[key] = [a + b for a, b in zip(modules[key], row, strict=True)]
    print(f"{program.name}: functions, and edges (those into a sanitizer's report, which nothing should reach, count too)")
    for kind, rows in (("module", modules), ("file", files)):
        for name, (functions, all_functions, edges, all_edges) in sorted(rows.items()):
            if functions:
                print(f"  {kind:<7} {name:<44} {functions:>5} of {all_functions:>5} {edges:>7} of {all_edges:>7}")


def main():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("build", type=Path)
    parser.add_argument("--seconds", type=positive, default=20)
    parser.add_argument("--runs", type=positive)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_intermixed_args()
    build = options.build.resolve()
    programs = sorted(p for p in (build / "fuzz").glob("*_fuzz") if os.access(p, os.X_OK))
    programs = [p for p in programs if not options.names or any(n in p.name for n in options.names)]
    if not programs:
        sys.exit("there is no such fuzz target")
    if options.coverage:
        for program in programs:
            show_coverage(program, build)
        return 0

    limit = f"-runs={options.runs}" if options.runs else f"-max_total_time={options.seconds}"
    failed, total = [], 0
    print(f"{'target':<28} {'executions':>12} {'a second':>9} {'edges':>7} {'features':>9} {'inputs':>7}")
    for program in programs:
        stats = fuzz(program, build, limit)
        if stats is None:
            failed.append(program.name)
            reasons = [p for p in build.glob(f"{program.name}-*") if not p.name.endswith(".log")]
            newest = max(reasons, key=lambda p: p.stat().st_mtime, default=None)
            print(f"{program.name:<28} FOUND SOMETHING: {newest}; {build / program.name}.log says what", flush=True)
            continue
        total += stats["executions"]
        print(
            f"{program.name:<28} {stats['executions']:>12,} {stats['a second']:>9,} {stats['edges']:>7,} "
            f"{stats['features']:>9,} {stats['inputs']:>7,}",
            flush=True,
        )
    print(f"{total:,} executions, {len(failed)} targets with a finding")
    if options.keep and not failed:
        # A target's inputs are made anew before those that its stubbed one adds.
        for program in sorted(programs, key=lambda p: p.name.endswith("_stub_fuzz")):
            keep(program, build)
    return 1 if failed else 0


if __name__ == "__main__":
    if not shutil.which("llvm-symbolizer"):  # Debian's has the version in its name.
        os.environ.setdefault("ASAN_SYMBOLIZER_PATH", "/usr/bin/llvm-symbolizer-19")
    sys.exit(main())
