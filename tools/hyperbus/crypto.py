"""Primitives: section 2 of docs/hyperbus.md."""

import hashlib
import hmac
import struct

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305


class Refused(Exception):
    """The agent said why it does not talk to us."""


class Failed(Exception):
    """Something else went wrong, here or there."""


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
