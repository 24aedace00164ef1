"""What the world does to an agent: floods of connections, full disks."""

import os
import resource
import signal
import socket
import struct
import subprocess
import time

import pytest
from holo_e2e import HOLO, MIB, PROBE, alive, quadratic_sum, wait_until

CONNECTIONS = 10_000


def flood(address, payload):
    """Opens CONNECTIONS connections, as many at a time as this process may hold, and says `payload` on each."""
    host, port = address.rsplit(":", 1)
    at_once = min(CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200)
    held = []
    for i in range(CONNECTIONS):
        if len(held) >= at_once:
            held.pop(0).close()
        s = socket.socket()
        s.settimeout(5)
        try:
            s.connect((host, int(port)))
            if payload:
                s.sendall(payload(i))
        except OSError:
            pass  # Turned away: as good as closed.
        held.append(s)
    return held


@pytest.mark.parametrize("kind", ["silent", "garbage"])
def test_ten_thousand_connections(home, kind):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    assert home.run(PROBE, "fill", "xs", "200000", "2").returncode == 0
    target = next(n["address"] for n in home.json("dev", "status")["nodes"] if n["number"] == 1)
    held = flood(target, (lambda i: os.urandom(64 + i % 64)) if kind == "garbage" else None)
    try:
        # While they are open: it answers, and its peers reach it.
        began = time.monotonic()
        assert len(alive(home.status("--node", "node1"))) == 3
        summed = home.run(PROBE, "sum", "xs", env={"HOLO_NODE": "node2"})
        assert summed.stdout == f"{quadratic_sum(200000)}\n", summed.stderr + home.logs()
        assert time.monotonic() - began < 20
    finally:
        for s in held:
            s.close()
    if kind == "garbage":
        assert home.status("--node", "node1")["cluster"]["refused"]["garbage"] > 100
    home.ok("alloc", "after", "--count", "1000")
    pid = next(n["pid"] for n in home.json("dev", "status")["nodes"] if n["number"] == 1)
    rss_kib = int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")).split()[1])
    assert rss_kib < 400_000


def frame(kind, number, header):
    """A request on an agent's local socket (wire/local_frame.h)."""
    return struct.pack("<HHIII", kind, 0, number, len(header), 0) + header


def read_answers(s, wanted):
    """How many whole answers come before the end, `wanted` at most; the agent's last words are none."""
    data, got = b"", 0
    while got < wanted:
        while len(data) < 16 or len(data) < 16 + sum(struct.unpack_from("<II", data, 8)):
            try:
                more = s.recv(1 << 20)
            except ConnectionResetError:
                more = b""
            if not more:
                return got
            data += more
        _, flags, _, header, payload = struct.unpack_from("<HHIII", data)
        got += flags & 3 == 1
        data = data[16 + header + payload :]
    return got


def local_socket(pid):
    """Where the agent listens for local processes."""
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] for fd in os.listdir(f"/proc/{pid}/fd") if "socket:" in os.readlink(f"/proc/{pid}/fd/{fd}")}
    lines = [line.split() for line in open("/proc/net/unix")]
    (path,) = {line[7] for line in lines if len(line) > 7 and line[6] in inodes and line[7].endswith(".sock")}
    return path


def test_a_thousand_watchers_that_never_read(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    value = "x" * 60_000
    for i in range(16):
        home.ok("kv", "put", f"big/{i}", value, "--node", "node1")
    pid = next(n["pid"] for n in home.json("dev", "status")["nodes"] if n["number"] == 1)
    path = local_socket(pid)
    # Hello{role: CLI, protocol: 1}, then two watches of all of "big/" from the first revision: a megabyte each.
    key_range = b"\x0a\x04big/\x12\x04big0"
    watch = b"\x0a" + bytes([len(key_range)]) + key_range + b"\x10\x01\x20" + b"\xe8\x07"
    asked = frame(1, 1, b"\x08\x02\x10\x01") + frame(92, 2, watch) + frame(92, 3, watch)
    silent, longest = [], 0.0
    # From the first revision: it need not watch before the first change comes.
    with home.start(HOLO, "kv", "watch", "small", "--from", "1", "--count", "20", "--node", "node1") as reader:
        for i in range(1000):
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(30)
            s.connect(path)
            try:
                s.sendall(asked)
            except OSError:
                pass  # Ended already.
            silent.append(s)
            if i % 50 == 0:
                began = time.monotonic()
                home.ok("kv", "put", "small", str(i), "--node", "node1")
                longest = max(longest, time.monotonic() - began)
        out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0 and len(out.splitlines()) == 20, err
    assert longest < 5, "nobody else is held up"
    rss_kib = int(next(line for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS")).split()[1])
    assert rss_kib < 700_000, "what waits for them has a bound"
    ended = sum(read_answers(s, 3) < 3 for s in silent)  # Cut off; the others were given everything.
    assert 500 < ended < 1000
    assert home.ok("kv", "get", "small", "--node", "node1").strip() == "950"


@pytest.fixture
def small_disk(home):
    """A small file system, which an agent keeps its state on; the probe fits into it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    disk = home.root / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={24 * MIB + os.path.getsize(PROBE)}", "none", disk], check=True)
    yield disk
    for pid in home.processes():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not home.processes(), 10, "the agents to end")
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_refuses_commits_and_loses_none(home, small_disk):
    state = small_disk / "s"
    home.ok("init", "--state-dir", state, "--listen", "127.0.0.1:0", "--memory", "256MiB")
    assert home.run(PROBE, "fill", "before", "100000").returncode == 0
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(65536))
    # The log has some room reserved; when that is used up a change fails with one clear error. Looking takes no room.
    full = home.run(PROBE, "churn", "100000", timeout=120)
    assert full.returncode == 1 and len(full.stderr.splitlines()) == 1, full.stderr
    assert "no space left on the device" in full.stderr, full.stderr
    assert "before" in [r["name"] for r in home.json("regions", "--state-dir", state)]
    # With room again it goes on by itself, with everything that it said was done.
    (small_disk / "ballast").unlink()
    wait_until(lambda: home.holo("alloc", "after", "--count", "1000", "--state-dir", state).returncode == 0, 20, "an allocation")
    names = [r["name"] for r in home.json("regions", "--state-dir", state)]
    assert {"before", "after", full.stdout.split()[-1]} <= set(names) and len(names) <= 5, names
    assert home.run(PROBE, "sum", "before").stdout == f"{quadratic_sum(100000)}\n"


def test_a_full_disk_at_the_start(home, small_disk):
    with open(small_disk / "ballast", "wb", buffering=0) as ballast, pytest.raises(OSError):
        while True:
            ballast.write(bytes(65536))
    line = home.refused("init", "--state-dir", small_disk / "s", "--listen", "127.0.0.1:0", "--memory", "64MiB")
    assert "No space left on device" in line
    (small_disk / "ballast").unlink()
    home.ok("init", "--state-dir", small_disk / "s", "--listen", "127.0.0.1:0", "--memory", "64MiB")
