"""What `opd doctor` says about things left behind in the home, and `--repair` when it mends them."""

from __future__ import annotations

from opd_core.control.repair import Repair
from opd_core.control.repair_place import Finding
from opd_core.types import clean_text
from server.settings import read_settings

MAX_SHOWN = 200


def look_after_home(repair: bool) -> int:
    """Print what is left behind in the home, mended with `repair`; 0 when nothing remains to be done, else 1."""
    home = read_settings().home
    if not home.home.is_dir():
        return 0
    workbench = Repair(home)
    found = workbench.mend() if repair else workbench.look()
    left = workbench.look() if repair else found
    if not found:
        print("- nothing is left behind in the home")
        return 0
    print("\nMended:" if repair else "\nLeft behind in the home:")
    _print([finding for finding in found if not repair or not _is_among(finding, left)], "Done" if repair else "To do")
    if repair and left:
        print("Not mended:")
        _print(left, "To do")
    if not repair and any(finding.mend is not None for finding in found):
        print("`opd doctor --repair` does this and nothing else.")
    return 1 if left else 0


def _is_among(finding: Finding, left: list[Finding]) -> bool:
    return any((finding.path, finding.what) == (other.path, other.what) for other in left)


def _print(findings: list[Finding], word: str) -> None:
    for finding in findings[:MAX_SHOWN]:
        path = clean_text(str(finding.path), 300)
        print(f"- {finding.run_id}: {path} {clean_text(finding.what, 400)}. {word}: {finding.remedy}.")
    if len(findings) > MAX_SHOWN:
        print(f"- and {len(findings) - MAX_SHOWN} more")
