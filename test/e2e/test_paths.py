"""What happens to a cluster when the network under it does: addresses that change, IPv6 alone, UDP that stops, small packets only."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from holo_e2e import FAILED, HOLO, Home, alive, node, wait_until

NODES = 3
PORT = 8443


def refused():
    """Why there can be no such networks here, or None."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        return "network namespaces take root and ip"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


pytestmark = pytest.mark.skipif(refused() is not None, reason=refused() or "")


def system(*command, check=True):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


class Lab:
    """Nodes in namespaces of their own, each with a cable to one switch, which has a namespace too."""

    def __init__(self, home):
        self.home = home
        self.key = home.root.name  # Nobody else's: Home made it.
        self.names = [f"{self.key}-{i}" for i in range(NODES + 1)]
        self.switch = self.names[0]
        try:
            for name in self.names:
                system("ip", "netns", "add", name)
            system("ip", "-n", self.switch, "link", "add", "name", "sw0", "type", "bridge")
            system("ip", "-n", self.switch, "link", "set", "sw0", "up")
            for i in range(1, NODES + 1):
                system("ip", "-n", self.names[i], "link", "add", "eth0", "type", "veth", "peer", "name", f"p{i}", "netns", self.switch)
                system("ip", "-n", self.switch, "link", "set", f"p{i}", "master", "sw0", "up")
                for link in ("lo", "eth0"):
                    self.ip(i, "link", "set", link, "up")
        except BaseException:
            self.close()
            raise

    def close(self):
        self.home.close()
        for name in self.names:
            system("ip", "netns", "del", name, check=False)

    def ip(self, i, *arguments):
        return system("ip", "-n", self.names[i], *arguments)

    def inside(self, i, *command):
        return ("ip", "netns", "exec", self.names[i], *command)

    def holo(self, i, *arguments, check=True, **options):
        env = {"HOLO_STATE_DIR": str(self.home.root / f"n{i}"), "HOLO_MEMORY": "64MiB"} | options.pop("env", {})
        done = self.home.run(*self.inside(i, HOLO, *arguments), env=env, **options)
        assert done.returncode == 0 or not check, f"{arguments}: {done.stderr}\n{self.home.logs()}"
        return done

    def status(self, i):
        return json.loads(self.holo(i, "status", "--json").stdout)

    def links(self, i):
        """Of node i: (peer, carrier) -> link, of those that serve."""
        return {(l["peer"], l["carrier"]): l for l in self.status(i)["this_node"]["links"] if not l["closing"]}

    def ping(self, i, peer, *arguments, **options):
        return json.loads(self.holo(i, "ping", peer, "-c", "3", "-i", "0.05", "--json", *arguments, **options).stdout)

    def start(self, first, listen, *more):
        """All nodes, as node1 and so on; `first`: where the others find node1."""
        line = self.holo(1, "init", "--listen", listen, "--node-name", "node1", *more).stdout
        self.cluster_key = re.search(r"--key (\S+)", line)[1]
        for i in range(2, NODES + 1):
            self.holo(i, "join", first, "--key", self.cluster_key, "--listen", listen, "--name", f"node{i}", *more)
        wait_until(lambda: len(alive(self.status(1))) == NODES, 10, "all to be alive")

    def start_v4(self, *more):
        for i in range(1, NODES + 1):
            self.ip(i, "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
        self.start(f"10.77.0.1:{PORT}", f"0.0.0.0:{PORT}", *more)

    def deaths(self):
        """How often a node was taken for dead, by anybody's log."""
        logs = [(self.home.root / f"n{i}" / "agent.log").read_text() for i in range(1, NODES + 1)]
        return sum(log.count(" is dead") for log in logs)

    def block(self, i, protocol):
        """What comes to node i of this protocol disappears, as behind a firewall."""
        rules = self.ip(i, "rule", "show")
        if not rules.startswith("200:") and "\n200:" not in rules:
            self.ip(i, "rule", "add", "pref", "200", "lookup", "local")
            self.ip(i, "rule", "del", "pref", "0")
        self.ip(i, "rule", "add", "pref", {"udp": "101", "tcp": "102"}[protocol], "iif", "eth0", "ipproto", protocol, "blackhole")


@pytest.fixture
def lab():
    home = Home()
    try:
        lab = Lab(home)
    except BaseException:
        home.close()
        raise
    try:
        yield lab
    finally:
        lab.close()


TOGETHER = 2.1  # Connections that begin within 2 s of each other are one meeting: the later one is then no replacement.


def move(lab, i, old, new):
    time.sleep(TOGETHER)
    system(*lab.inside(i, "sh", "-c", f"ip addr del {old}/24 dev eth0; ip addr add {new}/24 dev eth0"))


@pytest.mark.parametrize("carrier", ["auto", "tcp"])
@pytest.mark.parametrize("mover", [1, 2], ids=["who was dialled", "who dialled"])
def test_a_node_gets_another_address(lab, mover, carrier):
    """Nobody is taken for dead, the links go on at the new address, and the cluster knows it, also who comes later."""
    lab.start_v4("--carrier", carrier)
    other = 3 - mover
    move(lab, mover, f"10.77.0.{mover}", f"10.77.0.{mover}0")
    address = f"10.77.0.{mover}0:{PORT}"
    name = f"node{mover}"

    def follows():
        links = [l for (peer, _), l in lab.links(other).items() if peer == name]
        return links and all(l["address"].rsplit(":", 1)[0] == f"10.77.0.{mover}0" for l in links)

    wait_until(follows, 10, f"the link to be at {address}\n{lab.home.logs()}")
    assert lab.ping(other, name)["received"] == 3
    for i in range(1, NODES + 1):
        wait_until(lambda i=i: node(lab.status(i), name)["address"] == address, 10, f"node{i} to know it")
    if carrier == "auto":
        assert lab.deaths() == 0, lab.home.logs()
        assert {c for _, c in lab.links(other)} == {"quic"}


def test_a_cluster_of_ipv6_addresses_alone(lab):
    for i in range(1, NODES + 1):
        lab.ip(i, "addr", "add", f"fd00:77::{i}/64", "dev", "eth0", "nodad")
    lab.start(f"[fd00:77::1]:{PORT}", f"[::]:{PORT}")
    status = lab.status(2)
    assert {n["address"] for n in status["nodes"]} == {f"[fd00:77::{i}]:{PORT}" for i in range(1, NODES + 1)}
    pinged = lab.ping(2, "node1", "--size", "64KiB")
    assert (pinged["received"], pinged["carrier"], pinged["address"]) == (3, "quic", f"[fd00:77::1]:{PORT}")
    assert 1280 <= pinged["path_mtu"] <= 1500


def test_a_link_local_address_is_an_address(lab):
    for i in range(1, NODES + 1):
        lab.ip(i, "addr", "add", f"fd00:77::{i}/64", "dev", "eth0", "nodad")
        lab.ip(i, "addr", "add", f"fe80::77:{i}/64", "dev", "eth0", "nodad")
    lab.start(f"[fe80::77:1%eth0]:{PORT}", f"[::]:{PORT}")
    assert sorted(alive(lab.status(3))) == ["node1", "node2", "node3"]


def test_several_addresses_of_a_node_are_tried_beside_each_other(lab):
    """The first address leads nowhere, silently; the second, of the other family, is where the node is."""
    for i in range(1, NODES + 1):
        lab.ip(i, "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
        lab.ip(i, "addr", "add", f"fd00:77::{i}/64", "dev", "eth0", "nodad")
    nowhere = f"10.77.0.200:{PORT},[fd00:77::1]:{PORT},10.77.0.201:{PORT}"
    line = lab.holo(1, "init", "--listen", f"[::]:{PORT}", "--advertise", nowhere, "--node-name", "node1").stdout
    key = re.search(r"--key (\S+)", line)[1]
    assert line.split()[2] == f"10.77.0.200:{PORT}"
    lab.holo(2, "join", f"[fd00:77::1]:{PORT}", "--key", key, "--listen", f"[::]:{PORT}", "--name", "node2")
    assert node(lab.status(2), "node1")["addresses"] == nowhere.split(",")
    system(*lab.inside(2, "sh", "-c", "ip link set eth0 down; sleep 3; ip link set eth0 up; ip addr add fd00:77::2/64 dev eth0 nodad"))
    began = time.monotonic()
    wait_until(lambda: any(peer == "node1" for peer, _ in lab.links(2)), 20, "a connection to the address that works")
    assert time.monotonic() - began < 15
    # node1 cannot be reached at the addresses around it, and yet a dial is not held up by them, whoever dialled.
    wait_until(lambda: lab.ping(2, "node1")["received"] == 3, 10, "what was under way on the old connection to be over")
    assert lab.ping(2, "node1")["address"].rsplit(":", 1)[0] in ("[fd00:77::1]", "10.77.0.1")


def test_udp_stops_under_connections_that_stand(lab):
    """TCP takes over before anybody is taken for dead, and says so."""
    lab.start_v4()
    assert ("node1", "quic") in lab.links(2)
    for i in range(1, NODES + 1):
        lab.block(i, "udp")
    wait_until(lambda: ("node1", "tcp") in lab.links(2) and ("node1", "tcp") in lab.links(3), 6, f"TCP to serve\n{lab.home.logs()}")
    pinged = lab.ping(2, "node1")
    assert (pinged["received"], pinged["carrier"]) == (3, "tcp")
    assert lab.deaths() == 0, lab.home.logs()
    assert "tcp" in lab.holo(2, "status", "--links").stdout


def test_a_path_that_carries_small_packets_only_from_now_on(lab):
    """A black hole: what is too large disappears without a word."""
    lab.start_v4()
    wait_until(lambda: lab.links(2)["node1", "quic"]["path_mtu"] > 1400, 10, "the path's MTU to be found")
    for i in range(1, NODES + 1):
        lab.ip(i, "link", "set", "eth0", "gso_max_segs", "1")  # Or the switch sees the large segments, and passes them.
        lab.ip(0, "link", "set", f"p{i}", "mtu", "1300")
    wait_until(lambda: lab.ping_succeeds(2, "node1"), 8, f"64 KiB to arrive\n{lab.home.logs()}")
    link = lab.links(2)["node1", "quic"]
    assert link["path_mtu"] <= 1300
    assert lab.deaths() == 0, lab.home.logs()


def ping_succeeds(lab, i, peer):
    return lab.holo(i, "ping", peer, "-c", "1", "--size", "64KiB", "-W", "3", check=False).returncode == 0


Lab.ping_succeeds = ping_succeeds


def test_where_nothing_passes_a_join_ends_with_one_clear_line(lab):
    for i in range(1, NODES + 1):
        lab.ip(i, "addr", "add", f"10.77.0.{i}/24", "dev", "eth0")
    line = lab.holo(1, "init", "--listen", f"0.0.0.0:{PORT}", "--node-name", "node1").stdout
    key = re.search(r"--key (\S+)", line)[1]
    for protocol in ("udp", "tcp"):
        lab.block(1, protocol)
    for target, limit in ((f"10.77.0.1:{PORT}", 30), ("10.77.0.99:8443", 30), (f"10.77.0.3:{PORT}", 5)):
        began = time.monotonic()
        done = lab.holo(2, "join", target, "--key", key, "--listen", f"0.0.0.0:{PORT}", "--name", "node2", check=False)
        assert (done.returncode, done.stdout) == (FAILED, "")
        assert done.stderr.startswith("holo: ") and done.stderr.count("\n") == 1 and target in done.stderr, done.stderr
        assert time.monotonic() - began < limit
    wait_until(lambda: len(lab.home.processes()) == 1, 10, "nothing of the failed joins to be left")


def agent_of(lab, i):
    state_dir = str(lab.home.root / f"n{i}").encode()
    (pid,) = [p for p in lab.home.processes() if state_dir in open(f"/proc/{p}/cmdline", "rb").read().split(b"\0")]
    return pid


def test_a_node_that_was_killed_and_comes_back_is_known_at_once(lab):
    """Nobody waits for the idle time-out of 8 s: the node dials anew, or answers what is still sent on the old connection
    with a stateless reset, whichever comes first."""
    lab.start_v4()
    log = lab.home.root / "n2" / "agent.log"
    node1 = next(n["id"] for n in lab.status(2)["nodes"] if n["name"] == "node1")
    new = re.compile(rf"(connected|another connection) to node {node1}")
    before = len(new.findall(log.read_text()))
    os.kill(agent_of(lab, 1), signal.SIGKILL)
    with lab.home.start(*lab.inside(1, HOLO, "agent", "--state-dir", lab.home.root / "n1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as agent:
        began = time.monotonic()

        def known():
            said = log.read_text()
            return "has forgotten the connection" in said or len(new.findall(said)) > before

        wait_until(known, 5, "a reset, or a new connection")
        # The first connections of a start only ask where this node was last seen (control_twin.cc), and end with the answer.
        wait_until(lambda: ("node1", "quic") in lab.links(2) and lab.ping(2, "node1", check=False)["received"] == 3, 5, "a new connection")
        assert time.monotonic() - began < 6
        agent.terminate()
        assert agent.wait(timeout=20) == 0


def test_the_mtu_of_the_paths_can_be_told(lab):
    """Where it is known, it is used from the first packet on, larger or smaller than what would be found out."""
    for i in range(1, NODES + 1):
        lab.ip(i, "link", "set", "eth0", "mtu", "4000")
        lab.ip(0, "link", "set", f"p{i}", "mtu", "4000")
    lab.start_v4("--mtu", "4000")
    assert 3980 <= lab.links(2)["node1", "quic"]["path_mtu"] <= 4000  # Room is left for an IPv6 header.
    assert lab.ping_succeeds(2, "node1")
    for wrong in ("100", "70000", "-1", "large"):
        done = lab.holo(1, "config", "show", env={"HOLO_MTU": wrong}, check=False)
        assert done.returncode != 0 and done.stderr.count("\n") == 1 and "mtu" in done.stderr
