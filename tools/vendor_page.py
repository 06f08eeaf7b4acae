"""`python -m tools.vendor_page`: download the libraries of the web page from npm into `frontend/page/vendor`.

The packages are pinned by version and hash. The files stay as published, except that imports of another package become
relative, because browsers only resolve names with an import map, which the page's Content-Security-Policy excludes, and
that references to source maps go.
"""

import base64
import hashlib
import io
import re
import sys
import tarfile
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "frontend" / "page" / "vendor"
REGISTRY = "https://registry.npmjs.org"
PACKAGES = {
    "preact": (
        "11.2.0",
        "/HfHI/7N84e6GrWBJ3J280z3mLaRJiDcSvj/A+y/4AbLnND/1UlGHe1sR6oYuTGwId0nP7dqDU9OnLxMPZ7xBg==",
        {"dist/preact.mjs": "preact.js", "hooks/dist/hooks.mjs": "hooks.js", "LICENSE": "preact.LICENSE"},
    ),
    "htm": (
        "3.1.1",
        "983Vyg8NwUE7JkZ6NmOqpCZ+sh1bKv2iYTlUkzlWmA5JD2acKoxd4KVxbMmxX/85mtfdnDmTFoNKcg5DGAvxNQ==",
        {"dist/htm.mjs": "htm.js", "LICENSE": "htm.LICENSE"},
    ),
}
TIMEOUT_S = 60


def main() -> int:
    """Write the files; the exit status is 1 if a package is not the pinned one."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for package, (version, sha512, names) in PACKAGES.items():
        url = f"{REGISTRY}/{package}/-/{package}-{version}.tgz"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310  # the URL is ours
            archive = response.read()
        if base64.b64encode(hashlib.sha512(archive).digest()).decode() != sha512:
            print(f"{url} does not have the pinned hash", file=sys.stderr)
            return 1
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            for source, target in names.items():
                member = files.extractfile(f"package/{source}")
                assert member is not None
                (FOLDER / target).write_text(as_browsers_load_it(member.read().decode()))
    return 0


def as_browsers_load_it(text: str) -> str:
    """A module whose imports are relative, without a reference to a source map."""
    text = re.sub(r'(from\s*)"(\w+)"', r'\1"./\2.js"', text)
    return re.sub(r"\n//# sourceMappingURL=\S+\n?", "\n", text)


if __name__ == "__main__":
    sys.exit(main())
