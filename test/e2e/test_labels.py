"""Where nodes stand and what their owners say of them; a witness votes and holds nothing."""

import os
import signal

from holo_e2e import EXAMPLES, HOLO, USAGE, alive, gone, node, quadratic_sum, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


def cluster(home, *first):
    line = home.ok("init", "--name", "lab", "--node-name", "first", "--state-dir", home.root / "s1", *LOCAL, *first).split()
    home.address, home.key = line[2], line[4]
    return home


def join(home, name, *more):
    return home.ok("join", home.address, "--key", home.key, "--name", name, "--state-dir", home.root / name, *LOCAL, *more)


def test_labels(home):
    cluster(home, "--zone", "north", "--host-label", "h1", "--rack", "r7", "--label", "disk=ssd", "--label", "tier=1,spot=")
    join(home, "second")
    at_second = lambda: home.status("--state-dir", home.root / "second")  # noqa: E731
    first = node(at_second(), "first")
    assert (first["zone"], first["host"], first["rack"]) == ("north", "h1", "r7")
    assert first["labels"] == {"disk": "ssd", "tier": "1", "spot": ""}
    second = node(at_second(), "second")
    assert (second["zone"], second["rack"], second["labels"], second["witness"]) == ("", "", {}, False)
    assert second["host"] == node(home.status("--state-dir", home.root / "s1"), "second")["host"] != ""

    # Flags are kept; a restart with other ones tells the others.
    (pid,) = [p for p in home.processes() if str(home.root / "s1").encode() in open(f"/proc/{p}/cmdline", "rb").read()]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    with home.start(*agent_command(home, "s1", "--zone", "south")) as agent:
        wait_until(lambda: node(at_second(), "first")["zone"] == "south", 20, "the other node to hear of the zone")
        assert node(at_second(), "first")["labels"] == {"disk": "ssd", "tier": "1", "spot": ""}
        agent.terminate()
        agent.wait(10)


def agent_command(home, directory, *more):
    return (HOLO, "agent", "--state-dir", home.root / directory, *more)


def test_labels_that_cannot_be(home):
    for flags in (("--zone", "a b"), ("--host-label", "x" * 64), ("--label", "novalue"), ("--label", "k=1", "--label", "k=2"),
                  ("--label", ",".join(f"k{i}=v" for i in range(17)))):  # fmt: skip
        home.refused("init", "--state-dir", home.root / "s", *LOCAL, *flags, code=USAGE)


def test_a_witness_votes_and_holds_nothing(home):
    cluster(home)
    join(home, "second")
    join(home, "watcher", "--witness")
    status = wait_until(lambda: (lambda s: s if sum(n["voter"] for n in s["nodes"]) == 3 else None)(
        home.status("--state-dir", home.root / "s1")), 20, "three voters")  # fmt: skip
    assert node(status, "watcher")["witness"] and sorted(alive(status)) == ["first", "second", "watcher"]
    home.ok("alloc", "xs", "--type", "u64", "--count", "1e6", "--replication", "2", "--state-dir", home.root / "s1")
    home.refused("alloc", "ys", "--type", "u64", "--count", "1e3", "--replication", "3", "--state-dir", home.root / "s1")
    status = home.status("--state-dir", home.root / "s1")
    (region,) = status["regions"]
    watcher = node(status, "watcher")
    assert watcher["id"] not in region["pages_by_node"] and watcher["reserved_bytes"] == 0
    # Also for a program that was started beside it.
    done = home.run(*holo_run(home, "watcher"), timeout=120)
    assert done.returncode == 0 and str(quadratic_sum(100000)) in done.stdout, done.stderr + home.logs()
    after = home.status("--state-dir", home.root / "watcher")["this_node"]
    assert after["compute"]["tasks_done"] == 0 and after["compute"]["workers"] == 0
    assert home.refused("run", "-n", "3", "--state-dir", home.root / "s1", EXAMPLES / "quadratic_sum", "--count", "10")


def holo_run(home, directory):
    return (HOLO, "run", "--state-dir", home.root / directory, EXAMPLES / "quadratic_sum", "--count", "100000")
