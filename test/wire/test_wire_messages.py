"""Golden bytes of every message of src/wire/*.proto: test/vectors/wire_messages.txt.

A line is "MESSAGE FIELDS HEX": the message with those fields set, to values that follow from their numbers and types. A line never changes,
because nodes of another release and states on disk hold such bytes; new messages and fields get lines of their own (the failing test prints
them). Fields of a oneof have a line each. The encoder here shares no code with protobuf; protoc judges it.
"""

import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "test" / "vectors" / "wire_messages.txt"
PROTOS = sorted((ROOT / "src" / "wire").glob("*.proto"))

pytestmark = pytest.mark.skipif(not shutil.which("protoc"), reason="protoc is not installed: ./dev build installs it")

# Numbers of requests between agents: never another meaning, never reused.
REQUESTS = {
    "join": 1, "heartbeat": 2, "leave": 3, "member_query": 4, "swim": 5, "raft": 10, "propose": 11, "read_index": 12,
    "confirm_term": 13, "log_lost": 14, "propose_many": 15, "page_fetch": 20,
    "page_stage": 21, "page_backup": 22,
    "txn_abort": 23, "txn_status": 24, "staged_query": 30, "task_run": 40, "task_done": 41, "task_cancel": 42, "binary_fetch": 43, "worker_output": 44,
    "program_end": 45, "key_change": 60, "ping": 70, "link_bench": 71, "control_progress": 72,
}  # fmt: skip

# Types of FieldDescriptorProto.
DOUBLE, FLOAT, INT64, UINT64, INT32, FIXED64, FIXED32, BOOL, STRING, MESSAGE, BYTES, UINT32, ENUM = 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14
VARINT, I64, LEN, I32 = 0, 1, 2, 5
DEEPEST = 4


def read_varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def parse(data):
    """Of a message: field number -> its values, as they come."""
    found, at = {}, 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == VARINT:
            value, at = read_varint(data, at)
        else:
            assert tag & 7 == LEN, "descriptors have nothing else"
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
        found.setdefault(tag >> 3, []).append(value)
    return found


class Schema:
    def __init__(self, descriptors):
        self.messages, self.enums = {}, {}
        for file in parse(descriptors)[1]:
            file = parse(file)
            package = "." + file[2][0].decode()
            for message in file.get(4, []):
                self.add_message(package, parse(message))
            for enum in file.get(5, []):
                self.add_enum(package, parse(enum))

    def add_message(self, prefix, message):
        name = f"{prefix}.{message[1][0].decode()}"
        fields = []
        for raw in message.get(2, []):
            f = parse(raw)
            in_oneof = 9 in f and not f.get(17, [0])[0]  # An optional field is a oneof of its own, for protoc.
            fields.append({"number": f[3][0], "repeated": f[4][0] == 3, "type": f[5][0], "of": f.get(6, [b""])[0].decode(), "oneof": in_oneof})
        self.messages[name] = sorted(fields, key=lambda f: f["number"])
        for nested in message.get(3, []):
            self.add_message(name, parse(nested))
        for enum in message.get(4, []):
            self.add_enum(name, parse(enum))

    def add_enum(self, prefix, enum):
        values = [parse(v).get(2, [0])[0] for v in enum[2]]
        self.enums[f"{prefix}.{enum[1][0].decode()}"] = next(v for v in values if v)

    def lines(self):
        """(message, numbers of the fields that are set) of every line that there must be."""
        for name, fields in self.messages.items():
            together = [f["number"] for f in fields if not f["oneof"]]
            if together or not fields:
                yield name, tuple(together)
            yield from ((name, (f["number"],)) for f in fields if f["oneof"])

    def encode(self, name, numbers=None, depth=0):
        out = b""
        for f in self.messages[name]:
            if f["number"] not in numbers if numbers is not None else f["oneof"] and f is not self.first_of_oneof(name):
                continue
            values = [self.value(f, i, depth) for i in range(2 if f["repeated"] else 1)]
            if f["repeated"] and f["type"] not in (STRING, BYTES, MESSAGE):
                out += varint(f["number"] << 3 | LEN) + varint(len(b"".join(values))) + b"".join(values)
                continue
            for value in values:
                if f["type"] in (STRING, BYTES, MESSAGE):
                    value = varint(len(value)) + value
                out += varint(f["number"] << 3 | wire_type(f["type"])) + value
        return out

    def first_of_oneof(self, name):
        return next(f for f in self.messages[name] if f["oneof"])

    def value(self, f, i, depth):
        n = f["number"] + 100 * i
        match f["type"]:
            case t if t in (INT64, UINT64, INT32, UINT32):
                return varint(1000 + n)
            case t if t == FIXED64:
                return struct.pack("<Q", 0x0102030405060000 + n)
            case t if t == FIXED32:
                return struct.pack("<I", 0x01020000 + n)
            case t if t == DOUBLE:
                return struct.pack("<d", n + 0.5)
            case t if t == FLOAT:
                return struct.pack("<f", n + 0.5)
            case t if t == BOOL:
                return b"\1"
            case t if t == ENUM:
                return varint(self.enums[f["of"]])
            case t if t == STRING:
                return f"text {n}".encode()
            case t if t == BYTES:
                return bytes([0, 255, n & 255])
            case t if t == MESSAGE:
                return self.encode(f["of"], depth=depth + 1) if depth < DEEPEST else b""
        raise AssertionError(f"a type that this test does not know: {f}")


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def wire_type(t):
    if t in (FIXED64, DOUBLE):
        return I64
    if t in (FIXED32, FLOAT):
        return I32
    return LEN if t in (STRING, BYTES, MESSAGE) else VARINT


def protoc(*arguments, data=b""):
    done = subprocess.run(["protoc", "-I", ROOT / "src", *arguments, *PROTOS], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    out = tmp_path_factory.mktemp("protos") / "set"
    protoc(f"--descriptor_set_out={out}")
    return Schema(out.read_bytes())


def golden():
    found = {}
    for line in GOLDEN.read_text().splitlines():
        if line.startswith("#"):
            continue
        name, fields, digits = line.split(" ")
        numbers = tuple(map(int, fields.split(","))) if fields != "-" else ()
        assert (name, numbers) not in found, f"twice: {line}"
        found[name, numbers] = bytes.fromhex(digits)
    return found


def line_of(name, numbers, data):
    return f"{name} {','.join(map(str, numbers)) or '-'} {data.hex()}"


def test_every_message_and_field_has_golden_bytes(schema):
    held = {}
    for name, numbers in golden():
        held.setdefault(name, set()).update(numbers)
    missing = [
        line_of(name, numbers, schema.encode(name, numbers))
        for name, numbers in schema.lines()
        if name not in held or not set(numbers) <= held[name]
    ]
    assert not missing, f"append to {GOLDEN.relative_to(ROOT)}:\n" + "\n".join(missing)
    assert held.keys() <= schema.messages.keys(), "a message that was sent once is not known any more"


def test_golden_bytes_are_what_the_messages_are_today(schema):
    for (name, numbers), data in golden().items():
        known = {f["number"] for f in schema.messages[name]}
        assert set(numbers) <= known, f"{name}: a field that was sent once is gone"
        # What is inside may have grown; what was there means what it meant.
        text = protoc(f"--decode={name[1:]}", data=data).decode()
        assert not re.search(r"^\s*\d+[:{ ]", text, re.M), f"{name}: not all of it is known any more:\n{text}"
        assert protoc(f"--encode={name[1:]}", data=text.encode()) == data, name


def test_what_is_unknown_is_skipped(schema):
    """As from a later release: a field that no schema has, in front and at the end."""
    unknown = varint(9999 << 3 | LEN) + b"\4more"
    for (name, numbers), data in list(golden().items())[:20]:
        text = protoc(f"--decode={name[1:]}", data=unknown + data + unknown).decode()
        plain = "\n".join(line for line in text.splitlines() if not line.startswith("9999:"))
        assert protoc(f"--encode={name[1:]}", data=plain.encode()) == data


def test_requests_keep_their_numbers():
    text = (ROOT / "src" / "wire" / "message_types.h").read_text()
    found = {name: int(number) for name, number in re.findall(r"^\s+(\w+) = (\d+),", text, re.M)}
    assert found.items() >= REQUESTS.items(), "a number has changed"
    assert found == REQUESTS, "a new one: append it to this list"
    assert len(set(found.values())) == len(found)
