"""holo dev: a cluster on this machine, and only its own processes."""

import os
import signal
import time
from pathlib import Path

import pytest
from holo_e2e import PROBE, alive, gone, node, quadratic_sum, wait_until


def test_up_status_logs_kill_restart_down(home):
    began = time.monotonic()
    up = home.json("dev", "up", "-n", "4", "--memory", "64MiB")
    assert time.monotonic() - began < 10
    assert [n["state"] for n in up["nodes"]] == ["alive"] * 4
    pids = {n["number"]: n["pid"] for n in up["nodes"]}
    addresses = {n["number"]: n["address"] for n in up["nodes"]}
    assert len(set(addresses.values())) == 4
    assert len(alive(home.status())) == 4

    home.refused("dev", "up", "-n", "4")
    home.refused("dev", "kill", "5")
    assert home.ok("dev", "logs", "1")

    home.ok("dev", "kill", "2")
    assert gone(pids[2])
    home.refused("dev", "kill", "2")
    wait_until(lambda: node(home.status(), "node2")["state"] == "dead", 10, "node2 to be known as dead")
    assert len(alive(home.status())) == 3
    assert all(not gone(pids[n]) for n in (1, 3, 4))

    home.ok("dev", "restart", "2")
    wait_until(lambda: node(home.status(), "node2")["state"] == "alive", 10, "node2 to be alive again")
    after = {n["number"]: n for n in home.json("dev", "status")["nodes"]}
    assert after[2]["address"] == addresses[2]
    assert after[2]["pid"] != pids[2]
    assert after[3]["pid"] == pids[3]

    home.ok("dev", "down")
    assert not home.processes()
    home.refused("dev", "status")
    assert not list((home.root / "state" / "holo").glob("dev/*"))


def test_one_that_does_not_answer_is_shown_beside_the_others(home):
    pids = {n["number"]: n["pid"] for n in home.json("dev", "up", "-n", "3", "--memory", "64MiB")["nodes"]}
    os.kill(pids[1], signal.SIGSTOP)
    began = time.monotonic()
    states = {n["name"]: n["state"] for n in home.json("dev", "status")["nodes"]}
    assert time.monotonic() - began < 8, "it is not waited for as long as one that is to do something"
    assert states == {"node1": "not answering", "node2": "alive", "node3": "alive"}
    line = home.refused("kv", "get", "a", "--node", "node1")
    assert "node1" in line and "no answer" in line and "request 1" not in line
    os.kill(pids[1], signal.SIGCONT)
    wait_until(lambda: [n["state"] for n in home.json("dev", "status")["nodes"]] == ["alive"] * 3, 20, "node1 to answer again")


def test_down_stops_every_agent_whose_state_it_removes(home):
    """One that was killed, one that joined in the place of one that left, and one in a directory of its own."""
    nodes = home.json("dev", "up", "-n", "3", "--memory", "64MiB")["nodes"]
    home.ok("leave", "--node", "node3")
    wait_until(lambda: gone(nodes[2]["pid"]), 20, "node3 to end")
    home.ok("dev", "kill", "2")
    sockets = (home.root / "run" / "holo").glob("agent-*.sock")
    assert len(list(sockets)) == 2, "who is killed leaves its socket"
    local = ("--listen", "127.0.0.1:0", "--memory", "64MiB")
    home.ok("init", "--name", "other", "--state-dir", nodes[2]["state_dir"], *local)
    folder = Path(nodes[0]["state_dir"]).parent
    home.ok("init", "--name", "another", "--state-dir", folder / "by-hand", *local)
    outside = home.root / "outside"
    home.ok("init", "--name", "outside", "--state-dir", outside, *local)
    assert len(home.processes()) == 4
    home.ok("dev", "down")
    assert not folder.exists()
    [left] = home.processes()
    assert str(outside) in Path(f"/proc/{left}/cmdline").read_text()
    assert len(list((home.root / "run" / "holo").glob("agent-*.sock"))) == 1


def test_a_stranger_with_a_recycled_pid_is_not_killed(home):
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB")
    (record,) = (home.root / "state" / "holo" / "dev").glob("*/cluster.json")
    agent = home.json("dev", "status")["nodes"][0]["pid"]
    stranger = home.start("sleep", "1000")
    try:
        # As if the agent had died and its pid had been given to somebody else.
        record.write_text(record.read_text().replace(f'"pid": {agent}', f'"pid": {stranger.pid}'))
        home.refused("dev", "kill", "1")
        home.ok("dev", "down")
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.communicate()


def test_two_clusters_do_not_mix(home):
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB", "--cluster", "a")
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB", "--cluster", "b")
    home.ok("alloc", "xs", "--count", "1000", "--cluster", "a")
    assert home.json("regions", "--cluster", "b") == []
    home.ok("dev", "down", "--cluster", "a")
    assert len(alive(home.status())) == 1
    assert home.status()["cluster"]["name"] == "b"


def test_restart_without_a_quorum_returns_when_the_process_answers(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    for n in "123":
        home.ok("dev", "kill", n)
    began = time.monotonic()
    home.ok("dev", "restart", "1")
    assert time.monotonic() - began < 10
    assert home.status("--node", "node1")["cluster"]["name"] == "dev"
    home.ok("dev", "restart", "2")
    wait_until(lambda: {"node1", "node2"} <= set(alive(home.status())), 20, "two of three to go on")


def test_a_full_stop_keeps_what_was_committed(home):
    count = 500_000
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    filled = home.run(PROBE, "fill", "xs", str(count), "2")
    assert filled.returncode == 0, filled.stderr
    home.ok("dev", "down", "--keep-state")
    assert not home.processes()
    home.ok("dev", "up")
    summed = home.run(PROBE, "sum", "xs")
    assert summed.stdout == f"{quadratic_sum(count)}\n", summed.stderr + home.logs()
    scanned = home.run(PROBE, "scan", "xs")
    assert scanned.stdout == f"{count}\n", scanned.stderr


def test_an_agent_ends_within_two_seconds_of_sigterm_also_with_pages(home):
    home.ok("dev", "up", "-n", "2", "--memory", "256MiB")
    assert home.run(PROBE, "fill", "xs", "10000000").returncode == 0
    for n in home.json("dev", "status")["nodes"]:
        began = time.monotonic()
        os.kill(n["pid"], signal.SIGTERM)
        wait_until(lambda: gone(n["pid"]), 10, "the agent to end")
        assert time.monotonic() - began < 2.2


@pytest.mark.parametrize("nodes", ["1", "2", "5"])
def test_voters_are_odd_but_of_two(home, nodes):
    home.ok("dev", "up", "-n", nodes, "--memory", "32MiB")
    wanted = {"1": 1, "2": 2, "5": 5}[nodes]  # Of two, both: neither side of a split goes on.
    wait_until(lambda: sum(n["voter"] for n in home.status()["nodes"]) == wanted, 10, f"{wanted} voters")
