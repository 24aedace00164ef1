"""The replicated log under real agents: what was acknowledged survives kills, damage is found and named, and a node whose
log is damaged gets it back from the others."""

import subprocess
import threading

from holo_e2e import HOLO, wait_until

NODES = ("node1", "node2", "node3")


def log_directory(home, number):
    (found,) = home.root.rglob(f"dev/node{number}/log")
    return found


def state_dir(home, number):
    return log_directory(home, number).parent


def leader(home, node="node1"):
    return home.status("--node", node)["cluster"]["leader_name"]


def usable(home, *, node, key="usable"):
    """A write through that node."""
    return home.holo("kv", "put", key, "yes", "--node", node).returncode == 0


class Writer(threading.Thread):
    """Writes numbered keys through one node, and notes those that were acknowledged."""

    def __init__(self, home, node):
        super().__init__()
        self.home, self.node, self.acknowledged, self.over = home, node, [], threading.Event()

    def run(self):
        n = 0
        while not self.over.is_set():
            key = f"ack/{self.node}/{n:05}"
            done = subprocess.run([HOLO, "kv", "put", key, str(n), "--node", self.node], env=self.home.env,
                                  capture_output=True, timeout=60)
            if done.returncode == 0:
                self.acknowledged.append(key)
            n += 1


def test_no_acknowledged_write_is_lost_when_nodes_are_killed(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    writers = [Writer(home, node) for node in NODES]
    for w in writers:
        w.start()
    try:
        for _ in range(4):
            before = sum(len(w.acknowledged) for w in writers)
            wait_until(lambda: sum(len(w.acknowledged) for w in writers) > before + 10, 60, "writes to go on")
            victim = next(n for n in (leader(home, name) for name in NODES) if n).removeprefix("node")
            home.ok("dev", "kill", victim)
            survivor = next(n for n in NODES if n != f"node{victim}")
            wait_until(lambda: usable(home, node=survivor), 20, "another leader")
            home.ok("dev", "restart", victim)
            wait_until(lambda: usable(home, node=f"node{victim}"), 30, "the victim to take part again")
        # All at once, as when the power goes.
        for n in (1, 2, 3):
            home.ok("dev", "kill", n)
    finally:
        for w in writers:
            w.over.set()
        for w in writers:
            w.join()
    for n in (1, 2, 3):
        home.ok("dev", "restart", n)
    wait_until(lambda: usable(home, node="node1"), 30, "the cluster to go on")
    there = set()
    for node in NODES:
        there |= set(home.ok("kv", "range", "--prefix", f"ack/{node}/", "--keys-only", "--node", node).splitlines())
    acknowledged = {key for w in writers for key in w.acknowledged}
    assert len(acknowledged) > 40
    assert acknowledged <= there


def damage(directory):
    """Flips one bit in the middle of the newest write-ahead log that is not empty."""
    logs = sorted((p for p in directory.glob("*.log") if p.stat().st_size > 4096), key=lambda p: p.name)
    content = bytearray(logs[-1].read_bytes())
    content[len(content) // 2] ^= 4
    logs[-1].write_bytes(content)
    return logs[-1].name


def test_a_damaged_log_is_refused_by_name_and_repaired_from_the_others(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    for i in range(60):
        home.ok("kv", "put", f"k{i}", "x" * 200)
    where = state_dir(home, 3)
    home.refused("control", "repair", "--state-dir", where)  # Its agent runs.
    home.ok("dev", "kill", 3)
    name = damage(where / "log")
    line = home.refused("dev", "restart", 3)
    assert name in line and "entry" in line and "corrupt" in line and "holo control repair" in line
    out = home.ok("control", "repair", "--state-dir", where)
    assert "given up" in out
    home.ok("dev", "restart", 3)
    assert wait_until(lambda: usable(home, node="node3"), 30, "the repaired node to take part")
    assert home.ok("kv", "get", "k59", "--node", "node3") == "x" * 200 + "\n"

    # It is taken out of the log and let in anew before its vote counts; from then on it and another go on alone.
    def votes_again():
        home.ok("dev", "kill", 1)
        try:
            return wait_until(lambda: usable(home, node="node3"), 6, "the repaired node and another to go on")
        except AssertionError:
            home.ok("dev", "restart", 1)
            wait_until(lambda: usable(home, node="node3"), 30, "all three to go on")
            return False

    wait_until(votes_again, 60, "the repaired node's vote to count")
    assert "whole" in home.refused("control", "repair", "--state-dir", state_dir(home, 1))


def test_a_store_that_is_gone_is_refused_and_no_empty_one_takes_its_place(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    home.ok("kv", "put", "k", "v")
    where = state_dir(home, 3)
    for lost in ("log/CURRENT", "log", "facts"):
        home.ok("dev", "kill", 3)
        (where / lost).rename(home.root / "lost")
        for _ in range(2):
            line = home.refused("dev", "restart", 3)
            assert "is gone" in line and "holo remove" in line, "an empty log would vote again, and knows of nothing"
        if lost != "facts":
            assert "holo remove" in home.refused("control", "repair", "--state-dir", where)
            assert "holo remove" in home.refused("control", "repair", "--force", "--state-dir", where)
        (home.root / "lost").rename(where / lost)
        home.ok("dev", "restart", 3)
        wait_until(lambda: usable(home, node="node3"), 30, "it to go on")
    assert home.ok("kv", "get", "k", "--node", "node3") == "v\n"


def test_a_torn_tail_is_repaired_at_the_start(home):
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB")
    for i in range(20):
        home.ok("kv", "put", f"k{i}", "x" * 100)
    home.ok("dev", "kill", 1)
    directory = log_directory(home, 1)
    newest = max(directory.glob("*.log"), key=lambda p: p.name)
    with newest.open("ab") as file:
        file.write(b"\x17garbage that a write left when the power went")
    home.ok("dev", "restart", 1)
    wait_until(lambda: usable(home, node="node1"), 30, "it to go on")
    assert home.ok("kv", "get", "k19") == "x" * 100 + "\n"


def test_a_snapshot_brings_a_newcomer_up_to_date_and_survives_restarts(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    # Enough bytes of entries for several snapshots.
    value = home.root / "value"
    value.write_bytes(b"v" * 400_000)
    for i in range(120):
        home.ok("kv", "put", f"big{i % 10}", "--file", value)
    assert list(log_directory(home, 1).glob("holo-snapshot-*")), "no snapshot was taken"
    for n in (1, 2, 3):
        home.ok("dev", "kill", n)
    for n in (1, 2, 3):
        home.ok("dev", "restart", n)
    wait_until(lambda: usable(home, node="node2"), 30, "all to go on")
    assert home.ok("kv", "get", "big9", "--node", "node2") == "v" * 400_000 + "\n"
    # With nothing on the disk, all that node 2 knows comes in a snapshot.
    home.ok("dev", "kill", 2)
    home.ok("control", "repair", "--force", "--state-dir", state_dir(home, 2))
    home.ok("dev", "restart", 2)
    wait_until(lambda: usable(home, node="node2"), 30, "the state to come over")
    assert home.ok("kv", "get", "big9", "--node", "node2", "--stale") == "v" * 400_000 + "\n"
    assert list(log_directory(home, 2).glob("holo-snapshot-*")), "it did not come as a snapshot"
