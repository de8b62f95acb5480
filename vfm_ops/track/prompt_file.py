"""Prompts from a file, JSON or YAML: a list of calls to a video session, by the names of its methods.

    - {frame_idx: 0, obj_id: 1, points: [[60, 40]], labels: [1]}    # a prompt alone is add_new_points_or_box or add_new_mask
    - {frame_idx: 0, obj_id: 2, box: [70, 10, 120, 60]}
    - {frame_idx: 5, obj_id: 3, mask: cat.png}                      # beside this file; or COCO RLE {size, counts}
    - propagate_in_video: {}
    - {frame_idx: 12, obj_id: 1, points: [[20, 90]], labels: [0]}   # on what was tracked: a correction
    - clear_all_prompts_in_frame: {frame_idx: 0, obj_id: 2}
    - remove_object: {obj_id: 3}

The same calls made from Python, from a file, or over HTTP give the same masks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vfm_ops.errors import UsageError
from vfm_ops.track.frames import FrameMasks
from vfm_ops.track.masks import Rle, checked_rle, encode_rle
from vfm_ops.track.session import VideoSession

Finite = Annotated[float, Field(allow_inf_nan=False)]
FrameIdx = Annotated[int, Field(ge=0, validation_alias=AliasChoices("frame_idx", "frame_index"))]
ObjId = Annotated[int, Field(validation_alias=AliasChoices("obj_id", "object_id"))]


class Call(BaseModel):
    """One call to a session. An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """Makes the call; the masks that it gives. folder: where files that it names lie."""
        raise NotImplementedError


class Shown(BaseModel):
    """What is said of one object: points with labels (1 on it, 0 off it), a box (xyxy), or a mask (file, or COCO RLE).

    label, object: what it is, and its name, where it is stored in a lake.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points: list[tuple[Finite, Finite]] | None = None
    labels: list[int] | None = None
    box: tuple[Finite, Finite, Finite, Finite] | None = None
    mask: str | Rle | None = None
    label: str | None = None
    object: str | None = None

    def entry(self, folder: Path) -> dict[str, Any]:
        """As it stands in a file of prompts, without what is not said; a mask as COCO RLE, wherever it lay."""
        said = self.model_dump(mode="json", exclude_none=True)
        return said | ({"mask": encode_rle(read_mask(self.mask, folder))} if isinstance(self.mask, str) else {})

    def mask_pixels(self, folder: Path) -> np.ndarray | None:
        """bool (H, W), where there is a mask. UsageError for a file that is none."""
        return None if self.mask is None else read_mask(self.mask, folder)


class AddPrompt(Shown, Call):
    """`add_new_points_or_box`, or `add_new_mask` where there is a mask."""

    frame_idx: FrameIdx = 0
    obj_id: ObjId = 1
    clear_old_points: bool = True

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """The object's mask on the frame."""
        mask = self.mask_pixels(folder)
        if mask is None:
            yield session.add_new_points_or_box(
                self.frame_idx, self.obj_id, self.points, self.labels, self.clear_old_points, self.box
            )
        elif self.points is not None or self.box is not None:
            raise UsageError("a prompt has a mask and points or a box: give one or the other")
        else:
            yield session.add_new_mask(self.frame_idx, self.obj_id, mask)


class PropagateInVideo(Call):
    """`propagate_in_video`."""

    start_frame_idx: int | None = Field(None, ge=0)
    max_frame_num_to_track: int | None = Field(None, ge=0)
    reverse: bool = False

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """The masks of each frame."""
        return session.propagate_in_video(self.start_frame_idx, self.max_frame_num_to_track, self.reverse)


class RemoveObject(Call):
    """`remove_object`."""

    obj_id: ObjId

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """None."""
        session.remove_object(self.obj_id)
        return iter(())


class ClearAllPromptsInFrame(Call):
    """`clear_all_prompts_in_frame`."""

    frame_idx: FrameIdx
    obj_id: ObjId

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """None."""
        session.clear_all_prompts_in_frame(self.frame_idx, self.obj_id)
        return iter(())


class ResetState(Call):
    """`reset_state`."""

    def run(self, session: VideoSession, folder: Path) -> Iterator[FrameMasks]:
        """None."""
        session.reset_state()
        return iter(())


CALLS: dict[str, type[Call]] = {
    "add_new_points_or_box": AddPrompt,
    "add_new_mask": AddPrompt,
    "propagate_in_video": PropagateInVideo,
    "remove_object": RemoveObject,
    "clear_all_prompts_in_frame": ClearAllPromptsInFrame,
    "reset_state": ResetState,
}


def entry_of(call: Call, folder: Path) -> dict[str, Any]:
    """A call as it stands in a file of prompts."""
    if isinstance(call, AddPrompt):
        return call.entry(folder)
    name = next(name for name, model in CALLS.items() if type(call) is model)
    return {name: call.model_dump(mode="json", exclude_defaults=True)}


def read_calls(path: Path) -> list[Call]:
    """The calls of a file. UsageError that names the file and the entry for what is none."""
    calls = []
    for number, entry in enumerate(read_entries(path), 1):
        name = next(iter(entry)) if len(entry) == 1 else None
        model, values = (CALLS[name], entry[name]) if name in CALLS else (AddPrompt, entry)
        calls.append(checked(model, values or {}, f"`prompt_file` {path}, entry {number}"))
    return calls


def run_calls(session: VideoSession, calls: Iterable[Call], folder: Path) -> Iterator[FrameMasks]:
    """Makes calls one after the other; all masks that they give, as they come."""
    for call in calls:
        yield from call.run(session, folder)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The mappings that a JSON or YAML file lists. UsageError for anything else."""
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UsageError(f"`prompt_file` {path} can't be read as JSON or YAML: {reason}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) and e for e in entries):
        raise UsageError(
            f"`prompt_file` {path}: write a list of prompts, such as - {{points: [[60, 40]], labels: [1]}}"
        )
    return entries


def checked(model: type[Any], values: Any, where: str) -> Any:
    """Values as a model. UsageError of one sentence, which begins with `where`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(model.model_fields)
        what = f"unknown key; there are {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise UsageError(f"{where}: {key}: {what}") from error


def read_mask(mask: str | Rle, folder: Path) -> np.ndarray:
    """bool (H, W) of a mask's picture, where a pixel is not black, or of COCO RLE."""
    if isinstance(mask, str):
        data = (folder / mask).read_bytes() if (folder / mask).is_file() else b""
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) if data else None
        if picture is None:
            raise UsageError(f"the mask {folder / mask} is no picture: give a PNG of the frame's size, black outside")
        return picture > 0
    return checked_rle(mask)
