"""Seeds and keys are in the files that hold them, readable by their owner only, and nowhere else."""

import base64
import json
import os

import pytest
from holo_e2e import PROBE, wait_until

HOLDERS = {"identity.json", "cluster.json"}


def spellings(secret):
    """A secret as somebody might write it down: in each of these it is long enough not to be there by chance."""
    text = base64.b64encode(secret)
    return {secret, text, text.rstrip(b"="), base64.urlsafe_b64encode(secret), secret.hex().encode(), secret.hex().upper().encode(), secret[:16], secret[16:]}


def secrets_in(folder):
    """The secrets of one state directory, as its files have them now."""
    identity = json.loads((folder / "identity.json").read_text())
    cluster = json.loads((folder / "cluster.json").read_text())
    texts = [identity["seed"]]
    texts += [cluster["key"]] if cluster.get("key") else []
    return {base64.b64decode(t) for t in texts}


@pytest.mark.parametrize("trust", ["psk", "roots"])
def test_no_log_no_answer_and_no_other_file_has_a_secret_in_it(home, trust):
    """While everything is logged: a start, joins, refusals, changed keys, a rotated identity, a crash, a restart."""
    folder = home.root / "state" / "holo" / "dev" / "dev"
    home.ok("dev", "up", "-n", "3", "--memory", "64MiB", "--trust", trust, env={"HOLO_LOG_LEVEL": "debug", "HOLO_QLOG": str(home.root / "qlog")})
    said, secrets = [], set()

    def note():
        for name in ("node1", "node2", "node3"):
            secrets.update(secrets_in(folder / name))

    def ask(*arguments):
        done = home.holo(*arguments)
        said.append(done.stdout + done.stderr)
        return done

    note()
    assert home.run(PROBE, "fill", "xs", "100000", "2").returncode == 0
    where = home.json("dev", "status")["nodes"][0]["address"]
    wrong = base64.b64encode(os.urandom(32)).decode()
    if trust == "psk":
        ask("join", where, "--key", wrong, "--state-dir", home.root / "other", "--listen", "127.0.0.1:0", "--memory", "64MiB")
        secrets.add(base64.b64decode(wrong))
        added, number = home.ok("key", "add", "--all", "--node", "node1").split()  # It says the new key to who asked for it.
        secrets.add(base64.b64decode(added))
        ask("key", "use", number, "--all", "--node", "node1")
    else:
        ask("join", where, "--trust", "roots", "--state-dir", home.root / "other", "--listen", "127.0.0.1:0", "--memory", "64MiB")
    ask("identity", "rotate", "--node", "node2")
    note()
    for arguments in (("status", "--links"), ("trust", "list"), ("identity", "show"), ("key", "list"), ("config", "show"), ("doctor",)):
        ask(*arguments, "--node", "node2") if arguments[0] != "doctor" else ask(*arguments)
        ask(*arguments, "--node", "node2", "--json") if arguments[0] != "doctor" else ask(*arguments, "--json")
    home.ok("dev", "kill", "3")
    home.ok("dev", "restart", "3")
    wait_until(lambda: sum(n["state"] == "alive" for n in home.status("--node", "node1")["nodes"]) == 3, 20, "its return")
    note()
    home.ok("dev", "down", "--keep-state")
    assert len(secrets) >= (6 if trust == "psk" else 4)

    wanted = {s for secret in secrets for s in spellings(secret)}
    files = [f for f in home.root.rglob("*") if f.is_file() and not f.is_symlink()]
    logs = [f for f in files if f.name == "agent.log" and folder in f.parents]
    assert len(logs) == 3 and all(b" debug " in f.read_bytes() for f in logs), "nothing was logged"
    assert any(f.suffix == ".sqlog" for f in files)
    held = set()
    for file in files:
        data = file.read_bytes()
        if any(s in data for s in wanted):
            held.add(file.name)
            assert file.name in HOLDERS, file
            assert file.stat().st_mode & 0o077 == 0, file
    assert held == HOLDERS if trust == "psk" else "identity.json" in held  # The search finds what is there.
    everything = "".join(said).encode()
    assert not any(s in everything for s in wanted)
