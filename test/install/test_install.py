"""What `cmake --install` leaves is enough to build against: with find_package, with pkg-config, beside OpenSSL."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("HOLO_BUILD_DIR", ROOT / "build" / "release"))
APP = Path(__file__).with_name("app")
EXPECTED = 'not_found: no region "xs" (holo regions lists them)\n'


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The prefix of an installation, moved after the fact: nothing in it may depend on where it was put first."""
    prefix = tmp_path_factory.mktemp("first") / "usr"
    run("cmake", "--install", BUILD, "--prefix", prefix)
    moved = tmp_path_factory.mktemp("moved") / "opt"
    prefix.rename(moved)
    return moved


@pytest.fixture(scope="module")
def flags(installed):
    (pc,) = installed.glob("lib/**/pkgconfig/holo.pc")
    env = {**os.environ, "PKG_CONFIG_PATH": str(pc.parent)}
    return shlex.split(run("pkg-config", "--cflags", "--libs", "holo", env=env))


def compiler():
    """The compiler that built the library, and the sanitizer's flags when it was built with one."""
    cache = dict(
        line.split("=", 1) for line in (BUILD / "CMakeCache.txt").read_text().splitlines() if "=" in line and line[0].isalpha()
    )
    sanitize = cache.get("HOLO_SANITIZE:STRING", "")
    cxx = next(value for key, value in cache.items() if key.startswith("CMAKE_CXX_COMPILER:"))
    return [cxx, *([f"-fsanitize={sanitize}"] if sanitize else [])]


def test_find_package(installed, tmp_path):
    cxx, *sanitize = compiler()
    run("cmake", "-G", "Ninja", "-S", APP, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_CXX_COMPILER={cxx}",
        f"-DCMAKE_CXX_FLAGS={' '.join(sanitize)}")  # fmt: skip
    run("cmake", "--build", tmp_path)
    assert run(tmp_path / "outside") == EXPECTED


def test_pkg_config(flags, tmp_path):
    run(*compiler(), "-std=c++23", APP / "main.cc", *flags, "-o", tmp_path / "outside")
    assert run(tmp_path / "outside") == EXPECTED


def test_a_program_loads_no_library_that_it_does_not_use(flags, tmp_path):
    run(*compiler(), "-std=c++23", APP / "main.cc", *flags, "-o", tmp_path / "outside")
    assert "librocksdb" not in run("ldd", tmp_path / "outside")


def test_openssl_beside_ours(flags, tmp_path):
    system = Path("/usr/lib/x86_64-linux-gnu/libcrypto.so.3")
    if not system.exists():
        pytest.skip("no libcrypto.so.3 on this machine (package libssl3)")
    run(*compiler(), "-std=c++23", APP / "both.cc", *flags, system, "-o", tmp_path / "both")
    assert run(tmp_path / "both").startswith("not_found, OpenSSL 3.")


def test_every_public_header_stands_alone(installed, tmp_path):
    include = installed / "include"
    headers = sorted(include.glob("holo/*.hpp")) + sorted(include.glob("*.h"))
    assert headers
    for header in headers:
        c_too = header.suffix == ".h"
        source = tmp_path / f"{header.stem}_alone{'.c' if c_too else '.cc'}"
        source.write_text(f"#include <{header.relative_to(include)}>\n")
        language = ["gcc", "-std=c11"] if c_too else ["g++", "-std=c++23"]
        run(*language, "-Wall", "-Wextra", "-Werror", f"-I{include}", "-fsyntax-only", source)


def test_the_program_is_installed(installed):
    if not (BUILD / "bin" / "holo").exists():
        pytest.skip("this build has no program yet")
    assert (installed / "bin" / "holo").exists()
    run(installed / "bin" / "holo", "version")
