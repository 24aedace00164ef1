"""Who is alive is the cluster's decision: crashes, pauses, splits, pairs with and without a witness, false alarms."""

import json
import os
import signal
import subprocess
import time

import pytest
from holo_e2e import HOLO, PROBE, alive, gone, node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


def at(home, number):
    return home.status("--node", f"node{number}")


def pid_of(home, number):
    return next(n["pid"] for n in home.json("dev", "status")["nodes"] if n["number"] == number)


def up(home, nodes, *more):
    home.ok("dev", "up", "-n", nodes, "--memory", "64MiB", *more)


needs_net = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def test_a_killed_node_is_dead_for_all_and_the_epoch_moves_once(home):
    up(home, 5)
    epoch = at(home, 1)["cluster"]["epoch"]
    home.ok("dev", "kill", "3")
    for n in (1, 2, 4, 5):
        wait_until(lambda: node(at(home, n), "node3")["state"] == "dead", 10, f"node{n} to know of the death")  # noqa: B023
        status = at(home, n)
        assert status["cluster"]["epoch"] == epoch + 1
        assert node(status, "node3")["seen"] == "dead"
        assert len(alive(status)) == 4
    assert any(at(home, n)["this_node"]["membership"]["verdicts"] >= 1 for n in (1, 2, 4, 5))
    incarnation = node(at(home, 1), "node3")["incarnation"]
    home.ok("dev", "restart", "3")
    wait_until(lambda: node(at(home, 1), "node3")["state"] == "alive", 15, "node3 to return")
    assert node(at(home, 1), "node3")["incarnation"] > incarnation
    wait_until(lambda: node(at(home, 1), "node3")["seen"] == "alive", 10, "node1 to hear node3 itself")
    assert 0 <= node(at(home, 1), "node3")["last_heard_ms"] < 30_000


def test_a_paused_node_resumes_under_a_new_incarnation(home):
    up(home, 3)
    victim = next(n for n in (1, 2, 3) if node(at(home, 1), f"node{n}")["id"] != at(home, 1)["cluster"]["leader"])
    other = 1 if victim != 1 else 2
    home.ok("kv", "put", "k", "before", "--node", f"node{other}")
    before = node(at(home, other), f"node{victim}")["incarnation"]
    epoch = at(home, other)["cluster"]["epoch"]
    pid = pid_of(home, victim)
    os.kill(pid, signal.SIGSTOP)
    try:
        # What it is asked now reaches it only after its death; it must act as a living node, or not at all.
        with home.start(HOLO, "kv", "put", "k", "by the dead", "--node", f"node{victim}") as late:
            wait_until(lambda: node(at(home, other), f"node{victim}")["state"] == "dead", 15, "the pause to be noticed")
            assert at(home, other)["cluster"]["epoch"] == epoch + 1
            home.ok("kv", "put", "k", "after", "--node", f"node{other}")
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: node(at(home, other), f"node{victim}")["state"] == "alive", 15, "it to return")
            late.wait(60)
    finally:
        os.kill(pid, signal.SIGCONT)
    status = at(home, other)
    assert node(status, f"node{victim}")["incarnation"] > before
    assert status["cluster"]["epoch"] == epoch + 2
    home.ok("kv", "put", "k", "again", "--node", f"node{victim}")
    assert home.ok("kv", "get", "k", "--node", f"node{other}").strip() == "again"


def test_a_node_that_is_paused_again_and_again_returns_each_time(home):
    """Five deaths in a minute: it was silent, and nobody else spoke in its name."""
    up(home, 3)
    leader = at(home, 1)["cluster"]["leader_name"]
    victim = next(n for n in (3, 2) if f"node{n}" != leader)
    pid = pid_of(home, victim)
    seen = lambda: node(at(home, 1), f"node{victim}")
    began = time.monotonic()
    for n in range(5):
        before = seen()["incarnation"]
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: seen()["state"] == "dead", 15, f"pause {n} to be noticed")
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: seen()["state"] == "alive" and seen()["incarnation"] > before, 15, f"it to return from pause {n}")  # noqa: B023
    assert time.monotonic() - began < 60, "else this says nothing of five in a minute"
    assert home.ok("kv", "put", "still", "here", "--node", f"node{victim}")
    assert home.ok("kv", "get", "still", "--node", f"node{victim}").strip() == "here"
    assert pid_of(home, victim) == pid and not gone(pid)


def test_what_a_paused_node_had_under_way_overwrites_nothing(home):
    up(home, 3)
    leader = at(home, 1)["cluster"]["leader_name"]
    victim = next(n for n in (1, 2, 3) if f"node{n}" != leader)
    (other,) = [n for n in (1, 2, 3) if n != victim and f"node{n}" != leader]
    assert home.run(PROBE, "fill", "xs", "1000", "2").returncode == 0
    pid = pid_of(home, victim)
    for token in (1_000_001, 1_000_002):
        with home.start(PROBE, "writer", "xs", stdin=subprocess.PIPE, env=home.env | {"HOLO_NODE": f"node{victim}"}) as writer:
            assert writer.stdout.readline() == "started\n"
            wait_until(lambda: home.run(PROBE, "get", "xs", "7").stdout not in ("", "71\n"), 20, "it to have written")
            try:
                os.kill(pid, signal.SIGSTOP)  # In the middle of whatever it does for the writer,
                writer.send_signal(signal.SIGSTOP)  # who asks for nothing new.
                wait_until(lambda: node(at(home, other), f"node{victim}")["state"] == "dead", 20, "the pause to be noticed")
                # With fewer copies than before, so the other nodes may have to fill them first.
                put = ("put", "xs", "7", str(token))
                wait_until(lambda: home.run(PROBE, *put, env={"HOLO_NODE": f"node{other}"}).returncode == 0, 20, "the write elsewhere")  # noqa: B023
                os.kill(pid, signal.SIGCONT)
                wait_until(lambda: node(at(home, other), f"node{victim}")["state"] == "alive", 20, "it to return")
                for n in (victim, other):
                    got = home.run(PROBE, "get", "xs", "7", env={"HOLO_NODE": f"node{n}"})
                    assert got.stdout == f"{token}\n", (n, got.stdout, got.stderr)
            finally:
                os.kill(pid, signal.SIGCONT)
                writer.kill()


def test_a_short_pause_is_taken_back_and_costs_nothing(home):
    up(home, 5)
    time.sleep(2)  # Everybody has heard everybody.
    epoch = at(home, 1)["cluster"]["epoch"]
    pid = pid_of(home, 4)

    def suspected_and_not():
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        os.kill(pid, signal.SIGCONT)
        time.sleep(1)
        return at(home, 1)["this_node"]["membership"]["false_suspicions"] > 0

    for _ in range(20):
        if suspected_and_not():
            break
    else:
        raise AssertionError("twenty pauses of half a second, and nobody was suspected")
    status = wait_until(lambda: (lambda s: node(s, "node4")["seen"] == "alive" and s)(at(home, 1)), 10, "the suspicion to go")
    assert node(status, "node4")["state"] == "alive"
    assert status["cluster"]["epoch"] == epoch
    assert at(home, 4)["this_node"]["membership"]["refutations"] > 0


def refuses_quickly(home, number):
    """Once this node is sure (an election could still be under way), it refuses at once."""
    put = ("kv", "put", "k", "v", "--node", f"node{number}")
    wait_until(lambda: "nothing is changed" in home.holo(*put).stderr, 20, f"node{number} to be sure")
    began = time.monotonic()
    line = home.refused(*put)
    assert "voter" in line and "nothing is changed" in line
    assert time.monotonic() - began < 2


@needs_net
def test_the_side_with_most_voters_goes_on_and_the_other_says_that_it_does_not(home):
    up(home, 5, "--net")
    home.ok("kv", "put", "k", "whole", "--node", "node1")
    home.ok("dev", "partition", "4,5")
    small = wait_until(lambda: (lambda s: not s["cluster"]["primary"] and s)(at(home, 4)), 15, "node4 to see that it is cut off")
    assert "voter" in small["cluster"]["primary_reason"]
    assert "primary: no" in home.ok("status", "--node", "node4")
    wait_until(lambda: len(alive(at(home, 1))) == 3, 20, "the other side to go on without them")
    assert at(home, 1)["cluster"]["primary"] and at(home, 1)["cluster"]["primary_reason"] == ""
    epoch = at(home, 4)["cluster"]["epoch"]
    home.ok("kv", "put", "k", "most", "--node", "node1")
    refuses_quickly(home, 4)
    refuses_quickly(home, 5)
    home.refused("lock", "l", "--node", "node5", "--", "true", timeout=60)
    assert home.ok("kv", "get", "k", "--stale", "--node", "node4").strip() == "whole"
    assert at(home, 4)["cluster"]["epoch"] == epoch, "the small side declares nobody dead"
    home.ok("dev", "heal")
    wait_until(lambda: len(alive(at(home, 4))) == 5 and at(home, 4)["cluster"]["primary"], 30, "all to be one again")
    assert home.ok("kv", "get", "k", "--node", "node4").strip() == "most"


@needs_net
def test_of_two_neither_side_goes_on(home):
    up(home, 2, "--net")
    home.ok("kv", "put", "k", "both", "--node", "node1")
    epoch = at(home, 1)["cluster"]["epoch"]
    home.ok("dev", "partition", "2")
    for n in (1, 2):
        wait_until(lambda: not at(home, n)["cluster"]["primary"], 15, f"node{n} to stop")  # noqa: B023
    for n in (1, 2):
        refuses_quickly(home, n)
        assert at(home, n)["cluster"]["epoch"] == epoch
        assert home.ok("kv", "get", "k", "--stale", "--node", f"node{n}").strip() == "both"
    home.ok("dev", "heal")
    wait_until(lambda: home.holo("kv", "put", "k", "again", "--node", "node2").returncode == 0, 30, "both to go on")


def test_of_two_the_survivor_waits_for_the_other(home):
    up(home, 2)
    home.ok("kv", "put", "k", "both")
    home.ok("dev", "kill", "2")
    wait_until(lambda: not at(home, 1)["cluster"]["primary"], 15, "node1 to stop")
    refuses_quickly(home, 1)
    home.ok("dev", "restart", "2")
    wait_until(lambda: home.holo("kv", "put", "k", "again", "--node", "node1").returncode == 0, 30, "both to go on")


def test_of_two_the_dead_one_is_not_removed_by_force_and_there_is_a_way_out(home):
    up(home, 2)
    home.ok("kv", "put", "k", "both")
    home.ok("dev", "kill", "2")
    wait_until(lambda: not at(home, 1)["cluster"]["primary"], 15, "node1 to stop")
    line = home.refused("remove", "node2", "--force", "--node", "node1")
    assert "majority" in line and "holo control snapshot FILE --stale" in line and "holo init --restore FILE" in line
    assert node(at(home, 1), "node2")["state"] != "left"
    home.ok("control", "snapshot", home.root / "copy", "--stale", "--node", "node1")
    home.ok("dev", "down")
    home.ok("init", "--restore", home.root / "copy", "--state-dir", home.root / "anew", "--node-name", "anew", *LOCAL)
    anew = ("--state-dir", home.root / "anew")
    assert home.ok("kv", "get", "k", *anew).strip() == "both"
    home.ok("kv", "put", "k", "alone", *anew)


def test_of_three_one_that_comes_back_alone_has_all_that_was_committed(home):
    up(home, 3)
    wait_until(lambda: sum(n["voter"] for n in at(home, 1)["nodes"]) == 3, 15, "three voters")
    home.ok("kv", "put", "k", "all")
    read = lambda: home.holo("kv", "get", "k", "--stale", "--node", "node3").stdout.strip()  # noqa: E731
    wait_until(lambda: read() == "all", 5, "node3 to have it")
    time.sleep(0.3)  # Within that it is on its disk, too, what is committed.
    for n in (1, 2, 3):
        home.ok("dev", "kill", n)
    home.ok("dev", "restart", "3")
    assert read() == "all"
    assert [n["name"] for n in at(home, 3)["nodes"]] == ["node1", "node2", "node3"]
    home.ok("control", "snapshot", home.root / "copy", "--stale", "--node", "node3")
    home.ok("dev", "down")
    home.ok("init", "--restore", home.root / "copy", "--state-dir", home.root / "anew", "--node-name", "anew", *LOCAL)
    assert home.ok("kv", "get", "k", "--state-dir", home.root / "anew").strip() == "all"


def test_with_a_witness_one_of_two_goes_on(home):
    line = home.ok("init", "--name", "lab", "--node-name", "first", "--state-dir", home.root / "s1", *LOCAL).split()
    for name, more in (("second", ()), ("third", ("--witness",))):
        home.ok("join", line[2], "--key", line[4], "--name", name, "--state-dir", home.root / name, *LOCAL, *more)
    status = lambda: home.status("--state-dir", home.root / "s1")  # noqa: E731
    wait_until(lambda: sum(n["voter"] for n in status()["nodes"]) == 3, 15, "three voters")
    (pid,) = [p for p in home.processes() if str(home.root / "second").encode() in open(f"/proc/{p}/cmdline", "rb").read()]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: node(status(), "second")["state"] == "dead", 15, "the death to be decided by the survivor and the witness")
    assert node(status(), "third")["witness"]
    assert status()["cluster"]["primary"]
    home.ok("kv", "put", "k", "v", "--state-dir", home.root / "s1")


def voters(status):
    return {n["name"] for n in status["nodes"] if n["voter"]}


def test_a_leader_that_is_drained_hands_over_and_its_vote_goes_to_another(home):
    up(home, 4)
    status = at(home, 1)
    leader = status["cluster"]["leader_name"]
    (spare,) = {n["name"] for n in status["nodes"]} - voters(status)
    other = next(n for n in (1, 2, 3, 4) if f"node{n}" not in (leader, spare))
    term = home.json("control", "status", "--node", f"node{other}")["term"]
    home.ok("drain", leader, "--node", f"node{other}")

    def done():
        s = at(home, other)
        return s["cluster"]["leader_name"] not in ("", leader) and leader not in voters(s) and len(voters(s)) == 3 and s

    after = wait_until(done, 20, "the leader to hand over, and its vote to go to the spare node")
    assert spare in voters(after) and node(after, leader)["state"] == "alive"
    assert home.json("control", "status", "--node", f"node{other}")["term"] > term
    home.ok("kv", "put", "k", "v", "--node", leader)
    home.ok("undrain", leader, "--node", f"node{other}")
    assert len(voters(at(home, other))) == 3


def test_where_all_voters_but_one_drain_that_one_leads(home):
    up(home, 5)
    for last in (5, 1, 3):
        others = [n for n in (1, 2, 3, 4, 5) if n != last]
        for number in others:
            home.ok("drain", f"node{number}", "--node", f"node{last}")
        # One that drains must not hand over to another that does, which would hand it back, term after term.
        wait_until(lambda: at(home, last)["cluster"]["leader_name"] == f"node{last}", 20, "the one that does not drain to lead")  # noqa: B023
        term = home.json("control", "status", "--node", f"node{last}")["term"]
        home.ok("kv", "put", "k", "v", "--node", f"node{others[0]}")
        assert home.json("control", "status", "--node", f"node{last}")["term"] == term < 50
        for number in others:
            home.ok("undrain", f"node{number}", "--node", f"node{last}")


def told_of_its_removal(home, number):
    wait_until(lambda: at(home, number)["this_node"]["removed"], 20, "the node to know that it was removed")


def directory(home, number):
    return home.root / f"state/holo/dev/dev/node{number}"


def join_again(home, number):
    """With the directory that it had."""
    key = json.loads((directory(home, 1) / "cluster.json").read_text())["key"]
    address = node(at(home, 1), "node1")["address"]
    name = f"node{number}"
    home.ok("join", address, "--key", key, "--name", name, "--state-dir", directory(home, number))
    assert name in alive(at(home, 1))
    assert home.ok("kv", "get", "k", "--node", name).strip() == "v"


def test_a_node_removed_while_it_was_dead_is_told_remembers_it_and_joins_again(home):
    up(home, 4)
    home.ok("kv", "put", "k", "v")
    home.ok("dev", "kill", "4")
    home.ok("remove", "node4", "--node", "node1")
    home.ok("dev", "restart", "4")
    told_of_its_removal(home, 4)
    home.ok("dev", "kill", "4")
    for n in (1, 2, 3):
        os.kill(pid_of(home, n), signal.SIGSTOP)  # Nobody can say it again.
    try:
        home.ok("dev", "restart", "4")
        assert at(home, 4)["this_node"]["removed"]
        assert "was removed" in home.ok("status", "--node", "node4")
        for asked in (("get", "k", "--stale"), ("get", "k"), ("put", "k", "w")):
            assert "was removed" in home.refused("kv", *asked, "--node", "node4")
        assert at(home, 4)["this_node"]["links"] == []
        home.ok("leave", "--node", "node4")
    finally:
        for n in (1, 2, 3):
            os.kill(pid_of(home, n), signal.SIGCONT)
    wait_until(lambda: len(alive(at(home, 1))) == 3, 30, "the others to be back")
    join_again(home, 4)


def test_a_directory_whose_node_was_removed_is_left_and_joined_with_no_agent_running(home):
    up(home, 4)
    home.ok("kv", "put", "k", "v")
    there = ("--state-dir", directory(home, 4))
    # It was told, and its agent has ended since.
    home.ok("remove", "node4", "--node", "node1")
    told_of_its_removal(home, 4)
    home.ok("dev", "kill", "4")
    assert home.json("leave", *there)["left"]
    home.refused("leave", *there)  # There is nothing left to leave.
    join_again(home, 4)
    # Nothing there says it: the others do. Twice, for the two commands.
    for end in (lambda: home.ok("leave", *there), lambda: None):
        pid = next(p for p in home.processes() if str(directory(home, 4)).encode() in open(f"/proc/{p}/cmdline", "rb").read())
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in home.processes(), 10, "its end")  # noqa: B023
        home.refused("leave", *there)  # A member's directory, still.
        home.ok("remove", "node4", "--node", "node1")
        end()
        join_again(home, 4)
