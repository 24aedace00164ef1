"""The demo: four agents on this machine as a real cluster, two programs on them, their answers checked, one agent killed.

`./dev demo` builds first and then runs this. With --keep the cluster stays up, and what to try next is printed.
"""

import argparse
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = Path(os.environ.get("HOLO_BUILD_DIR", ROOT / "build" / "release"))
HOLO = BUILD / "bin" / "holo"
EXAMPLES = BUILD / "bin" / "examples"
CLUSTER = "demo"
SUM = "677921401702298880"
TEXT_BYTES = 64 << 20
BOLD, DIM, RED, GREEN, PLAIN = ("\033[1m", "\033[2m", "\033[31m", "\033[32m", "\033[0m") if sys.stdout.isatty() else [""] * 5


def say(line=""):
    print(line, flush=True)


def headline(text):
    say(f"\n{BOLD}{text}{PLAIN}")


class Demo:
    def __init__(self, keep):
        self.keep = keep
        self.env = dict(os.environ)
        self.scratch = Path(tempfile.mkdtemp(prefix="holo-demo-"))
        if not keep:  # Nothing of this person's own is touched.
            self.env |= {"XDG_STATE_HOME": str(self.scratch / "state"), "XDG_RUNTIME_DIR": str(self.scratch / "run")}
            (self.scratch / "run").mkdir(mode=0o700)
        self.up = False

    def run(self, *command, quiet=False, **options):
        """Runs a command, shows its lines indented, returns its standard output. Anything but 0 ends the demo."""
        if not quiet:
            say(f"  {DIM}$ {' '.join(Path(str(c)).name if '/' in str(c) else str(c) for c in command)}{PLAIN}")
        began = time.monotonic()
        done = subprocess.run([str(c) for c in command], env=self.env, stdin=subprocess.DEVNULL, timeout=120,
                              stdout=options.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE, **options)
        out = (done.stdout or b"").decode(errors="replace")
        err = done.stderr.decode(errors="replace")
        if not quiet:
            for line in (err + out).splitlines()[:24]:
                say(f"    {line}")
        if done.returncode != 0:
            raise SystemExit(f"{RED}demo: {Path(str(command[0])).name} ended with {done.returncode}{PLAIN}\n{err if quiet else ''}")
        return out, time.monotonic() - began

    def start(self):
        headline("Four agents on this machine, as a real cluster")
        self.up = True
        _, seconds = self.run(HOLO, "dev", "up", "-n", "4", "--cluster", CLUSTER, quiet=True)
        self.run(HOLO, "status", "--cluster", CLUSTER)
        say(f"  up in {seconds:.1f} s; every link is encrypted (Noise, X25519 + ML-KEM-768)")

    def holo_run(self, *command, **options):
        return self.run(HOLO, "run", "--cluster", CLUSTER, "-n", "4", *command, **options)

    def quadratic_sum(self):
        headline("A hundred million numbers, filled and summed where they live")
        out, seconds = self.holo_run(EXAMPLES / "quadratic_sum")
        if out.strip() != SUM:
            raise SystemExit(f"{RED}demo: {out.strip()} is not {SUM}{PLAIN}")
        say(f"  {GREEN}right{PLAIN}: {SUM}, in {seconds:.1f} s")

    def wordcount(self):
        headline("The words of a real text, counted on four nodes, checked against coreutils")
        text = self.scratch / "text"
        size = gather_text(text)
        say(f"  {size / 1e6:.0f} MB of documentation found on this machine")
        counted = self.scratch / "counted"
        with counted.open("wb") as out:
            _, seconds = self.holo_run(EXAMPLES / "wordcount", text, stdout=out)
        reference = self.scratch / "reference"
        began = time.monotonic()
        with reference.open("wb") as out:
            subprocess.run(r"LC_ALL=C tr -cs 'A-Za-z0-9' '\n' < text | sed '/^$/d' | LC_ALL=C sort | uniq -c",
                           shell=True, cwd=self.scratch, stdout=out, check=True)
        if counted.read_bytes() != reference.read_bytes():
            raise SystemExit(f"{RED}demo: the counts differ from coreutils'{PLAIN}")
        lines = sum(1 for _ in counted.open("rb"))
        say(f"  {GREEN}right{PLAIN}: {lines} words, byte for byte those of coreutils; {seconds:.1f} s here, "
            f"{time.monotonic() - began:.1f} s there")

    def kill_one(self):
        headline("One agent killed, and every page read back")
        self.holo_run(EXAMPLES / "pages", "write", "kept", "128", "2")
        self.run(HOLO, "dev", "kill", "2", "--cluster", CLUSTER)
        out, seconds = self.holo_run(EXAMPLES / "pages", "check", "kept")
        say(f"  {GREEN}right{PLAIN}: replication 2 kept all of it; read in {seconds:.1f} s")

    def end(self):
        if self.keep and self.up:
            headline("The cluster stays up. Try:")
            for line in ("holo status --watch", "holo regions show kept", "holo dev restart 2 --cluster demo",
                         f"holo run -n 4 {EXAMPLES / 'quadratic_sum'}", "holo dev down --cluster demo"):
                say(f"  {line}")
            say(f"  (holo is {HOLO})")
        elif self.up:
            self.run(HOLO, "dev", "down", "--cluster", CLUSTER, quiet=True)
        shutil.rmtree(self.scratch, ignore_errors=True)


def gather_text(into):
    """Concatenates licences and documentation of this machine, at most TEXT_BYTES; returns the size."""
    size = 0
    with into.open("wb") as out:
        for folder in ("/usr/share/common-licenses", "/usr/share/doc", "/usr/share/perl", "/usr/lib/python3"):
            for path in sorted(Path(folder).rglob("*")):
                if size >= TEXT_BYTES:
                    return size
                if not path.is_file() or path.is_symlink() or not re.search(r"copyright|changelog|README|NEWS|\.(txt|html|pod|py)|/[A-Z]+-", str(path)):
                    continue
                try:
                    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                except OSError:
                    continue
                out.write(data[: TEXT_BYTES - size])
                size += min(len(data), TEXT_BYTES - size)
    return size


def main():
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    demo = Demo(parser.parse_args().keep)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        demo.start()
        demo.quadratic_sum()
        demo.wordcount()
        demo.kill_one()
        headline(f"Done in {time.monotonic() - began:.0f} s")
    finally:
        demo.end()


if __name__ == "__main__":
    main()
