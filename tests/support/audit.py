"""`python -m tests.support.audit`: known vulnerabilities of the packages that the locks name.

pip-audit runs in an environment of its own, so that its dependencies stay out of ours. It asks a public database;
where that cannot be reached the run says so and is no failure.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (ROOT / "requirements.lock", ROOT / "deploy" / "triton.lock")  # all of deploy/frontend.lock is in the first
PIP_AUDIT = "pip-audit==2.10.1"
TIMEOUT_S = 300


def main() -> int:
    """The exit status: 1 where something is known to be vulnerable."""
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
        print(f"{lock.name} not audited: the database of vulnerabilities cannot be reached", file=sys.stderr)
        return 0
    audited = [package for package in packages if "skip_reason" not in package]
    vulnerable = [package for package in audited if package["vulns"]]
    for package in vulnerable:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    print(f"{lock.name}: {len(audited)} of {len(packages)} packages audited, {len(vulnerable)} are vulnerable")
    if len(audited) < len(packages):
        print(f"not in the database, or it cannot be reached: {len(packages) - len(audited)}", file=sys.stderr)
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
