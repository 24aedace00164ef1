"""The layer rule and the map: this tree keeps them, and a tree that breaks them is told where."""

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("check_layers", Path(__file__).with_name("check_layers.py"))
check_layers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_layers)

README = "# x\n<!-- map -->\n| path | what |\n|---|---|\n{rows}\n<!-- /map -->\n"


@pytest.fixture
def tree(tmp_path):
    """Makes a tree of {path: text}, each module with its README, and a map that names them all."""

    def make(files, extra_rows=()):
        modules = set()
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
            if path.startswith("src/"):
                module = str(Path(path).parent)
                modules.add(module + "/")
                (tmp_path / module / "README.md").write_text("what it is")
            else:
                modules.add(path.split("/")[0] + "/")
        rows = "\n".join(f"| `{name}` | x |" for name in [*sorted(modules), *extra_rows])
        (tmp_path / "README.md").write_text(README.format(rows=rows))
        return tmp_path

    return make


def test_this_tree_keeps_the_rules():
    breaches = check_layers.check(Path(__file__).resolve().parent.parent)
    if breaches:
        pytest.fail("\n".join(breaches), pytrace=False)


def test_a_good_tree_has_no_breach(tree):
    files = {
        "src/base/a.h": "#include <vector>\n",
        "src/wire/a.h": '#include <google/protobuf/arena.h>\n#include "base/a.h"\n',
        "src/core/memory/a.cc": '#include "core/memory/b.h"\n#include <holo/error.hpp>\n#include "wire/a.pb.h"\n',
        "src/core/memory/a_test.cc": "#include <gtest/gtest.h>\n#include <thread>\n",
        "src/driver/posix/a.cc": '#include <asio.hpp>\n#include <sys/mman.h>\n#include "env/a.h"\n',
        "src/client/a.cc": '#include "driver/posix/a.h"\n',
        "include/holo/a.hpp": "#include <holo/error.hpp>\n#include <string>\n",
        "examples/x/main.cc": '#include <holo/holo.hpp>\n#include "x.h"\n',
        "examples/x/x.h": "",
    }
    assert check_layers.check(tree(files)) == []


@pytest.mark.parametrize(
    "path, line, what",
    [
        ("src/base/a.h", '#include "core/memory/b.h"', "base is below core"),
        ("src/core/memory/a.cc", '#include "core/compute/b.h"', "core/memory includes core/compute"),
        ("src/core/memory/a.cc", '#include "driver/posix/b.h"', "core never sees driver"),
        ("src/driver/raft/a.cc", '#include "core/control/b.h"', "driver never sees core"),
        ("src/node/a.cc", '#include "driver/raft/b.h"', "node never sees driver"),
        ("src/node/a.cc", '#include "cmd/holo/b.h"', "node is below cmd"),
        ("src/node/a.cc", "#include <rocksdb/db.h>", "third-party header <rocksdb/db.h> in node"),
        ("src/wire/a.cc", "#include <asio.hpp>", "third-party header <asio.hpp> in wire"),
        ("src/base/a.cc", '#include "a.h"', 'write "base/..." from src/'),
        ("src/core/memory/a.cc", "#include <mutex>", "a core knows no clock"),
        ("src/core/memory/a.cc", "#include <sys/mman.h>", "a core knows no clock"),
        ("src/core/memory/a.cc", "auto t = std::chrono::steady_clock::now();", "it reads no clock"),
        ("src/misc/a.cc", "", "misc/ is no layer"),
        ("include/holo/a.hpp", '#include "base/result.h"', "only public and standard headers"),
        ("examples/x/main.cc", "#include <nlohmann/json.hpp>", "only public and standard headers"),
    ],
)
def test_each_breach_is_named_with_its_place(tree, path, line, what):
    breaches = [b for b in check_layers.check(tree({path: f"// one\n{line}\n"})) if not b.startswith("README.md")]
    assert len(breaches) == 1
    assert what in breaches[0]
    assert breaches[0].startswith(f"{path}:{2 if line else 1}: ")


def test_the_map_names_what_is_there_and_nothing_else(tree):
    root = tree({"src/base/a.h": ""}, extra_rows=["src/gone/"])
    (root / "src/env").mkdir()
    (root / "src/env/a.h").write_text("")
    (root / "fuzz").mkdir()
    (root / "fuzz/a.cc").write_text("")
    breaches = check_layers.check(root)
    assert [b.split(": ", 1)[1].split(":")[0] for b in breaches] == [
        "the map names src/gone/, which is not there",
        "the map lacks fuzz/",
        "the map lacks src/env/",
        "every module says what it is, how it is driven, its invariants, its limits",
    ]


def test_a_file_that_has_grown_too_long_is_named(tree):
    (breach,) = check_layers.check(tree({"src/base/a.cc": "//\n" * 1101}))
    assert breach.startswith("src/base/a.cc:1100: 1101 lines")
