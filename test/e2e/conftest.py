import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from holo_e2e import Home  # noqa: E402


@pytest.fixture
def home():
    home = Home()
    yield home
    home.close()


@pytest.fixture(scope="module")
def cluster():
    """Four agents that the tests of a file share; none of them may stop one."""
    home = Home()
    try:
        home.ok("dev", "up", "-n", "4", "--memory", "256MiB")
        yield home
    finally:
        home.close()
