"""Write the digest of each base image into deploy/Dockerfile, at a release: `python scripts/pin_images.py`. Nobody types one.

A tag can be moved to another image, a digest cannot. Run it again after every change of a version: it replaces the digests that
are there. It asks the registry by `docker buildx`, and writes nothing where an answer is missing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

DOCKERFILE = Path(__file__).parents[1] / "deploy/Dockerfile"
BASE = re.compile(r"^FROM (?P<image>[\w./-]+:[\w.-]+)(?:@\S+)?", re.M)


def pinned(text: str) -> str:
    """The text of a Dockerfile with today's digest behind each base image."""
    return BASE.sub(lambda found: f"FROM {found['image']}@{digest(found['image'])}", text)


def digest(image: str) -> str:
    """That of the index of all platforms. Ends the program where there is none."""
    command = ["docker", "buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as e:
        sys.exit(f"pin_images: docker cannot be run: {e}")
    if done.returncode:
        sys.exit(f"pin_images: {image}: {done.stderr.strip()}")
    try:
        found = str(json.loads(done.stdout)["digest"])
    except (ValueError, TypeError, KeyError):
        found = ""
    if not re.fullmatch("sha256:[0-9a-f]{64}", found):
        sys.exit(f"pin_images: {image}: no digest in the answer: {done.stdout[:200]!r}")
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit("pin_images: takes the Dockerfile, or nothing for deploy/Dockerfile")
    page = Path(sys.argv[1]) if len(sys.argv) == 2 else DOCKERFILE
    page.write_text(pinned(page.read_text(encoding="utf-8")), encoding="utf-8")
