"""What real agents tell their clients while they are killed and stopped is one history for all (tools/chaos.py)."""

import json
import subprocess
import sys

from holo_e2e import BUILD, ROOT

SIM = BUILD / "bin" / "holo-sim"


def test_a_history_under_kill_and_stop_is_linearizable(tmp_path):
    history = tmp_path / "history"
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "chaos.py", "--seconds", "15", "--seed", "7", "--history", history],
        capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["violations"] == 0 and report["healed"]
    assert report["faults"]["kill -9"] >= 1 and report["faults"]["SIGSTOP"] >= 1
    assert report["acknowledged"] > 100
    # The same, with one read of something that was never written, is not.
    lines = history.read_text().splitlines()
    read = next(i for i, line in enumerate(lines) if " get " in line)
    lines[read] = lines[read].rsplit(" ", 1)[0] + " never-written"
    history.write_text("\n".join(lines) + "\n")
    judged = subprocess.run([SIM, "--check-history", history], capture_output=True, text=True)
    assert judged.returncode == 1 and "never-written" in judged.stdout


def test_what_is_no_history_is_refused(tmp_path):
    (tmp_path / "h").write_text("1 2 3 jump k v\n")
    for path in (tmp_path / "h", tmp_path / "missing"):
        judged = subprocess.run([SIM, "--check-history", path], capture_output=True, text=True)
        assert judged.returncode == 1 and judged.stderr.startswith("holo-sim: ")
