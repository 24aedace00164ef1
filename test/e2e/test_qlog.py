"""holo agent --qlog DIR: what a connection did, for the usual viewers, and nothing that was said on it."""

import base64
import json
import re
import time

from holo_e2e import DONE, PROBE, USAGE, wait_until

# What qvis needs of a JSON-SEQ file (qlog 0.3): the head of the first record, and of each event time, name and data.
HEAD = {"qlog_format", "qlog_version", "trace"}

# draft-ietf-quic-qlog-quic-events-02: what an event of a name has, at least. Loglevel events are of the main schema.
EVENTS = {
    "connectivity:connection_started": set(),
    "connectivity:connection_closed": set(),
    "connectivity:connection_state_updated": {"new"},
    "connectivity:connection_id_updated": set(),
    "security:key_updated": {"key_type"},
    "security:key_retired": {"key_type"},
    "transport:version_information": set(),
    "transport:parameters_set": {"owner"},
    "transport:packet_sent": {"header", "frames", "raw"},
    "transport:packet_received": {"header", "frames", "raw"},
    "transport:packet_dropped": set(),
    "transport:stream_state_updated": {"stream_id", "new"},
    "recovery:parameters_set": set(),
    "recovery:metrics_updated": set(),
    "recovery:congestion_state_updated": {"new"},
    "recovery:loss_timer_updated": {"event_type"},
    "recovery:packet_lost": {"header"},
    "loglevel:warning": {"message"},
}
FRAMES = {
    "padding": set(), "ping": set(), "ack": {"acked_ranges"}, "reset_stream": {"stream_id", "error_code", "final_size"},
    "stop_sending": {"stream_id", "error_code"}, "crypto": {"offset", "length"}, "new_token": set(), "stream": {"stream_id", "offset", "length"},
    "max_data": {"maximum"}, "max_stream_data": {"stream_id", "maximum"}, "max_streams": {"stream_type", "maximum"}, "data_blocked": {"limit"},
    "stream_data_blocked": {"stream_id", "limit"}, "streams_blocked": {"stream_type", "limit"},
    "new_connection_id": {"sequence_number", "retire_prior_to", "connection_id"}, "retire_connection_id": {"sequence_number"},
    "path_challenge": set(), "path_response": set(), "connection_close": {"error_space"}, "handshake_done": set(), "unknown": set(),
}  # fmt: skip


def records(file):
    """The records of a file, each of which must parse."""
    parts = file.read_bytes().split(b"\x1e")
    assert parts[0] == b"" and all(p.endswith(b"\n") for p in parts[1:])
    return [json.loads(p) for p in parts[1:]]


def check(file):
    head, *events = records(file)
    assert head.keys() >= HEAD and (head["qlog_format"], head["qlog_version"]) == ("JSON-SEQ", "0.3")
    side = head["trace"]["vantage_point"]["type"]
    fields = head["trace"]["common_fields"]
    assert fields["time_format"] == "relative" and fields["protocol_type"] == ["QUIC"]
    assert re.fullmatch(rf"\d+-{fields['group_id']}-{side}\.sqlog", file.name)
    assert events
    for e in events:
        assert e.keys() >= {"time", "name", "data"} and e["time"] >= 0 and re.fullmatch(r"[a-z]+:[a-z_]+", e["name"])
    times = [e["time"] for e in events]
    assert times == sorted(times)
    for e in events:
        assert e["data"].keys() >= EVENTS[e["name"]], e
        if e["name"] in ("transport:packet_sent", "transport:packet_received"):
            header = e["data"]["header"]
            assert header["packet_type"] in ("initial", "handshake", "1RTT", "retry") and e["data"]["raw"]["length"] > 0
            assert header["packet_type"] == "retry" or header["packet_number"] >= 0
            for frame in e["data"]["frames"]:
                assert frame.keys() >= FRAMES[frame["frame_type"]], frame
                for first, *last in frame.get("acked_ranges", []):
                    assert 0 <= first <= (last or [first])[0]
    return {"side": side, "group": fields["group_id"], "events": {e["name"] for e in events}}


def elements(first, count):
    """The bytes of elements that `probe fill` writes."""
    return b"".join(((i * i + 3 * i + 1) % 2**64).to_bytes(8, "little") for i in range(first, first + count))


def test_a_cluster_leaves_a_qlog_of_each_connection(home):
    folder = home.root / "traces" / "qlog"
    home.ok("dev", "up", "-n", "2", "--memory", "64MiB", env={"HOLO_QLOG": str(folder)})
    assert home.run(PROBE, "fill", "hidden/name", "100000", "2").returncode == DONE
    home.ok("ping", "node2", "-c", "3", "-i", "0", "--size", "64KiB", "--node", "node1")
    home.ok("dev", "down", "--keep-state")

    files = sorted(folder.iterdir())
    seen = [check(f) for f in files]
    # While the nodes stop, one may dial the other in vain: nobody else can have a log of that.
    answered = {s["group"] for s in seen if "transport:packet_received" in s["events"]}
    assert answered
    for group in answered:
        assert {s["side"] for s in seen if s["group"] == group} == {"client", "server"}
    for name in ("transport:packet_sent", "transport:packet_received", "transport:parameters_set", "recovery:metrics_updated"):
        assert any(name in s["events"] for s in seen), name

    everything = b"".join(f.read_bytes() for f in files)
    assert len(everything) > 10_000 and oct(files[0].stat().st_mode)[-3:] == "600"
    keys = [k for f in home.root.rglob("cluster.json") for k in re.findall(r'"([A-Za-z0-9+/]{43}=)"', f.read_text())]
    assert keys
    for key in keys:
        secret = base64.b64decode(key)
        for text in (key.encode(), secret, secret.hex().encode()):
            assert text not in everything
    payload = elements(50_000, 4)
    for text in (b"hidden", b"node2", payload, payload.hex().encode()):
        assert text not in everything
    tokens = re.findall(rb'"stateless_reset_token":(?:\{"data":)?"([0-9a-f]*)"', everything)
    assert tokens and all(set(t) == {ord("0")} for t in tokens)


def test_the_folder_is_made_and_must_be_one(home):
    (home.root / "file").write_text("x")
    line = home.refused("init", "--listen", "127.0.0.1:0", "--memory", "64MiB", "--qlog", str(home.root / "file"))
    assert str(home.root / "file") in line
    home.ok("init", "--listen", "127.0.0.1:0", "--memory", "64MiB", "--qlog", "here", cwd=home.root)
    assert (home.root / "here").is_dir()
    shown = json.loads(home.ok("config", "show", "--json"))["settings"]
    assert next(s for s in shown if s["key"] == "qlog")["value"] == str(home.root / "here")


def test_a_running_agent_starts_and_ends_its_qlog(home):
    """Without a restart, and without a break for anybody."""
    folder = home.root / "later"
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB")
    pids = {n["name"]: n["pid"] for n in home.json("dev", "status")["nodes"]}
    at = ("--node", "node1")
    assert home.json("qlog", "show", *at) == {"folder": ""} and home.ok("qlog", "show", *at) == "none\n"
    time.sleep(2.1)  # Connections that begin within 2 s of each other are one meeting: the later one would replace nothing.
    assert home.ok("qlog", "start", "later", *at, cwd=home.root).strip() == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    wait_until(lambda: len(list(folder.glob("*.sqlog"))) >= 1, 10, "a connection to be written down")
    for other in ("node2", "node3"):
        assert home.json("ping", other, "-c", "5", "-i", "0", *at)["received"] == 5
    assert home.json("qlog", "show", *at) == {"folder": str(folder)}
    time.sleep(2.1)
    home.ok("qlog", "stop", *at)
    assert home.json("qlog", "show", *at) == {"folder": ""}

    wait_until(lambda: len([c for c in counted(home, at) if c > 1]) >= 1, 10, "the connections to be made anew")
    wait_until(lambda: not any(l["closing"] for l in home.status(*at)["this_node"]["links"]), 10, "the old connections to end")
    files = {f: f.read_bytes() for f in folder.iterdir()}
    assert files and all(check(f)["events"] >= {"transport:packet_sent", "transport:packet_received"} for f in files)
    assert home.json("ping", "node2", "-c", "5", "-i", "0", *at)["received"] == 5
    assert {f: f.read_bytes() for f in folder.iterdir()} == files, "it goes on"
    assert {n["name"]: n["pid"] for n in home.json("dev", "status")["nodes"]} == pids
    assert not any(" is dead" in log.read_text() for log in home.root.rglob("agent.log")), home.logs()


def counted(home, at):
    return [p["connections"] for p in home.status(*at)["this_node"]["peers"]]


def test_qlog_refuses_in_one_line(home):
    (home.root / "file").write_text("x")
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB")
    assert str(home.root / "file") in home.refused("qlog", "start", home.root / "file")
    home.refused("qlog", "start", code=USAGE)
    home.refused("qlog", "begin", code=USAGE)
    home.ok("dev", "down")
    home.ok("dev", "up", "-n", "1", "--memory", "64MiB", env={"HOLO_CARRIER": "tcp"})
    assert "QUIC" in home.refused("qlog", "start", home.root / "folder")
