"""The same cluster over both logs of the control state: the agents' own (Raft), and a real etcd."""

import json
import os
import shutil
import signal
import subprocess
import time

import pytest
from holo_e2e import HOLO, PROBE, alive, free_port, gone, node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


@pytest.fixture(params=["raft", "etcd", "etcd-https"])
def store(request, home):
    """Flags by which agents of one cluster find the log."""
    if request.param == "raft":
        yield ()
        return
    if not shutil.which("etcd"):
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    https = request.param == "etcd-https"  # The system's OpenSSL in one process with the agent's AWS-LC.
    client, peer = f"http{'s' if https else ''}://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    command = ("etcd", "--data-dir", home.root / "etcd", "--listen-client-urls", client, "--advertise-client-urls", client,
               "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
               "--logger", "zap", "--log-outputs", home.root / "etcd.log", *(("--auto-tls",) if https else ()))  # fmt: skip
    with home.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as etcd:
        home.etcd = etcd
        flags = ("--control-store", "etcd", "--control-endpoints", client)
        yield (*flags, "--control-ca", home.root / "etcd" / "fixtures" / "client" / "cert.pem") if https else flags
        etcd.kill()


def make(home, store, count):
    deadline = time.monotonic() + 20
    while True:  # etcd takes a moment to answer.
        done = home.holo("init", "--node-name", "n1", "--state-dir", home.root / "n1", *LOCAL, *store)
        if done.returncode == 0 or time.monotonic() > deadline:
            break
    assert done.returncode == 0, done.stderr + home.logs()
    home.line = done.stdout.split()
    for i in range(2, count + 1):
        home.ok("join", home.line[2], "--key", home.line[4], "--name", f"n{i}", "--state-dir", home.root / f"n{i}", *LOCAL, *store)


def at(home, i):
    return ("--state-dir", home.root / f"n{i}")


def pid_of(home, i):
    mark = str(home.root / f"n{i}").encode() + b"\0"
    (pid,) = [p for p in home.processes() if mark in open(f"/proc/{p}/cmdline", "rb").read()]
    return pid


def leader(home, i):
    return home.status(*at(home, i))["cluster"]["leader_name"]


def test_keys_locks_regions_and_the_end_of_a_leader(home, store):
    make(home, store, 3)
    home.ok("kv", "put", "a", "1", *at(home, 1))
    assert home.ok("kv", "get", "a", *at(home, 3)).strip() == "1"
    first = int(home.ok("lock", "l", *at(home, 2), "--", "sh", "-c", "echo $HOLO_LOCK_TOKEN"))
    assert int(home.ok("lock", "l", *at(home, 3), "--", "sh", "-c", "echo $HOLO_LOCK_TOKEN")) > first
    total = home.ok("run", *at(home, 1), PROBE, "fill", "xs", "100000", "2")
    assert home.ok("run", *at(home, 3), PROBE, "sum", "xs") == total
    status = wait_until(lambda: (lambda s: s if sum(m["voter"] for m in s["members"]) == 3 else None)(
        home.json("control", "status", *at(home, 2))), 20, "three voters")  # fmt: skip
    assert status["primary"] and status["committed"] > 0

    name = leader(home, 1)
    gone_one = int(name[1])
    os.kill(pid_of(home, gone_one), signal.SIGKILL)
    (other, third) = (i for i in (1, 2, 3) if i != gone_one)
    wait_until(lambda: leader(home, other) not in ("", name), 30, "another leader")
    wait_until(lambda: node(home.status(*at(home, other)), name)["state"] == "dead", 30, "the cluster to know")
    home.ok("kv", "put", "a", "2", *at(home, third))
    assert home.ok("kv", "get", "a", *at(home, other)).strip() == "2"
    assert home.ok("run", *at(home, other), PROBE, "sum", "xs") == total

    # It returns, and knows what it has missed.
    with home.start(HOLO, "agent", *at(home, gone_one)) as agent:
        wait_until(lambda: len(alive(home.status(*at(home, other)))) == 3, 30, "it to be back")
        assert home.ok("kv", "get", "a", *at(home, gone_one)).strip() == "2"
        agent.terminate()
        agent.wait(15)


def test_a_lock_in_a_cluster_that_was_quiet_has_its_whole_time(home, store):
    make(home, store, 2)
    home.ok("kv", "put", "a", "1", *at(home, 1))
    last = time.monotonic()
    wait_until(lambda: time.monotonic() - last > 3, 10, "nobody to have written for longer than the lease lives")
    for i in (1, 2):
        done = home.holo("lock", "l", "--ttl", "2", *at(home, i), "--", "sleep", "1")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("store", ["etcd"], indirect=True)
def test_without_its_etcd_every_node_names_it_and_nobody_joins(home, store):
    make(home, store, 3)
    wrong = f"http://127.0.0.1:{free_port()}"
    ask = ("join", home.line[2], "--key", home.line[4], "--name", "n4", *at(home, 4), *LOCAL, "--control-store", "etcd")
    line = home.refused(*ask, "--control-endpoints", wrong)
    assert wrong in line and "control_endpoints" in line
    line = home.refused(*ask, *store[2:], "--control-prefix", "other")
    assert "holo/other/" in line and "control_prefix" in line
    assert len(home.status(*at(home, 1))["nodes"]) == 3
    home.etcd.kill()
    url = store[3]
    for i in (1, 2, 3):
        cluster = wait_until(lambda: (lambda c: c if not c["primary"] else None)(home.status(*at(home, i))["cluster"]), 20, "it to know")  # noqa: B023
        # At first it knows only that there is no leader.
        wait_until(lambda: url in home.status(*at(home, i))["cluster"]["primary_reason"], 10, "the reason")  # noqa: B023
        assert cluster["leader_name"] == ""
        assert not home.json("control", "status", *at(home, i))["primary"]
        assert url in home.refused("kv", "put", "a", "1", *at(home, i))


def test_a_full_stop_loses_nothing_and_members_come_and_go(home, store):
    make(home, store, 2)
    for i in range(50):
        home.ok("kv", "put", f"k{i:02}", str(i), *at(home, 1 + i % 2))
    # Who loses every address at once finds each other through etcd only; without it one has to be where it was.
    first = () if store else ("--listen", node(home.status(*at(home, 2)), "n1")["address"])
    pids = [pid_of(home, i) for i in (1, 2)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: gone(pid), 10, "the agent to end")  # noqa: B023
    with home.start(HOLO, "agent", *at(home, 1), *first), home.start(HOLO, "agent", *at(home, 2)):
        for i in (1, 2):
            wait_until(lambda: home.holo("status", *at(home, i)).returncode == 0, 20, "the agent to answer")  # noqa: B023
            wait_until(lambda: home.status(*at(home, i))["this_node"]["ready"], 40, "the node to be alive again")  # noqa: B023
            assert home.ok("kv", "get", "k49", *at(home, i)).strip() == "49"
        assert len(json.loads(home.ok("kv", "range", "--prefix", "k", "--json", *at(home, 2)))) == 50
        address = node(home.status(*at(home, 1)), "n1")["address"]
        home.ok("join", address, "--key", home.line[4], "--name", "n3", *at(home, 3), *LOCAL, *store)
        assert home.ok("kv", "get", "k07", *at(home, 3)).strip() == "7"
        home.ok("leave", *at(home, 3), timeout=90)
        wait_until(lambda: node(home.status(*at(home, 1)), "n3")["state"] == "left", 20, "it to have left")
        for i in (1, 2):
            os.kill(pid_of(home, i), signal.SIGTERM)


def test_a_snapshot_of_either_is_restored_into_either(home, store):
    make(home, store, 1)
    for i in range(20):
        home.ok("kv", "put", f"k{i:02}", "x" * 1000, *at(home, 1))
    file = home.root / "lab.holo"
    home.ok("control", "snapshot", file, *at(home, 1))
    more = (*store, "--control-prefix", "second") if store else ()
    home.ok("init", "--restore", file, "--node-name", "r1", "--state-dir", home.root / "r1", *LOCAL, *more)
    assert len(json.loads(home.ok("kv", "range", "--prefix", "k", "--json", "--state-dir", home.root / "r1"))) == 20
    home.ok("init", "--restore", file, "--node-name", "r2", "--state-dir", home.root / "r2", *LOCAL)
    assert len(json.loads(home.ok("kv", "range", "--prefix", "k", "--json", "--state-dir", home.root / "r2"))) == 20
    if store:
        address, key = home.line[2], home.line[4]
        line = home.refused("join", address, "--key", key, "--name", "j", "--state-dir", home.root / "j", *LOCAL)
        assert "--control-store" in line, "it would look for the log elsewhere"
        line = home.refused("init", "--node-name", "r3", "--state-dir", home.root / "r3", *LOCAL, *store)
        assert "control_prefix" in line, "that place is taken"


def test_settings_that_do_not_fit(home):
    home.refused("init", "--state-dir", home.root / "s", *LOCAL, "--control-store", "etcd")
    home.refused("init", "--state-dir", home.root / "s", *LOCAL, "--control-store", "zookeeper", code=2)
    home.refused("init", "--state-dir", home.root / "s", *LOCAL, "--control-store", "etcd", "--control-endpoints", "nonsense", code=2)
    line = home.refused("init", "--state-dir", home.root / "s", *LOCAL, "--control-store", "etcd", "--control-endpoints",
                        f"http://127.0.0.1:{free_port()}")  # fmt: skip
    assert "etcd" in line
