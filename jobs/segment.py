"""`vfm segment`: masks of objects in pictures, from points, boxes and masks, or of everything that is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from jobs.cli import run
from jobs.detect import read_pictures
from jobs.model_options import with_options_of
from jobs.prompts import boxes_of, points_of
from jobs.storing import Annotator, AuthorOption, LabelOption, LakeFolder, StoreFlag, annotator, open_lake
from pipelines.annotation import LakeFrame, find_frames, read_frames
from pipelines.annotation.objects import Asked
from pipelines.lake import Lake
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.evaluate.files import PICTURES, check_place, write_picture, written_at
from vfm_ops.evaluate.overlay import draw_objects
from vfm_ops.evaluate.sheet import contact_sheet
from vfm_ops.models.shipped import DEFAULT_TRACKER
from vfm_ops.segment.grid_settings import GridFields, GridSettings

OPTIONS_OF_ARGUMENTS = {"points": "--point", "boxes": "--box"}
MASK_OPTIONS = {"multimask_output": True, "max_hole_area": 0, "max_sprinkle_area": 0}
GRIDS = "JSON: a list of x, y from 0 to 1 for the picture and each layer of crops."
MENDED = "of at most so many pixels of the model's mask"


@with_options_of(GridFields, "--everything", without=("point_grids",))
def command(
    pictures: Annotated[list[str], typer.Argument(help="Image files; with --lake file names, asset or frame ids.")],
    box: Annotated[list[str] | None, typer.Option(help="x0,y0,x1,y1 in pixels; one an object.")] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="'x,y x,y,0': points of one object, those off it with a third number 0; one an object."),
    ] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Objects from a JSON or YAML file.")] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Every object, by a grid of points, without prompts.")
    ] = False,
    model: Annotated[str, typer.Option(help="SAM or SAM 2 spec; see vfm models.")] = DEFAULT_TRACKER,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    multimask_output: Annotated[bool, typer.Option(help="Choose the best of three masks, else take the one.")] = True,
    max_hole_area: Annotated[int, typer.Option(help=f"Fill holes {MENDED}.", min=0)] = 0,
    max_sprinkle_area: Annotated[int, typer.Option(help=f"Take out specks {MENDED}.", min=0)] = 0,
    point_grids: Annotated[Path | None, typer.Option(help=f"{GRIDS} With --everything.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Also draw the masks, on this picture.")] = None,
    return_logits: Annotated[Path | None, typer.Option(help="Also write mask logits, to this .npz.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a picture, masks as COCO RLE.")] = False,
    lake: LakeFolder = None,
    store: StoreFlag = False,
    author: AuthorOption = None,
    label: LabelOption = None,
    **grid: Any,
) -> int:
    """Prints each object's box, area and predicted IoU. Exit code 1 when a picture is bad."""
    _check(bool(box or point or prompt_file), everything, return_logits)
    check_place(sheet, PICTURES)
    check_place(return_logits, (".npz",))
    opened = open_lake(lake, store, author, label)
    from vfm_ops.segment.segmenter import load_segmenter

    settings = GridSettings(**grid, point_grids=_grids(point_grids))
    named = _named(pictures, opened)
    asked = _entries(box, point, prompt_file, named)
    folder = prompt_file.parent if prompt_file else Path()
    options = dict(zip(MASK_OPTIONS, (multimask_output, max_hole_area, max_sprinkle_area)))
    segmenter = load_segmenter(model, device=device)

    def objects_of(picture: Picture, rgb: np.ndarray) -> list[dict[str, Any]]:
        if everything:
            return list(_everything(segmenter, rgb, settings))
        return list(_prompted(segmenter, rgb, picture, asked, folder, options))

    keeper = annotator(opened, store, author, f"vfm segment {model}")
    said = _said(asked, folder, label, settings if everything else None, options)
    return _segment(_read(named, opened), objects_of, as_json, sheet, return_logits, keeper, said)


@dataclass(frozen=True)
class Picture:
    """One picture. title: as it is told of. names: by which a file of prompts may name it. frame: of a lake."""

    title: str
    names: tuple[str, ...]
    frame: LakeFrame | None = None


def _said(
    asked: list[Any], folder: Path, label: str | None, grid: GridSettings | None, options: dict[str, Any]
) -> Asked:
    if grid is None:
        return Asked([entry.entry(folder) for entry in asked], _unusual(options), label)
    return Asked(None, {"everything": grid.model_dump(mode="json", exclude_defaults=True)}, label)


def _named(pictures: list[str], lake: Lake | None) -> list[Picture]:
    """The pictures that are asked for. UsageError for one that the lake does not have."""
    if lake is None:
        return [Picture(p, (p, Path(p).name)) for p in pictures]
    frames = find_frames(lake, pictures)
    return [Picture(f.given, (f.given, f.frame_id, f.name, Path(f.name).name), f) for f in frames]


def _read(pictures: list[Picture], lake: Lake | None) -> Iterator[tuple[Picture, np.ndarray | MediaError]]:
    if lake is None:
        pixels = (rgb for _, rgb in read_pictures([Path(p.title) for p in pictures]))
    else:
        pixels = (rgb for _, rgb in read_frames(lake, [p.frame for p in pictures if p.frame]))
    return zip(pictures, pixels)


def _segment(
    pictures: Iterator[tuple[Picture, np.ndarray | MediaError]],
    objects_of: Callable[[Picture, np.ndarray], list[dict[str, Any]]],
    as_json: bool,
    sheet: Path | None,
    return_logits: Path | None,
    keeper: Annotator | None,
    said: Asked,
) -> int:
    """Prints, and writes what is to be written, of each picture. Returns the exit code."""
    drawn: dict[str, np.ndarray] = {}
    logits: dict[str, np.ndarray] = {}
    bad = 0
    for picture, rgb in pictures:
        if isinstance(rgb, MediaError):
            print(f"error: {rgb}", file=sys.stderr)
            bad += 1
            continue
        objects, name = objects_of(picture, rgb), Path(picture.title).name
        own = {f"{name}/{o['object']}": o.pop("logits") for o in objects if "logits" in o}
        logits |= own if return_logits else {}
        print(json.dumps({"picture": picture.title, "objects": objects}) if as_json else _lines(picture.title, objects))
        if sheet:
            drawn[name] = draw_objects(rgb, [{**o, "track_id": o["object"]} for o in objects])
        if keeper and picture.frame:
            keeper.add(said.rows(picture.frame.frame_id, objects, keeper.author))
    _write(sheet, drawn, return_logits, logits)
    if keeper:
        keeper.finish()
    if bad:
        print(f"{bad} pictures could not be read", file=sys.stderr)
    return 1 if bad else 0


def _unusual(options: dict[str, Any]) -> dict[str, Any]:
    """Options that are not as they are without being said."""
    return {name: value for name, value in options.items() if value != MASK_OPTIONS[name]}


def _check(prompted: bool, everything: bool, return_logits: Path | None) -> None:
    """UsageError unless one thing is asked for."""
    if prompted == everything:
        raise UsageError("say what to segment: --box, --point or --prompt-file, or else --everything")
    if everything and return_logits:
        raise UsageError("--return-logits goes with prompts: --everything gives masks alone")


def _grids(file: Path | None) -> Any:
    """What a file has instead of --points-per-side. UsageError."""
    if file is None:
        return None
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--point-grids {file} can't be read as JSON: {error}") from error


def _entries(
    boxes: list[str] | None, points: list[str] | None, file: Path | None, pictures: list[Picture]
) -> list[Any]:
    """What is asked for, in the order of the options, the file last. UsageError for a picture that is not among those given."""
    from vfm_ops.segment.prompt_file import ImageEntry, read_image_prompts

    entries = [ImageEntry(box=tuple(b)) for b in boxes_of(boxes)]  # type: ignore[arg-type]
    entries += [ImageEntry(points=xy, labels=on) for xy, on in points_of(points)]  # type: ignore[arg-type]
    entries += read_image_prompts(file) if file else []
    known = {name for p in pictures for name in p.names}
    for entry in entries:
        if entry.image is not None and entry.image not in known:
            raise UsageError(f"--prompt-file {file} names {entry.image}, which is none of the pictures given")
    return entries


def _prompted(
    segmenter: Any, rgb: np.ndarray, picture: Picture, entries: list[Any], folder: Path, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The best candidate of each object asked for on a picture."""
    from vfm_ops.segment.prompt_file import segment_entry
    from vfm_ops.track.masks import encode_rle, mask_box

    encoded = segmenter.encode(rgb)
    for number, entry in enumerate(entries, 1):
        if entry.image is not None and entry.image not in picture.names:
            continue
        found = segment_entry(segmenter, encoded, entry, folder, **options)
        best = int(found.scores[0].argmax())
        on_image = found.logits_on_image(0)[best].cpu().numpy()
        mask = on_image > 0
        yield {
            "object": number,
            "box": [float(v) for v in mask_box(mask)],
            "area": int(mask.sum()),
            "score": float(found.scores[0, best]),
            "mask": encode_rle(mask),
            "logits": on_image,
        }


def _everything(segmenter: Any, rgb: np.ndarray, grid: Any) -> Iterator[dict[str, Any]]:
    """All objects of a picture, most confident first."""
    from vfm_ops.segment.automatic import generate_masks

    for number, m in enumerate(generate_masks(segmenter, rgb, grid), 1):
        row = {"object": number, "box": m.box.tolist(), "area": m.area, "score": m.score}
        yield row | {"stability": m.stability, "mask": m.rle}


def _lines(title: str, objects: list[dict[str, Any]]) -> str:
    head = f"{title}: {len(objects)} masks"
    return "\n".join([head, *(f"  {o['object']:>4}  {o['score']:.3f}  {o['area']:>8} px  {o['box']}" for o in objects)])


def _write(sheet: Path | None, drawn: dict[str, np.ndarray], file: Path | None, logits: dict[str, np.ndarray]) -> None:
    if sheet and drawn:
        picture = contact_sheet(list(drawn.values()), list(drawn), cell=(480, 360))
        write_picture(sheet, picture)
        print(f"wrote {sheet}", file=sys.stderr)
    if file:
        with written_at(file), file.open("wb") as opened:
            np.savez_compressed(opened, **logits)  # type: ignore[arg-type]
        print(f"wrote {file}: float32 logits, PICTURE/OBJECT", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(command))
