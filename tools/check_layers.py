#!/usr/bin/env python3
"""Holds the sources to the layers, and the README's map to the disk.

    tools/check_layers.py [ROOT]

Prints one line per breach (`file:line: what is wrong`), exit 1 when there is any. The rules are those of the README:
a file includes only lower layers; two cores do not include each other; core and driver never see each other, and the
node and the simulator see no driver (but driver/quic and driver/raft, which touch no world, are simulated); cores include nothing
that touches the world; third-party headers appear only in driver/, crypto/, wire/ (protobuf), cmd/ and tests; examples
and public headers include only public headers.
"""

import re
import sys
from pathlib import Path

# Lowest first. A folder of two names (core/memory) has its own row in the map; all of core is one layer.
LAYERS = ["base", "env", "wire", "crypto", "obs", "core", "driver", "node", "client", "app", "sim", "cmd"]
GROUPS = {"core", "driver", "app", "cmd"}  # Folders whose modules are one level further down.
NEVER = {("node", "driver"), ("sim", "driver"), ("driver", "core"), ("core", "driver")}
THIRD_PARTY = {"driver": "", "crypto": "", "cmd": "", "wire": "google/protobuf/"}  # layer -> allowed prefix

STANDARD = set(
    """algorithm any array atomic barrier bit bitset cassert cctype cerrno cfenv cfloat charconv chrono cinttypes climits
    clocale cmath codecvt compare complex concepts condition_variable coroutine csetjmp csignal cstdarg cstddef cstdint
    cstdio cstdlib cstring ctime cuchar cwchar cwctype deque exception execution expected filesystem format
    forward_list fstream functional future initializer_list iomanip ios iosfwd iostream istream iterator latch limits
    list locale map memory memory_resource mutex new numbers numeric optional ostream queue random ranges ratio regex
    scoped_allocator semaphore set shared_mutex source_location span spanstream sstream stack stacktrace stdexcept
    stdfloat stop_token streambuf string string_view strstream syncstream system_error thread tuple type_traits typeindex
    typeinfo unordered_map unordered_set utility valarray variant vector version cxxabi.h""".split()
)
SYSTEM = re.compile(
    r"(sys|linux|netinet|arpa|net|asm|asm-generic|sanitizer|valgrind)/.+|"
    r"(assert|ctype|cpuid|dirent|dlfcn|elf|endian|err|errno|execinfo|fcntl|float|fnmatch|getopt|glob|grp|ifaddrs|immintrin|"
    r"inttypes|libgen|limits|link|locale|malloc|math|mntent|netdb|poll|pthread|pty|pwd|sched|semaphore|setjmp|signal|"
    r"spawn|stdarg|stdbool|stddef|stdint|stdio|stdlib|string|strings|syslog|termios|threads|time|ucontext|unistd|"
    r"utmp|wchar|x86intrin)\.h"
)
# A core is a function of (state, event, now): what these headers offer is handed to it, or kept from it.
IMPURE = set(
    """barrier condition_variable csignal cstdio ctime filesystem fstream future iostream latch mutex random semaphore
    shared_mutex stop_token syncstream thread""".split()
)
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CLOCK = re.compile(r"\b(system|steady|high_resolution)_clock::now\b")
LONGEST_FILE = 1100
CODE = (".h", ".hpp", ".cc", ".c")


def layer_of(path):
    """("core", "core/memory") of core/memory/x.h; (None, None) when it is in no layer."""
    parts = path.split("/")
    if parts[0] not in LAYERS:
        return None, None
    return parts[0], "/".join(parts[:2]) if parts[0] in GROUPS and len(parts) > 2 else parts[0]


def is_test(path):
    return bool(re.search(r"_(test|fuzz|testing)\.(cc|h)$", path.name))


def includes(path):
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if match := INCLUDE.match(line):
            yield number, match[1], match[2]


def check_source(root, path):
    """The breaches of one file under src/."""
    relative = str(path.relative_to(root / "src"))
    layer, module = layer_of(relative)
    if layer is None:
        yield f"src/{relative}:1: {relative.split('/')[0]}/ is no layer (tools/check_layers.py lists them)"
        return
    for number, quote, name in includes(path):
        where = f"src/{relative}:{number}"
        target_layer, target_module = layer_of(name)
        if quote == '"' and target_layer:
            on_real_drivers = layer == "node" and is_test(path)  # The bus is tested over real sockets.
            simulated = layer == "sim" and target_module in ("driver/quic", "driver/raft")  # Bytes and time in, bytes and timers out.
            if (layer, target_layer) in NEVER and not on_real_drivers and not simulated:
                yield f"{where}: {layer} never sees {target_layer} ({name})"
            elif LAYERS.index(target_layer) > LAYERS.index(layer):
                yield f"{where}: {layer} is below {target_layer} ({name})"
            elif layer == target_layer == "core" and module != target_module:
                yield f"{where}: {module} includes {target_module}; what they share moves down, what joins them up"
        elif quote == '"':
            yield f'{where}: write "{module}/..." from src/, or <...> for what is not ours ({name})'
        elif name.startswith("holo/") or name == "holo.h":
            continue
        elif name in STANDARD or SYSTEM.fullmatch(name):
            if layer == "core" and not is_test(path) and (name in IMPURE or name not in STANDARD):
                yield f"{where}: a core knows no clock, thread, lock, file or random device (<{name}>)"
        elif not is_test(path) and not (layer in THIRD_PARTY and name.startswith(THIRD_PARTY[layer])):
            yield f"{where}: third-party header <{name}> in {layer}"
    if layer == "core" and not is_test(path):
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if CLOCK.search(line):
                yield f"src/{relative}:{number}: a core is told the time; it reads no clock"


def check_public(root, path):
    """The breaches of a public header or an example: it must compile against an installed tree alone."""
    siblings = {p.name for p in path.parent.iterdir()} if path.is_relative_to(root / "examples") else set()
    for number, quote, name in includes(path):
        public = name.startswith("holo/") or name == "holo.h" or name in STANDARD or SYSTEM.fullmatch(name)
        if not public and not (quote == '"' and name in siblings):
            yield f"{path.relative_to(root)}:{number}: only public and standard headers here ({name})"


def files_under(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts) if folder.is_dir() else []


def modules_on_disk(root):
    """Every folder that the map must name: those at the top that are not hidden, and the modules of src/."""
    ignored = {"build"}
    for folder in sorted(root.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in ignored and files_under(folder):
            if folder.name != "src":
                yield f"{folder.name}/"
    for path in files_under(root / "src"):
        _, module = layer_of(str(path.relative_to(root / "src")))
        if module:
            yield f"src/{module}/"


def check_map(root):
    """The map is the README's table between `<!-- map -->` and `<!-- /map -->`: | `path` | what it is |."""
    readme = root / "README.md"
    lines = readme.read_text().splitlines() if readme.exists() else []
    try:
        begin, end = lines.index("<!-- map -->"), lines.index("<!-- /map -->")
    except ValueError:
        yield "README.md:1: no map between <!-- map --> and <!-- /map -->"
        return
    named = {}
    for number, line in enumerate(lines[begin:end], begin + 1):
        if match := re.match(r"\| `([^`]+)` \|", line):
            named[match[1]] = number
    for path, number in named.items():
        if not (root / path).exists():
            yield f"README.md:{number}: the map names {path}, which is not there"
    for module in dict.fromkeys(modules_on_disk(root)):
        if module not in named:
            yield f"README.md:{begin + 1}: the map lacks {module}"
        if module.startswith("src/") and not (root / module / "README.md").exists():
            yield f"{module}README.md:1: every module says what it is, how it is driven, its invariants, its limits"


def check(root):
    breaches = []
    for path in files_under(root / "src"):
        if path.suffix in CODE:
            breaches += check_source(root, path)
            if (lines := path.read_text(errors="replace").count("\n")) > LONGEST_FILE:
                breaches.append(f"{path.relative_to(root)}:{LONGEST_FILE}: {lines} lines are too many for one file")
    for path in files_under(root / "include") + files_under(root / "examples"):
        if path.suffix in CODE:
            breaches += check_public(root, path)
    return breaches + list(check_map(root))


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve())
    print("\n".join(found), end="\n" if found else "")
    sys.exit(1 if found else 0)
