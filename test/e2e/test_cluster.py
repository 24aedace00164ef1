"""Clusters out of agents that init and join: who gets in, who does not, and what a restart keeps."""

import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from holo_e2e import HOLO, PROBE, USAGE, Home, alive, free_port, gone, node, quadratic_sum, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


@pytest.fixture
def started(home):
    """A cluster of one; `join` is how others enter it."""
    line = home.ok("init", "--name", "lab", "--node-name", "first", "--state-dir", home.root / "s1", *LOCAL).strip()
    words = line.split()
    assert words[:2] == ["holo", "join"] and words[3] == "--key" and len(words) == 5, line
    home.address, home.key = words[2], words[4]
    return home


def join(home, name, *more, key=None, address=None, run=None):
    return (run or home.ok)("join", address or home.address, "--key", key or home.key, "--name", name,
                            "--state-dir", home.root / name, *LOCAL, *more)  # fmt: skip


def agent_pid(home, name):
    (pid,) = [p for p in home.processes() if str(home.root / name).encode() in open(f"/proc/{p}/cmdline", "rb").read()]
    return pid


def stop(pid, limit=2.0):
    """SIGTERM; it must be gone within `limit` seconds."""
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    assert time.monotonic() - began < limit


def test_init_join_status(started):
    join(started, "second")
    join(started, "third")
    status = started.status("--state-dir", started.root / "second")
    assert set(status["cluster"]) >= {"id", "epoch", "leader", "refused"}
    assert status["cluster"]["name"] == "lab"
    assert set(status["cluster"]["refused"]) == {"wrong_key", "wrong_version", "garbage", "unknown_identity", "changed_key", "revoked"}
    assert sorted(alive(status)) == ["first", "second", "third"]
    for n in status["nodes"]:
        assert set(n) >= {"id", "name", "address", "state", "voter", "cores", "memory_bytes", "frames_used_bytes", "speed", "version"}
        assert n["memory_bytes"] == 64 << 20
        assert n["speed"] > 0
    assert status["cluster"]["leader"] in [n["id"] for n in status["nodes"]]
    text = started.ok("status")
    assert "second" in text and "lab" in text


def test_the_keys_and_identities_are_readable_by_their_owner_only(started):
    for file in ("identity.json", "cluster.json"):
        assert (started.root / "s1" / file).stat().st_mode & 0o777 == 0o600
    assert (started.root / "s1").stat().st_mode & 0o777 == 0o700


def test_a_wrong_key_is_refused_within_a_second_and_both_sides_say_so(started):
    wrong = started.key[:-5] + ("AAA" if started.key[-5:-2] != "AAA" else "BBB") + started.key[-2:]
    began = time.monotonic()
    line = join(started, "second", key=wrong, run=started.refused)
    assert "key" in line
    assert time.monotonic() - began < 2  # The process, its agent and the handshake; the refusal itself takes milliseconds.
    assert wait_until(lambda: started.status()["cluster"]["refused"]["wrong_key"], 2, "the refusal to be counted") >= 1
    assert "key" in (started.root / "s1" / "agent.log").read_text()
    assert alive(started.status()) == ["first"]
    join(started, "second")  # The state directory is as good as new.
    assert len(alive(started.status())) == 2


def test_json_is_one_value_and_nothing_else(started):
    started.ok("alloc", "xs", "--type", "u64", "--count", "1000")
    for command in ("status", "regions", "regions show xs", "alloc ys --count 10", "config show", "doctor", "version"):
        done = started.holo(*command.split(), "--json")
        assert done.returncode == 0 and done.stderr == "", (command, done.stderr)
        json.loads(done.stdout)  # Fails on anything beside the value.
    for command in ("regions show nothing", "alloc xs --count 5", "alloc zs --count 0"):
        assert started.refused(*command.split(), "--json")  # Errors stay on standard error.


class OtherRelease:
    """Stands between a node and one that dials it, and changes the protocol number that the dialling one says first."""

    def __init__(self, address):
        host, port = address.split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(self.target) as server:
                first = client.recv(65536)
                server.sendall(first.replace(b"HOLO" + struct.pack("<H", 1), b"HOLO" + struct.pack("<H", 999), 1))
                while answer := server.recv(65536):
                    client.sendall(answer)


def test_another_release_is_refused_and_both_sides_say_so(started):
    other = OtherRelease(started.address)
    began = time.monotonic()
    line = join(started, "second", address=other.address, run=started.refused)
    other.listener.close()
    assert "speaks protocol" in line
    assert time.monotonic() - began < 2
    assert wait_until(lambda: started.status()["cluster"]["refused"]["wrong_version"], 2, "the refusal to be counted") >= 1
    assert "999" in (started.root / "s1" / "agent.log").read_text()
    assert alive(started.status()) == ["first"]


@pytest.mark.parametrize("cut", [1, 4, 43])
def test_a_truncated_key_is_wrong_usage(started, cut):
    assert "key" in join(started, "second", key=started.key[:-cut], run=lambda *a: started.refused(*a, code=USAGE))


def test_the_key_can_come_from_a_file_or_the_environment_or_standard_input(started):
    file = started.root / "key"
    file.write_text(started.key + "\n")
    where = ("--name", "second", "--state-dir", started.root / "second", *LOCAL)
    started.refused("join", started.address, *where, code=USAGE)
    started.refused("join", started.address, "--key", started.key, "--key-file", file, *where, code=USAGE)
    started.refused("join", started.address, "--key-file", started.root / "none", *where, code=USAGE)
    started.ok("join", started.address, "--key-file", file, *where)
    started.ok("join", started.address, "--name", "third", "--state-dir", started.root / "third", *LOCAL, env={"HOLO_KEY": started.key})
    with open(file) as stdin:
        started.ok("join", started.address, "--key-file", "-", "--name", "fourth", "--state-dir", started.root / "fourth", *LOCAL, stdin=stdin)
    assert len(alive(started.status())) == 4


def test_join_where_nobody_listens_fails_in_bounded_time(started):
    began = time.monotonic()
    join(started, "second", address=f"127.0.0.1:{free_port()}", run=started.refused)
    join(started, "second", address="no-such-host.invalid", run=started.refused)
    assert time.monotonic() - began < 40


def test_a_join_that_failed_leaves_its_flags_nowhere(started):
    where = ("--state-dir", started.root / "second")
    nobody = f"127.0.0.1:{free_port()}"
    started.refused("join", nobody, "--key", started.key, "--name", "wrong", *where, *LOCAL)
    assert not (started.root / "second" / "config.toml").exists()
    (started.root / "second" / "config.toml").write_text('rack = "r1"\n')
    started.refused("join", nobody, "--key", started.key, "--name", "wrong", *where, *LOCAL)
    assert (started.root / "second" / "config.toml").read_text() == 'rack = "r1"\n'


def test_join_a_host_that_never_answers(started):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        join(started, "second", address=f"127.0.0.1:{silent.getsockname()[1]}", run=started.refused)
        assert time.monotonic() - began < 30


def test_a_state_directory_serves_one_agent_and_one_cluster(started):
    line = started.refused("agent", "--state-dir", started.root / "s1")
    assert str(agent_pid(started, "s1")) in line  # It names who holds it.
    started.refused("init", "--state-dir", started.root / "s1", *LOCAL)
    other = Home()
    try:
        other.ok("init", "--state-dir", other.root / "s", *LOCAL)
        stop(agent_pid(other, "s"))
        line = other.refused("join", started.address, "--key", started.key, "--state-dir", other.root / "s", *LOCAL)
        assert "cluster" in line
        other.refused("init", "--state-dir", other.root / "s", *LOCAL)
    finally:
        other.close()


def test_a_port_in_use(started):
    line = started.refused("init", "--state-dir", started.root / "s2", "--listen", started.address, "--memory", "64MiB")
    assert started.address.split(":")[1] in line
    assert not (started.root / "s2" / "cluster.json").exists()


def test_a_state_directory_that_cannot_be_used(home):
    file = home.root / "file"
    file.write_text("")
    home.refused("init", "--state-dir", file, *LOCAL)
    home.refused("init", "--state-dir", "/proc/holo", *LOCAL)


def test_an_over_long_socket_path_is_refused_clearly(home):
    line = home.refused("init", *LOCAL, "--state-dir", home.root / "s", env={"XDG_RUNTIME_DIR": str(home.root / ("x" * 100))})
    assert "107" in line


def test_without_a_runtime_directory_the_socket_lies_in_the_state_directory(home):
    home.env.pop("XDG_RUNTIME_DIR")
    home.ok("init", "--state-dir", home.root / "s", *LOCAL)
    assert (home.root / "s" / "agent.sock").exists()
    assert len(alive(home.status())) == 1


def test_with_several_clusters_one_has_to_be_chosen(started):
    started.ok("init", "--name", "other", "--state-dir", started.root / "o", *LOCAL)
    line = started.refused("status")
    assert "lab" in line and "other" in line
    assert started.status("--cluster", "other")["cluster"]["name"] == "other"
    assert started.status(env={"HOLO_CLUSTER": "lab"})["cluster"]["name"] == "lab"
    # A node's name alone does not say of which cluster.
    mine = started.status("--cluster", "lab")["nodes"][0]["name"]
    assert started.status("--node", mine, env={"HOLO_CLUSTER": "lab"})["cluster"]["name"] == "lab"
    assert started.status("--cluster", "other", env={"HOLO_CLUSTER": "lab"})["cluster"]["name"] == "other"
    started.refused("status", "--cluster", "third")


def test_leave_hands_over_and_is_for_good(started):
    join(started, "second")
    # Both hold pages of it; with one copy each, what the second has must first go to the first.
    assert started.run(PROBE, "fill", "xs", "1000000", env={"HOLO_NODE": "first"}).returncode == 0
    pid = agent_pid(started, "second")
    started.ok("leave", "--node", "second")
    wait_until(lambda: gone(pid), 5, "the agent that left to end")
    assert alive(started.status()) == ["first"]
    read = started.run(PROBE, "scan", "xs")
    assert read.returncode == 0 and read.stdout == "1000000\n", read.stderr
    assert not (started.root / "second" / "cluster.json").exists()
    join(started, "second")
    assert sorted(alive(started.status())) == ["first", "second"]


def test_leave_is_refused_for_the_last_copy(started):
    assert started.run(PROBE, "fill", "xs", "100000").returncode == 0
    started.refused("leave")
    assert started.run(PROBE, "scan", "xs").stdout == "100000\n"


def test_foreground_and_sigterm(home):
    with home.start(HOLO, "init", "--foreground", "--state-dir", home.root / "s", *LOCAL) as agent:
        line = agent.stdout.readline()
        assert line.startswith("holo join 127.0.0.1:")
        assert len(alive(home.status())) == 1
        began = time.monotonic()
        agent.terminate()
        assert agent.wait(10) == 0
        assert time.monotonic() - began < 2
    home.refused("status")
    # `holo agent` goes on from there.
    with home.start(HOLO, "agent", "--state-dir", home.root / "s", *LOCAL) as agent:
        wait_until(lambda: home.holo("status").returncode == 0, 10, "the agent to answer")
        agent.terminate()
        assert agent.wait(10) == 0


def dumps_core(process):
    process.send_signal(signal.SIGSEGV)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == -signal.SIGSEGV
    return os.WCOREDUMP(status)


def test_a_crashed_agent_leaves_no_keys_in_a_core_dump(home):
    def unlimited():
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)

    with home.start("sleep", "100", cwd=home.root, preexec_fn=unlimited) as other:
        if not dumps_core(other):
            pytest.skip("this machine writes no core dumps at all")
    with home.start(HOLO, "init", "--foreground", "--state-dir", home.root / "s", *LOCAL, cwd=home.root, preexec_fn=unlimited) as agent:
        assert agent.stdout.readline().startswith("holo join")
        assert not dumps_core(agent)


def test_a_restart_brings_regions_and_pages_back(started):
    count = 1_000_000
    filled = started.run(PROBE, "fill", "xs", str(count))
    assert filled.returncode == 0, filled.stderr
    before = started.json("regions", "show", "xs")
    stop(agent_pid(started, "s1"))
    agent = started.start(HOLO, "agent", "--state-dir", started.root / "s1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: started.holo("status").returncode == 0, 10, "the agent to answer")
        assert started.json("regions", "show", "xs") == before
        summed = wait_until(lambda: (r := started.run(PROBE, "sum", "xs")).returncode == 0 and r, 10, "the region to be readable")
        assert summed.stdout == f"{quadratic_sum(count)}\n"
    finally:
        agent.kill()
        agent.wait()


def test_status_watch_goes_on(started):
    with started.start(HOLO, "status", "--watch", "--json", "--interval", "0.1") as watch:
        lines = [watch.stdout.readline() for _ in range(3)]
        watch.terminate()
    assert all(re.match(r'\{.*"cluster"', line) for line in lines)


def test_killing_the_leader_leaves_it_usable(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    status = home.status()
    leader = next(n for n in status["nodes"] if n["id"] == status["cluster"]["leader"])
    home.ok("dev", "kill", leader["name"].removeprefix("node"))

    def usable():
        return home.holo("alloc", f"r{time.monotonic_ns()}", "--count", "1000").returncode == 0

    wait_until(usable, 15, "an allocation without the old leader")
    after = home.status()
    assert after["cluster"]["leader"] not in ("", leader["id"])
    assert wait_until(lambda: node(home.status(), leader["name"])["state"] == "dead", 10, "its death to be known")
    assert after["cluster"]["id"] == status["cluster"]["id"]


def test_garbage_on_the_wire_is_counted(started):
    host, port = started.address.split(":")
    for bytes_ in (b"GET / HTTP/1.1\r\n\r\n", b"HOLO" + b"\xff" * 100, os.urandom(4096)):
        with socket.create_connection((host, int(port))) as s:
            s.sendall(bytes_)
            s.settimeout(10)
            try:
                while s.recv(4096):
                    pass
            except OSError:
                pass
    refused = started.status()["cluster"]["refused"]
    assert refused["garbage"] + refused["wrong_version"] + refused["wrong_key"] >= 3
    assert alive(started.status()) == ["first"]

