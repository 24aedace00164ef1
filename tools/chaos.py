#!/usr/bin/env python3
"""Real agents under real faults: `holo dev up`, clients that read, write, compare and lock, others that write into a
region with two copies of each page, and at random kill -9, SIGSTOP, full disks, (with libfaketime) steps of an agent's
wall clock, and (as root, with --net) partitions. What the clients were told is written down and judged.

Exit 0: no violation, and every acknowledged write is there. `./dev chaos` calls it.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "test" / "e2e"))

import holo_e2e  # noqa: E402
from holo_e2e import HOLO, PROBE, Home  # noqa: E402

CALL_LIMIT = 25  # seconds
HEAL_LIMIT = 60
WHOLE_LIMIT = 20
REGION, PAGES, PER_PAGE = "chaos", 16, 512  # Pages of 4 KiB, of u64.
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
if holo_e2e.BUILD.name in ("asan", "tsan"):
    FAKETIME = None  # A sanitizer's runtime wants to come first.


class History:
    """One operation a line, as `holo-sim --check-history` reads them."""

    def __init__(self):
        self.lock = threading.Lock()
        self.lines = []
        self.acknowledged = self.unknown = 0

    def add(self, begin, end, client, *words):
        with self.lock:
            self.lines.append(f"{begin} {end or '-'} {client} {' '.join(str(w) for w in words)}")
            self.acknowledged += end is not None
            self.unknown += end is None


class Client(threading.Thread):
    def __init__(self, chaos, number):
        super().__init__(daemon=True)
        self.chaos, self.number = chaos, number
        self.random = random.Random(chaos.seed * 1000 + number)
        self.values = 0
        self.known = {}

    def call(self, *arguments, text=None):
        """The exit status (None: no end in time) and standard output, between two times."""
        begin = time.time_ns()
        node = f"node{self.random.randint(1, self.chaos.nodes)}"
        command = [str(HOLO), *arguments[:1]]
        command += ["--node", node, *arguments[1:]] if arguments[0] == "lock" else [*arguments[1:], "--node", node]
        try:
            done = subprocess.run(command, env=self.chaos.home.env, input=text, capture_output=True, text=True, timeout=CALL_LIMIT)
            return begin, time.time_ns(), done.returncode, done.stdout
        except subprocess.TimeoutExpired:
            return begin, time.time_ns(), None, ""

    def value(self):
        self.values += 1
        return f"c{self.number}v{self.values}"

    def txn(self, key, compares, then):
        begin, end, code, out = self.call("kv", "txn", "--json", text=json.dumps({"compare": compares, "then": then}))
        if code != 0:
            return begin, None, None
        return begin, end, json.loads(out)

    def read(self, key):
        begin, end, code, out = self.call("kv", "range", "--prefix", key, "--json")
        if code != 0:
            return
        pairs = {p["key"]: p["value"] for p in json.loads(out)}
        self.known[key] = pairs.get(key, "nil")
        self.chaos.history.add(begin, end, self.number, "get", key, self.known[key])

    def write(self, key):
        add, what = self.chaos.history.add, self.random.random()
        if what < 0.45:
            value = self.value()
            begin, end, _ = self.txn(key, [], [{"put": key, "value": value}])
            add(begin, end, self.number, "put", key, value)
        elif what < 0.9:
            expected, value = self.known.get(key, "nil"), self.value()
            compare = {"key": key, "version": 0} if expected == "nil" else {"key": key, "value": expected}
            begin, end, result = self.txn(key, [compare], [{"put": key, "value": value}])
            said = "-" if result is None else "ok" if result["succeeded"] else "no"
            add(begin, end, self.number, "cas", key, expected, value, said)
        else:
            begin, end, result = self.txn(key, [], [{"delete": key}])
            said = "-" if result is None else "ok" if result["results"][0]["deleted"] else "no"
            add(begin, end, self.number, "del", key, said)

    def hold(self):
        name = f"lock{self.random.randint(1, 2)}"
        script = "date +%s%N; echo $HOLO_LOCK_TOKEN; sleep 0.1; date +%s%N"
        begin, end, code, out = self.call("lock", name, "--ttl", "4", "--wait", "5", "--", "sh", "-c", script)
        words = out.split()
        if len(words) < 2:
            return
        held, token = int(words[0]), words[1]
        self.chaos.history.add(begin, held, self.number, "acquire", name, token)
        if code == 0 and len(words) == 3:  # It was held all the time.
            self.chaos.history.add(int(words[2]), end, self.number, "release", name, token, "ok")

    def run(self):
        while not self.chaos.ended.is_set():
            key = f"k{self.random.randint(1, 5)}/"
            if self.number % 4 == 3:
                self.hold()
            elif self.random.random() < 0.4:
                self.read(key)
            else:
                self.write(key)
            time.sleep(self.random.random() * 0.1)


class PageWriter(threading.Thread):
    """Writes into pages of its own, so that what must be there afterwards is known."""

    def __init__(self, chaos, number, writers):
        super().__init__(daemon=True)
        self.chaos, self.random = chaos, random.Random(chaos.seed * 77 + number)
        self.pages = [p for p in range(PAGES) if p % writers == number]
        self.value = number * 1_000_000_000
        self.may_be = {}  # Of an element: what it may hold; the first is the last that was acknowledged.
        self.acknowledged = self.unknown = 0

    def run(self):
        while not self.chaos.ended.is_set():
            index = self.random.choice(self.pages) * PER_PAGE + self.random.randint(0, 9)
            self.value += 1
            values = self.may_be.setdefault(index, [0])
            if self.chaos.probe(self.random, "put", REGION, str(index), str(self.value)) == "ok":
                self.may_be[index] = [self.value]
                self.acknowledged += 1
            else:
                values.append(self.value)
                self.unknown += 1
            time.sleep(self.random.random() * 0.2)

    def lost(self):
        """Elements that hold nothing that they may, read once all is healed."""
        out = []
        for index, values in sorted(self.may_be.items()):
            said = None
            for _ in range(5):
                said = self.chaos.probe(self.random, "get", REGION, str(index))
                if said is not None:
                    break
                time.sleep(1)
            if said is None or int(said) not in values:
                out.append(f"element {index} is {said}, not one of {values}")
        return out


class Chaos:
    def __init__(self, options):
        self.seed, self.nodes, self.seconds, self.net = options.seed, options.nodes, options.seconds, options.net
        self.random = random.Random(self.seed)
        self.home = Home()
        self.history = History()
        self.ended = threading.Event()
        self.counts = {}
        self.tmpfs = None
        self.steps = {}  # Of a node: the file that says how wrong its wall clock is.

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def agents(self):
        return {n["number"]: n for n in self.home.json("dev", "status")["nodes"]}

    def mount(self):
        """A small disk for all state, to be filled; only root may."""
        state = Path(self.home.env["XDG_STATE_HOME"])
        state.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(state)], capture_output=True).returncode == 0:
            self.tmpfs = state

    def probe(self, chance, *arguments):
        """What the test program says, run at any node; None when it fails."""
        env = self.home.env | {"HOLO_SOCKET": chance.choice(self.sockets)}
        try:
            done = subprocess.run([PROBE, *arguments], env=env, capture_output=True, text=True, timeout=CALL_LIMIT)
        except subprocess.TimeoutExpired:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    def restart(self, number):
        env = dict(self.home.env)
        if FAKETIME:
            file = self.steps.setdefault(number, self.home.root / f"clock{number}")
            if not file.exists():
                file.write_text("+0")
            env |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(file),
                "FAKETIME_CACHE_DURATION": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        self.home.holo("dev", "restart", number, env=env)

    def whole(self):
        """Every page has its two copies where they belong: only then may one of them go."""
        deadline = time.monotonic() + WHOLE_LIMIT
        while time.monotonic() < deadline:
            number = self.random.randint(1, self.nodes)
            said = self.home.holo("status", "--shards", "--json", "--node", f"node{number}")
            if said.returncode == 0:
                shards = json.loads(said.stdout)["shards"]
                down = [n for n in shards["nodes"] if n["state"] != "alive"]
                if not down and shards["moves"] == {"left": 0, "under_way": 0}:
                    return True
            time.sleep(0.2)
        self.count("put off, as copies were being made")
        return False

    # ---- Faults. Each returns once it is over.

    def crash(self):
        number = self.random.randint(1, self.nodes)
        if not self.whole():
            return
        self.home.holo("dev", "kill", number)
        time.sleep(self.random.random() * 3)
        self.restart(number)
        self.count("kill -9")

    def step_clock(self):
        number = self.random.randint(1, self.nodes)
        self.steps[number].write_text(f"{self.random.choice((-1, 1)) * self.random.choice((2, 30, 600, 86400)):+d}")
        self.count("clock step")

    def stand_still(self):
        agent = self.agents()[self.random.randint(1, self.nodes)]
        if not agent["running"] or not self.whole():
            return
        os.kill(agent["pid"], signal.SIGSTOP)
        time.sleep(self.random.choice((0.3, 1, 3, 6)))
        os.kill(agent["pid"], signal.SIGCONT)
        self.count("SIGSTOP")

    def fill_disk(self):
        filler = self.tmpfs / "filler"
        with open(filler, "wb") as out:
            try:
                while True:
                    out.write(bytes(1 << 20))
                    out.flush()
            except OSError:
                pass
        time.sleep(1 + self.random.random() * 2)
        filler.unlink()
        self.count("disk full")

    def partition(self):
        if not self.whole():
            return
        side = self.random.sample(range(1, self.nodes + 1), self.random.randint(1, self.nodes // 2))
        self.home.holo("dev", "partition", ",".join(str(n) for n in side))
        time.sleep(1 + self.random.random() * 5)
        self.home.holo("dev", "heal")
        self.count("partition")

    def strike(self):
        faults = [self.crash, self.stand_still]
        if self.tmpfs:
            faults.append(self.fill_disk)
        if self.net:
            faults.append(self.partition)
        if FAKETIME:
            faults.append(self.step_clock)
        until = time.monotonic() + self.seconds
        turn = 0
        while time.monotonic() < until:
            time.sleep(self.random.random())
            (faults[turn] if turn < len(faults) else self.random.choice(faults))()  # Each at least once.
            turn += 1

    def heal(self):
        deadline = time.monotonic() + HEAL_LIMIT
        while True:
            for number, agent in self.agents().items():
                if not agent["running"]:
                    self.restart(number)
            status = self.home.holo("status", "--json", "--node", "node1")
            if status.returncode == 0 and len(holo_e2e.alive(json.loads(status.stdout))) == self.nodes:
                return True
            if time.monotonic() > deadline:
                print(f"chaos: not healed within {HEAL_LIMIT} s\n{status.stderr}{self.home.logs()}")
                return False
            time.sleep(0.2)

    def last_look(self):
        """From every node: all keys once more."""
        reader = Client(self, 99)
        for number in range(1, self.nodes + 1):
            reader.random = random.Random(number)
            for key in range(1, 6):
                reader.read(f"k{key}/")

    def run(self, keep):
        self.mount()
        self.home.ok("dev", "up", "-n", str(self.nodes), "--memory", "64MiB", *(["--net"] if self.net else []))
        if FAKETIME:  # Each with a clock of its own from now on.
            for number in range(1, self.nodes + 1):
                self.restart(number)
            self.heal()
        self.sockets = sorted(str(p) for p in Path(self.home.env["XDG_RUNTIME_DIR"]).rglob("agent-*.sock"))
        self.home.ok("alloc", REGION, "--type", "u64", "--count", PAGES * PER_PAGE, "--page", "4096", "--replication", "2")
        pages = [PageWriter(self, n, 2) for n in range(2)]
        clients = [Client(self, n) for n in range(8)]
        for client in clients + pages:
            client.start()
        self.strike()
        healed = self.heal()
        self.ended.set()
        for client in clients + pages:
            client.join(CALL_LIMIT * 2)
        self.last_look()
        lost = [line for writer in pages for line in writer.lost()]
        path = Path(keep) if keep else self.home.root / "history"
        path.write_text("\n".join(self.history.lines) + "\n")
        judged = subprocess.run([str(holo_e2e.BUILD / "bin" / "holo-sim"), "--check-history", str(path)], capture_output=True, text=True)
        report = {
            "seconds": self.seconds,
            "nodes": self.nodes,
            "faults": self.counts,
            "skipped": self.skipped(),
            "acknowledged": self.history.acknowledged,
            "unknown": self.history.unknown,
            "pages_acknowledged": sum(w.acknowledged for w in pages),
            "pages_unknown": sum(w.unknown for w in pages),
            "pages_lost": len(lost),
            "healed": healed,
            "violations": 0 if judged.returncode == 0 else 1,
            "verdict": (judged.stdout + judged.stderr).strip(),
        }
        print(json.dumps(report, indent=2))
        for line in lost[:20]:
            print(f"chaos: {line}")
        return healed and judged.returncode == 0 and not lost

    def skipped(self):
        out = [] if FAKETIME else ["clock steps: they need Debian's package libfaketime, and a build without a sanitizer"]
        if not self.tmpfs:
            out.append("disk full: only root may mount a small disk")
        if not self.net:
            out.append("partitions: with --net, as root")
        return out

    def close(self):
        self.ended.set()
        if self.net:
            self.home.holo("dev", "down")
        for pid in self.home.processes():
            os.kill(pid, signal.SIGCONT)
        if self.tmpfs:
            for pid in self.home.processes():
                os.kill(pid, signal.SIGKILL)
            holo_e2e.wait_until(lambda: not self.home.processes(), 10, "the agents to end")
            subprocess.run(["umount", str(self.tmpfs)], check=False)
        self.home.close()


def main():
    parser = argparse.ArgumentParser(prog="./dev chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--net", action="store_true", help="each node in a network namespace, with partitions (root)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--history", help="where to leave the history")
    options = parser.parse_args()
    options.seconds = options.seconds or options.minutes * 60
    chaos = Chaos(options)
    try:
        return 0 if chaos.run(options.history) else 1
    finally:
        chaos.close()


if __name__ == "__main__":
    sys.exit(main())
