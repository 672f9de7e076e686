"""Write the digest of each image of others, at a release: `python scripts/pin_images.py`. Nobody types one.

Their versions stand in deploy/Dockerfile, which ours are built upon, and in docker-compose.yml, and nowhere else.

A tag can be moved to another image, a digest cannot. Run it again after every change of a version: it replaces the digests that
are there. It asks the registry by `docker buildx`, and writes nothing where an answer is missing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "deploy/Dockerfile", ROOT / "docker-compose.yml"]
IMAGE = re.compile(r"^(?P<before>FROM |    image: )(?P<image>[\w./-]+:[\w.-]+)(?:@\S+)?", re.M)


def pinned(text: str) -> str:
    """The text of a file with today's digest behind each image that has a version."""
    return IMAGE.sub(lambda found: f"{found['before']}{found['image']}@{digest(found['image'])}", text)


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
    files = [Path(name) for name in sys.argv[1:]] or FILES
    texts = [pinned(file.read_text(encoding="utf-8")) for file in files]  # all of them, before any is written
    for file, text in zip(files, texts):
        file.write_text(text, encoding="utf-8")
