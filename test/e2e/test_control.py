"""`holo control`: who holds the control state, how far each is, and a copy of all of it in a file and back."""

import json
import os
import signal
import stat

import pytest
from holo_e2e import FAILED, HOLO, PROBE, USAGE, gone, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


class Cluster:
    """`count` agents in directories s1, s2, ...; s1 made it."""

    def __init__(self, home, count, name="lab", prefix="s"):
        self.home, self.dirs = home, [home.root / f"{prefix}{i + 1}" for i in range(count)]
        line = home.ok("init", "--name", name, "--node-name", f"{prefix}1", "--state-dir", self.dirs[0], *LOCAL).split()
        for i, d in enumerate(self.dirs[1:], start=2):
            home.ok("join", line[2], "--key", line[4], "--name", f"{prefix}{i}", "--state-dir", d, *LOCAL)

    def __call__(self, i, *arguments, **options):
        return self.home.ok(*arguments, "--state-dir", self.dirs[i], **options)

    def json(self, i, *arguments):
        return json.loads(self(i, *arguments, "--json"))

    def pid(self, i):
        mark = str(self.dirs[i]).encode() + b"\0"
        (pid,) = [p for p in self.home.processes() if mark in open(f"/proc/{p}/cmdline", "rb").read()]
        return pid


def put_many(cluster, count):
    """Thousands of keys in few transactions."""
    for first in range(0, count, 100):
        then = [{"put": f"k{i:05}", "value": f"v{i}"} for i in range(first, min(first + 100, count))]
        cluster(0, "kv", "txn", cluster.home.write_json("txn.json", {"then": then}))


@pytest.fixture
def lab(home):
    home.write_json = lambda name, value: (home.root / name).write_text(json.dumps(value)) and home.root / name
    return home


def test_status_and_members(lab):
    cluster = Cluster(lab, 3)
    status = wait_until(
        lambda: (lambda s: s if sum(m["voter"] for m in s["members"]) == 3 and not any(m["lag"] for m in s["members"]) else None)(
            cluster.json(1, "control", "status")),
        20, "three voters that are up to date")  # fmt: skip
    assert set(status) >= {"cluster", "name", "epoch", "leader", "leader_name", "primary", "term", "committed", "applied", "log",
                           "members", "role"}  # fmt: skip
    assert status["primary"] is True and status["term"] >= 1 and status["committed"] >= status["applied"] > 0
    assert [m["name"] for m in status["members"]] == ["s1", "s2", "s3"]
    assert status["log"]["last"] >= status["committed"]
    leader = next(m for m in status["members"] if m["node"] == status["leader"])
    assert leader["role"] == "leader" and all(m["term"] == status["term"] for m in status["members"])
    members = cluster.json(0, "control", "members")
    assert sorted(m["role"] for m in members) == ["leader", "voter", "voter"]
    assert "this side decides" in cluster(2, "control", "status") and "BEHIND" in cluster(2, "control", "members")

    # Who is left alone is no majority, says so at once, and who does not answer is shown so.
    for i in (0, 1):
        os.kill(cluster.pid(i), signal.SIGKILL)
    alone = wait_until(lambda: (lambda s: None if s["primary"] else s)(cluster.json(2, "control", "status")), 20, "the end of it")
    assert [m["answers"] for m in alone["members"]] == [False, False, True]
    assert "decides nothing" in cluster(2, "control", "status")


def test_snapshot_and_restore_with_thousands_of_keys(lab):
    cluster = Cluster(lab, 3)
    put_many(cluster, 3000)
    cluster(0, "alloc", "xs", "--type", "u64", "--count", "1e5", "--replication", "2")
    cluster(0, "alloc", "empty", "--type", "u64", "--count", "10")
    file = lab.root / "lab.holo"
    said = cluster.json(1, "control", "snapshot", file)
    assert said["keys"] == 3000 and said["regions"] == 2 and said["nodes"] == 3 and said["bytes"] == file.stat().st_size
    assert stat.S_IMODE(file.stat().st_mode) == 0o600, "values may be secrets"
    before = file.read_bytes()
    line = lab.refused("control", "snapshot", file, "--state-dir", cluster.dirs[0])
    assert "--force" in line and file.read_bytes() == before
    cluster(0, "kv", "put", "k00000", "changed since")
    cluster(0, "control", "snapshot", file, "--force")
    assert file.read_bytes() != before
    file.write_bytes(before)

    # All of it is gone; a new cluster goes on from the file.
    for i in range(3):
        pid = cluster.pid(i)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), 10, "the agent to end")  # noqa: B023
    other = lab.root / "n1"
    done = lab.holo("init", "--restore", file, "--node-name", "n1", "--state-dir", other, *LOCAL)
    assert done.returncode == 0, done.stderr + lab.logs()
    assert "3000 keys" in done.stderr
    assert not (other / "restore.snapshot").exists()
    at = ("--state-dir", other)
    status = lab.status(*at)
    assert status["cluster"]["name"] == "lab" and status["cluster"]["id"] != said["cluster"]
    assert [n["name"] for n in status["nodes"]] == ["n1"]
    assert sorted(r["name"] for r in status["regions"]) == ["empty", "xs"]
    pairs = json.loads(lab.ok("kv", "range", "--prefix", "k", "--json", *at))
    assert [(p["key"], p["value"]) for p in pairs] == [(f"k{i:05}", f"v{i}") for i in range(3000)]
    # It is a cluster like any other: it is written, joined, copied again, and outlives its process.
    line = done.stdout.split()
    lab.ok("join", line[2], "--key", line[4], "--name", "n2", "--state-dir", lab.root / "n2", *LOCAL)
    lab.ok("kv", "put", "k00000", "after", "--state-dir", lab.root / "n2")
    assert lab.ok("kv", "get", "k00000", *at).strip() == "after"
    lab.ok("control", "snapshot", lab.root / "again.holo", *at)


def test_files_that_are_not_restored(lab):
    cluster = Cluster(lab, 1)
    cluster(0, "kv", "put", "a", "1")
    file = lab.root / "lab.holo"
    cluster(0, "control", "snapshot", file)
    whole = file.read_bytes()
    fresh = lab.root / "fresh"

    def refused(content, *more, code=FAILED):
        file.write_bytes(content)
        line = lab.refused("control", "restore", file, "--state-dir", fresh, *LOCAL, *more, code=code)
        assert not (fresh / "cluster.json").exists()
        return line

    for at in (0, 9, 20, len(whole) // 2, len(whole) - 1):
        altered = bytearray(whole)
        altered[at] ^= 1
        refused(bytes(altered))
    for size in (0, 5, 40, len(whole) - 1):
        refused(whole[:size])
    refused(whole + b"x")
    assert "lab" in refused(whole, "--name", "other"), "a snapshot of another cluster"
    lab.refused("control", "restore", lab.root / "nowhere", "--state-dir", fresh, *LOCAL)
    # A directory that belongs to a cluster keeps it.
    file.write_bytes(whole)
    assert "another agent" in lab.refused("control", "restore", file, "--state-dir", cluster.dirs[0], *LOCAL)
    assert cluster(0, "kv", "get", "a").strip() == "1"
    pid = cluster.pid(0)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    assert "belongs to another cluster" in lab.refused("control", "restore", file, "--state-dir", cluster.dirs[0], *LOCAL)
    # And the whole file is fine, also under another name when that is wanted.
    lab.ok("control", "restore", file, "--name", "other", "--rename", "--state-dir", fresh, *LOCAL)
    assert lab.status("--state-dir", fresh)["cluster"]["name"] == "other"


def test_pages_of_a_restored_region_are_lost_by_name(lab):
    cluster = Cluster(lab, 1)
    program = lambda d, *words: lab.ok("run", "--state-dir", d, PROBE, *words)  # noqa: E731
    program(cluster.dirs[0], "fill", "xs", "100000")
    file = lab.root / "lab.holo"
    cluster(0, "control", "snapshot", file)
    done = lab.holo("init", "--restore", file, "--node-name", "n1", "--state-dir", lab.root / "n1", *LOCAL)
    assert done.returncode == 0 and "lost in: xs" in done.stderr, done.stderr
    read = lab.holo("run", "--state-dir", lab.root / "n1", PROBE, "sum", "xs")
    assert read.returncode == 1 and "page_lost" in read.stderr, read.stdout + read.stderr + lab.logs()
    # Who knows what was in it makes it anew.
    lab.ok("free", "xs", "--state-dir", lab.root / "n1")
    again = program(lab.root / "n1", "fill", "xs", "100000")
    assert program(lab.root / "n1", "sum", "xs") == again


def test_a_lock_that_was_held_keeps_its_token_and_a_new_holder_gets_a_larger_one(lab):
    cluster = Cluster(lab, 1)
    out = lab.root / "token"
    with lab.start(HOLO, "lock", "l", "--ttl", "60", "--state-dir", cluster.dirs[0], "--", "sh", "-c",
                   f"echo $HOLO_LOCK_TOKEN > {out}; exec sleep 100") as holder:  # fmt: skip
        wait_until(lambda: out.exists() and out.read_text().strip(), 20, "the lock to be held")
        old = int(out.read_text())
        cluster(0, "control", "snapshot", lab.root / "lab.holo")
        holder.kill()
    lab.ok("init", "--restore", lab.root / "lab.holo", "--node-name", "n1", "--state-dir", lab.root / "n1", *LOCAL)
    at = ("--state-dir", lab.root / "n1")
    (lock,) = json.loads(lab.ok("locks", "--json", *at))
    assert lock["token"] == old
    (lease,) = json.loads(lab.ok("lease", "list", "--json", *at))
    assert lease["left_ms"] > 30_000
    lab.ok("lease", "end", str(lease["lease"]), *at)
    token = int(lab.ok("lock", "l", *at, "--", "sh", "-c", "echo $HOLO_LOCK_TOKEN"))
    assert token > old + 1_000_000


def test_wrong_usage(home):
    for arguments in (("control",), ("control", "frob"), ("control", "snapshot"), ("control", "restore")):
        home.refused(*arguments, code=USAGE)
    home.refused("control", "status")
