"""`python -m tools.audit`: look up known vulnerabilities of the packages in the lock files.

pip-audit runs in its own environment, so that its dependencies stay out of ours. It queries a public database. If the
database cannot be reached, the audit says so and succeeds.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = (ROOT / "requirements.lock", ROOT / "deploy" / "triton.lock")  # all of deploy/frontend.lock is in the first
PIP_AUDIT = "pip-audit==2.10.1"
TIMEOUT_S = 300


def main() -> int:
    """Audit every lock file; the exit status is 1 if a package is known to be vulnerable."""
    return max(_audit(lock) for lock in LOCKS)


def _audit(lock: Path) -> int:
    command = [str(Path(sys.executable).with_name("uv")), "tool", "run", "--from", PIP_AUDIT, "pip-audit"]
    options = [
        f"--requirement={lock}",
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        print(f"{lock.name} not audited: cannot reach the vulnerability database", file=sys.stderr)
        return 0
    audited = [package for package in packages if "skip_reason" not in package]
    vulnerable = [package for package in audited if package["vulns"]]
    for package in vulnerable:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"{lock.name}: {len(audited)} of {len(packages)} packages audited, {len(vulnerable)} are vulnerable")
    if len(audited) < len(packages):
        print(f"not in the database, or not reachable: {len(packages) - len(audited)} packages", file=sys.stderr)
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
