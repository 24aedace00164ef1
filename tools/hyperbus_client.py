#!/usr/bin/env python3
"""A client of the hyperbus that shares no code with holo: docs/hyperbus.md, written down a second time.

    hyperbus_client.py HOST:PORT [--key K] [--tcp] [--count N] [--bytes N] [--json]

It completes the handshake with a running agent (over QUIC, or over TCP), opens the control stream with grants, sends
requests, and prints what it learned. Exit: 0 answered (an error that answers the request is an answer), 1 refused or
failed, 2 wrong usage. Section numbers are those of docs/hyperbus.md. It is made to be read, not to be fast or to keep
secrets from who can read its memory. Needs the packages of hyperbus_client.requirements.txt.
"""

import argparse
import base64
import json
import os
import sys
import time

from hyperbus.crypto import AES_256_GCM, CIPHER_NAMES, Failed, Refused, XCHACHA20
from hyperbus.handshake import Handshake, Identity, LATER_STREAM, LATER_UNIDIRECTIONAL, PROTOCOL, VERSIONS
from hyperbus.quic import QuicClient
from hyperbus.requests import OUR_CONTROL, THEIR_CONTROL, CLASSES, PING, control_stream_start, decode_reply, encode_request, read_grants
from hyperbus.tcp import TcpClient


def converse(arguments, key):
    identity = Identity(os.urandom(32))
    ciphers = {"aes": (AES_256_GCM,), "xchacha": (XCHACHA20,), "both": (AES_256_GCM, XCHACHA20)}[arguments.cipher]
    versions = tuple(map(int, arguments.versions.split(",")))
    handshake = Handshake(identity, key, arguments.classical, ciphers, versions, arguments.later)
    host, _, port = arguments.address.rpartition(":")
    carrier = TcpClient if arguments.tcp else QuicClient
    began = time.monotonic()
    link = carrier((host.strip("[]"), int(port)), handshake, arguments.flip_bit, arguments.timeout)
    handshake_seconds = time.monotonic() - began
    link.send(OUR_CONTROL, control_stream_start(arguments.later), fin=False)
    if arguments.later:
        link.send(LATER_UNIDIRECTIONAL, LATER_STREAM, fin=True)
    control = link.receive(THEIR_CONTROL)
    link.wait_for(lambda: len(read_grants(control.whole)) == len(CLASSES))
    round_trips, payload = [], os.urandom(arguments.bytes)
    for i in range(arguments.count):
        stream = link.receive(4 * i)
        sent = time.monotonic()
        request = encode_request(arguments.type, CLASSES.index("control"), payload=payload, seconds=arguments.timeout)
        link.send(4 * i, request, fin=True)
        link.wait_for(stream.complete)
        round_trips.append(time.monotonic() - sent)
        answer = decode_reply(stream.whole)
        if arguments.type == PING and answer.get("payload") != payload:
            raise Failed(f"a ping was not answered with its own bytes: {answer}")
    answer |= {"payload": len(answer.get("payload", b""))}
    link.close()
    return {
        "node": f"{handshake.node:016x}", "me": f"{identity.node:016x}", "carrier": "tcp" if arguments.tcp else "quic",
        "suite": handshake.suite, "cipher": CIPHER_NAMES[handshake.cipher], "protocol": PROTOCOL,
        "version": handshake.version, "features": handshake.features, "rotations": handshake.rotations,
        "retried": getattr(link, "retry_id", None) is not None,
        "grants": read_grants(control.whole), "handshake_ms": round(handshake_seconds * 1e3, 3), "answer": answer,
        "answers": len(round_trips), "round_trip_ms": round(sorted(round_trips)[len(round_trips) // 2] * 1e3, 3),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description="A second implementation of the hyperbus: handshake, one request, its answer.")
    parser.add_argument("address", help="HOST:PORT of an agent")
    parser.add_argument("--key", help="the cluster key, base64 (default: HOLO_KEY; none: as in trust mode tofu)")
    parser.add_argument("--tcp", action="store_true", help="the TCP carrier (default: QUIC)")
    parser.add_argument("--classical", action="store_true", help="without ML-KEM, which agents refuse unless told otherwise")
    parser.add_argument("--cipher", choices=("aes", "xchacha", "both"), default="both", help="what to offer")
    parser.add_argument("--type", type=int, default=PING, help="type of the request (default: a ping)")
    parser.add_argument("--bytes", type=int, default=56, help="payload of the request")
    parser.add_argument("--count", type=int, default=1, help="requests, one after another")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for all of it")
    parser.add_argument("--versions", default=",".join(map(str, VERSIONS)), help="what to offer, newest first")
    parser.add_argument("--later", action="store_true", help="also say what only a later release would say, for tests")
    parser.add_argument("--flip-bit", type=int, metavar="N", help="alter bit N of message 1, for tests")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    text = arguments.key if arguments.key is not None else os.environ.get("HOLO_KEY", "")
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:
        key = b"?"
    if len(key) not in (0, 32) or not arguments.address.rpartition(":")[2].isdigit() or arguments.count < 1:
        parser.error("an address is HOST:PORT, a key is base64 of 32 bytes, a count is at least 1")
    try:
        learned = converse(arguments, key)
    except (Refused, Failed) as e:
        print(f"hyperbus_client: {'refused' if isinstance(e, Refused) else 'failed'}: {e}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(learned))
    else:
        for name, value in learned.items():
            print(f"{name:14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
