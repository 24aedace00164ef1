"""holo lock and holo lease: one at a time, in order, and a token that tells an old holder from the present one."""

import json
import os
import signal
import time

from holo_e2e import FAILED, HOLO, USAGE, gone, wait_until


def on(node, *arguments):
    return (*arguments, "--node", node)


def holder(home, name):
    found = [lock for lock in home.json("locks") if lock["name"] == name]
    return found[0] if found else None


def test_a_command_runs_under_the_lock_and_its_status_comes_back(cluster):
    out = cluster.ok("lock", "plain", "--", "sh", "-c", "echo $HOLO_LOCK $HOLO_LOCK_TOKEN")
    name, token = out.split()
    assert name == "plain" and int(token) > 0
    assert cluster.holo("lock", "plain", "--", "sh", "-c", "exit 7").returncode == 7
    assert cluster.run("sh", "-c", f"trap '' CHLD; exec {HOLO} lock plain -- sh -c 'exit 7'").returncode == 7
    assert holder(cluster, "plain") is None
    later = int(cluster.ok("lock", "plain", "--", "sh", "-c", "echo $HOLO_LOCK_TOKEN"))
    assert later > int(token)


def test_one_at_a_time_from_every_node(cluster, tmp_path):
    """A counter without any protection but the lock."""
    file = tmp_path / "n"
    file.write_text("0")
    script = f"n=$(cat {file}); sleep 0.02; echo $((n + 1)) > {file}"
    running = [cluster.start(HOLO, *on(f"node{i % 4 + 1}", "lock", "counter"), "--", "sh", "-c", script) for i in range(12)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert file.read_text() == "12\n"


def test_the_line_is_in_order_and_can_be_seen_and_watched(cluster, tmp_path):
    order = tmp_path / "order"
    go = tmp_path / "go"
    start = cluster.json("kv", "state")["revision"] + 1
    first = cluster.start(HOLO, "lock", "queue", "--owner", "first", "--", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done")
    wait_until(lambda: holder(cluster, "queue"), 20, "the first to have it")
    others = []
    for i in range(3):
        others.append(cluster.start(HOLO, *on(f"node{i + 2}", "lock", "queue", "--owner", f"other{i}"), "--", "sh", "-c", f"echo {i} >> {order}"))
        wait_until(lambda n=i + 1: len(holder(cluster, "queue")["waiting"]) == n, 20, "it to stand in line")
    lock = holder(cluster, "queue")
    assert lock["holder"]["owner"] == "first" and [w["owner"] for w in lock["waiting"]] == ["other0", "other1", "other2"]
    assert "held by first" in cluster.refused("lock", "queue", "--wait", "0", "--", "true")
    assert "ahead" in cluster.refused("lock", "queue", "--wait", "0.3", "--", "true")
    go.write_text("")
    for process in [first, *others]:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert order.read_text() == "0\n1\n2\n"
    events = cluster.ok("kv", "watch", "holo/lock/queue", "--from", start, "-c", "5", "--json").splitlines()
    assert [json.loads(e).get("value") for e in events] == ["first", "other0", "other1", "other2", None]


def test_a_killed_holder_makes_room_at_once(cluster):
    first = cluster.start(HOLO, "lock", "killed", "--ttl", "60", "--", "sleep", "60")
    wait_until(lambda: holder(cluster, "killed"), 20, "the lock to be held")
    began = time.monotonic()
    first.send_signal(signal.SIGKILL)
    cluster.ok("lock", "killed", "--", "true")
    assert time.monotonic() - began < 30, "its process has gone, so nobody waits for its time to live"
    first.communicate(timeout=20)


def test_a_paused_holder_loses_it_and_its_token_is_refused(cluster, tmp_path):
    """The holder is stopped for longer than its lease, wakes up, and writes with the old token."""
    token_file, go = tmp_path / "token", tmp_path / "go"
    script = (f"trap '' TERM; echo $HOLO_LOCK_TOKEN > {token_file}.tmp; mv {token_file}.tmp {token_file}; "
              f"while [ ! -e {go} ]; do sleep 0.05; done; "
              f"{HOLO} kv put fenced old --fence $HOLO_LOCK:$HOLO_LOCK_TOKEN 2> {tmp_path}/err; echo $? > {tmp_path}/status")
    first = cluster.start(HOLO, "lock", "fence", "--ttl", "1", "--", "sh", "-c", script)
    wait_until(token_file.exists, 20, "the lock to be held")
    old = int(token_file.read_text())
    first.send_signal(signal.SIGSTOP)
    new = int(cluster.ok("lock", "fence", "--", "sh", "-c",
                         f"{HOLO} kv put fenced new --fence $HOLO_LOCK:$HOLO_LOCK_TOKEN > /dev/null && echo $HOLO_LOCK_TOKEN"))
    assert new > old
    go.write_text("")
    wait_until((tmp_path / "status").exists, 20, "the old holder to have tried")
    assert (tmp_path / "status").read_text() == f"{FAILED}\n"
    assert "is not valid any more" in (tmp_path / "err").read_text()
    assert cluster.ok("kv", "get", "fenced") == "new\n"
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=30)
    assert first.returncode == FAILED and "was lost" in err


def test_a_holder_that_cannot_keep_its_lease_is_ended(home, tmp_path):
    """Without its agent nobody keeps the lease: the command, and all that it started, must not go on as if it had the lock."""
    home.ok("dev", "up", "-n", "1", "--memory", "128MiB")
    file = tmp_path / "pids"
    process = home.start(HOLO, "lock", "alone", "--ttl", "1", "--", "sh", "-c", f"sleep 600 & echo $! > {file}; wait")
    [child] = pids_in(file, 1)
    home.ok("dev", "kill", "1")
    out, err = process.communicate(timeout=30)
    assert process.returncode == FAILED and "was lost" in err
    assert gone(child)


def pids_in(file, count):
    """The numbers in a file, once it holds so many."""
    wait_until(lambda: file.exists() and len(file.read_text().split()) == count, 20, f"{count} processes to start")
    return [int(pid) for pid in file.read_text().split()]


def test_what_a_command_started_ends_with_it_before_anybody_else_has_the_lock(cluster, tmp_path):
    """A shell that waits for one command and has others in the background, one of which does not hear SIGTERM."""
    file, next_saw = tmp_path / "pids", tmp_path / "next"
    script = (f"sleep 600 & echo $! >> {file}; (trap '' TERM; echo $(exec sh -c 'echo $PPID') >> {file}; while :; do sleep 0.1; done) & "
              f"setsid sh -c 'echo $$ >> {file}; sleep 601' & sh -c 'echo $$ >> {file}; sleep 602; true'; true")
    first = cluster.start(HOLO, "lock", "family", "--", "sh", "-c", script)
    pids = pids_in(file, 4)
    check = "; ".join(f"kill -0 {pid} && echo {pid}" for pid in pids)
    second = cluster.start(HOLO, "lock", "family", "--", "sh", "-c", f"({check}) > {next_saw} 2> /dev/null; true")
    wait_until(lambda: len(holder(cluster, "family")["waiting"]) == 1, 20, "the next to stand in line")
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=30)
    assert first.returncode == 128 + signal.SIGTERM, err
    assert [pid for pid in pids if not gone(pid)] == []
    second.communicate(timeout=30)
    assert next_saw.read_text() == ""


def test_a_command_that_ends_by_itself_leaves_what_it_left(cluster, tmp_path):
    file = tmp_path / "pids"
    cluster.ok("lock", "leaves", "--", "sh", "-c", f"sleep 600 > /dev/null 2>&1 & echo $! > {file}")
    [pid] = pids_in(file, 1)
    assert not gone(pid) and holder(cluster, "leaves") is None
    os.kill(pid, signal.SIGKILL)


def test_a_killed_holder_keeps_it_while_something_of_its_command_runs(cluster, tmp_path):
    """Its shell dies with it, what that had started does not."""
    file = tmp_path / "pids"
    first = cluster.start(HOLO, "lock", "orphans", "--ttl", "60", "--", "sh", "-c", f"sleep 600 & echo $$ $! > {file}; wait")
    shell, orphan = pids_in(file, 2)
    first.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(shell), 20, "the shell to die")
    assert not gone(orphan)
    assert "held by" in cluster.refused("lock", "orphans", "--wait", "0", "--", "true")
    began = time.monotonic()
    os.kill(orphan, signal.SIGKILL)
    cluster.ok("lock", "orphans", "--", "true")
    assert time.monotonic() - began < 30, "all of it has gone, so nobody waits for its time to live"
    first.communicate(timeout=20)


def test_what_a_killed_holder_left_does_not_keep_it_beyond_its_time_to_live(cluster, tmp_path):
    file = tmp_path / "pids"
    first = cluster.start(HOLO, "lock", "bounded", "--ttl", "2", "--", "sh", "-c", f"sleep 600 > /dev/null 2>&1 & echo $! > {file}; wait")
    [orphan] = pids_in(file, 1)
    first.send_signal(signal.SIGKILL)
    cluster.ok("lock", "bounded", "--", "true")
    assert not gone(orphan)
    os.kill(orphan, signal.SIGKILL)
    first.communicate(timeout=20)


def test_keys_go_with_their_lease(cluster):
    lease = int(cluster.ok("lease", "grant", "--ttl", "60"))
    cluster.ok("kv", "put", "here", "yes", "--lease", lease)
    cluster.ok("kv", "put", "stays", "yes", "--lease", lease)
    cluster.ok("kv", "put", "stays", "yes")
    assert [entry["keys"] for entry in cluster.json("lease", "list") if entry["lease"] == lease] == [2]
    cluster.ok("lease", "end", lease)
    cluster.refused("kv", "get", "here")
    assert cluster.ok("kv", "get", "stays") == "yes\n"
    assert "no lease" in cluster.refused("lease", "keep", lease)
    assert "no lease" in cluster.refused("kv", "put", "here", "yes", "--lease", lease)


def test_a_lease_that_nobody_keeps_ends(cluster):
    lease = int(cluster.ok("lease", "grant", "--ttl", "1.5"))
    cluster.ok("kv", "put", "short", "yes", "--lease", lease)
    for _ in range(4):
        time.sleep(0.6)
        cluster.ok("lease", "keep", lease)
    assert cluster.ok("kv", "get", "short") == "yes\n"
    wait_until(lambda: cluster.holo("kv", "get", "short").returncode == FAILED, 20, "the key to go")


def test_leases_outlive_their_leader(home):
    home.ok("dev", "up", "-n", "3", "--memory", "128MiB")
    leader = int(home.status()["cluster"]["leader_name"].removeprefix("node"))
    other = f"node{leader % 3 + 1}"
    lease = int(home.ok(*on(other, "lease", "grant", "--ttl", "3")))
    home.ok(*on(other, "kv", "put", "k", "v", "--lease", lease))
    process = home.start(HOLO, *on(other, "lock", "held", "--ttl", "10"), "--", "sleep", "4")
    wait_until(lambda: holder(home, "held"), 20, "the lock to be held")
    home.ok("dev", "kill", leader)
    wait_until(lambda: home.holo(*on(other, "lease", "keep", lease)).returncode == 0, 30, "a new leader")
    assert home.ok(*on(other, "kv", "get", "k")) == "v\n"
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    wait_until(lambda: home.holo(*on(other, "kv", "get", "k")).returncode == FAILED, 30, "the key to go, unkept")


def test_wrong_usage(cluster):
    cluster.refused("lock", code=USAGE)
    cluster.refused("lock", "a", code=USAGE)
    cluster.refused("lock", "a b", "--", "true")
    cluster.refused("lock", "a", "--ttl", "0.5", "--", "true", code=USAGE)
    cluster.refused("lock", "a", "--", "/nonexistent")
    assert holder(cluster, "a") is None
    cluster.refused("lease", "end", "0", code=USAGE)
    cluster.refused("lease", "end", "999999")
    cluster.refused("kv", "put", "a", "b", "--fence", "nonsense", code=USAGE)
    assert "cluster's own" in cluster.refused("kv", "put", "holo/lock/a", "me")
