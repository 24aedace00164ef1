"""holo run: a program on the cluster, its output, its exit status, and what happens when it or a worker goes wrong."""

import os
import pty
import signal

import pytest
from holo_e2e import EXAMPLES, HOLO, PROBE, alive, quadratic_sum, wait_until


def workers(home):
    """Living worker processes of this home's agents: they run from the executables kept in the state directories."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            exe = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if exe.startswith(str(home.root)) and "/binaries/" in exe:
            found.append(int(pid))
    return found


def test_output_streams_and_exit_status(cluster):
    done = cluster.holo("run", "-n", "4", PROBE, "chatter")
    assert done.returncode == 0 and done.stdout == "ok\n", done.stderr
    lines = [line for line in done.stderr.splitlines() if "says hello" in line]
    assert lines and all(line.startswith("[node") for line in lines)
    assert len({line.split("]")[0] for line in lines}) == 4
    assert cluster.holo("run", PROBE, "exit", "7").returncode == 7
    assert cluster.holo("run", PROBE, "signal", "9").returncode == 128 + 9
    assert cluster.holo("run", PROBE, "signal", "15").returncode == 128 + 15


def test_chunks_run_where_their_pages_live(cluster):
    lines = cluster.holo("run", PROBE, "chatter").stderr.splitlines()
    chunks = {}
    for line in lines:
        if "says hello" in line:
            name = line[1 : line.index("]")]
            chunks[name] = chunks.get(name, 0) + 1
    region = cluster.json("regions", "show", "chatter")
    names = {n["id"]: n["name"] for n in cluster.status()["nodes"]}
    pages = {names[id]: n for id, n in region["pages_by_node"].items()}
    per_chunk = 1  # 489 pages on four nodes: blocks of one, each of them a chunk.
    for name, count in pages.items():
        assert -(-count // per_chunk) == chunks[name], (pages, chunks)


def test_arguments_and_standard_input_reach_the_program(cluster):
    file = cluster.root / "in.txt"
    file.write_text("b a b\n")
    with open(file) as stdin:
        done = cluster.holo("run", "-n", "2", EXAMPLES / "wordcount", "-", stdin=stdin)
    assert done.returncode == 0 and done.stdout.split() == ["1", "a", "2", "b"], done.stderr
    assert cluster.holo("run", EXAMPLES / "quadratic_sum", "--count", "1000").stdout == f"{quadratic_sum(1000)}\n"


def test_more_nodes_than_there_are(cluster):
    assert "4" in cluster.refused("run", "-n", "5", PROBE, "exit", "0")


def test_fewer_nodes(cluster):
    assert cluster.ok("run", "-n", "1", PROBE, "fill", "one", "100000") == f"{quadratic_sum(100000)}\n"
    cluster.ok("free", "one")


@pytest.mark.parametrize(("how", "says"), [("throw", "seventeen"), ("segv", "signal 11"), ("abort", "signal 6"), ("exit", "exit code 5")])
def test_a_worker_that_goes_wrong_is_an_error_with_node_and_task(cluster, how, says):
    done = cluster.holo("run", PROBE, "misbehave", f"bad-{how}", how)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("probe: "))
    assert "task_failed" in line and says in line and "node" in line and "task 0" in line, done.stderr
    # Nothing of the failed task was committed.
    assert cluster.run(PROBE, "get", f"bad-{how}", "0").stdout == "0\n"
    assert len(alive(cluster.status())) == 4
    cluster.ok("free", f"bad-{how}")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_no_process_behind(cluster, by):
    with cluster.start(HOLO, "run", PROBE, "misbehave", f"loop-{by}", "loop") as run:
        assert run.stdout.readline() == "started\n"
        wait_until(lambda: workers(cluster), 10, "workers to run")
        run.send_signal(by)
        run.communicate(timeout=20)
        assert run.returncode == 128 + by
    wait_until(lambda: not workers(cluster), 5, "the workers to end")
    assert len(cluster.processes()) == 4
    cluster.ok("free", f"loop-{by}")


def test_progress_shows_on_a_terminal_and_only_there(cluster):
    parent, child = pty.openpty()
    with cluster.start(HOLO, "run", PROBE, "slow", "progress", "4000000", "100", stdout=child, stderr=child) as run:
        os.close(child)
        text = b""
        try:
            while part := os.read(parent, 65536):
                text += part
        except OSError:
            pass  # The other side has closed.
        assert run.wait(60) == 0
    os.close(parent)
    assert b"\r" in text.replace(b"\r\n", b"") and b"ok" in text
    done = cluster.holo("run", PROBE, "slow", "progress", "4000000", "1")
    assert "\r" not in done.stderr
    cluster.ok("free", "progress")


def test_killing_an_agent_in_the_middle_of_a_run(home):
    home.ok("dev", "up", "-n", "4", "--memory", "64MiB")
    with home.start(HOLO, "run", "-n", "4", PROBE, "slow", "xs", "1000000", "100") as run:
        assert run.stdout.readline() == "started\n"
        wait_until(lambda: workers(home), 10, "workers to run")
        home.ok("dev", "kill", "2")
        out, err = run.communicate(timeout=15)
    # Pages whose only copy was there are an error; with none of them lost it goes on elsewhere. Never a hang, never zeros.
    assert (run.returncode == 0 and out == "ok\n") or (run.returncode == 1 and "probe: " in err), (run.returncode, out, err)
    if run.returncode == 0:
        assert home.run(PROBE, "bulk", "xs", timeout=15).stdout == "1000000\n"
    assert home.run(PROBE, "fill", "after", "100000").stdout == f"{quadratic_sum(100000)}\n"  # The rest goes on working.
    assert len(home.processes()) == 3


def test_another_build_of_the_program(cluster):
    """The file is replaced while its program runs: the workers are started from the build that the program is."""
    copy = cluster.root / "app"
    copy.write_bytes(PROBE.read_bytes())
    copy.chmod(0o755)
    with cluster.start(HOLO, "run", copy, "slow", "build", "1000000", "300") as run:
        assert run.stdout.readline() == "started\n"
        new = cluster.root / "app.new"
        new.write_bytes(PROBE.read_bytes() + b"\0" * 64)
        new.chmod(0o755)
        new.rename(copy)
        out, err = run.communicate(timeout=60)
    assert (run.returncode == 0 and out == "ok\n") or "build" in err, (out, err)
    cluster.holo("free", "build")
