"""What speaks HTTP: FastAPI over the lake and the handles of the models. It holds no model and decodes nothing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from jobs.serve.context import Context
from jobs.serve.lake_view import LakeView
from jobs.serve.metrics import Metrics
from jobs.serve.problems import MEDIA_TYPE, Problem
from jobs.serve.routes import embedding, media, overview, search, vision
from jobs.serve.safety import Guard
from jobs.serve.settings import ServeSettings
from jobs.serve.uploads import Thumbnails

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# What every route may answer beside its own documents.
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        "4XX": "The request is wrong, too large, or not allowed.",
        "5XX": "The server can't answer it now.",
    }.items()
}


class Gateway:
    """The ingress deployment. settings: `ServeSettings` as plain values; embed, detect, segment, track: handles."""

    def __init__(
        self, settings: dict[str, Any], embed: Any, detect: dict[str, Any], segment: Any | None, track: Any | None
    ) -> None:
        chosen = ServeSettings(**settings)
        self._context = Context(
            settings=chosen,
            lake=LakeView(LakeView.open(chosen.lake).root),
            metrics=Metrics(),
            thumbnails=Thumbnails(chosen.limits.media()),
            embed=embed,
            detect=detect,
            segment=segment,
            track=track,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self._context)

    def close(self) -> None:
        """Stops its decoder."""
        self._context.thumbnails.close()

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self.close()


def make_api(context: Context) -> FastAPI:
    """The whole HTTP application."""
    api = FastAPI(
        title="vfm serve",
        version=_version(),
        description="Search, embed, classify, detect, segment and track over one lake.",
        docs_url=None,  # FastAPI's pages load scripts from a CDN
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        responses=PROBLEMS,
    )
    for module in (embedding, search, vision, media, overview):
        api.include_router(module.routes(context), prefix="/v1")
    _page_routes(api)
    api.add_exception_handler(HTTPException, _http_problem)
    api.add_exception_handler(RequestValidationError, _validation_problem)
    api.add_middleware(Guard, limits=context.settings.limits, token=context.settings.token(), metrics=context.metrics)
    _describe_problems(api)
    return api


def _page_routes(api: FastAPI) -> None:
    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        return _page_file("index.html")

    @api.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return _page_file(name)


def _page_file(name: str) -> Response:
    """One of the package's own files, by its name in a listing: never a path made of what a client sent."""
    files = {path.name: path for path in PAGE.iterdir() if path.suffix in PAGE_FILES}
    if name not in files:
        raise Problem(404, "", "There is no such page.")
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return FileResponse(files[name], media_type=PAGE_FILES[files[name].suffix], headers=headers)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "" if error.status_code in (404, 405) else str(error.detail)
    response = Problem(error.status_code, "", detail).response()
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # What was sent is not echoed: it may be an image.
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")[:100]
    message = str(first["msg"]).removeprefix("Value error, ")[:300]
    return Problem(422, "", f"{where}: {message}." if where else f"{message}.").response()


def _describe_problems(api: FastAPI) -> None:
    """Adds the schema of problems to OpenAPI, in place of FastAPI's own validation errors, and the bearer token."""
    made = api.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        parts = document.setdefault("components", {})
        schemas = parts.setdefault("schemas", {})
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        text, number = {"type": "string"}, {"type": "integer"}
        schemas["Problem"] = {
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {"type": text, "title": text, "status": number, "detail": text, "kind": text},
        }
        parts["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        return document

    api.openapi = openapi  # type: ignore[method-assign]


def _version() -> str:
    try:
        return version("vfm-pipelines")
    except PackageNotFoundError:
        return "0"
