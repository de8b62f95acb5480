"""Bodies of requests and answers: what OpenAPI shows. Unknown keys are errors; numbers are finite."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from vfm_ops.segment.grid_settings import GridFields

MAP_POINTS = 4000  # shown, unless a client asks for others
MOST_SELECTED = 100_000
MOST_GRID_POINTS = 8192  # of one request for everything: minutes of a large model on CPUs


def _decode(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("an image is base64 text")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None


ImageBytes = Annotated[
    bytes,
    BeforeValidator(_decode),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "An encoded image (JPEG, PNG, WebP, ...)."}
    ),
]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e7, le=1e7)]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
FrameId = Annotated[str, Field(min_length=1, max_length=200)]
Box = Annotated[
    tuple[Finite, Finite, Finite, Finite], Field(description="x1, y1, x2, y2 in pixels of the stored frame.")
]
FRAME_NAMES = AliasChoices("frame_index", "frame_idx")
ObjectId = Annotated[int, Field(ge=0, le=1_000_000, validation_alias=AliasChoices("object_id", "obj_id"))]
ObjectNumber = Annotated[int, Field(ge=0, le=1_000_000)]
FillHoleArea = Annotated[int, Field(ge=0, le=1_000_000, description="Holes of so many pixels of the model are filled.")]
ModelName = Annotated[str, Field(min_length=1, max_length=500, description="A model spec that GET /v1/models lists.")]


class Body(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EmbedRequest(Body):
    """Images or texts, one of the two."""

    images: list[ImageBytes] | None = Field(None, min_length=1)
    texts: list[Text] | None = Field(None, min_length=1)
    model: ModelName | None = None
    encoding: Literal["float", "base64"] = Field("float", description="base64: little-endian float32, row after row.")

    @model_validator(mode="after")
    def _one(self) -> EmbedRequest:
        if (self.images is None) == (self.texts is None):
            raise ValueError("give images or texts, one of the two")
        return self


class EmbedAnswer(BaseModel):
    """Unit vectors. embeddings: one list an item, or base64 of little-endian float32 (items x dim)."""

    model: str
    dim: int
    count: int
    embeddings: list[list[float]] | str


class SearchRequest(Body):
    """Exactly one of text, image, frame_id; a box goes with a frame_id (or an image) and searches for what is in it."""

    text: Text | None = None
    image: ImageBytes | None = None
    frame_id: FrameId | None = None
    box: Box | None = None
    model: ModelName | None = None
    where: str | None = Field(None, max_length=2000, description="SQL over columns of frames and assets.")
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0, le=100_000)
    exact: bool = False

    @model_validator(mode="after")
    def _one(self) -> SearchRequest:
        if sum(v is not None for v in (self.text, self.image, self.frame_id)) != 1:
            raise ValueError("give exactly one of text, image, frame_id")
        if self.box is not None and self.text is not None:
            raise ValueError("a box goes with a frame_id or an image")
        return self


class Hit(BaseModel):
    """One frame. score: cosine (null when browsing). pts_s: seconds into its video. name: its file's name."""

    frame_id: str
    asset_id: str
    score: float | None
    frame_index: int | None
    pts_s: float | None
    width: int | None
    height: int | None
    media_type: str | None
    name: str
    thumbnail: str
    image: str


class Page(BaseModel):
    """A page of hits; `next_offset` is null on the last one.

    total: how many frames there are under the filter, where they are browsed; on the first page alone. capped: there are more,
    but pages of a search reach no deeper.
    """

    hits: list[Hit]
    offset: int
    next_offset: int | None
    total: int | None = None
    capped: bool = False
    model: str | None = None
    lake_version: int


class ClassifyRequest(Body):
    """Zero-shot: each class is the mean of its prompts. templates: with one {} for the label."""

    images: list[ImageBytes] | None = Field(None, min_length=1)
    frame_ids: list[FrameId] | None = Field(None, min_length=1)
    labels: list[Text] = Field(min_length=1, max_length=1000)
    templates: list[Text] = Field(default=["a photo of a {}."], min_length=1, max_length=100)
    model: ModelName | None = None
    scale: float = Field(100.0, gt=0, le=1000, description="Cosines are multiplied by it before the softmax.")
    top: int = Field(5, ge=1, le=1000)

    @model_validator(mode="after")
    def _checked(self) -> ClassifyRequest:
        if (self.images is None) == (self.frame_ids is None):
            raise ValueError("give images or frame_ids, one of the two")
        if any(t.count("{}") != 1 for t in self.templates):
            raise ValueError("a template has {} once, where the label goes")
        if len(self.labels) * len(self.templates) > 10_000:
            raise ValueError("labels times templates must not exceed 10,000")
        return self


class DetectRequest(Body):
    """What to find, in words, on an image or a frame of the lake."""

    image: ImageBytes | None = None
    frame_id: FrameId | None = None
    prompts: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1, max_length=100)
    threshold: float | None = Field(None, ge=0, le=1, description="Least score; the model family's own by default.")
    model: ModelName | None = None
    limit: int = Field(100, ge=1, le=1000)

    @model_validator(mode="after")
    def _one(self) -> DetectRequest:
        return one_image(self)


class SegmentOpen(Body):
    """The image or frame of a new session."""

    image: ImageBytes | None = None
    frame_id: FrameId | None = None

    @model_validator(mode="after")
    def _one(self) -> SegmentOpen:
        return one_image(self)


class RleMask(Body):
    """A mask as COCO RLE: size is [height, width], counts are what pycocotools writes."""

    size: tuple[Annotated[int, Field(ge=1, le=100_000)], Annotated[int, Field(ge=1, le=100_000)]]
    counts: str = Field(min_length=1, max_length=4_000_000)


class Prompted(Body):
    """Points, a box, or both; or a mask. labels: 1 on the object, 0 off it."""

    points: list[tuple[Finite, Finite]] | None = Field(None, min_length=1, max_length=100)
    labels: list[Literal[0, 1]] | None = Field(None, min_length=1, max_length=100)
    box: Box | None = None
    mask: RleMask | None = None

    @model_validator(mode="after")
    def _complete(self) -> Any:
        if self.points is None and self.box is None and self.mask is None:
            raise ValueError("give points with labels, a box, or both, or a mask")
        if (self.points is None) != (self.labels is None) or len(self.points or []) != len(self.labels or []):
            raise ValueError("points and labels go together, one label a point")
        return self


class StoreAs(Body):
    """Keep the answer in the lake's annotations: who says so, what it is, and its name there, by which it gets new versions."""

    author: Text
    label: Text | None = None
    object: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(
        None, description="Without one, an object is known by its author and by its box or first point."
    )


class SegmentClick(Prompted):
    """One object asked for; `multimask` is `multimask_output`."""

    multimask_output: bool = Field(
        True,
        validation_alias=AliasChoices("multimask_output", "multimask"),
        description="Three candidates, for an ambiguous click.",
    )
    mask_input: ImageBytes | None = Field(None, description="An earlier answer's low_res_logits: base64 of float32.")
    return_logits: bool = Field(
        False, description="Adds logits (height x width) and low_res_logits, base64 of float32."
    )
    max_hole_area: int = Field(0, ge=0, le=1_000_000, description="Holes of so many pixels of the model are filled.")
    max_sprinkle_area: int = Field(0, ge=0, le=1_000_000, description="Specks of so many are taken out.")
    store: StoreAs | None = Field(None, description="Keep the best candidate; of a session on a frame of the lake.")


class SegmentEverything(Body, GridFields):
    """Grids of points, layers of crops, and which masks are kept; see `vfm segment --everything`."""

    points_per_side: int = Field(32, ge=1, le=64, description="The grid of points is its square.")
    crop_n_layers: int = Field(0, ge=0, le=2, description="Look at 2 x 2 crops too, then at 4 x 4: small things.")

    store: StoreAs | None = Field(None, description="Keep all masks; of a session on a frame of the lake.")

    @model_validator(mode="after")
    def _affordable(self) -> SegmentEverything:
        if self.prompts() > MOST_GRID_POINTS:
            raise ValueError(
                f"{self.prompts()} points in all, crops included: ask about at most {MOST_GRID_POINTS}, "
                "with fewer points_per_side or a greater crop_n_points_downscale_factor"
            )
        return self


class TrackOpen(Body):
    """A video of the lake; uploaded ones go to /v1/track/uploads."""

    asset_id: Annotated[str, Field(min_length=1, max_length=200)]
    fill_hole_area: FillHoleArea = 0
    non_overlap_masks: bool = False


class TrackPrompt(Prompted):
    """What to follow: on which frame, by its number or its time, and under which number (`frame_idx` and `obj_id`, too).

    Points on a frame where the object has a mask correct that mask.
    """

    frame_index: int | None = Field(None, ge=0, le=10_000_000, validation_alias=FRAME_NAMES)
    pts_s: Finite | None = Field(None, description="Seconds since the first frame; the nearest frame is meant.")
    object_id: ObjectId = 1
    clear_old_points: bool = Field(True, description="False adds the points to those of the frame.")

    @model_validator(mode="after")
    def _placed(self) -> TrackPrompt:
        if (self.frame_index is None) == (self.pts_s is None):
            raise ValueError("give frame_index or pts_s, one of the two")
        if self.mask is not None and (self.points is not None or self.box is not None):
            raise ValueError("give a mask, or points and a box")
        return self


class TrackRemove(Body):
    """The object to forget."""

    object_id: ObjectId


class TrackClear(Body):
    """The frame and object whose prompts are taken back."""

    frame_index: int = Field(ge=0, le=10_000_000, validation_alias=FRAME_NAMES)
    object_id: ObjectId


class TrackStore(Body):
    """Keep what was tracked of each object, on all frames. labels, objects: what an object is and is called, by its number."""

    author: Text
    labels: dict[ObjectNumber, Text] = Field({}, max_length=1000)
    objects: dict[ObjectNumber, Annotated[str, Field(min_length=1, max_length=200)]] = Field({}, max_length=1000)


class Lasso(Body):
    """A region of the map: all frames inside are asked for, not only the shown ones. version, model, points: of the map."""

    polygon: list[tuple[Finite, Finite]] = Field(
        min_length=3, max_length=1000, description="Corners, as x, y of the map."
    )
    version: int = Field(ge=1, le=2**62)
    model: ModelName | None = None
    points: int = Field(MAP_POINTS, ge=10, le=20_000)


class SelectionRequest(Body):
    """Frames to be kept together under a new name."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    frame_ids: list[FrameId] = Field(min_length=1, max_length=MOST_SELECTED)


def one_image(body: Any) -> Any:
    """The body itself; ValueError unless it names one of image and frame_id."""
    if (body.image is None) == (body.frame_id is None):
        raise ValueError("give image or frame_id, one of the two")
    return body
