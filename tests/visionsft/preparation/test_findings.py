"""Findings: grouped, counted, the gravest first."""

from __future__ import annotations

import re
from pathlib import Path

from visionsft.preparation.findings import CHECKS, Findings

FOLDER = Path(__file__).parents[3] / "visionsft/preparation"


def test_thousands_are_counted_and_the_first_are_kept() -> None:
    findings = Findings(kept=3)
    for number in range(1000):
        findings.add("tiny box", f"{number}.txt", "2 pixels")
    (group,) = findings.groups()
    assert group.count == findings.count("warning") == 1000
    assert [finding.file for finding in group.findings] == ["0.txt", "1.txt", "2.txt"]
    assert group.to_json()["count"] == 1000


def test_the_gravest_come_first() -> None:
    findings = Findings()
    for check in ("repeats", "lookalike across splits", "unreadable image"):
        findings.add(check, "a", "b")
    findings.add("misspelt name", "a", "b", severity="error")
    assert [group.severity for group in findings.groups()] == ["error", "error", "warning", "note"]


def test_what_is_not_known_is_left_out() -> None:
    findings = Findings()
    findings.add("few groups", None, "2 groups", place="val")
    assert findings.groups()[0].to_json()["examples"] == [{"place": "val", "found": "2 groups", "count": 1}]


def test_every_check_is_used_and_none_is_unknown() -> None:
    sources = [path.read_text() for path in FOLDER.glob("*.py") if path.name != "findings.py"]
    named = set().union(*(re.findall(r'"([a-z0-9 ]+)"', text) for text in sources))
    assert set(CHECKS) <= named
