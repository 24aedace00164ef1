"""Names and identities: each is one node's."""

import os
import shutil
import signal
import time

from holo_e2e import HOLO, alive, free_port, gone, node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


def cluster(home, *names):
    line = home.ok("init", "--node-name", names[0], "--state-dir", home.root / names[0], *LOCAL).split()
    home.address, home.key = line[2], line[4]
    for name in names[1:]:
        home.ok("join", home.address, "--key", home.key, "--name", name, "--state-dir", home.root / name, *LOCAL)


def pid_of(home, name):
    mark = str(home.root / name).encode() + b"\0"
    (pid,) = [p for p in home.processes() if mark in open(f"/proc/{p}/cmdline", "rb").read()]
    return pid


def test_a_name_taken_twice_is_refused_and_says_by_whom(home):
    cluster(home, "first", "second")
    other = node(home.status("--state-dir", home.root / "first"), "second")
    line = home.refused("join", home.address, "--key", home.key, "--name", "second", "--state-dir", home.root / "x", *LOCAL)
    assert "second" in line and other["id"] in line and other["address"] in line
    assert sorted(alive(home.status("--state-dir", home.root / "first"))) == ["first", "second"]
    # Nor by a restart under it.
    pid = pid_of(home, "first")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    line = home.refused("agent", "--state-dir", home.root / "first", "--name", "second", "--log-level", "error")
    assert "second" in line and other["id"] in line


def test_a_copied_state_directory_is_refused_and_the_first_goes_on(home):
    cluster(home, "first", "second", "third")
    for name in ("second", "first"):
        pid = pid_of(home, name)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: gone(pid), 10, "the agent to end")  # noqa: B023
        shutil.copytree(home.root / name, home.root / f"{name}-copy")
        with home.start(HOLO, "agent", "--state-dir", home.root / name):
            at = ("--state-dir", home.root / "third")
            mine = ("--state-dir", home.root / name)
            wait_until(lambda: home.holo("status", *mine).returncode == 0, 20, "the first to answer")  # noqa: B023
            wait_until(lambda: home.status(*mine)["this_node"]["ready"], 30, "the first to be back")  # noqa: B023
            seen = lambda where: (node(home.status(*where), name)["state"], node(home.status(*where), name)["address"])  # noqa: B023,E731
            wait_until(lambda: seen(at) == seen(mine) and seen(at)[0] == "alive", 30, "the others to see it")  # noqa: B023
            before = node(home.status(*at), name)
            copy = ("agent", "--state-dir", home.root / f"{name}-copy", "--log-level", "error")
            # As on another machine; on the same one already the local socket is taken.
            line = home.refused(*copy, env={"XDG_RUNTIME_DIR": str(home.root / "other")})
            assert "identity" in line and before["address"] in line
            assert "another agent" in home.refused(*copy) or "identity" in home.refused(*copy)
            after = node(home.status(*at), name)
            assert after["state"] == "alive" and after["incarnation"] == before["incarnation"]
            home.ok("kv", "put", "still", "here", *at)
            assert home.ok("kv", "get", "still", "--state-dir", home.root / name).strip() == "here"
            os.kill(pid_of(home, name), signal.SIGTERM)


def with_a_copy_of_second(home):
    """Three nodes, of which "second" is stopped and its state directory copied. How to ask the third, and the stopped
    one's incarnation as that knows it."""
    cluster(home, "first", "second", "third")
    pid = pid_of(home, "second")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    shutil.copytree(home.root / "second", home.root / "copy")
    at = ("--state-dir", home.root / "third")
    return at, node(home.status(*at), "second")["incarnation"]


def test_of_two_copies_that_start_at_once_one_goes_on(home):
    at, before = with_a_copy_of_second(home)
    both = []
    for name in ("second", "copy"):
        # As on another machine: the local socket is not shared.
        both.append(home.start(HOLO, "agent", "--state-dir", home.root / name, "--log-level", "error",
                               env=home.env | {"XDG_RUNTIME_DIR": str(home.root / f"run-{name}")}))  # fmt: skip
        time.sleep(0.2)
    try:
        ended = wait_until(lambda: [p for p in both if p.poll() is not None], 20, "one of the two to be refused")
        assert len(ended) == 1
        assert "identity" in ended[0].stderr.read() and ended[0].returncode == 1
        second = lambda: node(home.status(*at), "second")
        wait_until(lambda: second()["state"] == "alive" and second()["incarnation"] > before, 30, "the other to be back")
        after = second()
        time.sleep(2)  # Were there two, one would have been fenced by now, and returned as a new incarnation.
        now = second()
        assert now["state"] == "alive" and now["incarnation"] == after["incarnation"]
        assert sum(p.poll() is None for p in both) == 1
    finally:
        for p in both:
            if p.poll() is None:
                p.terminate()
            p.communicate(timeout=30)


def test_of_two_copies_that_fight_unseen_one_ends_itself(home):
    at, before = with_a_copy_of_second(home)
    both = []
    try:
        both.append(home.start(HOLO, "agent", "--state-dir", home.root / "second", "--log-level", "error"))
        wait_until(lambda: node(home.status(*at), "second")["incarnation"] > before, 30, "the first to be back")
        # Paused, it answers no dial: the copy believes that it is alone.
        both[0].send_signal(signal.SIGSTOP)
        elsewhere = {"XDG_RUNTIME_DIR": str(home.root / "run-copy")}
        copy = ("--state-dir", home.root / "copy")
        both.append(home.start(HOLO, "agent", *copy, "--log-level", "error", env=home.env | elsewhere))
        wait_until(lambda: home.holo("status", *copy, env=elsewhere).returncode == 0, 20, "the copy to answer")
        # Alive itself, not only for the others: else it may never hear of the leader, and be no danger.
        wait_until(lambda: home.status(*copy, env=elsewhere)["this_node"]["ready"], 30, "the copy to be taken for it")
        both[0].send_signal(signal.SIGCONT)
        ended = wait_until(lambda: [p for p in both if p.poll() is not None], 60, "one of the two to end itself")
        for p in ended:
            line = p.stderr.read()
            assert p.returncode == 1 and "another agent speaks in the name" in line, (p.returncode, line)
    finally:
        for p in both:
            if p.poll() is None:
                p.send_signal(signal.SIGCONT)
                p.terminate()
            p.communicate(timeout=30)


def test_a_cluster_is_not_joined_to_itself(home):
    port = free_port()
    line = home.refused("join", f"127.0.0.1:{port}", "--key", "A" * 43 + "=", "--name", "x", "--state-dir", home.root / "x",
                        "--listen", f"127.0.0.1:{port}", "--memory", "64MiB")  # fmt: skip
    assert "itself" in line
    cluster(home, "first", "second")
    for name in ("first", "second"):
        line = home.refused("join", home.address, "--key", home.key, "--name", "again", "--state-dir", home.root / name, *LOCAL)
        assert "another agent" in line or "belongs to this cluster" in line
    os.kill(pid_of(home, "second"), signal.SIGTERM)
    wait_until(lambda: len(home.processes()) == 1, 10, "the agent to end")
    line = home.refused("join", home.address, "--key", home.key, "--name", "again", "--state-dir", home.root / "second", *LOCAL)
    assert "belongs to this cluster" in line
