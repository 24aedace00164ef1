"""Requests and credit: section 9 of docs/hyperbus.md."""

import struct

from hyperbus.crypto import Failed
from hyperbus.handshake import LATER_CONTROL

CONTROL_STREAM, GRANT = 1, 1
OUR_CONTROL, THEIR_CONTROL = 2, 3  # Streams are numbered as in QUIC on both carriers; requests are 0, 4, 8, ...
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
