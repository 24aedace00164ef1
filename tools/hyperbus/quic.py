"""The QUIC carrier: section 6 of docs/hyperbus.md."""

import hmac
import os
import select
import socket
import struct
import time

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hyperbus.crypto import (
    AES_128_GCM,
    CIPHERS,
    Failed,
    Refused,
    XCHACHA20,
    counted_nonce,
    expand_label,
    hmac256,
    sha256,
)
from hyperbus.handshake import REFUSALS, decode_refusal

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
