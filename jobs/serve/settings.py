"""What a server is told: the lake, the models with their devices, and the limits that protect it. Validated on making."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vfm_ops.media.limits import Limits

Precision = Literal["auto", "exact", "bf16", "fp16"]


class Strict(BaseModel):
    """An unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelChoice(Strict):
    """One model of the server. spec: family:name-or-path. gpus, cpus: what one replica reserves. replicas: least and most;
    a least of 0 starts the first replica when it is first asked for."""

    spec: str
    device: str = "auto"
    precision: Precision = "auto"
    gpus: float = Field(0.0, ge=0)
    cpus: float = Field(0.0, ge=0)
    replicas: tuple[int, int] = (0, 1)

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] <= value[1] or value[1] < 1:
            raise ValueError("replicas is [least, most] with 0 <= least <= most and most >= 1")
        return value

    @property
    def is_eager(self) -> bool:
        """Whether the server does not start without this model."""
        return self.replicas[0] > 0


class EmbedChoice(Strict):
    """The replicas that embed: they hold several models, and answer for each column of the lake with the model that made it.

    extra: models served beyond the lake's own. models_at_once: held by one replica; the least recently used one goes first.
    batch: most images of one pass; by default what suits the device.
    """

    extra: tuple[str, ...] = ()
    device: str = "auto"
    gpus: float = Field(0.0, ge=0)
    cpus: float = Field(0.0, ge=0)
    replicas: tuple[int, int] = (1, 1)
    models_at_once: int = Field(3, ge=1)
    batch: int | None = Field(None, ge=1)
    decoders: int = Field(1, ge=1)


class RequestLimits(Strict):
    """What one request, or all of them together, may cost.

    body_bytes: of an image request. json_values: of a JSON body, by its commas: the loop that answers everybody reads it.
    video_bytes, video_s: of an uploaded video. pixels: of an image or video frame.
    batch: images or texts of one request. in_flight: requests answered at once by one gateway; one whose body is still on its
    way is none of them. bodies: on their way at once; body_grace_s, body_rate: a body must be whole after so many seconds, and
    another for each so many bytes. stall_s: a client that takes nothing of a stream for so long is let go. sessions: open at
    once, of each kind and replica. session_s: a session that is not used for so long is forgotten. deadline_s: of a request.
    results: deepest rank that pages of a search reach.
    """

    body_bytes: int = Field(32 << 20, ge=1024)
    json_values: int = Field(250_000, ge=1)
    video_bytes: int = Field(512 << 20, ge=1024)
    video_s: float = Field(3600.0, gt=0)
    pixels: int = Field(50_000_000, ge=1)
    batch: int = Field(256, ge=1)
    in_flight: int = Field(64, ge=1)
    bodies: int = Field(256, ge=1)
    body_grace_s: float = Field(10.0, gt=0)
    body_rate: int = Field(16 << 10, ge=1)
    stall_s: float = Field(300.0, gt=0)
    sessions: int = Field(32, ge=1)
    session_s: float = Field(300.0, gt=0)
    deadline_s: float = Field(60.0, gt=0)
    results: int = Field(5000, ge=1)

    def media(self) -> Limits:
        """The same limits as the decoder sandbox takes them."""
        return Limits(
            max_pixels=self.pixels,
            max_image_bytes=self.body_bytes,
            max_bytes=self.video_bytes,
            max_duration_s=self.video_s,
            deadline_s=min(20.0, self.deadline_s),
            memory_mb=2048,
        )


class ServeSettings(Strict):
    """A whole server. lake: directory or object-store prefix. token_env: environment variable that holds the bearer token.

    selections: whether requests may write selections and annotations into the lake (nothing else is ever written).
    gateways: replicas that speak HTTP behind Ray's proxies; 0 where the process that starts the server does, as `vfm serve`.
    """

    lake: str
    embed: EmbedChoice = EmbedChoice()
    detect: tuple[ModelChoice, ...] = ()
    segment: ModelChoice | None = None
    track: ModelChoice | None = None
    limits: RequestLimits = RequestLimits()
    token_env: str = "VFM_TOKEN"
    selections: bool = True
    gateways: int = Field(1, ge=0)

    def token(self) -> str | None:
        """The bearer token of this process' environment; None where none is set."""
        return os.environ.get(self.token_env) or None
