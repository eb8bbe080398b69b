"""h2spec, 145 cases of HTTP/2 and HPACK, against a server of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from .judges import judge
from .serving import certificates_in, served

pytestmark = pytest.mark.conformance

CASES = 145
NOT_PASSED = {
    "http2/5.1.2: Sends HEADERS frames that causes their advertised concurrent stream limit to be exceeded": (
        "it opens streams by GET; each has its 405 at once and is over before the next is opened"
    ),
    "generic/2: Sends a WINDOW_UPDATE frame on half-closed (remote) stream": "it waits for DATA, and a 405 has none",
    "generic/2: Sends a PRIORITY frame on half-closed (remote) stream": "it waits for DATA, and a 405 has none",
    "http2/6.5.3: Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE": "it needs DATA, and a 405 has none",
    "http2/6.9.1: Sends SETTINGS frame to set the initial window size to 1 and sends HEADERS frame": (
        "it needs DATA, and a 405 has none"
    ),
    "http2/6.9.2: Changes SETTINGS_INITIAL_WINDOW_SIZE after sending HEADERS frame": (
        "it needs DATA, and a 405 has none"
    ),
    "http2/6.9.2: Sends a SETTINGS frame for window size to be negative": "it needs DATA, and a 405 has none",
}
"""What is failed or skipped, and why: h2spec asks by GET, which a gRPC server has nothing for."""


@pytest.mark.parametrize("transport", ["plain", "tls"])
def test_h2spec(transport: str, tmp_path: Path) -> None:
    """All cases pass that a gRPC server can be asked."""
    program, report = judge("h2spec"), tmp_path / "report.xml"
    tls = certificates_in(tmp_path) if transport == "tls" else None
    with served("native", tls) as port:
        command = [program, f"--port={port}", "--timeout=5", f"--junit-report={report}"]
        if tls is not None:
            command += ["--tls", "--insecure"]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=55, check=False
        )
    cases = list(ET.parse(report).iter("testcase"))
    missed = {
        f"{case.get('package')}: {case.get('classname')}"
        for case in cases
        if any(child.tag in {"failure", "error", "skipped"} for child in case)
    }
    assert missed == set(NOT_PASSED), ran.stdout
    assert len(cases) == CASES
