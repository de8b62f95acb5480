"""`vfm bench copies`: which steps of a curation find which copies, through the commands, on real photographs.

Each photograph is its own family; copies are made of some of them by one change at a time. A copy counts as found where it,
or one of its family for it, was dropped. Wrong: pictures dropped for one of another family, among them plain pictures
(blank, dark, slides, discs) that differ.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from jobs.bench import planted
from jobs.bench.curate import vfm_curate
from pipelines.curation import selections
from pipelines.lake import Lake
from vfm_ops.errors import VfmError

Row = dict[str, Any]
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_LONGEST, _COPIES = 480, 24

STEPS: dict[str, dict[str, Any]] = {
    "exact": {"exact": True},
    "perceptual": {"perceptual": {}},
    "perceptual, dihedral": {"perceptual": {"dihedral": True}},
    "semantic 0.95": {"semantic": {}},
    "semantic 0.90": {"semantic": {"cosine": 0.9}},
    "aligned": {"aligned": {}},
    "defaults": {"exact": True, "perceptual": {}, "semantic": {}},
    "all": {"exact": True, "perceptual": {"dihedral": True}, "semantic": {}, "aligned": {}},
}


def measure(quick: bool) -> list[Row]:
    """Rows: a change of the picture, and the share of its copies that each set of steps finds; then what was wrong."""
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as name:
        folder = Path(name)
        families = write_pictures(folder / "pictures", 6 if quick else _COPIES)
        for job in (["ingest", str(folder / "pictures")], ["process"]):
            _command([*job, "--lake", str(folder / "lake")])
        lake = Lake.open(folder / "lake")
        found = {step: _found(lake, families, step) for step in STEPS}
    changes = [change for change in dict.fromkeys(change for _, change in families.values()) if change]
    rows: list[Row] = [
        {"copy": change, **{step: round(float(np.mean(found[step][0][change])), 2) for step in STEPS}}
        for change in changes
    ]
    return [*rows, {"copy": "wrong drops", **{step: found[step][1] for step in STEPS}}]


def _command(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise VfmError(f"vfm {arguments[0]} failed: {done.stderr.strip().splitlines()[-1:]}")


def write_pictures(folder: Path, copies: int, seed: int = 0) -> dict[str, tuple[str, str]]:
    """Writes photographs, plain pictures, and `copies` copies of each kind. File name -> family, change ('' for none)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    originals = {f"photo{i}": image for i, image in enumerate(_photographs())}
    families: dict[str, tuple[str, str]] = {}

    def write(name: str, image: np.ndarray, family: str, change: str, quality: int = 95) -> None:
        Image.fromarray(image).save(folder / name, quality=quality)
        families[name] = family, change

    for name, image in {**originals, **plain_pictures()}.items():
        write(f"{name}.jpg", image, name, "")
    for change, make in CHANGES.items():
        for name in rng.choice(list(originals), copies, replace=False):
            file = f"{name}-{change.replace(' ', '-')}.jpg"
            if change == "same bytes":
                (folder / file).write_bytes((folder / f"{name}.jpg").read_bytes())
                families[file] = str(name), change
            else:
                write(file, make(originals[name], rng), str(name), change)
    return families


def _photographs() -> list[np.ndarray]:
    """Different photographs at hand that hold something, none larger than 480 pixels."""
    found = []
    for path in planted.photographs():
        image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        if image is None or min(image.shape[:2]) < 160 or cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).std() < 20:
            continue
        scale = min(1.0, _LONGEST / max(image.shape[:2]))
        found.append(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
    return found


def plain_pictures() -> dict[str, np.ndarray]:
    """Pictures with little to see, no two of them alike."""
    found = {}
    for name, tone in {"white": (255, 255, 255), "black": (0, 0, 0), "red": (220, 0, 0), "green": (0, 150, 0)}.items():
        found[f"flat-{name}"] = Image.new("RGB", (480, 360), tone)
    for i, text in enumerate(("Results for 2019: 12.3 M", "Results for 2024: 99.8 M", "Appendix B: symbols")):
        found[f"slide-{i}"] = Image.new("RGB", (480, 270), "white")
        ImageDraw.Draw(found[f"slide-{i}"]).text((30, 30), text, fill="black")
    for name, tone in {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (30, 120, 30)}.items():
        found[f"disc-{name}"] = Image.new("RGB", (480, 360), "white")
        ImageDraw.Draw(found[f"disc-{name}"]).ellipse((165, 105, 315, 255), fill=tone)
    return {name: np.asarray(image) for name, image in found.items()}


def _turned(degrees: float) -> Change:
    def turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle = degrees * float(rng.choice([-1, 1]))
        return np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC))

    return turn


def _grey(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _other_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As another shot of the same thing, as UKBench has it: from the side, nearer or farther, in other light."""
    height, width = image.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    moved = corners + rng.uniform(-0.15, 0.15, (4, 2)).astype(np.float32) * np.array([width, height], np.float32)
    warp = cv2.getPerspectiveTransform(corners, moved)
    seen = cv2.warpPerspective(image, warp, (width, height), borderMode=cv2.BORDER_REFLECT)
    return np.clip(seen * rng.uniform(0.8, 1.2) + rng.uniform(-10, 10), 0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "same bytes": planted.exact,
    "JPEG quality 30": planted.jpeg30,
    "half the size": planted.resize,
    "25 % brighter or darker": planted.brightness,
    "grey": _grey,
    "text over it": planted.text_overlay,
    "80 % of each side": planted.crop,
    "mirrored": planted.flip,
    "turned by 90 degrees": lambda image, rng: np.ascontiguousarray(np.rot90(image)),
    "turned by 5 degrees": planted.rotate,
    "turned by 30 degrees": _turned(30),
    "another view": _other_view,
}


def _found(lake: Lake, families: dict[str, tuple[str, str]], step: str) -> tuple[dict[str, list[bool]], int]:
    """Whether each copy was found, by change; and how many pictures were dropped for one of another family."""
    off = {"exact": False, "perceptual": None, "semantic": None, "aligned": None}
    wanted = json.dumps({**off, **STEPS[step]})
    name = step.replace(", ", "-").replace(" ", "-").replace(".", "")
    options = ["--set", f"deduplicate={wanted}", "--set", "cluster=null", "--set", "sample=null"]
    vfm_curate(lake, *options, "--selection", name)
    file_of = {row["asset_id"]: Path(row["uri"]).name for row in lake.read("assets", ["asset_id", "uri"]).to_pylist()}
    pairs = [
        tuple(file_of[str(frame).split(":")[0]] for frame in (row["frame_id"], row["other"]))
        for row in selections.read_rows(lake, name, columns=["frame_id", "other", "kept"]).to_pylist()
        if not row["kept"]
    ]
    right = {file for pair in pairs if families[pair[0]][0] == families[pair[1]][0] for file in pair}
    found: dict[str, list[bool]] = {}
    for file, (_, change) in families.items():
        if change:
            found.setdefault(change, []).append(file in right)
    return found, sum(families[a][0] != families[b][0] for a, b in pairs)
