"""Running `holo` for tests: private XDG directories for each, and nothing left behind whatever happens.

The build under test is HOLO_BUILD_DIR (build/release without it).
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HOLO_BUILD_DIR", ROOT / "build" / "release"))
HOLO = BUILD / "bin" / "holo"
EXAMPLES = BUILD / "bin" / "examples"
PROBE = BUILD / "test" / "e2e" / "probe"

DONE, FAILED, USAGE = 0, 1, 2
MIB = 1 << 20


class Process(subprocess.Popen):
    """Ends with its `with` block: a test that fails must not wait for what it started."""

    def __exit__(self, *exception):
        if self.poll() is None:
            self.kill()
        super().__exit__(*exception)


def default_signals():
    """Tests that run in the background inherit an ignored SIGINT, and so would what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Home:
    """One person's directories, and every process that was started in them."""

    def __init__(self):
        # Short: a Unix socket's path has 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="holo-", dir="/tmp"))
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("HOLO_", "XDG_"))}
        self.env |= {
            "HOME": str(self.root),
            "XDG_STATE_HOME": str(self.root / "state"),
            "XDG_RUNTIME_DIR": str(self.root / "run"),
            "XDG_CONFIG_HOME": str(self.root / "config"),
        }

    def start(self, *command, **options):
        """A process of this home; the caller waits for it."""
        options.setdefault("env", self.env)
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("text", True)
        options.setdefault("preexec_fn", default_signals)
        return Process([str(c) for c in command], **options)

    def run(self, *command, timeout=60, env=None, **options):
        with self.start(*command, env=self.env | (env or {}), **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"no end within {timeout} s: {command}\n{out}\n{err}\n{self.logs()}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def holo(self, *arguments, **options):
        """`holo ARGUMENTS...`, whatever it returns."""
        return self.run(HOLO, *arguments, **options)

    def ok(self, *arguments, **options):
        """The standard output of `holo ARGUMENTS...`, which must return 0."""
        done = self.holo(*arguments, **options)
        assert done.returncode == DONE, f"holo {' '.join(map(str, arguments))}: {done.returncode}\n{done.stderr}\n{self.logs()}"
        return done.stdout

    def refused(self, *arguments, code=FAILED, **options):
        """The one line on standard error of `holo ARGUMENTS...`, which must return `code` and print nothing else."""
        done = self.holo(*arguments, **options)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("holo: "), done.stderr
        return lines[0]

    def json(self, *arguments, **options):
        return json.loads(self.ok(*arguments, "--json", **options))

    def status(self, *arguments, **options):
        return self.json("status", *arguments, **options)

    def processes(self):
        """Every living process that was started with this home, by pid."""
        mark = f"XDG_STATE_HOME={self.root / 'state'}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                alive = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
                if alive and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue  # It has ended meanwhile, or is not ours.
        return found

    def logs(self):
        """The ends of all agents' logs, for messages."""
        text = ""
        for log in sorted(self.root.rglob("agent.log")):
            text += f"--- {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]) + "\n"
        return text

    def close(self):
        # What a cluster in namespaces has outside its processes and directories.
        for record in (self.root / "state/holo/dev").glob("*/cluster.json"):
            if '"net"' in record.read_text():
                self.holo("dev", "down", "--cluster", record.parent.name)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_until(lambda: not self.processes(), 10, "processes of the test to end")
        shutil.rmtree(self.root, ignore_errors=True)


def wait_until(condition, seconds, what):
    """Polls until `condition()` is true, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def gone(pid):
    """True once the process has ended, whether or not its parent has noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def quadratic_sum(n):
    return sum(i * i + 3 * i + 1 for i in range(n)) % 2**64 if n < 1000 else (
        ((n - 1) * n * (2 * n - 1) // 6 + 3 * ((n - 1) * n // 2) + n) % 2**64
    )


def free_port():
    """A port that was free a moment ago, for tests that need one by number."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def node(status, name):
    return next(n for n in status["nodes"] if n["name"] == name)


def alive(status):
    return [n["name"] for n in status["nodes"] if n["state"] == "alive"]
