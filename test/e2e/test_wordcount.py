"""examples/wordcount against coreutils, byte for byte."""

import os
import random
import subprocess

import pytest
from holo_e2e import EXAMPLES

WORDCOUNT = EXAMPLES / "wordcount"


def coreutils(path):
    pipeline = "tr -cs 'A-Za-z0-9' '\\n' < \"$1\" | sed '/^$/d' | sort | uniq -c"
    return subprocess.run(["sh", "-c", pipeline, "sh", path], env={**os.environ, "LC_ALL": "C"}, capture_output=True, check=True).stdout


def words(n, seed=1):
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(5000)}" for _ in range(n)).encode()


CASES = {
    "empty": b"",
    "one word": b"word",
    "no newline at the end": b"a b a",
    "only separators": b" \n\t--\n" * 100,
    "crlf": b"one two\r\ntwo three\r\n" * 1000,
    "a word larger than a page": b"a " + b"x" * 200_000 + b" b " + b"x" * 200_000 + b"\n",
    "one word larger than all chunks": b"y" * 9_000_000,
    "binary": random.Random(7).randbytes(3_000_000),
    "latin-1 and utf-8": "grüße naïve \u2603 café".encode() * 5000 + "é".encode("latin-1") * 100,
    "words over the ends of pages": words(900_000),
    "zeros": b"\0" * 100_000 + b"a\0b\0a" + b"\0" * 100_000,
}


@pytest.mark.parametrize("name", CASES)
def test_against_coreutils(cluster, name):
    file = cluster.root / "text"
    file.write_bytes(CASES[name])
    done = cluster.run(WORDCOUNT, file, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == coreutils(file)


def test_from_a_pipe(cluster):
    text = words(200_000, seed=2)
    file = cluster.root / "text"
    file.write_bytes(text)
    with cluster.start("cat", file, text=False) as cat:
        done = cluster.run(WORDCOUNT, "-", stdin=cat.stdout, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == coreutils(file)


def test_what_cannot_be_read(cluster):
    for target in (cluster.root / "missing", cluster.root):
        done = cluster.run(WORDCOUNT, target)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1
    hidden = cluster.root / "hidden"
    hidden.write_text("x")
    hidden.chmod(0)
    # Root reads files without permission, unless it gives that up.
    caps = "-dac_override,-dac_read_search"
    give_up = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"] if os.geteuid() == 0 else []
    done = cluster.run(*give_up, WORDCOUNT, hidden)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_it_leaves_no_region_behind(cluster):
    assert cluster.json("regions") == []
