"""The command line by itself: usage, help, settings, and what it says where no agent runs."""

import json
import re

import pytest
from holo_e2e import FAILED, HOLO, USAGE

COMMANDS = [
    ("agent",), ("init",), ("join",), ("leave",), ("status",), ("alloc",), ("regions",), ("regions", "show"), ("free",), ("run",),
    ("dev", "up"), ("dev", "status"), ("dev", "logs"), ("dev", "kill"), ("dev", "restart"), ("dev", "down"),
    ("bench", "main"), ("bench", "link"), ("bench", "fetch"), ("bench", "fault"), ("bench", "idle"), ("doctor",), ("config", "show"), ("version",),
    ("trust", "list"), ("trust", "show"), ("trust", "forget"), ("trust", "rotate"), ("key", "list"), ("key", "add"), ("key", "use"),
    ("key", "remove"), ("identity", "show"), ("identity", "request"), ("identity", "sign"), ("identity", "install"),
    ("identity", "rotate"), ("identity", "revoke"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(home, command):
    text = home.ok(*command, "--help")
    assert re.search(r"Example:\n  .*holo " + " ".join(command[:1]), text)
    assert f"Usage: holo {' '.join(command)} [OPTIONS]" in text


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        (("lock",), "holo lock [OPTIONS] NAME -- COMMAND [ARGUMENTS...]"),
        (("run",), "holo run [OPTIONS] PROGRAM [ARGUMENTS...]"),
        (("kv", "put"), "holo kv put [OPTIONS] KEY [VALUE]"),
        (("kv",), "holo kv [OPTIONS] SUBCOMMAND"),
        ((), "holo [OPTIONS] SUBCOMMAND"),
    ],
)
def test_help_shows_the_usage_as_it_is_typed(home, command, usage):
    assert f"Usage: {usage}\n" in home.ok(*command, "--help")


def test_no_command_is_wrong_usage(home):
    done = home.holo()
    assert done.returncode == USAGE and "status" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["stauts"], "status"),
        (["dev", "statsu"], "status"),
        (["status", "--jsno"], "--json"),
        (["dev", "up", "--memroy", "1GiB"], "--memory"),
        (["frobnicate"], None),
        (["dev"], "up"),
        (["status", "extra"], None),
        (["alloc", "xs"], "--count"),
        (["alloc", "xs", "--count", "many"], None),
        (["alloc", "xs", "--count", "10", "--type", "f65"], "f64"),
        (["alloc", "xs", "--count", "10", "--mode", "lazy"], "phased"),
        (["dev", "up", "-n", "0"], None),
        (["dev", "up", "-n", "four"], None),
        (["dev", "kill", "two"], None),
        (["dev", "up", "--memory", "lots"], None),
        (["agent", "--memory", "lots"], None),
        (["run"], None),
        (["join"], None),
        (["join", "host:99999", "--key", "x"], None),
        (["init", "--name", "a b"], None),
        (["weight", "n"], "between"),
        (["weight", "n", "nan"], "between"),
        (["weight", "n", "0"], "between"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_usage(home, arguments, suggestion):
    line = home.refused(*arguments, code=USAGE)
    assert suggestion is None or suggestion in line


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["regions"], ["free", "xs"], ["leave"], ["alloc", "xs", "--count", "10"], ["dev", "status"], ["dev", "down"], ["dev", "kill", "1"]],
    ids=" ".join,
)
def test_without_an_agent_it_says_how_to_get_one(home, arguments):
    assert "holo dev up" in home.refused(*arguments, code=FAILED)


def test_version(home):
    assert home.ok("version").startswith("holo ")
    assert {"version", "commit", "build"} <= set(home.json("version"))


def test_doctor_names_what_is_there_and_what_its_absence_costs(home):
    checks = {c["name"]: c for c in home.json("doctor")["checks"]}
    assert {"userfaultfd", "KVM", "cgroups", "GPU", "clock", "port", "memory", "open files"} <= set(checks)
    for check in checks.values():
        assert check["health"] in ("good", "limited", "missing")
        assert check["found"]
        assert (check["cost"] == "") == (check["health"] == "good")
    assert "userfaultfd" in home.ok("doctor")


class TestConfig:
    def show(self, home, *arguments, env=None):
        shown = json.loads(home.ok("config", "show", "--json", *arguments, env=env))
        return {s["key"]: (s["value"], s["origin"]) for s in shown["settings"]}

    def test_each_value_says_where_it_came_from(self, home):
        file = home.root / "c.toml"
        file.write_text('memory = "64MiB"\nworkers = 3\nname = "from-file"\n')
        settings = self.show(home, "--config", file, "--name", "from-flag", env={"HOLO_WORKERS": "5", "HOLO_NAME": "x"})
        assert settings["memory"] == ("64MiB", "file")
        assert settings["workers"] == ("5", "environment")
        assert settings["name"] == ("from-flag", "flag")
        assert settings["log_level"] == ("info", "default")

    @pytest.mark.parametrize("text", ['memory = "64M', "memory = ", "unknown = 1", "[memory]\nx = 1", 'memory = "lots"', "workers = 0",
                                      'listen = "0.0.0.0:0"\nadvertise = "h:1"', "\x00\xff"])  # fmt: skip
    def test_a_bad_file_is_one_clear_error(self, home, text):
        file = home.root / "bad.toml"
        file.write_text(text, encoding="latin-1")
        assert "bad.toml" in home.refused("agent", "--config", file)
        assert "bad.toml" in home.refused("config", "show", "--config", file)

    def test_an_unreadable_file(self, home):
        home.refused("agent", "--config", home.root)
        home.refused("agent", "--config", home.root / "missing.toml")


def test_agent_without_a_cluster(home):
    assert "holo init" in home.refused("agent")


class TestRunRefusesWhatCannotRun:
    def test_missing_and_directory_and_without_permission(self, home):
        plain = home.root / "plain"
        plain.write_bytes(HOLO.read_bytes()[:4096])
        for target in (home.root / "missing", home.root, plain):
            home.refused("run", target)

    def test_a_program_that_does_not_link_holo(self, home):
        assert "link" in home.refused("run", "/bin/true")
        script = home.root / "script"
        script.write_text("#!/bin/sh\necho ran\n")
        script.chmod(0o755)
        home.refused("run", script)
