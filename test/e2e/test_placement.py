"""Placement on real processes: shards move while programs write and read, and nobody notices."""

import os
import signal
import subprocess

import pytest
from holo_e2e import HOLO, PROBE, alive, node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "128MiB")


def join(home, name, *more):
    line = home.join_line.split()[1:]
    home.ok(*line, "--state-dir", home.root / name, "--name", name, *LOCAL, *more)


@pytest.fixture
def three(home):
    home.join_line = home.ok("init", "--name", "lab", "--state-dir", home.root / "n1", "--node-name", "n1", *LOCAL)
    join(home, "n2")
    join(home, "n3")
    home.env["HOLO_NODE"] = "n1"
    return home


def agent_pid(home, name):
    (pid,) = [p for p in home.processes() if str(home.root / name).encode() in open(f"/proc/{p}/cmdline", "rb").read()]
    return pid


def shards(home):
    return home.status("--shards")["shards"]


def settled(home):
    """Everything is where the plan wants it; gives what `status --shards` says then."""
    def look():
        s = shards(home)
        return s if s["moves"]["left"] == 0 else None

    return wait_until(look, 60, "shards to be where the plan wants them")


def held(home, name):
    return node(shards(home), name)["held"]


class Programs:
    """A writer on one node and a reader on another, until stop()."""

    def __init__(self, home, region):
        self.home = home
        self.started = [self.start("writer", region, "n1"), self.start("reader", region, "n2")]

    def start(self, kind, region, at):
        p = self.home.start(PROBE, kind, region, env=self.home.env | {"HOLO_NODE": at}, stdin=subprocess.PIPE)
        assert p.stdout.readline() == "started\n", p.stderr.read()
        return p

    def check(self):
        for p in self.started:
            if p.poll() is not None:
                raise AssertionError(f"{p.args}: {p.stdout.read()}{p.stderr.read()}\n{self.home.logs()}")

    def stop(self):
        """How many rounds were written, and how often they were read."""
        said = []
        for p in self.started:
            out, err = p.communicate(timeout=60)
            assert p.returncode == 0, f"{p.args}: {out}{err}\n{self.home.logs()}"
            said.append(int(out.split()[0]))
        return said

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for p in self.started:
            if p.poll() is None:
                p.kill()
            p.wait()
            for stream in (p.stdin, p.stdout, p.stderr):
                stream.close()


def test_shards_move_while_programs_write_and_read(three):
    home = three
    # 8 MiB in pages of 4 KiB and two copies, written and read all the time; one copy of another, filled once.
    home.ok("alloc", "busy", "--type", "u64", "--count", "1000000", "--page", "4096", "--replication", "2")
    assert home.run(PROBE, "fill", "still", "2000000").returncode == 0
    still = home.run(PROBE, "sum", "still").stdout
    with Programs(home, "busy") as programs:
        def unharmed(who):
            programs.check()
            assert home.run(PROBE, "sum", "still").stdout == still, f"after {who}\n{home.logs()}"

        # A newcomer takes about a quarter, of old regions too.
        join(home, "n4")
        s = settled(home)
        unharmed("join")
        for region in ("busy", "still"):
            pages = home.json("regions", "show", region)["pages_by_node"]
            n4 = node(home.status(), "n4")["id"]
            assert 0.18 < pages[n4] / sum(pages.values()) < 0.30, (region, pages)
        assert 0.2 < node(s, "n4")["home"] / 4096 < 0.3

        # Drained: nothing is left there, and it stays a member.
        home.ok("drain", "n3")
        h = held(home, "n3")
        assert (h["home_pages"], h["copy_pages"], h["reserved_bytes"]) == (0, 0, 0)
        assert node(home.status(), "n3")["draining"] and "n3" in alive(home.status())
        assert "draining" in home.ok("status")
        unharmed("drain")
        wait_until(lambda: node(home.status("--node", "n3"), "n3")["frames_used_bytes"] == 0, 20, "n3 to give back its memory")
        home.ok("undrain", "n3")
        assert held(home, "n3")["home_pages"] > 0
        unharmed("undrain")

        # Killed: what had two copies goes on; its shards come back when it does.
        home.ok("free", "still")
        before = held(home, "n4")["home_pages"]
        os.kill(agent_pid(home, "n4"), signal.SIGKILL)
        wait_until(lambda: node(home.status(), "n4")["state"] == "dead", 20, "n4 to be known dead")
        settled(home)
        programs.check()
        with home.start(HOLO, "agent", "--state-dir", home.root / "n4", *LOCAL) as again:
            wait_until(lambda: "n4" in alive(home.status()), 20, "n4 to return")
            settled(home)
            assert held(home, "n4")["home_pages"] > before / 2
            rounds, looks = programs.stop()
            again.terminate()
            again.wait(20)
    assert rounds > 2 and looks > 2


def test_what_drain_refuses(three):
    home = three
    home.ok("drain", "n2")
    home.ok("drain", "n3")
    assert "last node" in home.refused("drain", "n1")
    home.ok("undrain", "n2")
    home.ok("undrain", "n3")
    home.refused("drain", "nobody")
    # Two thirds of all there is: without one node it does not fit.
    home.ok("alloc", "big", "--type", "bytes", "--count", "300MiB")
    assert home.run(PROBE, "fill", "some", "100000").returncode == 0
    assert "room" in home.refused("drain", "n3")
    assert not node(home.status(), "n3")["draining"]
    home.ok("free", "big")
    home.ok("alloc", "three", "--type", "u64", "--count", "1000", "--replication", "3")
    assert "three" in home.refused("drain", "n3")
    home.ok("drain", "n3", "--force")
    assert home.run(PROBE, "scan", "some").stdout == "100000\n"


def test_remove_names_what_is_lost(three):
    home = three
    assert home.run(PROBE, "fill", "alone", "1000000").returncode == 0
    home.ok("alloc", "twice", "--type", "u64", "--count", "1000", "--replication", "2")
    line = home.refused("remove", "n3")
    assert "alone" in line and "twice" not in line
    lost = home.json("remove", "n3", "--force")["lost"]
    assert [entry["region"] for entry in lost] == ["alone"] and lost[0]["pages"] > 0
    status = home.status()
    assert node(status, "n3")["state"] == "left" and sorted(alive(status)) == ["n1", "n2"]
    home.refused("remove", "n3")
    home.refused("remove", "n1")
    # On its side it is told, and can come back as a new member.
    there = ("--node", "n3")
    wait_until(lambda: home.status(*there)["this_node"]["removed"], 20, "n3 to know that it was removed")
    assert "removed" in home.refused("alloc", "more", "--count", "10", *there)
    home.ok("leave", *there)
    join(home, "n3")
    assert sorted(alive(home.status())) == ["n1", "n2", "n3"]


def test_a_removed_node_that_held_nothing_alone_is_simply_gone(three):
    home = three
    home.ok("alloc", "twice", "--type", "u64", "--count", "100000", "--replication", "2")
    assert home.run(PROBE, "fill", "twice", "100000", "2").returncode == 0
    home.ok("remove", "n3")
    settled(home)
    assert home.run(PROBE, "scan", "twice").stdout == "100000\n"


def test_explain_and_weights(three):
    home = three
    told = home.json("explain", "shard", "17")
    assert sorted(told["order"]) == ["n1", "n2", "n3"] and len(told["nodes"]) == 3
    scores = [n["score"] for n in told["nodes"]]
    assert scores == sorted(scores, reverse=True)
    assert told["order"][0] == told["nodes"][0]["name"]
    assert "home" in home.ok("explain", "shard", "17")
    # All three are on this machine.
    assert told["nodes"][0]["why"] == "home: the best score"
    for i, n in enumerate(told["nodes"][1:]):
        assert n["why"] == f"backup {i + 1}: the next score, as no node of another host is left"
    assert home.json("explain", "shard", "17", "--class", "cpu")["resource"] == "cpu"
    home.refused("explain", "shard", "4096", code=2)
    home.ok("weight", "n3", "0.5")
    s = shards(home)
    assert abs(node(s, "n3")["share"] - 0.2) < 0.01
    assert 0.15 < node(s, "n3")["home"] / 4096 < 0.25
    home.refused("weight", "n3", "0", code=2)
    home.ok("weight", "--by", "score")
    assert shards(home)["weights_by"] == "score"
    assert "4096 shards" in home.ok("status", "--shards")


def test_explain_says_who_is_passed_over_for_another_host(home):
    home.join_line = home.ok("init", "--name", "lab", "--state-dir", home.root / "n1", "--node-name", "n1", "--host-label", "a", *LOCAL)
    for name, host in (("n2", "a"), ("n3", "b"), ("n4", "c")):
        join(home, name, "--host-label", host)
    home.env["HOLO_NODE"] = "n1"
    passed_over = 0
    for shard in range(20):
        told = home.json("explain", "shard", shard)
        assert len({node(told, n)["host"] for n in told["order"]}) == 3
        for i, name in enumerate(told["order"]):
            assert node(told, name)["why"] == ("home: the best score" if i == 0 else f"backup {i}: the next score that lies apart")
        (other,) = [n for n in told["nodes"] if n["name"] not in told["order"]]
        if other["score"] > min(node(told, n)["score"] for n in told["order"]):
            twin = "n1" if other["name"] == "n2" else "n2"
            assert other["why"] == f"it is on one host with {twin}, and others are not"
            passed_over += 1
        else:
            assert other["why"] == "others score higher"
    assert 0 < passed_over < 20
