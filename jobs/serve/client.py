"""A typed client of `vfm serve`: plain methods, numpy vectors, one exception.

client = Client("http://127.0.0.1:8000", token="...")
for hit in client.search(text="a red bicycle", limit=5).hits: print(hit.score, hit.name, hit.pts_s)
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from vfm_ops.errors import UsageError, VfmError
from vfm_ops.track.masks import Rle, encode_rle

Image = bytes | str | os.PathLike
Box = Sequence[float]
T = TypeVar("T")


class ServerError(VfmError):
    """The server's problem+json. status: HTTP. retry_after_s: when to try again, where it said so."""

    def __init__(self, status: int, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.retry_after_s = status, retry_after_s


@dataclass(frozen=True)
class Hit:
    """A frame that was found. score: cosine, None when browsing. pts_s: seconds into its video."""

    frame_id: str
    asset_id: str
    score: float | None
    frame_index: int | None
    pts_s: float | None
    width: int | None
    height: int | None
    media_type: str | None
    name: str


@dataclass(frozen=True)
class Page:
    """A page of hits. next_offset: where the next one begins; None on the last."""

    hits: list[Hit]
    next_offset: int | None
    model: str | None
    lake_version: int


@dataclass(frozen=True)
class Detection:
    """box: xyxy in pixels."""

    label: str
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Mask:
    """rle: COCO RLE (`pycocotools.mask.decode`). box: xyxy. score: the model's own estimate of its IoU. logits: float32
    (height, width), low_res_logits: as `mask_input` takes them; both only where they were asked for."""

    rle: dict[str, Any]
    box: tuple[float, ...]
    score: float
    area: int
    logits: np.ndarray | None = None
    low_res_logits: np.ndarray | None = None


class Client:
    """One server. token: the bearer token; by default that of VFM_TOKEN. Thread-safe as far as one `requests` session is."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 60.0) -> None:
        import requests

        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{url!r} is no server's address: write http://HOST:PORT")
        self._url, self._timeout, self._http = url.rstrip("/") + "/v1/", timeout_s, requests.Session()
        if token := token or os.environ.get("VFM_TOKEN"):
            self._http.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """status and lake_version."""
        return self._get("health")

    def models(self) -> dict[str, Any]:
        """The models that answer, by task."""
        return self._get("models")

    def embed(self, *, images: Sequence[Image] = (), texts: Sequence[str] = (), model: str | None = None) -> np.ndarray:
        """Unit vectors, float32 (n, D), of images (paths or encoded bytes) or of texts."""
        body: dict[str, Any] = {"model": model, "encoding": "base64"}
        body |= {"images": [_base64(i) for i in images]} if len(images) else {"texts": list(texts)}
        answer = self._post("embed", body)
        flat = np.frombuffer(base64.b64decode(answer["embeddings"]), "<f4")
        return flat.reshape(answer["count"], answer["dim"])

    def search(
        self,
        *,
        text: str | None = None,
        image: Image | None = None,
        frame_id: str | None = None,
        box: Box | None = None,
        where: str | None = None,
        model: str | None = None,
        limit: int = 10,
        offset: int = 0,
    ) -> Page:
        """The frames most like a text, an image, a frame of the lake, or a box (xyxy) of either; best first."""
        query = {"text": text, "frame_id": frame_id, "box": box, "where": where, "model": model}
        query["image"] = None if image is None else _base64(image)
        body = {k: v for k, v in query.items() if v is not None}
        return _page(self._post("search", body | {"limit": limit, "offset": offset}))

    def frames(self, *, where: str | None = None, limit: int = 100, offset: int = 0) -> Page:
        """Frames as they lie in the lake, under a filter."""
        return _page(self._get("frames", where=where, limit=limit, offset=offset))

    def frame(self, frame_id: str, thumbnail: bool = False) -> bytes:
        """A frame's picture, encoded."""
        size = "thumbnail" if thumbnail else "full"
        return self._request("GET", f"frames/{quote(frame_id, safe='')}", params={"size": size}).content

    def classify(
        self,
        images: Sequence[Image],
        labels: Sequence[str],
        templates: Sequence[str] = ("a photo of a {}.",),
        top: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """For each image its best labels with their probabilities."""
        body = {
            "images": [_base64(i) for i in images],
            "labels": list(labels),
            "templates": list(templates),
            "top": top,
        }
        return [[(r["label"], r["probability"]) for r in row] for row in self._post("classify", body)]

    def detect(self, image: Image, prompts: Sequence[str], threshold: float | None = None) -> list[Detection]:
        """Boxes of what the prompts name, best first."""
        body = {"image": _base64(image), "prompts": list(prompts), "threshold": threshold}
        return [_only(Detection, d) for d in self._post("detect", body)["detections"]]

    def segment(self, image: Image | None = None, frame_id: str | None = None) -> SegmentSession:
        """Encodes an image or a frame of the lake once; clicks are then asked of the session. A context manager."""
        body = {"frame_id": frame_id} if image is None else {"image": _base64(image)}
        return SegmentSession(self, self._post("segment/sessions", body))

    def track(
        self,
        asset_id: str | None = None,
        video: str | os.PathLike | None = None,
        fill_hole_area: int = 0,
        non_overlap_masks: bool = False,
    ) -> TrackSession:
        """A session over a video of the lake, or over a file that is uploaded. A context manager."""
        settings = {"fill_hole_area": fill_hole_area, "non_overlap_masks": non_overlap_masks}
        if video is None:
            return TrackSession(self, self._post("track/sessions", {"asset_id": asset_id, **settings}))
        with open(video, "rb") as file:
            answer = self._request("POST", "track/uploads", params=settings, files={"file": file})
            return TrackSession(self, answer.json())

    def _get(self, path: str, **query: Any) -> Any:
        return self._request("GET", path, params=query).json()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request("POST", path, json=body).json()

    def _request(self, method: str, path: str, **options: Any) -> Any:
        import requests

        try:
            response = self._http.request(method, self._url + path, timeout=self._timeout, **options)
        except requests.RequestException as error:
            raise VfmError(
                f"no answer from {self._url}: {type(error).__name__}; is `vfm serve` running there?"
            ) from error
        if response.ok:
            return response
        try:
            problem = response.json()
            detail = problem.get("detail") or problem["title"]
        except (ValueError, KeyError):
            detail = f"the server answered {response.status_code}"
        wait = response.headers.get("Retry-After")
        raise ServerError(response.status_code, detail, float(wait) if wait else None)


class _Session:
    """id: of the session. facts: what the server told when it was opened (width, height, ...)."""

    kind = ""

    def __init__(self, client: Client, facts: dict[str, Any]) -> None:
        self._client, self.id, self.facts = client, facts["session"], facts

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees what the server holds; a session that expired already is fine."""
        try:
            self._client._request("DELETE", f"{self.kind}/sessions/{self.id}")
        except ServerError as error:
            if error.status != 404:
                raise


class SegmentSession(_Session):
    """An encoded image."""

    kind = "segment"

    def click(
        self,
        points: Sequence[Box] | None = None,
        labels: Sequence[int] | None = None,
        box: Box | None = None,
        *,
        mask: Rle | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        max_hole_area: int = 0,
        max_sprinkle_area: int = 0,
        store: dict[str, str] | None = None,
    ) -> list[Mask]:
        """Candidate masks of one object, best first. labels: 1 on the object, 0 off it. mask: a coarse one, COCO RLE; or
        mask_input: an earlier answer's `low_res_logits`. store: author, label, object: keeps the best in the annotations."""
        body = {
            **_prompt(points, labels, box, mask),
            "multimask_output": multimask_output,
            "return_logits": return_logits,
        }
        body |= {"max_hole_area": max_hole_area, "max_sprinkle_area": max_sprinkle_area}
        if mask_input is not None:
            body["mask_input"] = base64.b64encode(np.asarray(mask_input, "<f4").tobytes()).decode()
        if store is not None:
            body["store"] = store
        answer = self._client._post(f"segment/sessions/{self.id}", body)
        size = self.facts["height"], self.facts["width"]
        return [_mask(candidate, size) for candidate in answer["candidates"]]

    def everything(self, **grid: Any) -> list[Mask]:
        """Every object, best first. grid: `store`, and the settings of `vfm_ops.segment.grid_settings.GridFields`, by name."""
        answer = self._client._post(f"segment/sessions/{self.id}/everything", grid)
        return [_mask(found, (0, 0)) for found in answer["masks"]]


class TrackSession(_Session):
    """A video whose objects are followed; its methods are those of `vfm_ops.track.session.VideoSession`."""

    kind = "track"

    def prompt(
        self,
        frame_index: int,
        object_id: int = 1,
        points: Sequence[Box] | None = None,
        labels: Sequence[int] | None = None,
        box: Box | None = None,
        mask: Rle | None = None,
        clear_old_points: bool = True,
    ) -> dict[str, Any]:
        """What to follow, or a correction of it on a frame that was tracked already. mask: COCO RLE. Returns the object on
        that frame, as `stream` has it."""
        body = {"frame_index": frame_index, "object_id": object_id, **_prompt(points, labels, box, mask)}
        return self._call("prompts", body | {"clear_old_points": clear_old_points})["object"]

    def add_new_points_or_box(
        self,
        frame_idx: int,
        obj_id: int,
        points: Sequence[Box] | None = None,
        labels: Sequence[int] | None = None,
        clear_old_points: bool = True,
        box: Box | None = None,
    ) -> dict[str, Any]:
        """See `prompt`."""
        return self.prompt(frame_idx, obj_id, points, labels, box, clear_old_points=clear_old_points)

    def add_new_mask(self, frame_idx: int, obj_id: int, mask: np.ndarray) -> dict[str, Any]:
        """See `prompt`. mask: bool (height, width)."""
        return self.prompt(frame_idx, obj_id, mask=encode_rle(np.asarray(mask, bool)))

    def propagate_in_video(
        self, start_frame_idx: int | None = None, max_frame_num_to_track: int | None = None, reverse: bool = False
    ) -> Iterator[dict[str, Any]]:
        """See `stream`. max_frame_num_to_track: frames beyond the first."""
        frames = 100_000 if max_frame_num_to_track is None else max_frame_num_to_track + 1
        return self.stream(frames, start_frame_idx, reverse)

    def remove_object(self, obj_id: int) -> None:
        """Forgets an object and its prompts."""
        self._call("remove_object", {"object_id": obj_id})

    def clear_all_prompts_in_frame(self, frame_idx: int, obj_id: int) -> None:
        """Takes back what was said of an object on a frame."""
        self._call("clear_all_prompts_in_frame", {"frame_index": frame_idx, "object_id": obj_id})

    def store(self, author: str, labels: dict[int, str] | None = None, objects: dict[int, str] | None = None) -> int:
        """Keeps what was tracked in the lake's annotations. labels, objects: what an object is, and is called, by number.
        Returns how many rows."""
        return self._call("store", {"author": author, "labels": labels or {}, "objects": objects or {}})["stored"]

    def reset_state(self) -> None:
        """Forgets all objects and prompts."""
        self._call("reset_state", {})

    def _call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._client._post(f"track/sessions/{self.id}/{name}", body)

    def stream(
        self, frames: int = 100_000, start_frame_idx: int | None = None, reverse: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Results as they are made: frame_index, pts_s, objects (object_id, visible, score, mask, box).

        Without `start_frame_idx`, of what is not tracked yet, or was changed by a prompt since.
        """
        path = f"track/sessions/{self.id}/stream"
        query = {"frames": frames, "start_frame_idx": start_frame_idx, "reverse": reverse}
        with self._client._request("GET", path, params=query, stream=True) as response:
            for line in response.iter_lines():
                result = json.loads(line)
                if "error" in result:
                    raise ServerError(result["error"]["status"], result["error"]["detail"])
                yield result


def _prompt(points: Any, labels: Any, box: Any, mask: Any) -> dict[str, Any]:
    given = {"points": points, "labels": labels, "box": box}
    body = {name: np.asarray(value).tolist() for name, value in given.items() if value is not None}
    return body if mask is None else body | {"mask": mask}


def _mask(answer: dict[str, Any], size: tuple[int, int]) -> Mask:
    """size: (height, width) of the image. An answer's own logits are square."""
    made = Mask(answer["mask"], tuple(answer["box"]), answer["score"], answer["area"])
    if "logits" not in answer:
        return made
    full, low = (np.frombuffer(base64.b64decode(answer[k]), "<f4") for k in ("logits", "low_res_logits"))
    side = round(len(low) ** 0.5)
    return replace(made, logits=full.reshape(size), low_res_logits=low.reshape(side, side))


def _page(answer: dict[str, Any]) -> Page:
    hits = [_only(Hit, h) for h in answer["hits"]]
    return Page(hits, answer["next_offset"], answer["model"], answer["lake_version"])


def _only(cls: type[T], values: dict[str, Any]) -> T:
    """A dataclass of the fields it knows: a newer server may tell more."""
    return cls(**{f.name: values[f.name] for f in fields(cls)})  # type: ignore[arg-type]


def _base64(image: Image) -> str:
    if isinstance(image, bytes):
        return base64.b64encode(image).decode()
    try:
        with open(image, "rb") as file:
            return base64.b64encode(file.read()).decode()
    except OSError as error:
        raise UsageError(f"cannot read {os.fspath(image)}: {error.strerror}") from error
