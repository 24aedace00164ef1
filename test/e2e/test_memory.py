"""Regions: limits, names, what is refused, what two programs share, and what survives the loss of a node."""

import time

import pytest
from holo_e2e import EXAMPLES, PROBE, node, quadratic_sum, wait_until


def probe(home, *arguments, **options):
    return home.run(PROBE, *arguments, **options)


def test_alloc_regions_free(cluster):
    text = cluster.ok("alloc", "xs", "--type", "f64", "--count", "1e6", "--page", "4096", "--replication", "2")
    assert "xs" in text
    (region,) = [r for r in cluster.status()["regions"] if r["name"] == "xs"]
    assert (region["bytes"], region["page_bytes"], region["mode"], region["replication"]) == (8_000_000, 4096, "phased", 2)
    assert sum(region["pages_by_node"].values()) == 1954
    assert len(region["pages_by_node"]) == 4
    shown = cluster.json("regions", "show", "xs")
    assert shown["type"] == "f64" and shown["count"] == 1_000_000
    assert any(r["name"] == "xs" for r in cluster.json("regions"))
    assert "xs" in cluster.ok("regions")
    cluster.ok("free", "xs")
    cluster.refused("free", "xs")
    cluster.refused("regions", "show", "xs")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--count", "0"],
        ["--count", "1e18"],
        ["--count", "1e6", "--page", "5000"],
        ["--count", "1e6", "--page", "2048"],
        ["--count", "1e6", "--page", "4MiB"],
        ["--count", "1e6", "--page", "0"],
        ["--count", "1e6", "--replication", "5"],
        ["--count", "1e6", "--replication", "0"],
        ["--count", "1e6", "--mode", "strict"],
        ["--count", "8GiB"],
    ],
    ids=" ".join,
)
def test_alloc_refuses(cluster, arguments):
    cluster.refused("alloc", "refused", *arguments)
    assert not [r for r in cluster.json("regions") if r["name"] == "refused"]


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ü", "x" * 129, "a;b", "$(id)"])
def test_odd_names_are_refused(cluster, name):
    cluster.refused("alloc", name, "--count", "10")


@pytest.mark.parametrize("name", ["x" * 128, "a/b.c_d-e", "7"])
def test_these_names_are_fine(cluster, name):
    cluster.ok("alloc", name, "--count", "10")
    cluster.ok("free", name)


def test_a_name_is_taken_once(cluster):
    cluster.ok("alloc", "taken", "--count", "10")
    assert "taken" in cluster.refused("alloc", "taken", "--count", "10")
    cluster.ok("free", "taken")


def test_replication_above_the_live_nodes_is_refused(home):
    home.ok("dev", "up", "-n", "2", "--memory", "32MiB")
    home.refused("alloc", "xs", "--count", "1000", "--replication", "3")


def test_two_programs_share_a_region_by_its_name(cluster):
    cluster.ok("alloc", "shared", "--type", "u64", "--count", "100000")
    assert probe(cluster, "put", "shared", "77", "4711").stdout == "ok\n"
    read = probe(cluster, "get", "shared", "77", env={"HOLO_NODE": "node3"})  # By another node's agent.
    assert read.stdout == "4711\n", read.stderr
    assert probe(cluster, "get", "shared", "78").stdout == "0\n"


def test_a_region_larger_than_one_node(home):
    home.ok("dev", "up", "-n", "4", "--memory", "64MiB")
    count = 20_000_000  # 160 MB over 4 x 64 MiB
    filled = probe(home, "fill", "big", str(count))
    assert filled.stdout == f"{quadratic_sum(count)}\n", filled.stderr + home.logs()
    scanned = probe(home, "scan", "big")  # Through one node, which drops clean pages as it goes.
    assert scanned.stdout == f"{count}\n", scanned.stderr + home.logs()
    for n in home.status()["nodes"]:
        assert n["frames_used_bytes"] <= n["memory_bytes"]
    counted = home.status()["this_node"]["memory"]
    assert counted["pages_landed"] > counted["pages_fetched"] / 2 > 500, counted  # Straight from the wire into their frames.
    home.refused("alloc", "more", "--count", "200MiB")


def test_pages_that_are_sent_go_straight_from_the_wire_into_their_frames(home):
    home.ok("dev", "up", "-n", "3", "--memory", "256MiB")
    count = 4_000_000

    def counters(name):
        return home.json("status", "--node", name)["this_node"]["memory"]

    assert probe(home, "fill", "xs", str(count), "2").stdout == f"{quadratic_sum(count)}\n"
    (region,) = home.status()["regions"]
    pages = -(-region["bytes"] // region["page_bytes"])
    first = [counters(f"node{n}")["pages_landed"] for n in (1, 2, 3)]
    assert sum(first) > pages * 0.9, first  # Each at its backup; its home wrote it in place.
    home.ok("dev", "kill", "3")  # Those who are left give each other what they lack.

    def whole():
        left = [counters(f"node{n}") for n in (1, 2)]
        return all(c["owned_bytes"] == pages * region["page_bytes"] for c in left) and left

    left = wait_until(whole, 30, "two copies of everything")
    assert sum(c["pages_moved"] for c in left) > 0
    assert sum(c["pages_landed"] for c in left) > pages, left  # Of two copies of each, one at most was written in place.
    assert [c["slots_copied"] for c in left] == [0, 0]  # No page went from a buffer into its slot.
    assert probe(home, "scan", "xs").stdout == f"{count}\n"


@pytest.mark.parametrize("setting", ["user", "off"])
def test_without_a_full_userfaultfd_it_works_the_same(home, setting):
    home.env["HOLO_USERFAULTFD"] = setting
    home.ok("dev", "up", "-n", "2", "--memory", "64MiB")
    count = 1_000_000
    assert probe(home, "fill", "xs", str(count)).stdout == f"{quadratic_sum(count)}\n"
    assert probe(home, "scan", "xs").stdout == f"{count}\n"
    assert probe(home, "put", "xs", "5", "6").stdout == "ok\n"
    assert probe(home, "get", "xs", "5").stdout == "6\n"


class TestLossOfANode:
    COUNT = 2_000_000

    def test_with_replication_2_every_committed_page_is_there(self, home):
        home.ok("dev", "up", "-n", "4", "--memory", "64MiB")
        assert probe(home, "fill", "xs", str(self.COUNT), "2").returncode == 0
        home.ok("dev", "kill", "3")
        read = probe(home, "bulk", "xs")
        assert read.stdout == f"{self.COUNT}\n", read.stderr + home.logs()
        wait_until(lambda: node(home.status(), "node3")["state"] == "dead", 10, "node3 to be known as dead")
        assert probe(home, "scan", "xs").stdout == f"{self.COUNT}\n"
        assert probe(home, "sum", "xs").stdout == f"{quadratic_sum(self.COUNT)}\n"
        # And it can be written again.
        again = probe(home, "fill", "xs", str(self.COUNT), "2")
        assert again.stdout == f"{quadratic_sum(self.COUNT)}\n", again.stderr + home.logs()

    def test_with_replication_1_what_is_lost_is_an_error_never_zeros(self, home):
        home.ok("dev", "up", "-n", "4", "--memory", "64MiB")
        assert probe(home, "fill", "xs", str(self.COUNT)).returncode == 0
        home.ok("dev", "kill", "3")
        began = time.monotonic()
        read = probe(home, "bulk", "xs")
        assert read.returncode == 1, read.stdout + read.stderr
        assert time.monotonic() - began < 15
        mapped = probe(home, "scan", "xs")
        assert mapped.returncode != 0 and mapped.stdout == ""
        assert "page" in mapped.stderr

    def test_the_agent_dies_under_a_program(self, home):
        home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
        with home.start(PROBE, "slow", "xs", "4000000", "300") as program:
            assert program.stdout.readline() == "started\n"
            home.ok("dev", "kill", "1")  # The one it is connected to.
            began = time.monotonic()
            out, err = program.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert program.returncode != 0 and out == "" and err


def test_quadratic_sum(cluster):
    done = cluster.ok("run", "-n", "4", EXAMPLES / "quadratic_sum", "--count", "10000000")
    assert done == f"{quadratic_sum(10_000_000)}\n"
