"""Being let in is not being a member: what an agent serves to one that holds the keys, and to one that has left."""

import base64
import json
import re
import struct

import pytest
from holo_e2e import PROBE, ROOT, alive, node, quadratic_sum, wait_until
from test_hyperbus_client import CARRIERS, CLIENT, PYTHON, has_packages

pytestmark = pytest.mark.skipif(not has_packages(), reason="the client's packages are not in build/python: ./dev test installs them")

# Each kind of request there is, as the agents' own source names them: a new one is asked for as soon as it exists.
TYPES = {name: int(n) for name, n in re.findall(r"^  (\w+) = (\d+),", (ROOT / "src/wire/message_types.h").read_text(), re.M)}
OPEN = {"join", "leave", "ping"}

ASK = """
import base64, json, os, sys
import hyperbus as c

tcp, host, port, key, seed = sys.argv[1:6]
identity = c.Identity(base64.b64decode(seed) or os.urandom(32))
handshake = c.Handshake(identity, base64.b64decode(key), False, (c.XCHACHA20,))
link = (c.TcpClient if tcp == "tcp" else c.QuicClient)((host, int(port)), handshake, None, 20.0)
link.send(c.OUR_CONTROL, c.control_stream_start(), fin=False)
control = link.receive(c.THEIR_CONTROL)
link.wait_for(lambda: len(c.read_grants(control.whole)) == len(c.CLASSES))
answers = []
for i, (kind, header, payload) in enumerate(json.loads(sys.argv[6])):
    stream = link.receive(4 * i)
    link.send(4 * i, c.encode_request(kind, 0, bytes.fromhex(header), bytes.fromhex(payload)), fin=True)
    link.wait_for(stream.complete)
    answer = c.decode_reply(stream.whole)
    answers.append({**answer, "payload": answer.get("payload", b"").hex()})
link.close()
print(json.dumps(answers))
"""


def ask(home, address, requests, carrier=(), key="", seed=""):
    arguments = ["tcp" if carrier else "quic", *address.rsplit(":", 1), key, seed, json.dumps(requests)]
    done = home.run(PYTHON, "-c", ASK, *arguments, env={"PYTHONPATH": str(CLIENT.parent)})
    assert done.returncode == 0, done.stderr + home.logs()
    return json.loads(done.stdout)


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def number(field, value):
    return varint(field << 3) + varint(value)


def fixed64(field, value):
    return varint(field << 3 | 1) + struct.pack("<Q", value)


def nested(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value


def page_fetch(region):
    return [TYPES["page_fetch"], (number(1, region) + nested(2, number(1, 0) + number(2, 1))).hex(), ""]


def free_region(name, client):
    """As a member's agent would have it done, in that member's name."""
    command = fixed64(1, client) + fixed64(2, 2**62) + number(3, 1) + nested(5, nested(8, nested(1, name.encode())))
    return [TYPES["propose"], "", command.hex()]


def addresses(home):
    return {n["name"]: n["address"] for n in home.json("dev", "status")["nodes"]}


def region_number(home, name):
    return next(r["id"] for r in home.json("regions") if r["name"] == name)


@CARRIERS
def test_who_is_let_in_without_being_a_member_gets_nothing(home, carrier):
    """In trust mode tofu that is everybody who reaches the port."""
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB", "--trust", "tofu")
    assert home.run(PROBE, "fill", "xs", "200000").returncode == 0
    region = region_number(home, "xs")
    member = int(home.json("identity", "show", "--node", "node1")["node"], 16)
    kinds = list(TYPES)
    assert len(kinds) > 15 and OPEN < set(kinds)
    requests = [[TYPES[k], "", ""] for k in kinds] + [page_fetch(region), free_region("xs", member)]
    for name, address in addresses(home).items():
        answers = ask(home, address, requests, carrier)
        for kind, answer in zip([*kinds, "page_fetch", "propose"], answers, strict=True):
            if kind in OPEN:
                assert answer["status"] in ("ok", "malformed", "refused"), (name, kind, answer)
            else:
                assert answer["status"] == "permission_denied" and answer["payload"] == "", (name, kind, answer)
                assert "is not a member of this cluster" in answer["message"], answer
    assert home.run(PROBE, "sum", "xs").stdout == f"{quadratic_sum(200000)}\n"
    assert len(home.status()["nodes"]) == 3


def test_who_has_left_gets_nothing_with_the_same_keys(home):
    home.ok("dev", "up", "-n", "4", "--memory", "64MiB")
    assert home.run(PROBE, "fill", "xs", "200000", env={"HOLO_NODE": "node1"}).returncode == 0
    region, where = region_number(home, "xs"), addresses(home)
    state = home.root / "state/holo/dev/dev/node4"
    key = json.loads((state / "cluster.json").read_text())["key"]
    seed = json.loads((state / "identity.json").read_text())["seed"]
    assert len(base64.b64decode(seed)) == 32
    home.ok("dev", "kill", "4")
    wait_until(lambda: len(alive(home.status("--node", "node1"))) == 3, 10, "its death to be noticed")
    requests = [page_fetch(region), [TYPES["heartbeat"], "", ""], [TYPES["read_index"], "", ""]]
    for name in ("node1", "node2", "node3"):
        answers = ask(home, where[name], requests, key=key, seed=seed)
        assert "permission_denied" not in {a["status"] for a in answers}, f"who is dead is a member: {answers}"
    home.ok("dev", "restart", "4")
    wait_until(lambda: len(alive(home.status("--node", "node1"))) == 4, 20, "its return")
    home.ok("leave", "--node", "node4")
    wait_until(lambda: all(node(home.status("--node", n), "node4")["state"] == "left" for n in ("node1", "node2", "node3")), 10, "it to be out")
    for name in ("node1", "node2", "node3"):
        answers = ask(home, where[name], requests, key=key, seed=seed)
        assert {a["status"] for a in answers} == {"permission_denied"}, answers
