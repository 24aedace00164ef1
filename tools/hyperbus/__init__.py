"""The hyperbus a second time: docs/hyperbus.md in Python, sharing no code with holo. hyperbus_client.py is its program."""

from hyperbus.crypto import AES_256_GCM, XCHACHA20, Failed, Refused
from hyperbus.handshake import Handshake, Identity
from hyperbus.quic import DATAGRAM, INITIAL, PacketKey, QuicClient, encode_parameters
from hyperbus.requests import (
    CLASSES,
    OUR_CONTROL,
    THEIR_CONTROL,
    control_stream_start,
    decode_reply,
    encode_request,
    read_grants,
)
from hyperbus.tcp import RecordKey, TcpClient
