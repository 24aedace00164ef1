"""Everything that two agents say to each other in a cluster's life is captured, and searched for what it was about."""

import base64
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections import defaultdict

import pytest
from holo_e2e import DONE, HOLO, PROBE, Home, alive, quadratic_sum

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")),
    reason="a network namespace and a raw socket in it take root, unshare, nsenter and ip",
)

# Lives in a namespace of its own, whose loopback is the only network there: nobody else's bytes, and all of ours.
CAPTURE = """
import socket, struct, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
s.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
s.bind(("lo", 0))
s.settimeout(0.2)
print("capturing", flush=True)
import select
ended = False
with open(sys.argv[1], "wb") as out:
    while True:
        ended = ended or bool(select.select([sys.stdin], [], [], 0)[0])
        try:
            for _ in range(1000):
                packet, sender = s.recvfrom(1 << 18)
                if sender[2] != 4:  # PACKET_OUTGOING: the same packet comes in again
                    out.write(struct.pack("<I", len(packet)) + packet)
        except TimeoutError:
            if ended:
                break
packets, drops = struct.unpack("II", s.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
print(packets, drops, flush=True)
"""

SAY = """
import socket, sys
with open(sys.argv[1], "rb") as f:
    data = f.read()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for at in range(0, len(data), 1000):
    s.sendto(data[at : at + 1500], ("127.0.0.1", 9))
"""
DISCARD_PORT = 9


class Capture:
    def __init__(self, home):
        self.file = home.root / "capture"
        self.process = subprocess.Popen(
            ["unshare", "--net", "--", sys.executable, "-c", CAPTURE, str(self.file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
        assert self.process.stdout.readline() == "capturing\n"
        # unshare has become Python, so its pid is the one in the namespace.
        self.inside = ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--"]

    def stop(self):
        """What was said, in order: (protocol, from port, to port) -> bytes."""
        packets, drops = map(int, self.process.communicate(timeout=120)[0].split())
        assert drops * 1000 <= packets, "too much was missed"
        said = defaultdict(list)
        data = memoryview(self.file.read_bytes())
        at = 0
        while at < len(data):
            (size,) = struct.unpack_from("<I", data, at)
            packet = data[at + 4 : at + 4 + size]
            at += 4 + size
            if packet[0] >> 4 != 4 or packet[9] not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                continue
            start = (packet[0] & 15) * 4
            ports = struct.unpack_from(">HH", packet, start)
            head = 8 if packet[9] == socket.IPPROTO_UDP else (packet[start + 12] >> 4) * 4
            said[("udp" if packet[9] == socket.IPPROTO_UDP else "tcp", *ports)].append(packet[start + head :])
        return {flow: b"".join(parts) for flow, parts in said.items()}

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Inside:
    """Commands of a home, run in the namespace of a capture."""

    def __init__(self, home, capture, **environment):
        self.home, self.capture, self.environment = home, capture, environment

    def run(self, *command, directory=None, **options):
        env = self.environment | ({"HOLO_STATE_DIR": str(directory)} if directory else {})
        done = self.home.run(*self.capture.inside, *command, env=env, **options)
        assert done.returncode == DONE, f"{command}: {done.stderr}\n{self.home.logs()}"
        return done.stdout

    def holo(self, *arguments, **options):
        return self.run(HOLO, *arguments, **options)

    def json(self, *arguments, **options):
        return json.loads(self.holo(*arguments, "--json", **options))


@pytest.fixture
def home():
    home = Home()
    try:
        yield home
    finally:
        home.close()


@pytest.fixture
def capture(home):
    capture = Capture(home)
    try:
        yield capture
    finally:
        home.close()
        capture.close()


def elements(first, count):
    """The bytes of elements that `probe fill` writes."""
    return b"".join(((i * i + 3 * i + 1) % 2**64).to_bytes(8, "little") for i in range(first, first + count))


def pieces(data, size, count):
    """Some stretches of `data` that are not mostly one byte."""
    found = [data[i : i + size] for i in range(0, len(data) - size, max(1, len(data) // (count * 20)))]
    return [p for p in found if len(set(p)) > size // 2][:count]


def undo_base64(text):
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_")


def found_in(plain, data):
    return {what for what, stretches in plain.items() if any(s in data for s in stretches)}


REGION = "capture/a-region-with-a-name"
COUNT = 300_000
PUT = 0xFEEDFACE0BADF00D


def begin(net, home, trust, one, two):
    """A cluster of two nodes; returns what it keeps secret."""
    net.holo("init", "--trust", trust, "--name", "a-cluster-with-a-name", "--node-name", "first-node-of-it", directory=one)
    address = net.json("status", directory=one)["nodes"][0]["address"]
    join = ("join", address, "--trust", trust, "--node-name", "second-node-of-it")
    if trust == "psk":
        (key,) = re.findall(r'"([A-Za-z0-9+/]{43}=)"', (one / "cluster.json").read_text())
        (home.root / "key").write_text(key)
        net.holo(*join, "--key-file", str(home.root / "key"), directory=two)
        return [key]
    if trust == "tofu":
        net.holo(*join, directory=two)
        return []
    request = net.holo("identity", "request", "--state-dir", str(two)).strip()
    certificate = net.holo("identity", "sign", request, "--root-key", str(one / "root.key")).strip()
    net.holo(*join, "--certificate", certificate, directory=two)
    root = json.loads((one / "root.key").read_text())
    return [certificate, root["root"], root["seed"]]


@pytest.mark.parametrize("carrier, trust", [("quic", "psk"), ("tcp", "psk"), ("quic", "tofu"), ("quic", "roots"), ("tcp", "roots")])
def test_nothing_of_a_clusters_life_is_seen_on_its_links(home, capture, carrier, trust):
    one, two = home.root / "one", home.root / "two"
    net = Inside(home, capture, HOLO_CARRIER=carrier, HOLO_LISTEN="127.0.0.1:0", HOLO_MEMORY="128MiB")
    secrets = begin(net, home, trust, one, two)

    assert net.run(PROBE, "fill", REGION, str(COUNT), "2", directory=one) == f"{quadratic_sum(COUNT)}\n"
    net.run(PROBE, "put", REGION, "7", str(PUT), directory=two)
    assert net.run(PROBE, "get", REGION, "7", directory=one) == f"{PUT}\n"
    net.run(PROBE, "chatter", directory=one)
    net.holo("kv", "put", "a/key-with-a-name", "a value that nobody else shall read", directory=two)
    assert "nobody else" in net.holo("kv", "get", "a/key-with-a-name", directory=one)
    net.holo("ping", "second-node-of-it", "-c", "3", "-i", "0", "--size", "64KiB", directory=one)
    if trust == "psk":
        secrets.append(net.json("key", "add", "--all", directory=one)["secret"])
    identities = [net.json("identity", "show", directory=d) for d in (one, two)]
    net.holo("identity", "rotate", directory=two)
    status = net.json("status", directory=two)
    assert sorted(alive(status)) == ["first-node-of-it", "second-node-of-it"]
    links = status["this_node"]["links"]
    assert [l["carrier"] for l in links] == [carrier]
    net.holo("leave", directory=two)
    assert alive(net.json("status", directory=one)) == ["first-node-of-it"]

    nodes = status["nodes"]
    program = PROBE.read_bytes()
    plain = {
        "names": [REGION.encode(), b"a-cluster-with-a-name", b"first-node-of-it", b"second-node-of-it"],
        "addresses": [n["address"].encode() for n in nodes],
        "pages": [elements(i, 3) for i in range(1000, COUNT, 1000)] + [PUT.to_bytes(8, "little")],
        "keys and values": [b"a/key-with-a-name", b"a value that nobody else"],
        "a program": pieces(program, 48, 200),
        "its output": [b"says hello"],
        "pings": [bytes((i * 131 + (i >> 8)) & 255 for i in range(64))],
        "ids": [bytes.fromhex(n["id"])[::step] for n in nodes for step in (1, -1)] + [n["id"].encode() for n in nodes],
        "keys of nodes": [form(i["key"]) for i in identities for form in (str.encode, base64.b64decode)],
        "secrets of the cluster": [form(s) for s in secrets for form in (str.encode, undo_base64)],
    }
    if trust == "tofu":  # It has none.
        assert not plain.pop("secrets of the cluster")
    assert all(plain.values())

    # In clear, for once: what is searched for would be found.
    (home.root / "plain").write_bytes(b"".join(b"".join(p) + bytes(1000) for p in plain.values()))
    net.run(sys.executable, "-c", SAY, str(home.root / "plain"))
    said = capture.stop()
    control = b"".join(data for (_, _, to), data in said.items() if to == DISCARD_PORT)
    assert found_in(plain, control) == set(plain)

    ports = {int(n["address"].rsplit(":", 1)[1]) for n in nodes}
    ours = {flow: data for flow, data in said.items() if set(flow[1:]) & ports}
    assert {flow for flow in said if DISCARD_PORT not in flow} == set(ours), "the agents speak from their ports alone"
    volume = defaultdict(int)
    for (protocol, *_), data in ours.items():
        volume[protocol] += len(data)
    udp_or_tcp = "udp" if carrier == "quic" else "tcp"
    # The program went to the second node once, and each half of the pages to the other node.
    assert volume[udp_or_tcp] > len(program) + COUNT * 8, dict(volume)
    assert volume[udp_or_tcp] >= 0.99 * sum(volume.values()), dict(volume)
    for flow, data in ours.items():
        assert found_in(plain, data) == set(), flow
