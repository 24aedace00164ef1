"""Identities, Noise and the handshake: sections 3, 4 and 5 of docs/hyperbus.md."""

import struct

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from hyperbus.crypto import Failed, derive, hkdf, hmac256, sha256

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
