"""ASGI application of the gallery: pages are built from the files on disk for each request; nothing is written."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import PurePosixPath

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sdft.apps.gallery.comparison_page import build_comparison_page
from sdft.apps.gallery.http_security import SecurityMiddleware, build_report_policy
from sdft.apps.gallery.metric_panels import build_panels
from sdft.apps.gallery.overview_page import RunFilter, build_overview
from sdft.apps.gallery.run_facts import RUN_STATES
from sdft.apps.gallery.run_index import IndexedRun, RunIndex, get_modified_time
from sdft.apps.gallery.run_page import CONTENT_TYPES, build_run_page, collect_samples
from sdft.apps.gallery.sample_images import render_strip
from sdft.evaluation.plots.templates import TEMPLATE_FOLDER, get_jinja_environment
from sdft.runs.links import resolve_safe_path
from sdft.runs.metrics_file import METRICS_FILE

STATIC_TYPES = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "gallery_charts.js": "text/javascript",
    "gallery.svg": "image/svg+xml",
}
MAX_CACHED_RESPONSES = 512  # curves and strips in memory
CACHE_HEADERS = {"cache-control": "private, max-age=3600"}  # for images that never change, or whose address does


class Gallery:
    """Request handlers, one per route."""

    def __init__(self, run_index: RunIndex):
        self.run_index, self.report_policy = run_index, build_report_policy()
        self.cache: OrderedDict[tuple, object] = OrderedDict()

    def show_overview(self, request: Request) -> Response:
        query = request.query_params
        state = query.get("state", "")
        run_filter = RunFilter(
            query.get("q", "")[:500],
            state if state in RUN_STATES else "",
            query.get("in", ""),
            parse_page_number(query.get("page")) or 1,
        )
        return render_page("gallery.html", build_overview(self.run_index, run_filter))

    def show_run(self, request: Request) -> Response:
        return render_page("gallery_run.html", build_run_page(self.get_run(request.path_params["id"])))

    def show_comparison(self, request: Request) -> Response:
        ids = request.query_params.getlist("run")
        if not 1 <= len(ids) <= 2:
            return render_error(f"Choose two runs to compare; got {len(ids)}.", 400)
        one, other = self.get_run(ids[0]), self.get_run(ids[-1])
        steps = [parse_page_number(step) for step in request.query_params.getlist("step")[:2]]
        return render_page("gallery_pair.html", build_comparison_page(one, other, (*steps, None, None)[:2]))

    def send_curves(self, request: Request) -> Response:
        run = self.get_run(request.path_params["id"])
        return render_json(self.get_cached("curves", run, METRICS_FILE, lambda: build_panels(run.folder)))

    def send_samples(self, request: Request) -> Response:
        return render_json(collect_samples(self.get_run(request.path_params["id"])))

    def send_strip(self, request: Request) -> Response:
        run = self.get_run(request.path_params["id"])
        strip = self.get_cached("strip", run, "samples.png", lambda: render_strip(run.folder))
        if strip is None:
            return Response(status_code=204)  # browsers do not report it as an error
        return Response(strip, media_type="image/png", headers=CACHE_HEADERS)

    def send_file(self, request: Request) -> Response:
        address = request.path_params["path"]
        content_type = CONTENT_TYPES.get(PurePosixPath(address).suffix.lower())
        if content_type is None:
            raise HTTPException(404)
        try:
            content = self.run_index.read_file(address)
        except OSError:
            raise HTTPException(404) from None
        headers = {"content-type": content_type}
        if content_type.startswith("text/html"):
            headers["content-security-policy"] = self.report_policy
        elif content_type.startswith("image/") and "/samples/step-" in address:
            headers |= CACHE_HEADERS
        return Response(content, headers=headers)

    def send_static_file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_TYPES:
            raise HTTPException(404)
        return Response((TEMPLATE_FOLDER / name).read_bytes(), media_type=STATIC_TYPES[name])

    def get_run(self, id: str) -> IndexedRun:
        run = self.run_index.find_run(id)
        if run is None:
            raise HTTPException(404)
        return run

    def get_cached(self, kind: str, run: IndexedRun, file: str, build: Callable):
        """Result of `build`, cached until `file` of the run changes."""
        try:
            status = resolve_safe_path(run.folder, file).stat()
            stamp = (status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = (get_modified_time(run.folder / "samples"), 0)
        key = (kind, run.folder)
        entry = self.cache.pop(key, None)
        entry = entry if entry and entry[0] == stamp else (stamp, build())
        self.cache[key] = entry
        if len(self.cache) > MAX_CACHED_RESPONSES:
            self.cache.pop(next(iter(self.cache)), None)
        return entry[1]


def create_app(run_index: RunIndex) -> SecurityMiddleware:
    gallery = Gallery(run_index)
    routes = [
        Route("/", gallery.show_overview),
        Route("/run/{id:path}", gallery.show_run),
        Route("/compare", gallery.show_comparison),
        Route("/curves/{id:path}", gallery.send_curves),
        Route("/samples/{id:path}", gallery.send_samples),
        Route("/strip/{id:path}", gallery.send_strip),
        Route("/file/{path:path}", gallery.send_file),
        Route("/static/{name}", gallery.send_static_file),
    ]
    return SecurityMiddleware(
        Starlette(routes=routes, exception_handlers={HTTPException: handle_error, OSError: handle_error})
    )


def handle_error(request: Request, error: Exception) -> Response:
    """Missing pages, and folders deleted while they are read."""
    return render_error("This page does not exist, or no longer.", getattr(error, "status_code", 404))


def render_page(template: str, context: dict, status: int = 200) -> Response:
    text = get_jinja_environment().get_template(template).render(context)
    return Response(text.encode("utf-8", "replace"), status, media_type="text/html")


def render_error(message: str, status: int) -> Response:
    return render_page("gallery_gone.html", {"message": message}, status)


def render_json(value) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def parse_page_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None
