"""holo bench: the shape of what it prints. Never a time: those belong into docs/benchmarks.md."""

import os

import pytest

LINK = {
    "rtt_64k_p50": "us", "rtt_64k_p99": "us", "rtt_64k_polling_p50": "us", "throughput": "GB/s", "throughput_jumbo": "GB/s",
    "handshake_p50": "ms", "heartbeat_p99_under_bulk": "us", "conn_memory": "KiB", "conn_memory_tcp": "KiB", "conn_idle_cpu": "%",
}
ALONE = {"conn_memory_tcp", "conn_idle_cpu"}  # There is nothing to set beside them.


def check(report, bench, units):
    assert report["bench"] == bench
    assert report["seconds"] > 0 and report["nodes"] == 2
    assert {r["name"]: r["unit"] for r in report["results"]} == units
    for r in report["results"]:
        if r["name"] in ALONE:
            assert r["ours"] >= 0 and r["reference"] is None and r["ratio"] is None, r
            continue
        assert r["ours"] > 0, r
        assert r["reference"] > 0 and r["reference_is"], r
        assert r["ratio"] == pytest.approx(r["ours"] / r["reference"]), r


def test_link(home):
    report = home.json("bench", "link", "--quick")
    check(report, "link", LINK)
    assert "blocking" in report["layout"]
    polling = home.json("bench", "link", "--quick", "--poll", "--mtu", "9000")
    check(polling, "link", LINK)
    assert "polling" in polling["layout"]
    home.refused("bench", "link", "--mtu", "100", code=2)
    home.refused("bench", "link", "--layout", "moon", code=2)
    assert home.processes() == []


def test_link_between_agents(home):
    names = {"rtt_64k_p50": "us", "rtt_64k_p99": "us", "throughput": "GB/s", "heartbeat_p99_under_bulk": "us"}
    home.refused("bench", "link", "--cluster")
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    report = home.json("bench", "link", "--cluster", "--quick", "--node", "node1")
    check(report, "link", names)
    assert report["layout"].startswith("node1 to node2, quic")
    report = home.json("bench", "link", "--cluster", "dev", "--quick", "--node", "node3", "--to", "node1")
    assert report["layout"].startswith("node3 to node1, quic")
    assert "node9" in home.refused("bench", "link", "--cluster", "--node", "node1", "--to", "node9")
    home.refused("bench", "link", "--to", "node1", code=2)
    home.ok("dev", "down")
    assert home.processes() == []


def test_fetch(home):
    report = home.json("bench", "fetch", "--quick")
    check(report, "fetch", {"fetch_p50": "us", "fetch_p99": "us", "scan": "GB/s"})
    assert home.processes() == []


def test_fault(home):
    report = home.json("bench", "fault", "--quick", "--page", "4096")
    check(report, "fault", {"read_p50": "us", "read_p99": "us", "write_p50": "us", "upgrade_p50": "us"})
    assert "4096" in report["layout"]
    assert home.processes() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="to silence a node takes network namespaces, and they take root")
def test_detect(home):
    report = home.json("bench", "detect", "--repetitions", "1", "-n", "3", timeout=180)
    assert report["bench"] == "detect" and report["nodes"] == 3
    assert {r["name"]: r["unit"] for r in report["results"]} == {
        f"{what}_known_{which}": "s" for what in ("crash", "silent") for which in ("p50", "max")}
    for r in report["results"]:
        assert r["ours"] > 0 and r["reference_is"], r
        assert (r["reference"] is None) == (r["ratio"] is None), r  # Serf need not be installed.
    assert home.processes() == []


def test_control(home):
    report = home.json("bench", "control", "--quick", timeout=180)
    assert {r["name"]: r["unit"] for r in report["results"]} == {
        "writes_per_s": "1/s", "write_p50": "ms", "failover_p50": "ms", "failover_max": "ms", "restart_10k": "s", "heal": "s",
        "fdatasync_p50": "ms"}
    assert report["bench"] == "control" and report["nodes"] == 3
    for r in report["results"]:
        assert r["ours"] > 0 and r["reference_is"], r
        assert (r["reference"] is None) == (r["ratio"] is None), r  # etcd need not be installed.
    assert home.processes() == []
