"""What holds for every test: one thread, no network, steady random numbers, and a policy on skips."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy, torch or tokenizers are imported, which read these once.  One thread: tests of timings and of bits must not depend on the machine.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime is imported by optimum too, before our runtime can see to it

# A shell starts background jobs with SIGINT ignored, and the commands under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomised, so that a red build stays red when it is run again; tests marked full may set their own number of examples.
settings.register_profile("steady", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("steady")

NO_DATA = "POCKETQA_DATA names no folder of real data"
NO_SWIFT = "needs a Swift compiler: swiftc, or POCKETQA_SWIFT"

# With POCKETQA_NO_SKIPS=1 (continuous integration) any other skip fails the run: a test that never runs anywhere proves nothing.
ALLOWED_SKIPS = {
    re.escape(NO_DATA): "the data sets are not part of the repository",
    r"needs macOS\b.*": "Core ML predicts on macOS only",
    re.escape(NO_SWIFT): "comes with Xcode, and on Linux with Debian 13 (.ci/swift)",
    r"this CPU does not compute bf16\b.*": "AMX or AVX512-BF16",
}


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that POCKETQA_DATA names; skips where there is none, and a wrong name is an error."""
    value = os.environ.get("POCKETQA_DATA")
    if not value:
        pytest.skip(NO_DATA)
    folder = Path(value)
    assert folder.is_dir(), f"POCKETQA_DATA should name a folder of data sets, found {value!r}, which is none"
    return folder


class SkipPolicy:
    """Collects skips and, where they are forbidden, fails the session for those that are not in ALLOWED_SKIPS."""

    def __init__(self) -> None:
        self.forbidden: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that skipped, in its set-up or its body."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._note(report.nodeid, report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole file that skipped."""
        if report.skipped:
            self._note(report.nodeid, report.longrepr)

    def _note(self, place: str, representation: object) -> None:
        # pytest stores a skip as (file, line, "Skipped: reason")
        reason = representation[2] if isinstance(representation, tuple) else str(representation)
        reason = reason.removeprefix("Skipped: ")
        if not any(re.fullmatch(pattern, reason) for pattern in ALLOWED_SKIPS):
            self.forbidden.append(f"{place}: {reason}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        """Turn a green session red when something was skipped that may not be."""
        if self.forbidden and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name them."""
        if self.forbidden:
            terminalreporter.section("skips that tests/conftest.py does not allow", red=True)
            for line in self.forbidden:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Install the policy where it is asked for."""
    if os.environ.get("POCKETQA_NO_SKIPS") == "1":
        config.pluginmanager.register(SkipPolicy(), "pocketqa-skip-policy")
