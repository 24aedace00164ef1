"""holo ping and holo status --links: what a link is made of, and how it does."""

import re
import signal

import pytest
from holo_e2e import DONE, FAILED, HOLO, PROBE, USAGE, node, wait_until

SUMMARY = {"count", "min_us", "mean_us", "p50_us", "p99_us", "max_us"}
CIPHERS = ("AES-256-GCM", "XChaCha20-Poly1305")
CLASSES = ("control", "data", "bulk")
CAUSES = {"given_up", "wrong_key", "wrong_version", "garbage", "unknown_identity", "changed_key", "revoked"}


def link_to(status, name):
    return next(l for l in status["this_node"]["links"] if l["peer"] == name and not l["closing"])


def test_ping_by_name_and_by_id(cluster):
    by_name = cluster.json("ping", "node2", "-c", "5", "-i", "0.01", "--node", "node1")
    assert (by_name["sent"], by_name["received"], by_name["loss_percent"]) == (5, 5, 0)
    assert (by_name["node"], by_name["carrier"], by_name["bytes"]) == ("node2", "quic", 56)
    times = [by_name["round_trip"][k] for k in ("min_us", "p50_us", "p99_us", "max_us")]
    assert 0 < times[0] and times == sorted(times)
    assert times[0] <= by_name["round_trip"]["avg_us"] <= times[-1]
    link = link_to(cluster.status("--node", "node1"), "node2")
    assert all(by_name[k] == link[k] for k in ("address", "cipher", "carrier"))
    assert by_name["cipher"] in CIPHERS and 1228 <= by_name["path_mtu"] <= 65535
    by_id = cluster.json("ping", by_name["id"], "-c", "1", "--size", "64KiB", "--node", "node1")
    assert (by_id["node"], by_id["received"], by_id["bytes"]) == ("node2", 1, 65536)


def test_ping_prints_a_line_for_each_answer(cluster):
    lines = cluster.ok("ping", "node3", "-c", "3", "-i", "0", "--size", "0", "--node", "node1").splitlines()
    assert all(re.fullmatch(rf"0 bytes from node3 \([0-9.:]+\): seq={i + 1} time=[0-9.]+ ms", lines[i]) for i in range(3))
    assert lines[4] == "3 sent, 3 received, 0% loss"
    assert re.fullmatch(r"round trip min/avg/p50/p99/max = ([0-9.]+/){4}[0-9.]+ ms", lines[5])
    assert len(lines) == 7


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_ping_ends_with_its_statistics(cluster, by):
    with cluster.start(HOLO, "ping", "node2", "-i", "1000", "--node", "node1") as ping:
        assert "seq=1" in ping.stdout.readline()
        ping.send_signal(by)
        rest, errors = ping.communicate(timeout=10)
        assert (ping.returncode, errors) == (DONE, "")
    assert "1 sent, 1 received" in rest


def test_ping_refuses_in_one_line(cluster):
    assert "nobody" in cluster.refused("ping", "nobody")
    assert "itself" in cluster.refused("ping", "node1", "--node", "node1")
    cluster.refused("ping", "node2", "--size", "65537", code=USAGE)
    cluster.refused("ping", "node2", "--size", "big", code=USAGE)
    cluster.refused("ping", "node2", "-c", "0", code=USAGE)
    cluster.refused("ping", code=USAGE)
    assert "holo ping node2" in cluster.ok("ping", "--help")


def test_ping_of_a_node_that_is_killed(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    home.ok("dev", "kill", "3")
    silent = home.holo("ping", "node3", "-c", "2", "-i", "0", "-W", "0.3", "--node", "node1")
    if node(home.status("--node", "node1"), "node3")["state"] != "dead":
        assert silent.returncode == FAILED and silent.stderr.count("\n") == 1
        assert "2 sent, 0 received, 100% loss" in silent.stdout
    wait_until(lambda: node(home.status("--node", "node1"), "node3")["state"] == "dead", 20, "node3 to be dead")
    assert "dead" in home.refused("ping", "node3", "--node", "node1")


def test_links_show_what_they_carry(cluster):
    assert cluster.run(PROBE, "fill", "links/xs", "200000").returncode == DONE
    assert cluster.run(PROBE, "scan", "links/xs", env={"HOLO_NODE": "node1"}).returncode == DONE
    status = cluster.status("--links", "--node", "node1")
    links = status["this_node"]["links"]
    assert {l["peer"] for l in links} == {"node2", "node3", "node4"}
    for l in links:
        assert {"address", "carrier", "cipher", "bytes_in", "bytes_out", "round_trip_us"} <= l.keys()
        assert l["peer_id"] == node(status, l["peer"])["id"]
        assert l["bytes_in"] > 1000 and l["bytes_out"] > 1000 and l["packets_in"] > 10 and l["packets_out"] > 10
        assert 0 < l["min_round_trip_us"] <= l["round_trip_us"] * 8
        assert l["path_mtu"] >= 1228 and l["key_updates"] >= 0 and l["packets_lost"] >= 0
        assert l["ecn"] is True and l["congestion_marks"] == 0
        for klass in CLASSES:
            c = l["classes"][klass]
            assert c["request_credit"] > 0 and c["byte_credit"] > 1 << 20
            assert {"in_flight", "queued", "serving", "credit_waits", "overloaded", "turned_away"} <= c.keys()
            assert c["round_trip"].keys() == SUMMARY == c["credit_wait"].keys()
        answered = l["classes"]["control"]["round_trip"]
        assert answered["count"] > 0 and 0 < answered["min_us"] <= answered["p50_us"] <= answered["p99_us"] <= answered["max_us"]
    assert sum(l["classes"]["data"]["round_trip"]["count"] for l in links) > 0
    table = cluster.ok("status", "--links", "--node", "node1")
    assert sum(table.count(c) for c in CIPHERS) == 3 and table.count("bulk") == 3


def test_pings_are_counted_by_their_class(cluster):
    def answers():
        return link_to(cluster.status("--node", "node1"), "node4")["classes"]["control"]["round_trip"]["count"]

    before = answers()
    cluster.ok("ping", "node4", "-c", "20", "-i", "0", "--node", "node1")
    assert answers() >= before + 20


def peer(status, name):
    return next(p for p in status["this_node"]["peers"] if p["peer"] == name)


def test_what_was_counted_survives_the_connection(home):
    """A peer that restarts, and one that is gone: counters and histograms are of the node's life, and say why calls failed."""
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    home.ok("ping", "node3", "-c", "20", "-i", "0", "--node", "node1")
    before = peer(home.status("--node", "node1"), "node3")
    assert before["connected"] and before["connections"] >= 1
    assert before["classes"]["control"]["round_trip"]["count"] >= 20
    home.ok("dev", "kill", "3")
    wait_until(lambda: node(home.status("--node", "node1"), "node3")["state"] == "dead", 20, "node3 to be dead")
    gone = peer(home.status("--node", "node1"), "node3")
    assert not gone["connected"] and "node3" not in {l["peer"] for l in home.status("--node", "node1")["this_node"]["links"]}
    assert gone["bytes_in"] >= before["bytes_in"] and gone["packets_out"] >= before["packets_out"]
    assert gone["classes"]["control"]["round_trip"]["count"] >= 20
    assert "node3" in home.ok("status", "--links", "--node", "node1")
    home.ok("dev", "restart", "3")
    wait_until(lambda: node(home.status("--node", "node1"), "node3")["state"] == "alive", 20, "node3 to be back")
    home.ok("ping", "node3", "-c", "5", "-i", "0", "--node", "node1")
    after = peer(home.status("--node", "node1"), "node3")
    assert after["connections"] > gone["connections"] and after["bytes_in"] > gone["bytes_in"]
    assert after["classes"]["control"]["round_trip"]["count"] >= gone["classes"]["control"]["round_trip"]["count"] + 5
    assert after["classes"]["control"]["round_trip"].keys() == SUMMARY


def test_calls_that_fail_are_counted_by_their_cause(home):
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    home.ok("dev", "kill", "3")
    for _ in range(3):
        home.holo("ping", "node3", "-c", "1", "-W", "0.2", "--node", "node1")

    def failed():
        return peer(home.status("--node", "node1"), "node3")["classes"]["control"]["failed"]

    counted = wait_until(failed, 5, "a failure to be counted")
    assert counted.keys() <= {"unavailable", "deadline_exceeded", "cancelled"} and sum(counted.values()) >= 1
    assert next(iter(counted)) in home.ok("status", "--links", "--node", "node1")


def test_handshakes_are_counted_by_how_they_ended(home):
    home.ok("init", "--listen", "127.0.0.1:0", "--memory", "64MiB", "--node-name", "one")
    address = node(home.status(), "one")["address"]
    other = home.env | {k: home.env[k] + "2" for k in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR")}
    wrong = "A" * 43 + "="
    refused = home.holo("join", address, "--key", wrong, "--listen", "127.0.0.1:0", "--memory", "64MiB", env=other)
    assert refused.returncode == FAILED
    counted = home.status()["this_node"]["handshakes"]
    assert counted["accepted"]["failed"].keys() == CAUSES == counted["dialled"]["failed"].keys()
    assert counted["accepted"]["failed"]["wrong_key"] >= 1 and counted["accepted"]["done"] == 0
    assert counted["duration"]["count"] == 0
    assert "wrong_key" in home.ok("status", "--links")


def test_handshakes_take_time(cluster):
    counted = cluster.status("--node", "node1")["this_node"]["handshakes"]
    assert counted["dialled"]["done"] + counted["accepted"]["done"] == counted["duration"]["count"] >= 3
    assert 0 < counted["duration"]["min_us"] < 5e6
