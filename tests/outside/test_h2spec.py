"""h2spec, 145 cases of HTTP/2 and HPACK, against a server of ours."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from .judges import judge
from .serving import certificates_in, served

pytestmark = pytest.mark.conformance

NOT_PASSED = {"failure", "error", "skipped"}
CASES = 145


@pytest.mark.timeout(120)
@pytest.mark.parametrize("transport", ["plain", "tls"])
def test_h2spec(transport: str, tmp_path: Path) -> None:
    """All cases pass, and none is skipped: h2spec asks by GET, and 405 is an answer as good as another."""
    program, report = judge("h2spec"), tmp_path / "report.xml"
    tls = certificates_in(tmp_path) if transport == "tls" else None
    with served("native", tls) as port:
        command = [program, f"--port={port}", "--timeout=5", f"--junit-report={report}"]
        command += [] if tls is None else ["--tls", "--insecure"]
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100, check=False
        )
    cases = list(ET.parse(report).iter("testcase"))
    missed = [case.get("classname") for case in cases if any(child.tag in NOT_PASSED for child in case)]
    assert missed == [], ran.stdout
    assert len(cases) == CASES
