"""holo kv: keys and values that every node agrees on, through real agents."""

import json
import threading

import pytest
from holo_e2e import EXAMPLES, HOLO, USAGE, wait_until

NODES = ("node1", "node2", "node3", "node4")


def on(node, *arguments):
    return (*arguments, "--node", node)


def lines(text):
    return text.splitlines()


def test_what_one_node_writes_every_node_reads_at_once(cluster):
    for i, node in enumerate(NODES):
        cluster.ok(*on(node, "kv", "put", "where", node))
        for reader in NODES:
            assert cluster.ok(*on(reader, "kv", "get", "where")) == node + "\n"
    pair = cluster.json("kv", "get", "where")
    assert pair["value"] == "node4" and pair["version"] == 4 and pair["created"] < pair["modified"]
    assert "there is no key nowhere" in cluster.refused("kv", "get", "nowhere")


def test_old_revisions_until_they_are_compacted(cluster):
    first = cluster.json("kv", "put", "old", "1")["revision"]
    second = cluster.json("kv", "put", "old", "2")["revision"]
    assert cluster.ok("kv", "get", "old", "--revision", first) == "1\n"
    assert cluster.ok("kv", "get", "old") == "2\n"
    cluster.ok("kv", "compact", second)
    assert "compacted" in cluster.refused("kv", "get", "old", "--revision", first)
    assert "compacted" in cluster.refused("kv", "watch", "old", "--from", first)
    assert cluster.json("kv", "state")["compacted"] == second


def test_conditions(cluster):
    revision = cluster.json("kv", "put", "once", "a", "--if-absent")["revision"]
    assert "is there" in cluster.refused("kv", "put", "once", "b", "--if-absent")
    assert "not at" in cluster.refused("kv", "put", "once", "b", "--if-revision", revision + 1)
    cluster.ok("kv", "put", "once", "b", "--if-revision", revision)
    assert "not at" in cluster.refused("kv", "del", "once", "--if-revision", revision)
    assert cluster.ok("kv", "get", "once") == "b\n"
    assert cluster.ok("kv", "del", "once") == "1\n"
    assert cluster.ok("kv", "del", "once") == "0\n"


def test_ranges_and_prefixes(cluster):
    for name in ("r/a", "r/b", "r/c", "s"):
        cluster.ok("kv", "put", name, name.upper())
    assert lines(cluster.ok("kv", "range", "--prefix", "r/")) == ["r/a\tR/A", "r/b\tR/B", "r/c\tR/C"]
    assert lines(cluster.ok("kv", "range", "r/b", "s", "--keys-only")) == ["r/b", "r/c"]
    assert lines(cluster.ok("kv", "range", "--prefix", "r/", "--limit", "2", "--keys-only")) == ["r/a", "r/b"]
    assert [p["key"] for p in cluster.json("kv", "range", "r/", "--limit", "4")] == ["r/a", "r/b", "r/c", "s"]
    assert cluster.ok("kv", "del", "--prefix", "r/") == "3\n"
    assert cluster.ok("kv", "range", "--prefix", "r/") == ""


def test_large_ranges_come_in_pages_of_one_revision(cluster, tmp_path):
    value = tmp_path / "value"
    value.write_bytes(bytes(range(256)) * 1600)
    for i in range(5):
        cluster.ok("kv", "put", f"large/{i}", "--file", value)
    pairs = cluster.json("kv", "range", "--prefix", "large/")
    assert [p["key"] for p in pairs] == [f"large/{i}" for i in range(5)]
    assert all(len(p["value_base64"]) > 500_000 for p in pairs)
    out = cluster.run(HOLO, "kv", "get", "large/0", text=False).stdout
    assert out == value.read_bytes() + b"\n"


@pytest.mark.parametrize("value", [bytes(range(256)) * 2048, b"", b"\n", b"no newline", b"one\n", b"\0\xff\r\n\n"], ids=len)
def test_any_bytes_come_back_as_they_went_in(cluster, tmp_path, value):
    file = tmp_path / "value"
    file.write_bytes(value)
    cluster.ok("kv", "put", "raw/file", "--file", file)
    with file.open("rb") as stdin:
        assert cluster.run(HOLO, "kv", "put", "raw/stdin", "--file", "-", stdin=stdin).returncode == 0
    for key in ("raw/file", "raw/stdin"):
        out = cluster.run(HOLO, "kv", "get", key, "--raw", text=False)
        assert out.returncode == 0 and out.stdout == value and out.stderr == b""


def test_a_deletion_shows_all_that_it_deleted(cluster, tmp_path):
    """More than an answer holds, and keys of the cluster's own between them, which stay."""
    value = tmp_path / "value"
    value.write_bytes(b"v" * 400_000)
    for i in range(5):
        cluster.ok("kv", "put", f"gone/{i}", "--file", value)
    cluster.ok("kv", "put", "hz", "last")
    command = (f"{HOLO} kv del gone/ hz0 --previous > {tmp_path}/out && {HOLO} locks --json")
    assert [lock["name"] for lock in json.loads(cluster.ok("lock", "in-the-range", "--", "sh", "-c", command))] == ["in-the-range"]
    shown = [line.split("\t") for line in lines((tmp_path / "out").read_text())]
    assert [key for key, _ in shown] == [*(f"gone/{i}" for i in range(5)), "hz"]
    assert [len(v) for _, v in shown] == [400_000] * 5 + [4]
    for i in range(3):
        cluster.ok("kv", "put", f"gone/{i}", "--file", value)
    [result] = cluster.json("kv", "del", "--prefix", "gone/", "--previous")["results"]
    assert len(result["pairs"]) == 3 and result["deleted"] == 3 and not result["more"]


def test_a_deletion_that_could_not_be_shown_is_refused(home, tmp_path):
    home.ok("dev", "up", "-n", "1", "--memory", "128MiB")
    value = tmp_path / "value"
    value.write_bytes(b"v" * 500_000)
    for i in range(68):
        home.ok("kv", "put", f"much/{i:02}", "--file", value)
    assert "32 MiB" in home.refused("kv", "del", "--prefix", "much/", "--previous")
    assert len(lines(home.ok("kv", "range", "--keys-only"))) == 68
    assert len(lines(home.ok("kv", "del", "much/00", "much/60", "--previous"))) == 60
    assert home.ok("kv", "del", "--prefix", "much/") == "8\n"


def test_a_transaction_beyond_the_limit_is_refused_in_its_own_words(cluster, tmp_path):
    file = tmp_path / "txn.json"
    for count in (10, 12):  # Less and more than a message to the agent may have.
        file.write_text(json.dumps({"then": [{"put": f"t{i}", "value": "x" * 100_000} for i in range(count)]}))
        line = cluster.refused("kv", "txn", file)
        assert f"a transaction of {count}00" in line and "900000" in line


def test_a_transaction_takes_one_branch(cluster, tmp_path):
    cluster.ok("kv", "put", "n", "1")
    file = tmp_path / "txn.json"
    file.write_text(json.dumps({
        "compare": [{"key": "n", "value": "1"}],
        "then": [{"put": "n", "value": "2"}, {"put": "done", "value": "yes"}],
        "else": [{"get": "n"}],
    }))
    first = cluster.json("kv", "txn", file)
    assert first["succeeded"]
    second = json.loads(cluster.run("sh", "-c", f"{HOLO} kv txn < {file}").stdout)
    assert not second["succeeded"] and second["results"][0]["pairs"][0]["value"] == "2"
    assert second["revision"] == first["revision"]
    assert cluster.json("kv", "get", "done")["modified"] == first["revision"]


def test_counting_from_every_node_at_once_loses_nothing(cluster):
    cluster.ok("kv", "put", "count", "0")

    def count(node):
        for _ in range(5):
            while True:
                now = cluster.json(*on(node, "kv", "get", "count"))
                done = cluster.holo(*on(node, "kv", "put", "count", int(now["value"]) + 1, "--if-revision", now["modified"]))
                if done.returncode == 0:
                    break

    threads = [threading.Thread(target=count, args=(node,)) for node in NODES]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert cluster.ok("kv", "get", "count") == "20\n"


def test_a_watch_sees_each_change_once_and_in_order(cluster):
    start = cluster.json("kv", "state")["revision"] + 1
    live = cluster.start(HOLO, *on("node3", "kv", "watch", "--prefix", "w/", "--from", start, "-c", "40", "--json"))
    for i in range(19):
        cluster.ok(*on(NODES[i % 4], "kv", "put", f"w/{i}", i))
        cluster.ok("kv", "put", "elsewhere", i)
    for i in range(19):
        cluster.ok("kv", "del", f"w/{i}")
    cluster.ok("kv", "put", "w/last", "1")
    cluster.ok("kv", "put", "w/last", "2")
    out, _ = live.communicate(timeout=60)
    seen = [json.loads(line) for line in out.splitlines()]
    want = [("put", f"w/{i}") for i in range(19)] + [("delete", f"w/{i}") for i in range(19)] + [("put", "w/last")] * 2
    assert [(e["event"], e["key"]) for e in seen] == want
    assert [e["modified"] for e in seen] == sorted({e["modified"] for e in seen})
    # The same from the history, at another node.
    again = cluster.ok(*on("node1", "kv", "watch", "--prefix", "w/", "--from", start, "-c", "40", "--json"))
    assert again == out


def test_a_watch_ends_when_it_is_told_to(cluster):
    assert cluster.ok("kv", "watch", "quiet", "--timeout", "0.2") == ""
    assert "fewer than 1" in cluster.refused("kv", "watch", "quiet", "--timeout", "0.2", "-c", "1")


def test_wrong_usage_is_said_and_changes_nothing(cluster):
    before = cluster.json("kv", "state")["revision"]
    cluster.refused("kv", "put", code=USAGE)
    cluster.refused("kv", "put", "", "x")
    assert "1024" in cluster.refused("kv", "put", "k" * 1025, "x")
    cluster.refused("kv", "put", "a", "b", "--if-absent", "--if-revision", "3", code=USAGE)
    cluster.refused("kv", "put", "a", "--file", "/nonexistent")
    assert "directory" in cluster.refused("kv", "put", "a", "--file", "/tmp")
    cluster.refused("kv", "get", "a", "--raw", "--json", code=USAGE)
    cluster.refused("kv", "del", "a", "b", "--prefix", code=USAGE)
    cluster.refused("kv", "get", "where", "--revision", before + 100)
    cluster.refused("kv", "compact", before + 100)
    cluster.refused("kv", "frobnicate", code=USAGE)
    assert cluster.json("kv", "state")["revision"] == before


def test_a_value_beyond_the_limit_is_refused(cluster, tmp_path):
    value = tmp_path / "value"
    for size in (512 * 1024 + 1, 2 << 20):
        value.write_bytes(b"v" * size)
        assert "524288" in cluster.refused("kv", "put", "a", "--file", value)
        with value.open() as stdin:
            assert "524288" in cluster.refused("kv", "put", "a", "--file", "-", stdin=stdin)
    value.write_bytes(b"v" * (512 * 1024))
    cluster.ok("kv", "put", "a", "--file", value)
    cluster.ok("kv", "del", "a")


def test_a_full_stop_and_a_killed_leader_lose_nothing(home):
    home.ok("dev", "up", "-n", "3", "--memory", "128MiB")
    for i in range(10):
        home.ok("kv", "put", f"k{i}", i)
    leader = int(home.status()["cluster"]["leader_name"].removeprefix("node"))
    home.ok("dev", "kill", leader)
    other = f"node{leader % 3 + 1}"
    home.ok(*on(other, "kv", "put", "k10", "10"), timeout=90)
    assert len(lines(home.ok(*on(other, "kv", "range")))) == 11
    revision = home.json(*on(other, "kv", "state"))["revision"]
    for n in {1, 2, 3} - {leader}:
        home.ok("dev", "kill", n)
    for n in (1, 2, 3):
        home.ok("dev", "restart", n)
    wait_until(lambda: home.holo("kv", "state").returncode == 0, 60, "a quorum")
    assert home.json("kv", "state")["revision"] == revision
    assert sorted(lines(home.ok("kv", "range"))) == sorted(f"k{i}\t{i}" for i in range(11))
    assert len(lines(home.ok("kv", "watch", "--prefix", "k", "--from", "1", "-c", "11"))) == 11


def test_without_a_majority_only_stale_reads_are_answered(home):
    home.ok("dev", "up", "-n", "3", "--memory", "128MiB")
    home.ok(*on("node1", "kv", "put", "a", "1"))
    home.ok(*on("node1", "kv", "get", "a"))
    home.ok("dev", "kill", "2")
    home.ok("dev", "kill", "3")
    home.refused(*on("node1", "kv", "get", "a"), timeout=90)
    home.refused(*on("node1", "kv", "put", "a", "2"), timeout=90)
    assert home.ok(*on("node1", "kv", "get", "a", "--stale")) == "1\n"
    home.ok("dev", "kill", "1")
    home.ok("dev", "restart", "1")
    assert home.ok(*on("node1", "kv", "get", "a", "--stale")) == "1\n"
    # Without its log it knows nothing: that is not the same as having no such key.
    home.ok("dev", "kill", "1")
    (directory,) = [n["state_dir"] for n in home.json("dev", "status")["nodes"] if n["number"] == 1]
    home.ok("control", "repair", "--force", "--state-dir", directory)
    home.ok("dev", "restart", "1")
    assert "nothing of its cluster" in home.refused(*on("node1", "kv", "get", "a", "--stale"), timeout=90)


def test_the_example_counts_from_every_node(cluster):
    running = [cluster.start(HOLO, *on(n, "run"), EXAMPLES / "counter", "--times", "25") for n in NODES]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err + cluster.logs()
    assert cluster.ok("kv", "get", "counter").strip() == "100"
    assert cluster.ok("kv", "get", "counter/summary").startswith("up to ")
    assert cluster.json("locks") == []
