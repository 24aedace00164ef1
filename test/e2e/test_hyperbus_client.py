"""An agent and a client that shares no code with it understand each other: tools/hyperbus_client.py, docs/hyperbus.md."""

import json
import socket
import subprocess
import threading

import pytest
from holo_e2e import ROOT, wait_until

CLIENT = ROOT / "tools" / "hyperbus_client.py"
PYTHON = ROOT / "build" / "python" / "bin" / "python"
CARRIERS = pytest.mark.parametrize("carrier", [(), ("--tcp",)], ids=["quic", "tcp"])


def has_packages():
    try:
        return subprocess.run([PYTHON, "-c", "import blake3, cryptography"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not has_packages(), reason="the client's packages are not in build/python: ./dev test installs them")


class Target:
    def __init__(self, home):
        self.home = home
        agent = next(n for n in home.json("dev", "status")["nodes"] if n["number"] == 1)
        self.address = agent["address"]
        self.key = json.loads((home.root / "state/holo/dev/dev/node1/cluster.json").read_text()).get("key", "")
        self.node = home.json("identity", "show", "--node", "node1")["node"]

    def client(self, *arguments, key=None, address=None):
        return self.home.run(PYTHON, CLIENT, address or self.address, "--key", self.key if key is None else key, *arguments)

    def learned(self, *arguments, **options):
        done = self.client("--json", *arguments, **options)
        assert done.returncode == 0, done.stderr + self.home.logs()
        return json.loads(done.stdout)

    def refused(self, *arguments, **options):
        done = self.client(*arguments, **options)
        assert done.returncode == 1 and done.stdout == "", done.stdout + done.stderr
        assert done.stderr.startswith("hyperbus_client: refused: "), done.stderr
        return done.stderr.removeprefix("hyperbus_client: refused: ").split()[0]

    def counted(self, why):
        return self.home.status("--node", "node1")["cluster"]["refused"][why]


@pytest.fixture(scope="module")
def target(cluster):
    return Target(cluster)


@CARRIERS
@pytest.mark.parametrize("cipher, name", [("aes", "aes-256-gcm"), ("xchacha", "xchacha20-poly1305")])
def test_a_client_of_its_own_gets_an_answer(target, carrier, cipher, name):
    got = target.learned(*carrier, "--cipher", cipher, "--count", "20")
    assert (got["node"], got["carrier"], got["cipher"]) == (target.node, "tcp" if carrier else "quic", name)
    assert (got["protocol"], got["version"], got["answers"]) == (1, 1, 20)
    assert got["suite"] == "Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256"
    assert got["answer"] == {"status": "ok", "payload": 56}  # Its own bytes; the client has compared them.
    assert got["grants"]["control"][0] >= 1


@CARRIERS
def test_messages_of_many_packets_and_records_arrive_whole(target, carrier):
    assert target.learned(*carrier, "--bytes", 65536, "--count", 3)["answer"] == {"status": "ok", "payload": 65536}


@CARRIERS
def test_a_request_that_nobody_serves_is_answered(target, carrier):
    assert target.learned(*carrier, "--type", 65535)["answer"]["status"] == "unsupported"


@CARRIERS
def test_another_key_is_refused_and_told_so(target, carrier):
    before = target.counted("wrong_key")
    assert target.refused(*carrier, key="A" * 43 + "=") == "wrong_key"
    assert target.counted("wrong_key") == before + 1


@CARRIERS
@pytest.mark.parametrize("offered, chosen", [("2,1", 1), ("9,8,7,6,5,4,3,1", 1), ("1", 1)])
def test_the_newest_version_that_both_speak_is_spoken(target, carrier, offered, chosen):
    """As in the middle of a rolling upgrade: the client is of the next release, and still speaks this one's."""
    assert target.learned(*carrier, "--versions", offered)["version"] == chosen


@CARRIERS
def test_without_a_version_in_common_both_say_which_they_speak(target, carrier):
    before = target.counted("wrong_version")
    done = target.client(*carrier, "--versions", "3,2")
    assert done.returncode == 1 and "wrong_version" in done.stderr and "versions 1 to 1" in done.stderr
    assert target.counted("wrong_version") == before + 1


@CARRIERS
def test_what_a_later_release_says_is_skipped(target, carrier):
    """Fields, features, ciphers, control messages, classes, streams, frames and flags that no one knows: 10 pings all the same."""
    got = target.learned(*carrier, "--later", "--versions", "2,1", "--count", "10")
    assert (got["answers"], got["version"], got["features"]) == (10, 1, 0)
    assert got["answer"] == {"status": "ok", "payload": 56}


@CARRIERS
def test_no_key_and_no_post_quantum_key_are_refused(target, carrier):
    assert target.refused(*carrier, key="") == "wrong_version"
    assert target.refused(*carrier, "--classical") == "wrong_version"


@CARRIERS
@pytest.mark.parametrize(
    "byte, why",
    [(4, "wrong_version"), (6, "wrong_version"), (8, "wrong_key"), (16, "wrong_key"), (60, "wrong_key"), (1255, "wrong_key")],
    ids=["protocol", "suite", "key id", "ephemeral key", "ML-KEM key", "payload"],
)
def test_one_flipped_bit_in_message_1_is_refused(target, carrier, byte, why):
    assert target.refused(*carrier, "--flip-bit", 8 * byte + 3) == why


def test_one_flipped_bit_of_the_magic_is_answered_with_the_alert_alone(target):
    assert target.refused("--flip-bit", "1") == "garbage"


@pytest.mark.parametrize("lose", [{1}, {2}, {3}, {4}, {5}, {1, 3, 5}], ids=str)
def test_what_is_lost_on_the_way_is_said_again(target, lose):
    """Through a relay that drops the datagrams with these numbers, both directions counted together."""
    host, port = target.address.rsplit(":", 1)
    outside, inside = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    outside.bind(("127.0.0.1", 0))
    inside.connect((host, int(port)))
    seen, lock, client = 0, threading.Lock(), []

    def dropped():
        nonlocal seen
        with lock:
            seen += 1
            return seen in lose

    def towards_the_agent():
        while True:
            data, where = outside.recvfrom(65536)
            if not data:
                return
            client[:] = [where]
            if not dropped():
                inside.send(data)

    def back():
        while data := inside.recv(65536):
            if not dropped():
                outside.sendto(data, client[0])

    threads = [threading.Thread(target=run, daemon=True) for run in (towards_the_agent, back)]
    for thread in threads:
        thread.start()
    try:
        got = target.learned("--timeout", "20", address=f"127.0.0.1:{outside.getsockname()[1]}")
        assert got["answer"]["status"] == "ok" and seen > max(lose)
    finally:
        outside.sendto(b"", outside.getsockname())
        inside.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        outside.close()
        inside.close()


CROWD = """
import base64, json, os, sys
import hyperbus as c

class HalfOpen(c.QuicClient):
    def run_until(self, done):
        self.flush()

host, port, key = sys.argv[1], int(sys.argv[2]), base64.b64decode(sys.argv[3])
def handshake():
    return c.Handshake(c.Identity(os.urandom(32)), key, False, (c.AES_256_GCM,))

held = [HalfOpen((host, port), handshake()) for _ in range(100)]
print(c.QuicClient((host, port), handshake()).retry_id is not None)
"""


def test_among_many_half_open_handshakes_a_newcomer_shows_its_address_and_is_served(target):
    """Retry: stateless for the agent, and bound to the connection ids that the handshake authenticates."""
    assert not target.learned()["retried"]
    where = target.address.rsplit(":", 1)
    done = target.home.run(PYTHON, "-c", CROWD, *where, target.key, env={"PYTHONPATH": str(CLIENT.parent)})
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr + target.home.logs()


MUTE = """
import base64, os, select, sys, time
import hyperbus as c

class Mute(c.QuicClient):
    def run_until(self, done):
        space = self.spaces[c.INITIAL]
        del space.waiting[self.first_frames :]
        self.flush()
        self.sent, self.got = space.next_number * c.DATAGRAM, 0

host, port, key = sys.argv[1], int(sys.argv[2]), base64.b64decode(sys.argv[3])
said = {}
for frames in (1, 2):
    Mute.first_frames = frames
    link = Mute((host, port), c.Handshake(c.Identity(os.urandom(32)), key, False, (c.AES_256_GCM,)))
    said[link.socket] = link
until = time.monotonic() + 6  # Longer than the agent's patience with a handshake.
while (left := until - time.monotonic()) > 0:
    for s in select.select(list(said), [], [], left)[0]:
        said[s].got += len(s.recv(65536))
for link in said.values():
    print(link.sent, link.got)
"""


def test_who_never_acknowledges_gets_at_most_three_times_what_it_sent(home):
    """As a stranger would have a node flood a third party: with half of message 1, and with all of it."""
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB")  # Its own: an agent with a crowd at its door sends a Retry.
    target = Target(home)
    where = target.address.rsplit(":", 1)
    done = target.home.run(PYTHON, "-c", MUTE, *where, target.key, env={"PYTHONPATH": str(CLIENT.parent)})
    assert done.returncode == 0, done.stderr
    half, whole = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert half[0] == 1200 and whole[0] == 2400
    assert half[1] <= 3 * half[0] and 1000 < whole[1] <= 3 * whole[0], done.stdout


WORKED_EXAMPLE = """
import re, struct, sys
import hyperbus as c
from hyperbus import handshake as drawn

found = re.findall(r"^```hex (\\S+)\\n(.*?)^```", open(sys.argv[1]).read(), re.M | re.S)
want = {name: bytes.fromhex(digits.replace("\\n", "")) for name, digits in found}
me = c.Identity(bytes([0x0A]) * 32)
handshake = c.Handshake(me, bytes([0x0C]) * 32, False, (c.AES_256_GCM, c.XCHACHA20))

x25519, mlkem = drawn.X25519PrivateKey.from_private_bytes(bytes(range(32))), drawn.MLKEM768PrivateKey.from_seed_bytes(bytes(range(32, 96)))
drawn.X25519PrivateKey = type("Fixed", (), {"generate": staticmethod(lambda: x25519)})
drawn.MLKEM768PrivateKey = type("Fixed", (), {"generate": staticmethod(lambda: mlkem)})

got = {"initiator-public-key": me.public, "initiator-static-signature": me.signature}
got["client-parameters"] = c.encode_parameters(bytes(range(8)))
got["message-1"] = handshake.message1(got["client-parameters"])
got["message-3"] = handshake.message2(want["message-2"])
got["server-parameters"] = handshake.parameters
got["initiator-handshake-secret"], got["responder-handshake-secret"] = handshake.handshake_secrets
got["initiator-traffic-secret"], got["responder-traffic-secret"] = handshake.traffic_secrets
got["handshake-hash"] = handshake.noise.h
key = c.PacketKey(handshake.cipher, handshake.traffic_secrets[0])
got["initiator-packet-iv"], got["initiator-packet-hp"], got["initiator-next-secret"] = key.iv, key.hp, key.next().secret
record, header = c.RecordKey(handshake.cipher, handshake.traffic_secrets[0]), bytes([3, 40, 0, 0])
got["record"] = header + record.aead.encrypt(record.nonce(), struct.pack("<BBHIQQ", 4, 0, 0, 8, 0, 1), header)
got["request"] = c.encode_request(65535, 0, b"hi")
assert c.decode_reply(want["error-reply"])["status"] == "unsupported"
wrong = [name for name, bytes_ in got.items() if want[name] != bytes_]
print(wrong, len(got))
"""


def test_the_worked_example_of_the_specification_is_what_the_client_does(home):
    done = home.run(PYTHON, "-c", WORKED_EXAMPLE, ROOT / "docs" / "hyperbus.md", env={"PYTHONPATH": str(CLIENT.parent)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] 16\n"


@CARRIERS
def test_without_a_cluster_key_in_trust_mode_tofu(home, carrier):
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB", "--trust", "tofu")
    target = Target(home)
    got = target.learned(*carrier, key="")
    assert got["suite"] == "Noise_XXhfs_25519+MLKEM768_ChaChaPoly_SHA256"
    assert (got["node"], got["answer"]["status"]) == (target.node, "ok")
    wait_until(lambda: got["me"] in {p["node"] for p in home.json("trust", "list", "--node", "node1")["pins"]}, 5, "the stranger's pin")
