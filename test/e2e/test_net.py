"""holo dev up --net --cpus --rate: every node in its own namespace, with its share of the processor and of the link."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from holo_e2e import DONE, FAILED, HOLO, PROBE, USAGE, Home, alive, node, quadratic_sum, wait_until

NAMES = Path("/run/netns")
LINKS = Path("/sys/class/net")
CGROUPS = Path("/sys/fs/cgroup")


def namespaces_refused():
    """Why there can be no network namespaces here, or None."""
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


pytestmark = pytest.mark.skipif(namespaces_refused() is not None, reason=namespaces_refused() or "")


def left_of(key):
    """What there is on this machine under the names of a dev cluster."""
    found = [p for p in NAMES.glob(key + "-*")] if NAMES.exists() else []
    found += [LINKS / f"holo-{key[-8:]}"] if (LINKS / f"holo-{key[-8:]}").exists() else []
    for folder, folders, _ in os.walk(CGROUPS):
        found += [Path(folder) / name for name in folders if name.startswith(key)]
    return found


def key_of(home, cluster="dev"):
    return json.loads((home.root / "state/holo/dev" / cluster / "cluster.json").read_text())["net"]["key"]


@pytest.fixture
def home():
    home = Home()
    keys = []
    try:
        yield home
    finally:
        for folder in (home.root / "state/holo/dev").glob("*"):
            keys += [key_of(home, folder.name)] if "net" in (folder / "cluster.json").read_text() else []
        home.close()
    assert [left_of(key) for key in keys] == [[] for _ in keys]


@pytest.fixture(scope="module")
def three():
    """A cluster that the tests share; none of them may stop or cut off a node."""
    home = Home()
    try:
        up = home.json("dev", "up", "-n", "3", "--net", "--cpus", "0.3", "--rate", "100mbit", "--memory", "64MiB")
        yield home, {n["number"]: n for n in up["nodes"]}
    finally:
        home.holo("dev", "down")
        home.close()


def inside(namespace, program, *arguments):
    """A Python program in a namespace; it is handed the arguments, and its result is what it prints."""
    return subprocess.Popen(
        ["nsenter", f"--net={NAMES / namespace}", sys.executable, "-c", program, *map(str, arguments)],
        stdout=subprocess.PIPE, text=True)  # fmt: skip


def network_of(pid):
    return os.readlink(f"/proc/{pid}/ns/net")


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_up_status_kill_restart_down(home):
    up = home.json("dev", "up", "-n", "3", "--net", "--cpus", "0.5", "--memory", "64MiB")
    key = key_of(home)
    before = {n["number"]: n for n in up["nodes"]}
    assert {(n["cpus"], n["rate"], n["udp"], n["part"]) for n in before.values()} == {(0.5, "1gbit", "allowed", 0)}
    status = home.status()
    assert sorted(alive(status)) == ["node1", "node2", "node3"]
    assert all(n["address"].startswith("10.") for n in status["nodes"])
    assert home.ok("dev", "logs", "2")
    assert home.run(PROBE, "fill", "xs", "100000", "2").stdout == f"{quadratic_sum(100000)}\n"

    home.ok("dev", "kill", "2")
    wait_until(lambda: node(home.status(), "node2")["state"] == "dead", 10, "node2 to be known as dead")
    home.ok("dev", "restart", "2")
    wait_until(lambda: node(home.status(), "node2")["state"] == "alive", 10, "node2 to be alive again")
    after = {n["number"]: n for n in home.json("dev", "status")["nodes"]}
    assert after[2]["pid"] != before[2]["pid"]
    for same in ("address", "namespace", "cgroup"):
        assert after[2][same] == before[2][same]
    assert os.stat(f"/proc/{after[2]['pid']}/ns/net").st_ino == os.stat(NAMES / after[2]["namespace"]).st_ino
    assert str(after[2]["pid"]) in (Path(after[2]["cgroup"]) / "cgroup.procs").read_text().split()

    assert left_of(key)
    home.ok("dev", "down")
    assert left_of(key) == []
    assert not home.processes()


def test_every_agent_has_its_own_network_and_share(three):
    _, nodes = three
    networks = {network_of(n["pid"]) for n in nodes.values()}
    assert len(networks) == 3 and network_of("self") not in networks
    for n in nodes.values():
        assert os.stat(f"/proc/{n['pid']}/ns/net").st_ino == os.stat(NAMES / n["namespace"]).st_ino
        group = Path(n["cgroup"])
        assert str(n["pid"]) in (group / "cgroup.procs").read_text().split()
        if (group / "cpu.max").exists():
            assert (group / "cpu.max").read_text() == "3000 10000\n"
        else:
            assert (group / "cpu.cfs_quota_us").read_text() == "3000\n"
            assert (group / "cpu.cfs_period_us").read_text() == "10000\n"


def test_workers_live_with_their_agent_and_share_its_quota(three):
    home, nodes = three
    with home.start(PROBE, "misbehave", "loop", "loop") as program:
        assert program.stdout.readline() == "started\n"

        def busy():
            """The processor time of all workers."""
            ticks = 0
            for n in nodes.values():
                for worker in children(n["pid"]):
                    assert network_of(worker) == network_of(n["pid"])
                    assert str(worker) in (Path(n["cgroup"]) / "cgroup.procs").read_text().split()
                    ticks += sum(map(int, Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            return ticks / os.sysconf("SC_CLK_TCK")

        wait_until(lambda: busy() > 0.2, 20, "a worker to spin")
        began, used = time.monotonic(), busy()
        wait_until(lambda: busy() - used > 0.3, 20, "0.3 s of processor time")
        assert (busy() - used) / (time.monotonic() - began) < 0.3 * 1.3
        program.send_signal(signal.SIGINT)


RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
peer = server.accept()[0]
peer.recv(1 << 16)
began, total = time.monotonic(), 0
while time.monotonic() - began < 1.5:
    total += len(peer.recv(1 << 16))
print(total * 8 / (time.monotonic() - began))
"""
SEND = """
import socket, sys
peer = socket.create_connection((sys.argv[1], sys.argv[2]))
try:
    while True: peer.sendall(bytes(1 << 16))
except OSError:
    pass
"""


def test_a_link_carries_its_rate_and_no_more(three):
    _, nodes = three
    address = nodes[2]["address"].split(":")[0]
    with inside(nodes[2]["namespace"], RECEIVE, address) as receiver:
        port = receiver.stdout.readline().strip()
        with inside(nodes[1]["namespace"], SEND, address, port):
            bits_per_second = float(receiver.stdout.readline())
    assert 0.5 * 100e6 < bits_per_second < 1.3 * 100e6


def test_this_machine_reaches_the_nodes(three):
    _, nodes = three
    for n in nodes.values():
        host, port = n["address"].split(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def test_two_clusters_at_once(home):
    one = home.json("dev", "up", "-n", "1", "--net", "--memory", "64MiB", "--cluster", "one")
    two = home.json("dev", "up", "-n", "2", "--net", "--memory", "64MiB", "--cluster", "two")
    assert one["net"] != two["net"] and key_of(home, "one") != key_of(home, "two")
    key = key_of(home, "one")
    home.ok("dev", "down", "--cluster", "one")
    assert left_of(key) == []
    assert sorted(alive(home.status())) == ["node1", "node2"]


def test_a_kept_cluster_comes_back_at_its_addresses(home):
    up = home.json("dev", "up", "-n", "2", "--net", "--cpus", "0.5", "--rate", "500mbit", "--memory", "64MiB")
    key = key_of(home)
    assert home.run(PROBE, "fill", "xs", "100000").returncode == 0
    home.ok("dev", "down", "--keep-state")
    assert left_of(key) == []
    assert "down --keep-state" in home.refused("dev", "restart", "1")  # Its namespace is gone: never on loopback instead.
    assert "another network" in home.refused("dev", "up", "--net", "--rate", "1gbit")
    assert "another share" in home.refused("dev", "up", "--cpus", "0.7")
    again = home.json("dev", "up")
    for field in ("address", "namespace", "cpus", "rate"):
        assert [n[field] for n in again["nodes"]] == [n[field] for n in up["nodes"]]
    assert home.run(PROBE, "sum", "xs").stdout == f"{quadratic_sum(100000)}\n"


@pytest.mark.parametrize("moment", ["record", "namespace", "cgroup", "agent", "second agent"])
@pytest.mark.parametrize("then", ["down", "up"])
def test_whatever_a_killed_start_left_is_removed(home, moment, then):
    record = home.root / "state/holo/dev/dev/cluster.json"

    def reached():
        if not record.exists():
            return False
        if moment == "record":
            return True
        if moment in ("namespace", "cgroup"):
            return any(moment == "cgroup" or p.name.endswith("-2") for p in left_of(key_of(home)))
        started = [n for n in json.loads(record.read_text())["nodes"] if n["pid"]]
        return len(started) >= (1 if moment == "agent" else 2)

    with home.start(HOLO, "dev", "up", "-n", "3", "--net", "--cpus", "0.5", "--memory", "64MiB") as up:
        while not reached() and up.poll() is None:
            pass
        up.kill()
    key = key_of(home)
    if then == "up":
        home.ok("dev", "up", "-n", "2", "--net", "--memory", "64MiB")
        assert sorted(alive(home.status())) == ["node1", "node2"]
        assert {p.name for p in left_of(key)} >= {f"{key}-1", f"{key}-2", f"{key}-switch"}
        assert f"{key}-3" not in {p.name for p in left_of(key)}
    home.ok("dev", "down")
    assert left_of(key) == []
    wait_until(lambda: not home.processes(), 5, "every process to be gone")


def test_a_partition_is_silent_and_heals(home):
    home.ok("dev", "up", "-n", "3", "--net", "--memory", "64MiB")
    home.refused("dev", "partition", "4")
    home.refused("dev", "partition", "1,2", "2", code=USAGE)
    home.refused("dev", "partition", "one", code=USAGE)
    home.ok("dev", "partition", "3")
    assert [n["part"] for n in home.json("dev", "status")["nodes"]] == [0, 0, 1]
    wait_until(lambda: node(home.status("--node", "node1"), "node3")["state"] == "dead", 15, "node3 to be silent for too long")
    assert home.json("dev", "status")["nodes"][2]["running"]
    home.ok("dev", "partition", "1,2", "3")
    assert {"node1", "node2"} <= set(alive(home.status("--node", "node1")))
    home.ok("dev", "heal")
    wait_until(lambda: len(alive(home.status("--node", "node1"))) == 3, 20, "all to be alive again")
    assert [n["part"] for n in home.json("dev", "status")["nodes"]] == [0, 0, 0]


def test_what_may_be_in_the_log_is_never_called_undone(home):
    home.ok("dev", "up", "-n", "2", "--net", "--memory", "64MiB")
    home.ok("kv", "put", "color", "blue")
    leader = home.status("--node", "node1")["cluster"]["leader_name"]
    home.ok("dev", "partition", "1")
    # Its log has the entry, and will have it committed when the other comes back.
    refusal = home.refused("kv", "put", "color", "green", "--node", leader)
    assert "not known" in refusal and "nothing is changed" not in refusal
    # By now it knows that it leads nobody: what it refuses without having tried stays undone.
    refusal = home.refused("kv", "put", "shape", "round", "--node", leader)
    assert "nothing is changed" in refusal and "not known" not in refusal
    home.ok("dev", "heal")
    wait_until(lambda: home.holo("kv", "put", "size", "large", "--node", leader).returncode == DONE, 30, "a leader")
    assert home.ok("kv", "get", "color").strip() in ("blue", "green")
    home.refused("kv", "get", "shape")


def cut_between(nodes, one, other, on=True):
    """Whether what `one` and `other` send to each other arrives; everybody else hears both."""
    for source, target in ((one, other), (other, one)):
        address = nodes[target]["address"].split(":")[0]
        namespace = nodes[source]["namespace"]
        subprocess.run(["nsenter", f"--net={NAMES / namespace}", "ip", "route", "add" if on else "del", "blackhole", address],
                       check=True)  # fmt: skip


def test_two_nodes_that_cannot_reach_each_other_keep_nothing_for_each_other(home):
    nodes = {n["name"]: n for n in home.json("dev", "up", "-n", "4", "--net", "--memory", "64MiB")["nodes"]}

    def fill():
        return home.run(PROBE, "fill", "xs", "1000000", "2", env={"HOLO_NODE": "node1"}).returncode

    def scan():
        return home.run(PROBE, "scan", "xs", env={"HOLO_NODE": "node1"}).stdout

    def cut_paths():
        return {(path["from"], path["to"]) for path in home.status("--shards", "--node", "node1")["shards"]["cut_paths"]}

    assert fill() == 0
    cut_between(nodes, "node2", "node3")
    # Which of both tells it first is open; the other then may have nothing left to complain about.
    wait_until(lambda: fill() == 0 and cut_paths(), 60, "commits to need no copy that cannot be made")
    assert cut_paths() <= {("node2", "node3"), ("node3", "node2")}
    assert len(alive(home.status("--node", "node1"))) == 4  # Others hear them: neither is dead.
    assert "cannot reach" in home.ok("status", "--shards", "--node", "node1")
    assert scan() == "1000000\n"
    home.ok("leave", "--node", "node3", "--timeout", "30")
    assert scan() == "1000000\n"
    assert cut_paths() == set()


def test_a_path_that_was_cut_is_used_again(home):
    nodes = {n["name"]: n for n in home.json("dev", "up", "-n", "3", "--net", "--memory", "64MiB")["nodes"]}

    def shards(key):
        return home.status("--shards", "--node", "node1")["shards"][key]

    def moving():
        return shards("moves")["left"]

    fill = lambda: home.run(PROBE, "fill", "xs", "1000000", "2", env={"HOLO_NODE": "node1"}).returncode
    assert fill() == 0
    cut_between(nodes, "node2", "node3")
    wait_until(lambda: fill() == 0 and shards("cut_paths"), 60, "the nodes to miss each other")
    cut_between(nodes, "node2", "node3", on=False)
    wait_until(lambda: not shards("cut_paths"), 30, "them to find each other again")
    wait_until(lambda: moving() == 0, 30, "copies to be where the table wants them")
    assert home.run(PROBE, "scan", "xs", env={"HOLO_NODE": "node1"}).stdout == "1000000\n"


UDP_RECEIVE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
print(s.getsockname()[1], flush=True)
s.settimeout(float(sys.argv[2]))
try:
    print(s.recv(10).decode())
except TimeoutError:
    print("nothing")
"""
UDP_SEND = """
import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"hello", (sys.argv[1], int(sys.argv[2])))
"""


def udp(source, target, limit):
    address = target["address"].split(":")[0]
    with inside(target["namespace"], UDP_RECEIVE, address, limit) as receiver:
        port = receiver.stdout.readline().strip()
        with inside(source["namespace"], UDP_SEND, address, port) as sender:
            assert sender.wait() == 0
        return receiver.stdout.readline().strip()


def test_a_cluster_forms_where_udp_is_blocked(home):
    up = home.json("dev", "up", "-n", "2", "--net", "--block-udp", "--memory", "64MiB")
    one, two = up["nodes"]
    assert (one["udp"], two["udp"]) == ("blocked", "blocked")
    assert sorted(alive(home.status())) == ["node1", "node2"]
    assert [l["carrier"] for l in home.status()["this_node"]["links"]] == ["tcp"]
    assert re.search(r"^linked over TCP, not QUIC: node[12]$", home.ok("status"), re.M)
    assert udp(one, two, 0.5) == "nothing"
    home.ok("dev", "allow-udp", "2")
    assert udp(one, two, 20) == "hello"
    assert udp(two, one, 0.5) == "nothing"
    assert [n["udp"] for n in home.json("dev", "status")["nodes"]] == ["blocked", "allowed"]
    home.ok("dev", "allow-udp")
    home.ok("dev", "block-udp", "2")
    assert udp(two, one, 20) == "hello"
    assert udp(one, two, 0.5) == "nothing"


def test_a_share_of_the_processor_alone(home):
    up = home.json("dev", "up", "-n", "1", "--cpus", "0.05", "--memory", "64MiB")
    (only,) = up["nodes"]
    group = Path(only["cgroup"])
    text = "".join((group / name).read_text() for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us") if (group / name).exists())
    assert text.split() == ["1000", "20000"]
    assert only["namespace"] is None and only["address"].startswith("127.")
    assert "--net" in home.refused("dev", "partition", "1")
    assert "--net" in home.refused("dev", "block-udp")
    home.ok("dev", "down")
    assert not group.exists()


def test_what_cannot_be_had_is_refused_and_leaves_nothing(home):
    home.refused("dev", "up", "--rate", "1gbit", code=USAGE)
    home.refused("dev", "up", "--block-udp", code=USAGE)
    home.refused("dev", "up", "--net", "--rate", "fast", code=USAGE)
    home.refused("dev", "up", "--cpus", "1000", code=USAGE)
    home.refused("dev", "up", "--cpus", "0", code=USAGE)
    assert not list((home.root / "state").rglob("cluster.json"))


def test_without_the_rights_nothing_is_measured_or_left(home):
    nobody = 65534
    program = shutil.copy(HOLO, home.root / "holo")
    for path in (home.root, program):
        os.chown(path, nobody, nobody)
    for options in (("--net",), ("--cpus", "0.5"), ("--net", "--cpus", "0.5")):
        done = home.run(program, "dev", "up", *options, user=nobody, group=nobody, extra_groups=[])
        assert (done.returncode, done.stdout) == (FAILED, ""), done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("holo: ") and "sudo" in line
        assert not list((home.root / "state").rglob("*/dev/*"))
    bench = home.run(program, "bench", "main", "--layout", "net", "--count", "1000", user=nobody, group=nobody, extra_groups=[])
    assert (bench.returncode, bench.stdout) == (FAILED, ""), bench.stderr


def test_bench_main_on_shaped_links(home):
    done = home.run(HOLO, "bench", "main", "--layout", "net", "--count", "1e6", "--repetitions", "1", "-n", "2", "--json", timeout=120)
    assert done.returncode == DONE, done.stderr
    report = json.loads(done.stdout)
    assert report["layout"] == "net: 0.5 core and 1gbit each"
    assert {r["name"] for r in report["results"]} == {"quadratic_sum", "quadratic_sum_r2"}
    assert not home.processes()
    home.refused("bench", "main", "--layout", "net", "--cluster", "x", code=USAGE)
    home.refused("bench", "main", "--layout", "moon", code=USAGE)
    assert "cores" in home.refused("bench", "idle", "--layout", "net", "-n", "64") or os.cpu_count() >= 32


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_bench_takes_its_cluster_away(home, by):
    with home.start(HOLO, "bench", "idle", "--layout", "net", "-n", "2", "--seconds", "1000") as bench:
        folder = home.root / "state/holo/dev"

        def reference_runs():
            return any(b"reference-idle" in Path(f"/proc/{p}/cmdline").read_bytes() for p in children(bench.pid))

        wait_until(reference_runs, 20, "the cluster to be up")
        key = key_of(home, f"bench-{bench.pid}")
        assert left_of(key)
        bench.send_signal(by)
        assert bench.wait(timeout=20) == 128 + by
    assert left_of(key) == [] and not list(folder.glob("*"))
    wait_until(lambda: not home.processes(), 5, "every process to be gone")
