"""The Hugging Face hub and its local cache: what is there already, and a download that never hangs."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from vfm_ops.errors import WeightsUnavailable
from vfm_ops.models.checkpoint import weight_files


def hub_cache() -> Path:
    """Folder of the local Hugging Face cache, by its own environment variables."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HOME") or base) / "hub"


def cached_snapshots(repo: str) -> list[Path]:
    """Complete snapshots of a repository in the local cache: the one that `main` points to first."""
    root = hub_cache() / f"models--{repo.replace('/', '--')}"
    main = root / "refs" / "main"
    named = [root / "snapshots" / main.read_text().strip()] if main.exists() else []
    others = sorted((root / "snapshots").glob("*"))
    return [p for p in [*named, *others] if p.is_dir() and all(w.exists() for w in weight_files(p)) and weight_files(p)]


def download(repo: str, source: str, family: str, name: str) -> Path:
    """Folder of a repository, downloaded where the hub answers at once. source: how the user says it.

    Raises WeightsUnavailable, which says what to download, where from, and where to put it.
    """
    advice = (
        f"the weights of {source} are not on this machine and {{why}}: download https://huggingface.co/{repo} into a folder "
        f"(config.json, model.safetensors, preprocessor and tokenizer files) and use {family}:/that/folder, or copy its "
        f"snapshot into {hub_cache()}"
    )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WeightsUnavailable(advice.format(why="HF_HUB_OFFLINE is set"))
    if not hub_reachable():
        raise WeightsUnavailable(advice.format(why="the hub can't be reached"))
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        files = [s.rfilename for s in HfApi().model_info(repo, timeout=10).siblings or []]
        weights = ["*.safetensors"] if any(f.endswith(".safetensors") for f in files) else ["*.bin"]
        patterns = ["*.json", "*.txt", "*.model", *weights]
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*/*"], etag_timeout=10))
    except RepositoryNotFoundError as error:
        raise WeightsUnavailable(
            f"the hub has no public repository {repo}: check the name in {family}:{name}"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise WeightsUnavailable(advice.format(why=f"the download failed ({type(error).__name__})")) from error


def hub_reachable(seconds: float = 4.0) -> bool:
    """Whether the hub's host accepts a connection; answers within `seconds` even where name resolution hangs."""
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    reached = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((name, int(port or 443)), timeout=seconds).close()
        except OSError:
            return
        reached.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return reached.is_set()
