"""What the machines are and how they do: signed inventories, the speed of a core, the health score."""

import json
import os

from holo_e2e import node, wait_until

LOCAL = ("--listen", "127.0.0.1:0", "--memory", "64MiB")


def test_inventory_and_health_of_every_node_at_every_node(home):
    line = home.ok("init", "--node-name", "first", "--state-dir", home.root / "s1", "--zone", "z1", *LOCAL).split()
    home.ok("join", line[2], "--key", line[4], "--name", "second", "--state-dir", home.root / "s2", *LOCAL)
    at = {name: ("--state-dir", home.root / d) for name, d in (("first", "s1"), ("second", "s2"))}

    def known(name):
        nodes = home.json("inventory", *at[name])["nodes"]
        return nodes if [n["name"] for n in nodes] == ["first", "second"] and all(n["known"] for n in nodes) else None

    for name in at:
        for n in wait_until(lambda: known(name), 20, "both inventories"):  # noqa: B023
            assert n["usable_threads"] == len(os.sched_getaffinity(0))
            assert n["cores"] >= 1 and n["memory_bytes"] > 1 << 28 and n["cpu_model"] and n["score"]["speed"] > 0
            assert n["score"]["rounds"] > 10 and 0 <= n["score"]["spread"] <= 1 and n["score"]["measured_on"]
            assert n["numa"] and n["numa"][0]["memory_bytes"] > 0
            assert isinstance(n["gpus"], list) and isinstance(n["disks"], list) and isinstance(n["links"], list)
    (one,) = home.json("inventory", "first", *at["second"])["nodes"]
    assert one["zone"] == "z1" and "processor" in home.ok("inventory", "first", *at["second"])
    assert "first" in home.ok("inventory", *at["second"])
    home.refused("inventory", "nobody", *at["second"])

    def healthy():
        status = home.status(*at["second"])
        return status if all("health" in n for n in status["nodes"]) else None

    status = wait_until(healthy, 20, "the health of both")
    for n in status["nodes"]:
        assert 0 <= n["health"] <= 100 and (n["health"] == 100) == (not n["health_reasons"])
        assert n["inventory_ms"] > 0
    assert status["cluster"]["inventories_refused"] == 0


def test_the_speed_is_measured_once(home):
    home.ok("init", "--state-dir", home.root / "s1", "--node-name", "first", *LOCAL)
    kept = json.loads((home.root / "s1" / "cpu_score.json").read_text())
    status = home.status()
    assert abs(node(status, "first")["speed"] - kept["speed"]) < 1e-3 and 0 <= kept["spread"] <= 1
