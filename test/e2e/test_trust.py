"""Whom nodes let in: trust modes, pins, certificates, revocation, rotated identities, and keys changed without a stop."""

import json
import os
import shutil
import signal
import threading
import time

import pytest
from holo_e2e import PROBE, USAGE, alive, gone, node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


def up(home, nodes, trust):
    home.ok("dev", "up", "-n", nodes, "--memory", "64MiB", "--trust", trust)


def state_dir(home, name):
    return home.root / "state" / "holo" / "dev" / "dev" / name


def at(name):
    return ("--node", name)


def trust_list(home, name):
    return home.json("trust", "list", *at(name))


def identity(home, name):
    return home.json("identity", "show", *at(name))


def refused(home, *where):
    return home.status(*where)["cluster"]["refused"]


def all_alive(home, names, *where):
    wait_until(lambda: set(names) <= set(alive(home.status(*where))), 20, f"{names} to be alive\n{home.logs()}")


def links(home, name):
    return {link["peer"] for link in home.status(*at(name))["this_node"]["links"]}


def leader(home):
    """The node that all others have a connection to."""
    return wait_until(lambda: home.status()["cluster"]["leader_name"], 10, "a leader")


def init(home, *more):
    return home.ok("init", "--name", "lab", "--node-name", "first", "--state-dir", home.root / "s1", *LOCAL, *more)


def join(home, address, name, *more, run=None, **options):
    return (run or home.ok)("join", address, "--name", name, "--state-dir", home.root / name, *LOCAL, *more, **options)


# ---- tofu


def test_tofu_pins_the_first_key_of_every_node_it_meets(home):
    up(home, 3, "tofu")
    names = ["node1", "node2", "node3"]
    keys = {identity(home, n)["node"]: identity(home, n)["key"] for n in names}
    hub = leader(home)
    for name in names:
        me = identity(home, name)["node"]
        met = {n for n in keys if n != me} if name == hub else {identity(home, hub)["node"]}
        file = state_dir(home, name) / "trust.pins"

        def pinned(name=name):
            return {p["node"]: p["key"] for p in trust_list(home, name)["pins"] if p["kept"]}

        wait_until(lambda: met <= set(pinned()), 5, "those it has met to be pinned")
        assert pinned().items() <= keys.items()
        for other in met:
            wait_until(lambda o=other: file.exists() and f"{o} {keys[o]} 20" in file.read_text(), 5, "the pin to be written")
        assert file.stat().st_mode & 0o777 == 0o600
    other = next(n for n in names if n != hub)
    assert home.json("trust", "show", hub, *at(other))["key"] == identity(home, hub)["key"]
    assert hub in home.ok("trust", "list", *at(other))
    home.refused("trust", "show", "nobody", *at(other))
    home.refused("trust", "forget", "nobody", *at(other))


def test_tofu_needs_no_key_and_says_whom_it_believed(home):
    line = init(home, "--trust", "tofu").strip()
    assert line.startswith("holo join ") and line.endswith(" --trust tofu")
    address = line.split()[2]
    done = join(home, address, "second", "--trust", "tofu", run=home.holo)
    assert done.returncode == 0, done.stderr
    assert identity(home, "first")["key"] in done.stderr
    assert home.json("config", "show", "--state-dir", home.root / "s1")  # The mode is the cluster's, also without a flag.
    shown = {s["key"]: s for s in home.json("config", "show", "--state-dir", home.root / "s1")["settings"]}
    assert shown["trust"]["value"] == "tofu"
    join(home, address, "third", "--trust", "tofu", "--key", "A" * 43 + "=", run=lambda *a: home.refused(*a, code=USAGE))


def test_a_changed_key_is_refused_on_both_sides_until_it_is_forgotten(home):
    up(home, 3, "tofu")
    hub = leader(home)
    name, third = (n for n in ("node1", "node2", "node3") if n != hub)
    hub_id, key, other = identity(home, hub)["node"], identity(home, hub)["key"], identity(home, third)["key"]
    pins = state_dir(home, name) / "trust.pins"
    wait_until(lambda: pins.exists() and key in pins.read_text(), 5, "pins")
    home.ok("dev", "kill", name.removeprefix("node"))
    pins.write_text(pins.read_text().replace(key, other))  # As if another key had been seen first.
    home.ok("dev", "restart", name.removeprefix("node"))
    wait_until(lambda: refused(home, *at(name))["changed_key"] > 0, 10, "the refusal to be counted here")
    wait_until(lambda: refused(home, *at(hub))["changed_key"] > 0, 10, "and there")
    for side in (name, hub):
        assert "another key" in (state_dir(home, side) / "agent.log").read_text()
    assert hub not in links(home, name)
    home.ok("trust", "forget", hub_id, *at(name))  # Cut off as it is, it knows no names.
    wait_until(lambda: hub in links(home, name), 10, "it to be believed again")
    wait_until(lambda: key in pins.read_text(), 5, "the new pin to be written")


@pytest.mark.parametrize("damage", [lambda t: t[:-5], lambda t: t + "nonsense\n", lambda t: t + t.splitlines()[-1] + "\n"])
def test_damaged_pins_stop_the_start_with_one_line(home, damage):
    up(home, 2, "tofu")
    pins = state_dir(home, "node1") / "trust.pins"
    wait_until(pins.exists, 5, "pins")
    home.ok("dev", "kill", "1")
    whole = pins.read_text()
    pins.write_text(damage(whole))
    line = home.refused("agent", "--state-dir", state_dir(home, "node1"))
    assert "trust.pins" in line
    pins.write_text(whole)
    home.ok("dev", "restart", "1")


# ---- roots


def roots(home):
    lines = init(home, "--trust", "roots").splitlines()
    assert lines[0].startswith("holo join ") and "--trust roots --certificate" in lines[0]
    assert all(line.startswith("#") for line in lines[1:])
    key = home.root / "s1" / "root.key"
    assert str(key) in lines[-1] and key.stat().st_mode & 0o777 == 0o600
    return lines[0].split()[2], key


def sign(home, name, key, *more):
    request = home.ok("identity", "request", "--state-dir", home.root / name).strip()
    return home.ok("identity", "sign", request, "--root-key", key, *more).strip()


def test_roots_takes_who_was_signed_and_nobody_else(home):
    address, key = roots(home)
    usage = lambda *a: home.refused(*a, code=USAGE)  # noqa: E731
    join(home, address, "second", "--trust", "roots", run=usage)
    join(home, address, "second", "--trust", "roots", "--certificate", "AAAA", run=usage)
    certificate = sign(home, "second", key)
    assert "certificate is for node" in join(home, address, "third", "--trust", "roots", "--certificate", certificate, run=home.refused)
    join(home, address, "second", "--trust", "roots", "--certificate", certificate)
    shown = identity(home, "second")
    assert shown["certificate"]["valid"] and shown["certificate"]["expires"] == "never"
    limited = sign(home, "third", key, "--days", "30")
    (home.root / "limited").write_text(limited + "\n")
    join(home, address, "third", "--trust", "roots", "--certificate-file", home.root / "limited")
    assert identity(home, "third")["certificate"]["expires"] != "never"
    home.ok("identity", "install", sign(home, "third", key, "--days", "60"), *at("third"))
    home.refused("identity", "install", certificate, *at("third"))
    assert sorted(alive(home.status())) == ["first", "second", "third"]

    # Signed by somebody else's root: both sides say so within a second, and nothing is left behind.
    stranger = home.root / "stranger"
    home.ok("init", "--name", "other", "--trust", "roots", "--state-dir", stranger, *LOCAL)
    began = time.monotonic()
    line = join(home, address, "fourth", "--trust", "roots", "--certificate", sign(home, "fourth", stranger / "root.key"), run=home.refused)
    assert "certificate" in line or "vouches" in line
    assert time.monotonic() - began < 3
    assert wait_until(lambda: refused(home, "--cluster", "lab", *at("first"))["unknown_identity"], 2, "the refusal to be counted")
    # No certificate at all, as a node of mode tofu comes.
    line = join(home, address, "fifth", "--trust", "tofu", run=home.refused)
    assert "vouches" in line
    assert refused(home, "--cluster", "lab", *at("first"))["unknown_identity"] >= 2
    assert "vouches" in (home.root / "s1" / "agent.log").read_text()


def test_what_is_no_request_or_no_certificate_is_wrong_usage(home):
    home.refused("identity", "sign", "nonsense", code=USAGE)
    home.refused("identity", "install", "nonsense", code=USAGE)
    request = home.ok("identity", "request", "--state-dir", home.root / "a").strip()
    assert request == home.ok("identity", "request", "--state-dir", home.root / "a").strip()
    line = home.refused("identity", "sign", request, "--root-key", home.root / "none")
    assert "root key" in line


def test_a_revoked_node_is_shut_out_everywhere_and_stays_out(home):
    up(home, 4, "roots")
    status = home.status(*at("node1"))
    leader = status["cluster"]["leader_name"]
    victim = next(n for n in ("node4", "node3") if n != leader)
    others = [n for n in ("node1", "node2", "node3", "node4") if n != victim]
    home.refused("identity", "revoke", others[0], *at(others[0]))
    home.refused("identity", "revoke", "nobody", *at(others[0]))
    home.ok("identity", "revoke", victim, *at(others[0]))
    for name in others:
        wait_until(lambda n=name: victim not in links(home, n), 5, "its connections to be closed")
        wait_until(lambda n=name: [r["name"] for r in trust_list(home, n)["revoked"]] == [victim], 5, "the revocation to reach all")
        assert node(home.status(*at(name)), victim)["state"] == "left"
    wait_until(lambda: sum(refused(home, *at(n))["revoked"] for n in others) > 0, 10, "its attempts to be counted")
    wait_until(lambda: "revoked" in (state_dir(home, victim) / "agent.log").read_text(), 5, "it to hear why")
    # A restart changes nothing: neither its own, nor of those that shut it out.
    number = victim.removeprefix("node")
    home.ok("dev", "restart", number)
    first = others[0].removeprefix("node")
    home.ok("dev", "restart", first)
    all_alive(home, others, *at(others[0]))
    # Nor does it come back as somebody who joins, with its certificate as good as ever.
    address = {n["name"]: n["address"] for n in home.json("dev", "status")["nodes"]}[others[1]]
    certificate = json.loads((state_dir(home, victim) / "cluster.json").read_text())["certificate"]
    (home.root / "again").mkdir(mode=0o700)
    shutil.copy(state_dir(home, victim) / "identity.json", home.root / "again")
    before = refused(home, *at(others[1]))["revoked"]
    assert "revoked" in join(home, address, "again", "--trust", "roots", "--certificate", certificate, run=home.refused)
    assert refused(home, *at(others[1]))["revoked"] > before
    assert all(victim not in links(home, n) for n in others)
    assert victim not in alive(home.status(*at(others[1])))


def test_the_leader_can_be_revoked(home):
    up(home, 4, "roots")
    hub = leader(home)
    others = [n for n in ("node1", "node2", "node3", "node4") if n != hub]
    wait_until(lambda: sum(n["voter"] for n in home.status()["nodes"]) == 3, 10, "three voters")
    home.ok("identity", "revoke", hub, *at(others[0]))
    for name in others:
        wait_until(lambda n=name: hub not in links(home, n), 10, "its connections to be closed")
        wait_until(lambda n=name: home.status(*at(n))["cluster"]["leader_name"] in others, 10, "another leader")
        wait_until(lambda n=name: node(home.status(*at(n)), hub)["state"] == "left", 10, "it to be out")
    assert home.run(PROBE, "fill", "xs", "100000", env={"HOLO_NODE": others[0]}).returncode == 0
    wait_until(lambda: sorted(n["name"] for n in home.status(*at(others[0]))["nodes"] if n["voter"]) == sorted(others), 20, "the last learner to vote")


def test_a_revocation_holds_before_the_log_is_heard(home):
    """In mode psk too; and an agent that starts alone still knows whom not to let in."""
    up(home, 4, "psk")
    hub = leader(home)
    wait_until(lambda: sum(n["voter"] for n in home.status()["nodes"]) == 3, 10, "three voters")
    victim, second, third = (n for n in ("node4", "node3", "node2", "node1") if n != hub)
    home.ok("identity", "revoke", victim, *at(hub))
    for name in (hub, second, third):
        wait_until(lambda n=name: trust_list(home, n)["revoked"], 5, "the revocation to reach all")
    revoked = trust_list(home, second)["revoked"]
    for name in (hub, second, third):
        home.ok("dev", "kill", name.removeprefix("node"))
    home.ok("dev", "restart", second.removeprefix("node"))  # Alone: there is no leader, and nothing of the log is applied.
    assert [r["node"] for r in trust_list(home, second)["revoked"]] == [r["node"] for r in revoked]
    # Nor does it get in as somebody who comes for the first time, with the right key.
    address = {n["name"]: n["address"] for n in home.json("dev", "status")["nodes"]}[second]
    key = json.loads((state_dir(home, victim) / "cluster.json").read_text())["key"]
    (home.root / "again").mkdir(mode=0o700)
    shutil.copy(state_dir(home, victim) / "identity.json", home.root / "again")
    before = refused(home, *at(second))["revoked"]
    assert "revoked" in join(home, address, "again", "--key", key, run=home.refused)
    assert refused(home, *at(second))["revoked"] > before


@pytest.mark.parametrize("trust", ["psk", "roots"])
def test_a_node_that_was_down_learns_of_a_revocation_when_it_returns(home, trust):
    up(home, 4, trust)
    hub = leader(home)
    victim, absent, other = (n for n in ("node4", "node3", "node2", "node1") if n != hub)
    home.ok("dev", "kill", absent.removeprefix("node"))
    wait_until(lambda: node(home.status(*at(hub)), absent)["state"] == "dead", 20, f"{absent} to be dead")
    home.ok("identity", "revoke", victim, *at(hub))
    home.ok("dev", "restart", absent.removeprefix("node"))
    wait_until(lambda: [r["name"] for r in trust_list(home, absent)["revoked"]] == [victim], 10, "the revocation to reach it")
    wait_until(lambda: victim not in links(home, absent), 5, "it to let go of who was revoked")
    all_alive(home, [hub, absent, other], *at(absent))
    # From its file, too: it refuses when it starts again and hears nobody.
    for name in (hub, other, absent):
        home.ok("dev", "kill", name.removeprefix("node"))
    home.ok("dev", "restart", absent.removeprefix("node"))
    assert [r["node"] for r in trust_list(home, absent)["revoked"]] == [identity_of_stopped(home, victim)]
    wait_until(lambda: refused(home, *at(absent))["revoked"] > 0, 20, "it to be refused")


def identity_of_stopped(home, name):
    return home.json("identity", "show", *at(name))["node"]


def test_a_cluster_is_not_left_without_voters_by_a_revocation(home):
    up(home, 2, "roots")
    for node_name, other in (("node1", "node2"), ("node2", "node1")):  # Of two, both vote.
        assert "voter" in home.refused("identity", "revoke", node_name, *at(other))
    assert len(alive(home.status())) == 2


# ---- suites and modes that do not fit


def test_classical_only_needs_both_sides(home):
    line = init(home, "--classical-only", "true").split()
    address, key = line[2], line[4]
    began = time.monotonic()
    told = join(home, address, "second", "--key", key, run=home.refused)
    assert "classical" in told and "hybrid" in told
    assert time.monotonic() - began < 3
    assert wait_until(lambda: refused(home)["wrong_version"], 2, "the refusal to be counted")
    log = (home.root / "s1" / "agent.log").read_text()
    assert "classical-only" in log and "hybrid" in log
    join(home, address, "second", "--key", key, "--classical-only", "true")
    assert sorted(alive(home.status())) == ["first", "second"]
    assert "classical" in identity(home, "second")["handshake"]
    # And the other way round: a hybrid cluster takes no classical node.
    line = home.ok("init", "--name", "strong", "--state-dir", home.root / "s2", *LOCAL).split()
    told = join(home, line[2], "third", "--key", line[4], "--classical-only", "true", run=home.refused)
    assert "classical" in told and "hybrid" in told
    home.refused("init", "--classical-only", "perhaps", "--state-dir", home.root / "s3", code=USAGE)


def init_key(home):
    return json.loads((home.root / "s1" / "cluster.json").read_text())["key"]


def test_a_node_of_another_trust_mode_is_refused_by_name(home):
    address = init(home).split()[2]
    told = join(home, address, "second", "--trust", "tofu", run=home.refused)
    assert "cluster key" in told
    assert wait_until(lambda: refused(home)["wrong_version"], 2, "the refusal to be counted")
    # And who has a cluster key, even the right one of a neighbour, is nobody where identities count.
    key = init_key(home)
    for mode in ("tofu", "roots"):
        there = home.ok("init", "--name", mode, "--trust", mode, "--state-dir", home.root / mode, *LOCAL).split()[2]
        told = join(home, there, f"with-key-{mode}", "--key", key, run=home.refused)
        assert "without a cluster key" in told
        assert wait_until(lambda m=mode: refused(home, "--cluster", m)["wrong_version"], 2, "the refusal to be counted")
        assert "cluster key" in (home.root / mode / "agent.log").read_text()
    home.refused("init", "--trust", "everybody", "--state-dir", home.root / "s3", code=USAGE)


def test_a_cluster_keeps_its_trust_mode(home):
    init(home, "--trust", "tofu")
    (pid,) = home.processes()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: gone(pid), 10, "the agent to end")
    line = home.refused("agent", "--state-dir", home.root / "s1", "--trust", "psk")
    assert "tofu" in line and "psk" in line


# ---- rotation


@pytest.mark.parametrize("trust", ["psk", "tofu", "roots"])
def test_a_node_rotates_its_identity_while_work_goes_on(home, trust):
    up(home, 3, trust)
    assert home.run(PROBE, "fill", "xs", "100000", env={"HOLO_NODE": "node1"}).returncode == 0
    hub = leader(home)  # All others have met it, and will again.
    name, third = (n for n in ("node1", "node2", "node3") if n != hub)
    before = identity(home, hub)
    pid = {n["name"]: n["pid"] for n in home.json("dev", "status")["nodes"]}[hub]
    file = state_dir(home, hub) / "identity.json"
    old_file = file.read_text()
    work = home.start(PROBE, "scan", "xs", env=home.env | {"HOLO_NODE": name})
    key = home.ok("identity", "rotate", *at(hub)).strip()
    assert work.communicate(timeout=60)[0].strip() == "100000"
    after = identity(home, hub)
    assert after["node"] == before["node"] and after["key"] == key != before["key"]
    assert after["chain"] == [before["key"], key] and after["rotations"] == 1
    assert not gone(pid)  # No restart.
    assert json.loads(old_file)["seed"] not in file.read_text()

    # Connections made from now on show the new key, and the others follow it.
    def follows(node):
        pins = state_dir(home, node) / "trust.pins"
        return pins.exists() and key in pins.read_text()

    home.ok("dev", "restart", name.removeprefix("node"))
    all_alive(home, ["node1", "node2", "node3"], *at(name))
    wait_until(lambda: follows(name), 10, "the new key to be pinned")
    assert home.run(PROBE, "scan", "xs", env={"HOLO_NODE": name}).stdout.strip() == "100000"

    # The new identity is the one that comes back after a restart ...
    home.ok("dev", "restart", hub.removeprefix("node"))
    all_alive(home, ["node1", "node2", "node3"], *at(name))
    assert identity(home, hub)["key"] == key
    wait_until(lambda: follows(home.status(*at(name))["cluster"]["leader_name"] or name), 10, "the leader to know it")
    # ... and whoever has the old one is refused: it was given up.
    home.ok("dev", "kill", hub.removeprefix("node"))
    newer = file.read_text()
    file.write_text(old_file)
    home.ok("dev", "restart", hub.removeprefix("node"))
    wait_until(lambda: sum(refused(home, *at(n))["changed_key"] for n in (name, third)) > 0, 15, "the key that was given up to be refused")
    assert wait_until(lambda: hub not in alive(home.status(*at(name))), 10, "its owner to be dead")
    home.ok("dev", "kill", hub.removeprefix("node"))
    file.write_text(newer)
    home.ok("dev", "restart", hub.removeprefix("node"))
    all_alive(home, ["node1", "node2", "node3"], *at(name))


def test_rotations_are_counted_and_end_with_a_clear_line(home):
    up(home, 2, "roots")
    for i in range(1, 17):
        assert home.json("trust", "rotate", *at("node2"))["rotations"] == i
    line = home.refused("identity", "rotate", *at("node2"))
    assert "16" in line
    home.ok("dev", "restart", "2")
    all_alive(home, ["node1", "node2"], *at("node1"))
    wait_until(lambda: "node2" in links(home, "node1"), 10, "the longest chain to be accepted")


# ---- the cluster's key


class Work:
    """Scans of region xs, one after the other, until end(); each must give the right answer."""

    def __init__(self, home, node):
        self.results, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.go, args=(home, node))
        self.thread.start()

    def go(self, home, node):
        while not self.over.is_set():
            done = home.run(PROBE, "scan", "xs", env={"HOLO_NODE": node})
            self.results.append((done.returncode, done.stdout.strip(), done.stderr))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()

    def end(self):
        self.__exit__()
        assert set(self.results) == {(0, "100000", "")}, self.results
        return len(self.results)


def test_the_cluster_key_is_changed_without_a_stop(home):
    up(home, 3, "psk")
    names = ["node1", "node2", "node3"]
    pids = {n["name"]: n["pid"] for n in home.json("dev", "status")["nodes"]}
    assert home.run(PROBE, "fill", "xs", "100000", env={"HOLO_NODE": "node1"}).returncode == 0
    (old,) = [k["id"] for k in home.json("key", "list", *at("node1"))["keys"]]
    old_secret = json.loads((state_dir(home, "node1") / "cluster.json").read_text())["key"]
    address = node(home.status(*at("node1")), "node1")["address"]

    with Work(home, "node1") as work:
        secret, new = home.ok("key", "add", "--all", *at("node1")).split()
        assert new != old
        for name in names:
            assert home.json("key", "list", *at(name))["keys"] == [{"id": old, "in_use": True}, {"id": new, "in_use": False}]
        join(home, address, "fourth", "--key", secret)  # Both are good now.
        join(home, address, "fifth", "--key", old_secret)
        for name in ("fourth", "fifth"):
            home.ok("leave", *at(name))

        home.ok("key", "use", new, "--all", *at("node2"))
        home.refused("key", "remove", new, *at("node1"))  # The one in use stays.
        home.ok("key", "remove", old, "--all", *at("node3"))
        for name in names:
            assert home.json("key", "list", *at(name))["keys"] == [{"id": new, "in_use": True}]
            assert old_secret not in (state_dir(home, name) / "cluster.json").read_text()
            home.refused("key", "use", old, *at(name))
        assert {n["name"]: n["pid"] for n in home.json("dev", "status")["nodes"]} == pids  # Nobody was restarted.
        assert work.end() > 0  # Scans went on through all of it, each with the right answer.

    line = join(home, address, "sixth", "--key", old_secret, run=home.refused)
    assert "key" in line
    assert refused(home, *at("node1"))["wrong_key"] >= 1
    join(home, address, "sixth", "--key", secret)
    home.ok("dev", "restart", "3")  # The new key was kept.
    all_alive(home, names, *at("node3"))
    for name in names:
        for text in (secret, old_secret):
            assert text not in (state_dir(home, name) / "agent.log").read_text()


def test_keys_at_one_node_and_what_is_refused(home):
    up(home, 1, "psk")
    (first,) = home.json("key", "list")["keys"]
    home.refused("key", "remove", first["id"])
    home.refused("key", "use", "0000000000000000")
    home.refused("key", "use", "short", code=USAGE)
    home.refused("key", "add", "short", code=USAGE)
    for _ in range(3):
        home.ok("key", "add")
    assert "4" in home.refused("key", "add")
    home.ok("dev", "down")
    up(home, 1, "tofu")
    assert "tofu" in home.refused("key", "add")


def test_the_state_directory_can_be_copied_but_not_used_twice(home):
    """Two nodes with one identity do not talk to each other; this is not a way around a pin."""
    up(home, 1, "tofu")
    copy = home.root / "copy"
    shutil.copytree(state_dir(home, "node1"), copy)
    (copy / "cluster.json").unlink()
    shutil.rmtree(copy / "log")
    shutil.rmtree(copy / "facts")
    address = node(home.status(), "node1")["address"]
    (copy / "config.toml").unlink()
    (copy / "lock").unlink()
    line = home.refused("join", address, "--trust", "tofu", "--name", "twin", "--state-dir", copy, *LOCAL)
    assert "own identity" in line or "itself" in line
