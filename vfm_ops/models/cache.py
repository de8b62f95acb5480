"""The product's cache on disk: small JSON files and folders that several processes may write at once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)
_told: set[str] = set()


def cache_root() -> Path:
    """Folder of converted graphs and remembered choices: $VFM_CACHE, else ~/.cache/vfm."""
    return Path(os.environ.get("VFM_CACHE") or Path.home() / ".cache" / "vfm")


def versions(*packages: str) -> str:
    """Installed versions as one string, read from metadata: the packages are not imported."""
    found = []
    for package in packages:
        try:
            found.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            found.append(f"{package}=none")
    return ",".join(found)


def digest_of(*parts: object) -> str:
    """Short stable digest (32 hex digits) of the parts' texts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def read_json(path: Path) -> dict[str, Any] | None:
    """A cached JSON object, or None when it is absent or damaged (it is then made anew)."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_once(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write a JSON object unless a sound one is there; returns what the file then holds, so that racing processes agree.

    A cache that can't be written (a full disk, a read-only home) costs only the next start's time: it is said once.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(value, file, indent=1)
        try:
            os.link(file.name, path)
        except FileExistsError:
            if read_json(path) is None:
                os.replace(file.name, path)
                return value
        os.unlink(file.name)
    except OSError as error:
        say_once(f"the cache {path.parent} can't be written ({error.strerror}): set VFM_CACHE to a writable folder")
        return value
    return read_json(path) or value


def remembered_repository(library: str, name: str, ask: Callable[[str], str]) -> str:
    """The hub repository of a name in a library's registry; asked once for each version, as that imports the library."""
    path = cache_root() / "repositories" / f"{digest_of(library, name, versions('timm', 'open_clip_torch'))}.json"
    known = read_json(path)
    return str(known["repository"]) if known else str(write_once(path, {"repository": ask(name)})["repository"])


def publish_folder(build: Callable[[Path], None], target: Path) -> Path:
    """Fill a temporary sibling with `build`, then rename its files into target (which may exist). Returns target."""
    target.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target, prefix="tmp-"))
    try:
        build(work)
        for file in sorted(work.iterdir()):
            os.replace(file, target / file.name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def say_once(message: str) -> None:
    """Log a warning the first time it is heard in this process."""
    if message not in _told:
        _told.add(message)
        log.warning(message)
