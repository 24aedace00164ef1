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
import hashlib
import hmac
import json
import os
import select
import socket
import struct
import sys
import time

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305


class Refused(Exception):
    """The agent said why it does not talk to us."""


class Failed(Exception):
    """Something else went wrong, here or there."""


# ---------------------------------------------------------------------------------- primitives (section 2)


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hmac256(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def hkdf_expand(secret, info, size):
    out, block, i = b"", b"", 1
    while len(out) < size:
        block = hmac256(secret, block + info + bytes([i]))
        out, i = out + block, i + 1
    return out[:size]


def hkdf(secret, salt, info, size=32):
    return hkdf_expand(hmac256(salt or bytes(32), secret), info.encode(), size)


def expand_label(secret, label, size):
    """HKDF-Expand-Label of TLS 1.3, with an empty context."""
    full = b"tls13 " + label.encode()
    return hkdf_expand(secret, struct.pack(">HB", size, len(full)) + full + b"\0", size)


def derive(context, material):
    return blake3(material, derive_key_context=context).digest()


def hchacha20(key, nonce):
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                           (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):  # fmt: skip
            for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                s[x] = s[x] + s[y] & 0xFFFFFFFF
                v = s[z] ^ s[x]
                s[z] = (v << turn | v >> 32 - turn) & 0xFFFFFFFF
    return struct.pack("<8I", *s[:4], *s[12:])


class XChaCha20Poly1305:
    def __init__(self, key):
        self.key = key

    def inner(self, nonce):
        return ChaCha20Poly1305(hchacha20(self.key, nonce[:16])), bytes(4) + nonce[16:]

    def encrypt(self, nonce, plain, header):
        cipher, nonce = self.inner(nonce)
        return cipher.encrypt(nonce, plain, header)

    def decrypt(self, nonce, sealed, header):
        cipher, nonce = self.inner(nonce)
        return cipher.decrypt(nonce, sealed, header)


AES_128_GCM, AES_256_GCM, XCHACHA20 = 0, 1, 3  # 1 and 3 are their numbers on the wire
CIPHERS = {AES_128_GCM: (AESGCM, 16, 12), AES_256_GCM: (AESGCM, 32, 12), XCHACHA20: (XChaCha20Poly1305, 32, 24)}
CIPHER_NAMES = {AES_256_GCM: "aes-256-gcm", XCHACHA20: "xchacha20-poly1305"}


def counted_nonce(iv, number):
    """The number, as 8 bytes big-endian, xored into the end of the IV."""
    return iv[:-8] + (int.from_bytes(iv[-8:], "big") ^ number).to_bytes(8, "big")


# ---------------------------------------------------------------------------------- identities (section 3)

MAX_CHAIN_LINKS = 16


class Identity:
    def __init__(self, seed):
        self.keys = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self.keys.public_key().public_bytes_raw()
        self.node = node_id(self.public)
        self.static = X25519PrivateKey.from_private_bytes(derive("holo hyperbus v1: noise static key from node seed", seed))
        self.signature = self.keys.sign(static_statement(self.static.public_key().public_bytes_raw()))


def node_id(key):
    return int.from_bytes(blake3(key).digest()[:8], "big")


def static_statement(noise_static):
    return b"holo hyperbus v1: noise static key of node" + noise_static


def verify_identity(node, key, chain, noise_static, signature):
    """That `node` is who speaks: from its first key along its rotations to `key`, which signed the Noise static key."""
    chain = chain or key
    if len(chain) < 32 or (len(chain) - 32) % 96 or len(chain) > 32 + 96 * MAX_CHAIN_LINKS:
        raise Failed("a chain of keys of the wrong size")
    current = chain[:32]
    if node_id(current) != node:
        raise Failed("the node's id is not that of its first key")
    try:
        for i, at in enumerate(range(32, len(chain), 96), 1):
            following, signed = chain[at : at + 32], chain[at + 32 : at + 96]
            statement = b"holo hyperbus v1: next key of node" + struct.pack("<QI", node, i) + following
            Ed25519PublicKey.from_public_bytes(current).verify(signed, statement)
            current = following
        if current != key:
            raise Failed("the node's key does not end its chain")
        Ed25519PublicKey.from_public_bytes(key).verify(signature, static_statement(noise_static))
    except InvalidSignature:
        raise Failed("the node did not sign the key that it speaks with") from None


# ---------------------------------------------------------------------------------- Noise (section 4)


class Noise:
    """Noise revision 34, the initiator's side, with the tokens e1 and ekem1 of its hfs extension."""

    def __init__(self, name, patterns, prologue, static, psk):
        self.patterns, self.static, self.psk = list(patterns), static, psk
        name = name.encode()
        self.h = name.ljust(32, b"\0") if len(name) <= 32 else sha256(name)
        self.ck, self.key, self.n = self.h, None, 0
        self.ephemeral = self.kem = self.remote_ephemeral = self.remote_static = None
        self.mix_hash(prologue)

    def mix_hash(self, data):
        self.h = sha256(self.h, data)

    def mix_key(self, material, hash_too=False):
        temp = hmac256(self.ck, material)
        self.ck = hmac256(temp, b"\1")
        second = hmac256(temp, self.ck + b"\2")
        if hash_too:
            self.mix_hash(second)
            second = hmac256(temp, second + b"\3")
        self.key, self.n = second, 0

    def nonce(self):
        self.n += 1
        return struct.pack("<4xQ", self.n - 1)

    def encrypt_and_hash(self, plain):
        out = ChaCha20Poly1305(self.key).encrypt(self.nonce(), plain, self.h) if self.key else plain
        self.mix_hash(out)
        return out

    def decrypt_and_hash(self, sealed):
        try:
            plain = ChaCha20Poly1305(self.key).decrypt(self.nonce(), sealed, self.h) if self.key else sealed
        except InvalidTag:
            raise Failed("message 2 is not authentic") from None
        self.mix_hash(sealed)
        return plain

    def mix_ephemeral(self, public):
        self.mix_hash(public)
        if self.psk:  # Section 9.2 of Noise.
            self.mix_key(public)

    def mix_dh(self, ours, theirs):
        self.mix_key(ours.exchange(X25519PublicKey.from_public_bytes(theirs)))

    def mix_token(self, token):
        match token:
            case "psk": self.mix_key(self.psk, hash_too=True)
            case "ee": self.mix_dh(self.ephemeral, self.remote_ephemeral)
            case "es": self.mix_dh(self.ephemeral, self.remote_static)
            case "se": self.mix_dh(self.static, self.remote_ephemeral)

    def write(self, payload):
        out = b""
        for token in self.patterns.pop(0):
            match token:
                case "e":
                    self.ephemeral = X25519PrivateKey.generate()
                    public = self.ephemeral.public_key().public_bytes_raw()
                    out += public
                    self.mix_ephemeral(public)
                case "e1":
                    self.kem = MLKEM768PrivateKey.generate()
                    out += self.encrypt_and_hash(self.kem.public_key().public_bytes_raw())
                case "s": out += self.encrypt_and_hash(self.static.public_key().public_bytes_raw())
                case _: self.mix_token(token)
        return out + self.encrypt_and_hash(payload)

    def read(self, message):
        def take(size):
            nonlocal message
            if len(message) < size:
                raise Failed("a handshake message is too short")
            taken, message = message[:size], message[size:]
            return taken

        tag = lambda: 16 if self.key else 0  # noqa: E731
        for token in self.patterns.pop(0):
            match token:
                case "e":
                    self.remote_ephemeral = take(32)
                    self.mix_ephemeral(self.remote_ephemeral)
                case "ekem1":
                    self.mix_key(self.kem.decapsulate(self.decrypt_and_hash(take(1088 + tag()))))
                case "s": self.remote_static = self.decrypt_and_hash(take(32 + tag()))
                case _: self.mix_token(token)
        return self.decrypt_and_hash(message)


# ---------------------------------------------------------------------------------- the handshake (section 5)

HYBRID = (("e", "e1"), ("e", "ee", "ekem1", "s", "es"), ("s", "se"))
CLASSICAL = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


def with_psk(patterns):
    return (("psk", *patterns[0]), *patterns[1:])


# (with a cluster key, classical only): number, Noise's name, messages
SUITES = {
    (True, False): (1, "Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256", with_psk(HYBRID)),
    (False, False): (2, "Noise_XXhfs_25519+MLKEM768_ChaChaPoly_SHA256", HYBRID),
    (True, True): (3, "Noise_XXpsk0_25519_ChaChaPoly_SHA256", with_psk(CLASSICAL)),
    (False, True): (4, "Noise_XX_25519_ChaChaPoly_SHA256", CLASSICAL),
}
PROTOCOL = 1
VERSIONS = (1,)
FIELDS = ("versions", "features", "aeads", "parameters", "node", "key", "signature", "chain", "certificate")
REFUSALS = ("none", "wrong_key", "wrong_version", "garbage", "unknown_identity", "changed_key", "revoked")


def encode_payload(**fields):
    out = b""
    for number, name in enumerate(FIELDS, 1):
        if fields.get(name):
            out += struct.pack("<BH", number, len(fields[name])) + fields[name]
    return out + fields.get("later", b"")


# What a release may say that this one does not know (section 10): to be skipped by whoever hears it.
LATER_FIELDS = struct.pack("<BH", 200, 5) + b"later" + struct.pack("<BH", 255, 0)
LATER_FEATURES = struct.pack("<Q", 1 << 63 | 1)
LATER_CIPHERS = (2, 77)
LATER_CONTROL = struct.pack("<BBH", 99, 0, 3) + b"new" + struct.pack("<BBH", 1, 7, 24) + bytes(24)  # A type, and a class.
LATER_UNIDIRECTIONAL, LATER_STREAM = 6, b"\x55a stream that begins with something else"
LATER_FRAME = 99
LATER_FLAGS = 0x80


def decode_payload(data):
    fields, last = {}, 0
    while data:
        if len(data) < 3:
            raise Failed("a payload field is cut short")
        number, size = struct.unpack_from("<BH", data)
        value, data = data[3 : 3 + size], data[3 + size :]
        if len(value) != size or number <= last:
            raise Failed("payload fields that are cut short or out of order")
        last = number
        if number <= len(FIELDS):  # Others are a later release's.
            fields[FIELDS[number - 1]] = value
    return fields


def decode_refusal(data):
    """8 bytes: kind, suite, protocol, newest and oldest version. Later releases may append."""
    if len(data) < 8:
        return "refused without a reason"
    kind, suite, protocol, newest, oldest = struct.unpack_from("<BBHHH", data)
    name = REFUSALS[kind] if kind < len(REFUSALS) else str(kind)
    return f"{name} (the agent speaks protocol {protocol}, versions {oldest} to {newest}, suite {suite})"


class Handshake:
    def __init__(self, identity, key, classical, ciphers, versions=VERSIONS, later=False):
        self.identity, self.ciphers, self.versions, self.later = identity, ciphers, versions, later
        number, name, patterns = SUITES[bool(key), classical]
        psk = key and derive("holo hyperbus v1: noise psk from cluster key", key)
        key_id = key and derive("holo hyperbus v1: public id of cluster key", key)[:8]
        self.preamble = b"HOLO" + struct.pack("<HBB", PROTOCOL, number, 0) + (key_id or bytes(8))
        self.noise = Noise(name, patterns, self.preamble, identity.static, psk)
        self.suite = name

    def message1(self, parameters=b""):
        versions = b"".join(struct.pack("<H", v) for v in self.versions)
        more = {"features": LATER_FEATURES, "later": LATER_FIELDS} if self.later else {}
        ciphers = bytes((LATER_CIPHERS if self.later else ()) + self.ciphers)
        payload = encode_payload(versions=versions, aeads=ciphers, parameters=parameters, **more)
        return self.preamble + self.noise.write(payload)

    def derive(self, label):
        return hkdf(self.noise.ck, self.noise.h, "holo hyperbus v1: " + label)

    def message2(self, message):
        """Takes message 2, checks all of it, and gives message 3. Secrets are (ours to send with, ours to receive with)."""
        fields = decode_payload(self.noise.read(message))
        lacking = {"versions", "aeads", "node", "key", "signature"} - fields.keys()
        if lacking:
            raise Failed(f"message 2 lacks {', '.join(sorted(lacking))}")
        (self.version,) = struct.unpack("<H", fields["versions"])
        (self.cipher,) = fields["aeads"]
        if self.version not in self.versions or self.cipher not in self.ciphers:
            raise Failed("the agent chose what was not offered")
        self.parameters = fields.get("parameters", b"")
        self.features = int.from_bytes(fields.get("features", b""), "little")
        (self.node,) = struct.unpack("<Q", fields["node"])
        self.rotations = max(0, len(fields.get("chain", b"")) - 32) // 96
        verify_identity(self.node, fields["key"], fields.get("chain"), self.noise.remote_static, fields["signature"])
        self.handshake_secrets = (self.derive("handshake of the initiator"), self.derive("handshake of the responder"))
        me = self.identity
        more = {"later": LATER_FIELDS} if self.later else {}
        out = self.noise.write(encode_payload(node=struct.pack("<Q", me.node), key=me.public, signature=me.signature, **more))
        self.traffic_secrets = (self.derive("traffic of the initiator"), self.derive("traffic of the responder"))
        return out


# ---------------------------------------------------------------------------------- requests (section 9)

CONTROL_STREAM, GRANT = 1, 1
CLASSES = ("control", "data", "bulk")
PING = 70  # Answered with its own payload, at most 64 KiB.
ERRORS = ("invalid_argument not_found already_exists permission_denied out_of_memory over_limit overloaded deadline_exceeded "
          "cancelled unavailable wrong_key wrong_version malformed corrupt stale_epoch not_leader no_quorum under_replicated "
          "write_conflict page_lost snapshot_too_old task_failed wrong_build refused unsupported io_error internal").split()  # fmt: skip
GRANTED = (64, 17 << 20, 17 << 20)  # requests, request bytes, reply bytes; the largest message fits


def control_stream_start(later=False):
    """With `later`, between grants that have grown stands what nobody knows."""
    more = b"more" if later else b""
    grants = (struct.pack("<BBHQQQ", GRANT, klass, 24 + len(more), *GRANTED) + more for klass in range(len(CLASSES)))
    return bytes([CONTROL_STREAM]) + (LATER_CONTROL if later else b"").join(grants)


def read_grants(data):
    """What the agent's control stream has granted so far, by class."""
    grants, data = {}, data[1:] if data[:1] == bytes([CONTROL_STREAM]) else b""
    while len(data) >= 4:
        kind, klass, size = struct.unpack_from("<BBH", data)
        if len(data) < 4 + size:
            break
        if kind == GRANT and klass < len(CLASSES):
            grants[CLASSES[klass]] = struct.unpack_from("<QQQ", data, 4)
        data = data[4 + size :]
    return grants


def encode_request(kind, klass, header=b"", payload=b"", seconds=5.0):
    return struct.pack("<HBBIQQ", kind, klass, 0, len(header), len(payload), int(seconds * 1e6)) + header + payload


def decode_reply(data):
    status, header_bytes, payload_bytes = struct.unpack_from("<B3xIQ", data)
    header, payload = data[16 : 16 + header_bytes], data[16 + header_bytes :]
    if len(header) != header_bytes or len(payload) != payload_bytes or status > 1:
        raise Failed("a reply that is not as long as it says")
    if status == 0:
        return {"status": "ok", "payload": payload}
    code, flags, message_bytes, hint_bytes, node = struct.unpack_from("<HBxHHQ", header)
    after = struct.unpack_from("<I", header, 16 + message_bytes + hint_bytes)[0] if flags & 2 else None
    return {"status": ERRORS[code - 1] if 1 <= code <= len(ERRORS) else str(code), "retryable": bool(flags & 1), "retry_after_ms": after,
            "message": header[16 : 16 + message_bytes].decode(errors="replace"), "node": f"{node:016x}"}  # fmt: skip


# ---------------------------------------------------------------------------------- QUIC packets (section 6)

QUIC_VERSION = 1
INITIAL_SALT = sha256(b"holo hyperbus initial salt v1")[:20]
RETRY_KEY = sha256(b"holo hyperbus retry key v1")[:16]
RETRY_NONCE = sha256(b"holo hyperbus retry nonce v1")[:12]
INITIAL, HANDSHAKE, ONE_RTT = 0, 2, 4  # the types of long headers; 4 has a short one
RETRY = 3
ID_BYTES = 8
DATAGRAM = 1200


def varint(v):
    for code, size in enumerate((1, 2, 4, 8)):
        if v < 1 << 8 * size - 2:
            return (v | code << 8 * size - 2).to_bytes(size, "big")
    raise ValueError(v)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        if size > len(self.data) - self.at:
            raise Failed("a packet that is cut short")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size):
        return int.from_bytes(self.take(size), "big")

    def varint(self):
        first = self.number(1)
        more = (1 << (first >> 6)) - 1
        return (first & 0x3F) << 8 * more | self.number(more)

    def rest(self):
        return self.take(len(self.data) - self.at)


class PacketKey:
    """Seals or opens the packets of one direction of one level (RFC 9001, section 5; SHA-256 with every cipher)."""

    def __init__(self, cipher, secret, header_key=None):
        kind, key_bytes, iv_bytes = CIPHERS[cipher]
        self.cipher, self.secret = cipher, secret
        self.aead = kind(expand_label(secret, "quic key", key_bytes))
        self.iv = expand_label(secret, "quic iv", iv_bytes)
        self.hp = header_key or expand_label(secret, "quic hp", key_bytes)

    def next(self):
        return PacketKey(self.cipher, expand_label(self.secret, "quic ku", 32), self.hp)

    def mask(self, sample):
        if self.cipher == XCHACHA20:
            return Cipher(algorithms.ChaCha20(self.hp, sample), None).encryptor().update(bytes(5))
        return Cipher(algorithms.AES(self.hp), modes.ECB()).encryptor().update(sample)[:5]

    def protect(self, header, number, plain):
        """`header` ends with the packet number, 4 bytes."""
        sealed = self.aead.encrypt(counted_nonce(self.iv, number), plain, header)
        mask = self.mask(sealed[:16])  # The sample begins 4 bytes behind the start of the packet number.
        first = header[0] ^ mask[0] & (0x0F if header[0] & 0x80 else 0x1F)
        return bytes([first]) + header[1:-4] + bytes(a ^ b for a, b in zip(header[-4:], mask[1:])) + sealed

    def unmask(self, packet, at):
        """The header in clear, its packet number cut short to what it sent, and where the sealed bytes begin."""
        mask = self.mask(packet[at + 4 : at + 20])
        first = packet[0] ^ mask[0] & (0x0F if packet[0] & 0x80 else 0x1F)
        size = (first & 3) + 1
        number = bytes(a ^ b for a, b in zip(packet[at : at + size], mask[1:]))
        return bytes([first]) + packet[1:at] + number, number


def full_number(received, largest):
    """RFC 9000, appendix A.3."""
    window = 1 << 8 * len(received)
    candidate = (largest + 1) & ~(window - 1) | int.from_bytes(received, "big")
    if candidate <= largest + 1 - window // 2:
        return candidate + window
    if candidate > largest + 1 + window // 2 and candidate >= window:
        return candidate - window
    return candidate


class Space:
    """One encryption level: its keys, its packet numbers, its CRYPTO bytes."""

    def __init__(self, kind):
        self.kind = kind
        self.send_key = self.receive_key = None
        self.next_number = 0
        self.largest = -1
        self.received = set()
        self.ack_due = False
        self.waiting = []  # frames to send
        self.unacknowledged = {}  # packet number -> its frames
        self.crypto_sent = 0
        self.crypto = Assembly()


class Assembly:
    """Bytes that arrive in any order, as far as they are whole."""

    def __init__(self):
        self.pieces, self.whole, self.end = {}, b"", None

    def add(self, offset, data, fin=False):
        if fin:
            self.end = offset + len(data)
        if len(self.pieces) < 10_000 and len(self.pieces.get(offset, b"")) <= len(data):
            self.pieces[offset] = data
        for at in sorted(self.pieces):
            if at > len(self.whole):
                break
            piece = self.pieces.pop(at)
            self.whole += piece[len(self.whole) - at :]

    def complete(self):
        return self.end is not None and len(self.whole) == self.end


TP_ORIGINAL_ID, TP_RESET_TOKEN, TP_INITIAL_ID, TP_RETRY_ID = 0x00, 0x02, 0x0F, 0x10


def encode_parameters(own_id):
    numbers = {0x01: 8000, 0x03: 65527, 0x04: 64 << 20, 0x05: 18 << 20, 0x06: 18 << 20, 0x07: 1 << 20, 0x08: 64, 0x09: 8,
               0x0E: 2}  # fmt: skip
    out = b"".join(varint(k) + varint(len(varint(v))) + varint(v) for k, v in numbers.items())
    return out + varint(TP_INITIAL_ID) + varint(len(own_id)) + own_id


def decode_parameters(data):
    reader, out = Reader(data), {}
    while reader.at < len(data):
        number = reader.varint()
        out[number] = reader.take(reader.varint())
    return out


class QuicClient:
    """As much of RFC 9000 as one request at a time needs. What is lost is sent again when an answer stays away."""

    def __init__(self, address, handshake, flip=None, timeout=5.0):
        family, _, _, _, where = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM)[0]
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.connect(where)
        self.handshake, self.deadline = handshake, time.monotonic() + timeout
        self.own_id, self.peer_id = os.urandom(ID_BYTES), os.urandom(ID_BYTES)
        self.original_id, self.retry_id, self.token = self.peer_id, None, b""
        self.spaces = {kind: Space(kind) for kind in (INITIAL, HANDSHAKE, ONE_RTT)}
        self.streams, self.phase, self.confirmed, self.heard = {}, 0, False, False
        self.wait = 0.3
        self.install_initial_keys()
        message = bytearray(handshake.message1(encode_parameters(self.own_id)))
        if flip is not None:
            message[flip // 8] ^= 1 << flip % 8
        self.say(INITIAL, bytes(message))
        self.run_until(lambda: self.confirmed)

    # --- the handshake

    def install_initial_keys(self):
        common = hmac256(INITIAL_SALT, self.peer_id)
        space = self.spaces[INITIAL]
        space.send_key = PacketKey(AES_128_GCM, expand_label(common, "client in", 32))
        space.receive_key = PacketKey(AES_128_GCM, expand_label(common, "server in", 32))

    def install_keys(self, kind, secrets):
        space = self.spaces[kind]
        space.send_key, space.receive_key = (PacketKey(self.handshake.cipher, s) for s in secrets)

    def say(self, kind, message):
        """A handshake message behind its length, in CRYPTO frames that each fit a packet."""
        space, data = self.spaces[kind], struct.pack("<H", len(message)) + message
        for i in range(0, len(data), 1000):
            piece = data[i : i + 1000]
            space.waiting.append(b"\x06" + varint(space.crypto_sent) + varint(len(piece)) + piece)
            space.crypto_sent += len(piece)

    def on_crypto(self, kind):
        data = self.spaces[kind].crypto.whole
        if kind != INITIAL or self.spaces[HANDSHAKE].send_key or len(data) < 2:
            return  # At the Handshake level: an empty message, which says that the agent has the keys.
        (size,) = struct.unpack_from("<H", data)
        if len(data) < 2 + size:
            return
        message3 = self.handshake.message2(data[2 : 2 + size])
        self.check_parameters()
        self.install_keys(HANDSHAKE, self.handshake.handshake_secrets)
        self.say(HANDSHAKE, message3)
        self.install_keys(ONE_RTT, self.handshake.traffic_secrets)

    def check_parameters(self):
        """RFC 9000, section 7.3: nobody has changed a connection id, or made us believe in a Retry."""
        got = decode_parameters(self.handshake.parameters)
        if got.get(TP_ORIGINAL_ID) != self.original_id or got.get(TP_INITIAL_ID) != self.peer_id:
            raise Failed("the connection ids were changed on the way")
        if got.get(TP_RETRY_ID) != self.retry_id:
            raise Failed("somebody else's Retry")

    # --- packets out

    def packet(self, space, frames, pad_to=0):
        number, plain = space.next_number, b"".join(frames)
        space.next_number += 1
        if space.kind == ONE_RTT:
            header = bytes([0x43 | self.phase << 2]) + self.peer_id
        else:
            header = bytes([0xC3 | space.kind << 4]) + struct.pack(">IB", QUIC_VERSION, len(self.peer_id)) + self.peer_id
            header += bytes([ID_BYTES]) + self.own_id
            if space.kind == INITIAL:
                header += varint(len(self.token)) + self.token
            plain = plain.ljust(pad_to - len(header) - 2 - 4 - 16, b"\0")
            header += (4 + len(plain) + 16 | 0x4000).to_bytes(2, "big")
        header += struct.pack(">I", number)
        return space.send_key.protect(header, number, plain.ljust(4, b"\0"))

    def flush(self):
        for space in self.spaces.values():
            while space.send_key and (space.waiting or space.ack_due):
                frames = [self.ack_frame(space)] if space.received else []
                space.ack_due = False
                if space.waiting:
                    sent = [space.waiting.pop(0)]
                    space.unacknowledged[space.next_number] = sent
                    frames += sent
                pad = DATAGRAM if space.kind == INITIAL else 0  # RFC 9000, section 14.1.
                try:
                    self.socket.send(self.packet(space, frames, pad))
                except ConnectionRefusedError:
                    raise Failed("nobody listens there") from None
                if space.kind == HANDSHAKE:  # RFC 9001, section 4.9.1.
                    self.drop(INITIAL)

    def drop(self, kind):
        self.spaces[kind] = Space(kind)

    @staticmethod
    def ack_frame(space):
        numbers = sorted(space.received)[-64:]
        ranges, end = [], numbers[-1]
        for i in range(len(numbers) - 1, -1, -1):
            if i == 0 or numbers[i - 1] != numbers[i] - 1:
                ranges.append((numbers[i], end))
                end = numbers[i - 1]
        out = b"\x02" + varint(ranges[0][1]) + varint(0) + varint(len(ranges) - 1) + varint(ranges[0][1] - ranges[0][0])
        for (above, _), (low, high) in zip(ranges, ranges[1:]):
            out += varint(above - high - 2) + varint(high - low)
        return out

    # --- packets in

    def run_until(self, done):
        """Sends and receives until `done()`; what is not acknowledged in time is sent again, ever more patiently."""
        wait = self.wait
        again = time.monotonic() + wait
        while not done():
            self.flush()
            now = time.monotonic()
            if now >= self.deadline:
                raise Failed("no answer in time")
            if now >= again:
                for space in self.spaces.values():
                    lost, space.unacknowledged = space.unacknowledged, {}
                    space.waiting[:0] = [frame for frames in lost.values() for frame in frames]
                wait, again = wait * 2, now + wait * 2
                continue
            if select.select([self.socket], [], [], min(again, self.deadline) - now)[0]:
                try:
                    self.on_datagram(self.socket.recv(65536))
                except ConnectionRefusedError:
                    raise Failed("nobody listens there") from None
        self.flush()

    def on_datagram(self, data):
        while data:
            try:
                used = self.on_long(data) if data[0] & 0x80 else self.on_short(data)
            except InvalidTag:
                return  # Not authentic, or for keys that are gone: nobody's word.
            data = data[used:]

    def on_long(self, data):
        reader = Reader(data)
        first, version = reader.number(1), reader.number(4)
        destination = reader.take(reader.number(1))
        source = reader.take(reader.number(1))
        if destination != self.own_id:
            return len(data)
        kind = first >> 4 & 3
        if version != QUIC_VERSION:
            raise Refused("the agent speaks another version of QUIC")
        if kind == RETRY:
            self.on_retry(data, source, reader.rest())
            return len(data)
        if kind == INITIAL:
            reader.take(reader.varint())
        size = reader.varint()
        at, end = reader.at, reader.at + size
        space = self.spaces.get(kind)
        if space and space.receive_key and end <= len(data) and size >= 20:
            frames = self.open(space, data[:end], at)
            if kind == INITIAL and not self.heard:
                self.heard, self.peer_id = True, source  # From now on the id that the agent has chosen.
            self.on_frames(space, frames)
        return end

    def on_short(self, data):
        space, at = self.spaces[ONE_RTT], 1 + ID_BYTES
        if space.receive_key and len(data) >= at + 20 and data[1:at] == self.own_id:
            self.on_frames(space, self.open(space, data, at))
        return len(data)

    def on_retry(self, data, source, rest):
        """Section 6.4: the agent wants to know that we receive at our address. Once, and only as the first answer."""
        token, tag = rest[:-16], rest[-16:]
        pseudo = bytes([len(self.original_id)]) + self.original_id + data[:-16]
        if self.heard or self.retry_id is not None or not token:
            return
        if not hmac.compare_digest(AESGCM(RETRY_KEY).encrypt(RETRY_NONCE, b"", pseudo), tag):
            return
        self.retry_id = self.peer_id = source
        self.token = token
        self.install_initial_keys()
        space = self.spaces[INITIAL]
        space.waiting[:0] = [frame for frames in space.unacknowledged.values() for frame in frames]
        space.unacknowledged = {}

    def open(self, space, packet, at):
        header, number = space.receive_key.unmask(packet, at)
        full, key = full_number(number, space.largest), space.receive_key
        updated = space.kind == ONE_RTT and (header[0] >> 2 & 1) != self.phase
        if updated:
            key = key.next()
        frames = key.aead.decrypt(counted_nonce(key.iv, full), packet[len(header) :], header)
        if updated:  # Section 6.3: the agent has moved its key on; so do we.
            self.phase ^= 1
            space.receive_key, space.send_key = key, space.send_key.next()
        if full in space.received:
            return b""
        space.received.add(full)
        space.largest = max(space.largest, full)
        return frames

    def on_frames(self, space, data):
        reader = Reader(data)
        while reader.at < len(data):
            kind = reader.varint()
            if kind not in (0x00, 0x02, 0x03, 0x1C, 0x1D):
                space.ack_due = True
            match kind:
                case 0x00 | 0x01: pass  # PADDING, PING
                case 0x02 | 0x03: self.on_ack(space, reader, kind == 0x03)
                case 0x04: raise Failed(f"the agent reset stream {reader.varint()}")
                case 0x05: raise Failed(f"the agent wants no more of stream {reader.varint()}")
                case 0x06:
                    offset = reader.varint()
                    space.crypto.add(offset, reader.take(reader.varint()))
                    self.on_crypto(space.kind)
                case 0x07: reader.take(reader.varint())  # NEW_TOKEN
                case _ if 0x08 <= kind <= 0x0F:
                    stream = self.streams.setdefault(reader.varint(), Assembly())
                    offset = reader.varint() if kind & 4 else 0
                    stream.add(offset, reader.take(reader.varint()) if kind & 2 else reader.rest(), bool(kind & 1))
                case 0x10 | 0x12 | 0x13 | 0x14 | 0x16 | 0x17 | 0x19: reader.varint()  # limits, and what waits for them
                case 0x11 | 0x15: reader.varint(), reader.varint()
                case 0x18:  # NEW_CONNECTION_ID: one is enough for us.
                    reader.varint(), reader.varint(), reader.take(reader.number(1) + 16)
                case 0x1A: space.waiting.append(b"\x1b" + reader.take(8))  # PATH_CHALLENGE -> PATH_RESPONSE
                case 0x1B: reader.take(8)
                case 0x1C | 0x1D: self.on_close(reader, kind == 0x1D)
                case 0x1E: self.confirmed = True  # HANDSHAKE_DONE
                case _: raise Failed(f"a QUIC frame of type {kind:#x}")
        if self.confirmed and self.spaces[HANDSHAKE].send_key:
            self.drop(HANDSHAKE)

    @staticmethod
    def on_ack(space, reader, with_ecn):
        high, _, more, length = (reader.varint() for _ in range(4))
        ranges = [(high - length, high)]
        for _ in range(more):
            high = ranges[-1][0] - reader.varint() - 2
            ranges.append((high - reader.varint(), high))
        if with_ecn:
            reader.varint(), reader.varint(), reader.varint()
        space.unacknowledged = {
            n: frames for n, frames in space.unacknowledged.items() if not any(low <= n <= high for low, high in ranges)
        }

    @staticmethod
    def on_close(reader, application):
        code = reader.varint()
        if not application:
            reader.varint()  # the type of the frame that was wrong
        reason = reader.take(reader.varint())
        if not application and 0x100 <= code < 0x200:  # Section 5.6: the handshake's refusals.
            kind = code - 0x100
            raise Refused(decode_refusal(reason) if reason else REFUSALS[kind] if kind < len(REFUSALS) else f"alert {kind}")
        where = "application" if application else "QUIC"
        raise Failed(f"the agent closed the connection: {where} {code:#x} {reason.decode(errors='replace')}")

    # --- streams

    def send(self, stream, data, fin):
        space = self.spaces[ONE_RTT]
        for i in range(0, len(data), 1000):
            piece = data[i : i + 1000]
            last = fin and i + 1000 >= len(data)
            space.waiting.append(bytes([0x0E | last]) + varint(stream) + varint(i) + varint(len(piece)) + piece)

    def receive(self, stream):
        return self.streams.setdefault(stream, Assembly())

    def wait_for(self, done):
        self.run_until(done)

    def close(self):
        try:
            self.socket.send(self.packet(self.spaces[ONE_RTT], [b"\x1d" + varint(0x100 + 9) + varint(0)]))
        except OSError:
            pass  # A farewell that cannot be sent.
        self.socket.close()


# ---------------------------------------------------------------------------------- the TCP carrier (section 8)

RECORD_HANDSHAKE, RECORD_REFUSAL, RECORD_FRAMES, RECORD_RAW = 1, 2, 3, 4
FRAME_STREAM, FRAME_RAW, FRAME_RESET, FRAME_PING, FRAME_PONG, FRAME_CLOSE = 1, 2, 3, 4, 5, 6
FIN = 1
RECORDS_PER_KEY = 1 << 23


class RecordKey:
    def __init__(self, cipher, secret):
        kind, key_bytes, iv_bytes = CIPHERS[cipher]
        self.cipher, self.secret, self.number = cipher, secret, 0
        self.aead = kind(hkdf(secret, b"", "holo hyperbus v1: record key", key_bytes))
        self.iv = hkdf(secret, b"", "holo hyperbus v1: record iv", iv_bytes)

    def nonce(self):
        if self.number == RECORDS_PER_KEY:
            self.__init__(self.cipher, hkdf(self.secret, b"", "holo hyperbus v1: next traffic secret"))
        self.number += 1
        return counted_nonce(self.iv, self.number - 1)


class TcpClient:
    def __init__(self, address, handshake, flip=None, timeout=5.0):
        try:
            self.socket = socket.create_connection(address, timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            raise Failed(f"nobody listens there: {e}") from None
        self.streams, self.raw, self.send_key, self.receive_key = {}, None, None, None
        self.later = handshake.later
        message = bytearray(handshake.message1())
        if flip is not None:
            message[flip // 8] ^= 1 << flip % 8
        self.write_record(RECORD_HANDSHAKE, bytes(message))
        kind, answer = self.read_record()
        if kind != RECORD_HANDSHAKE:
            raise Failed("not an answer to message 1")
        self.write_record(RECORD_HANDSHAKE, handshake.message2(answer))
        self.send_key, self.receive_key = (RecordKey(handshake.cipher, s) for s in handshake.traffic_secrets)

    def write_record(self, kind, body):
        header = bytes([kind]) + (len(body) + (16 if self.send_key else 0)).to_bytes(3, "little")
        if self.send_key:
            body = self.send_key.aead.encrypt(self.send_key.nonce(), body, header)
        self.socket.sendall(header + body)

    def read_exactly(self, size):
        out = b""
        while len(out) < size:
            try:
                more = self.socket.recv(size - len(out))
            except TimeoutError:
                raise Failed("no answer in time") from None
            except ConnectionError as e:
                raise Refused(f"the connection was cut: {e}") from None
            if not more:
                raise Refused("the agent closed the connection without a word")
            out += more
        return out

    def read_record(self):
        header = self.read_exactly(4)
        body = self.read_exactly(int.from_bytes(header[1:], "little"))
        if header[0] == RECORD_REFUSAL:
            raise Refused(decode_refusal(body))
        if self.receive_key:
            body = self.receive_key.aead.decrypt(self.receive_key.nonce(), body, header)
        return header[0], body

    def wait_for(self, done):
        while not done():
            kind, body = self.read_record()
            if kind == RECORD_RAW:
                number, fin = self.raw
                self.append(number, body, fin)
                continue
            while body:
                kind, flags, size, number = struct.unpack_from("<BB2xIQ", body)
                content, body = body[16 : 16 + size], body[16 + size :]
                match kind:
                    case 1: self.append(number, content, bool(flags & FIN))
                    case 2: self.raw = (number, bool(flags & FIN))
                    case 3: raise Failed(f"the agent reset stream {number}")
                    case 4: self.frame(FRAME_PONG, 0, 0, content)
                    case 6: raise Failed("the agent closed the connection: " + content[2:].decode(errors="replace"))

    def append(self, number, data, fin):
        stream = self.receive(number)
        stream.add(len(stream.whole), data, fin)

    def frame(self, kind, flags, stream, body):
        self.write_record(RECORD_FRAMES, struct.pack("<BBHIQ", kind, flags, 0, len(body), stream) + body)

    def send(self, stream, data, fin):
        if self.later:
            self.frame(LATER_FRAME, LATER_FLAGS, stream, b"a frame of a type that nobody knows")
        for i in range(0, len(data), 32768):  # A record has at most 64 KiB.
            flags = (FIN if fin and i + 32768 >= len(data) else 0) | (LATER_FLAGS if self.later else 0)
            self.frame(FRAME_STREAM, flags, stream, data[i : i + 32768])

    def receive(self, stream):
        return self.streams.setdefault(stream, Assembly())

    def close(self):
        self.frame(FRAME_CLOSE, 0, 0, struct.pack("<H", 9))
        self.socket.close()


# ---------------------------------------------------------------------------------- what it does

OUR_CONTROL, THEIR_CONTROL = 2, 3  # Streams are numbered as in QUIC on both carriers; requests are 0, 4, 8, ...


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
