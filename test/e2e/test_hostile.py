"""What the world does to an agent: floods of connections, full disks."""

import os
import resource
import signal
import socket
import subprocess
import time

import pytest
from holo_e2e import MIB, PROBE, alive, quadratic_sum, wait_until

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
