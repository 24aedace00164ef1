"""The TCP carrier: section 8 of docs/hyperbus.md."""

import socket
import struct

from hyperbus.crypto import CIPHERS, Failed, Refused, counted_nonce, hkdf
from hyperbus.handshake import LATER_FLAGS, LATER_FRAME, decode_refusal
from hyperbus.quic import Assembly

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
