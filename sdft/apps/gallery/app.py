"""The pages of a shelf of runs as an ASGI application: what is on the disk now, read for each request, and never written."""

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
from sdft.apps.gallery.metric_series import METRICS_CSV, build_panels
from sdft.apps.gallery.overview_page import RunFilter, build_overview
from sdft.apps.gallery.run_facts import RUN_STATES
from sdft.apps.gallery.run_index import IndexedRun, RunIndex, get_modified_time
from sdft.apps.gallery.run_page import CONTENT_TYPES, build_run_page, collect_samples
from sdft.apps.gallery.safe_paths import resolve_safe_path
from sdft.apps.gallery.sample_images import render_strip
from sdft.apps.gallery.security import SecurityMiddleware, build_report_policy
from sdft.evaluation.plots.templates import TEMPLATE_FOLDER, get_jinja_environment

STATIC_TYPES = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "gallery_charts.js": "text/javascript",
    "gallery.svg": "image/svg+xml",
}
MAX_CACHED_RESPONSES = 512  # answers that took work
CACHE_HEADERS = {"cache-control": "private, max-age=3600"}  # of pictures that never change, or whose address does


class Gallery:
    def __init__(self, shelf: RunIndex):
        self.run_index, self.reports = shelf, build_report_policy()
        self.memory: OrderedDict[tuple, object] = OrderedDict()

    def overview(self, request: Request) -> Response:
        given = request.query_params
        state = given.get("state", "")
        run_filter = RunFilter(
            given.get("q", "")[:500],
            state if state in RUN_STATES else "",
            given.get("in", ""),
            parse_page_number(given.get("page")) or 1,
        )
        return render_page("gallery.html", build_overview(self.run_index, run_filter))

    def run(self, request: Request) -> Response:
        return render_page("gallery_run.html", build_run_page(self.found(request.path_params["id"])))

    def pair(self, request: Request) -> Response:
        ids = request.query_params.getlist("run")
        if not 1 <= len(ids) <= 2:
            return render_error(f"Choose two runs to compare; these are {len(ids)}.", 400)
        one, other = self.found(ids[0]), self.found(ids[-1])
        steps = [parse_page_number(step) for step in request.query_params.getlist("step")[:2]]
        return render_page("gallery_pair.html", build_comparison_page(one, other, (*steps, None, None)[:2]))

    def curves(self, request: Request) -> Response:
        run = self.found(request.path_params["id"])
        return json_response(self.remembered("curves", run, METRICS_CSV, lambda: build_panels(run.folder)))

    def samples(self, request: Request) -> Response:
        return json_response(collect_samples(self.found(request.path_params["id"])))

    def strip(self, request: Request) -> Response:
        run = self.found(request.path_params["id"])
        picture = self.remembered("strip", run, "samples.png", lambda: render_strip(run.folder))
        if picture is None:
            return Response(status_code=204)  # which a browser does not call an error
        return Response(picture, media_type="image/png", headers=CACHE_HEADERS)

    def file(self, request: Request) -> Response:
        address = request.path_params["path"]
        kind = CONTENT_TYPES.get(PurePosixPath(address).suffix.lower())
        if kind is None:
            raise HTTPException(404)
        try:
            content = self.run_index.content(address)
        except OSError:
            raise HTTPException(404) from None
        headers = {"content-type": kind}
        if kind.startswith("text/html"):
            headers["content-security-policy"] = self.reports
        elif kind.startswith("image/") and "/samples/step-" in address:
            headers |= CACHE_HEADERS
        return Response(content, headers=headers)

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC_TYPES:
            raise HTTPException(404)
        return Response((TEMPLATE_FOLDER / name).read_bytes(), media_type=STATIC_TYPES[name])

    def found(self, id: str) -> IndexedRun:
        run = self.run_index.find(id)
        if run is None:
            raise HTTPException(404)
        return run

    def remembered(self, what: str, run: IndexedRun, file: str, make: Callable):
        """What was made from a file of a run, as long as that is the same."""
        try:
            told = resolve_safe_path(run.folder, file).stat()
            stamp = (told.st_mtime_ns, told.st_size)
        except OSError:
            stamp = (get_modified_time(run.folder / "samples"), 0)
        key = (what, run.folder)
        before = self.memory.pop(key, None)
        now = before if before and before[0] == stamp else (stamp, make())
        self.memory[key] = now
        if len(self.memory) > MAX_CACHED_RESPONSES:
            self.memory.pop(next(iter(self.memory)), None)
        return now[1]


def create_app(shelf: RunIndex) -> SecurityMiddleware:
    gallery = Gallery(shelf)
    routes = [
        Route("/", gallery.overview),
        Route("/run/{id:path}", gallery.run),
        Route("/compare", gallery.pair),
        Route("/curves/{id:path}", gallery.curves),
        Route("/samples/{id:path}", gallery.samples),
        Route("/strip/{id:path}", gallery.strip),
        Route("/file/{path:path}", gallery.file),
        Route("/static/{name}", gallery.static),
    ]
    return SecurityMiddleware(
        Starlette(routes=routes, exception_handlers={HTTPException: handle_error, OSError: handle_error})
    )


def handle_error(request: Request, error: Exception) -> Response:
    """What is not there, or no longer: a folder may vanish while it is looked at."""
    return render_error("There is no such page, or no longer.", getattr(error, "status_code", 404))


def render_page(template: str, context: dict, status: int = 200) -> Response:
    text = get_jinja_environment().get_template(template).render(context)
    return Response(text.encode("utf-8", "replace"), status, media_type="text/html")


def render_error(message: str, status: int) -> Response:
    return render_page("gallery_gone.html", {"message": message}, status)


def json_response(value) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def parse_page_number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None
