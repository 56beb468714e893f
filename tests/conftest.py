"""For all tests: one thread a process, no skipped test where everything has to run, and every store format."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

# Before anything imports numpy or torch, which read them once.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

REQUIRE_ALL = "EMBODIED_REQUIRE_ALL"
NO_GPU = "no GPU here"  # nobody is required to have one either
SHARED_DATA = "EMBODIED_SHARED_DATA"  # a folder of data that others made; nobody is required to have it
OPENPI = "EMBODIED_OPENPI_VENV"  # an environment with openpi's client, which no environment of ours can hold


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _fail_if_skipped((yield))


def _fail_if_skipped(report):
    """With EMBODIED_REQUIRE_ALL=1 a skipped test, or a skipped file, is a failure that gives the reason."""
    if os.environ.get(REQUIRE_ALL) == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if any(missing in reason for missing in (SHARED_DATA, NO_GPU, OPENPI)):
            return report
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: {reason} ({REQUIRE_ALL}=1 allows no skipped test)"
    return report


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """Without fsync in this process: no test cuts the power, and those on crashes put a function of their own here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def programs_of_this_run(tmp_path_factory):
    """Exported programs are kept for the tests of this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBODIED_PROGRAM_CACHE", str(tmp_path_factory.mktemp("programs")))
        yield


@pytest.fixture(autouse=True)
def scheduling_left_alone():
    """A test that makes its process a real-time one would starve all that runs after it, here and in other tests."""
    yield
    if hasattr(os, "sched_getscheduler"):
        real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
        if real_time:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        assert not real_time, "the test left its process with real-time scheduling; a video encoder does (SVT-AV1)"


@pytest.fixture
def shared_data() -> Path:
    """The folder of data that others made; without it the test is skipped."""
    folder = os.environ.get(SHARED_DATA)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{SHARED_DATA} does not name a folder with data that others made")
    return Path(folder)


@pytest.fixture
def store_path(tmp_path) -> Path:
    return tmp_path / "demonstrations.zarr"


@pytest.fixture(params=["zarr"])
def store_class(request):
    """Each format of episode stores; imported late, after the variables above are set."""
    from made_episodes import STORE_FORMATS

    return STORE_FORMATS[request.param]


@pytest.fixture
def make_store(store_class, store_path):
    """`made_episodes.fill_store` for the format and path of this test."""
    from made_episodes import fill_store

    return partial(fill_store, store_class, store_path)
