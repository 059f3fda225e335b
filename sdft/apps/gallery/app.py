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

from sdft.apps.gallery.comparison_page import pair_page
from sdft.apps.gallery.metric_series import FILE, panels
from sdft.apps.gallery.overview_page import Asked, overview
from sdft.apps.gallery.run_facts import STATES
from sdft.apps.gallery.run_index import Run, Shelf, changed
from sdft.apps.gallery.run_page import KINDS, run_page, samples
from sdft.apps.gallery.safe_paths import own
from sdft.apps.gallery.sample_images import strip
from sdft.apps.gallery.security import Guard, policy_of_reports
from sdft.evaluation.plots.templates import FOLDER, environment

STATIC = {
    "gallery.css": "text/css",
    "gallery.js": "text/javascript",
    "gallery_charts.js": "text/javascript",
    "gallery.svg": "image/svg+xml",
}
REMEMBERED = 512  # answers that took work
FOREVER = {"cache-control": "private, max-age=3600"}  # of pictures that never change, or whose address does


class Gallery:
    def __init__(self, shelf: Shelf):
        self.shelf, self.reports = shelf, policy_of_reports()
        self.memory: OrderedDict[tuple, object] = OrderedDict()

    def overview(self, request: Request) -> Response:
        given = request.query_params
        state = given.get("state", "")
        asked = Asked(
            given.get("q", "")[:500],
            state if state in STATES else "",
            given.get("in", ""),
            whole(given.get("page")) or 1,
        )
        return page("gallery.html", overview(self.shelf, asked))

    def run(self, request: Request) -> Response:
        return page("gallery_run.html", run_page(self.found(request.path_params["id"])))

    def pair(self, request: Request) -> Response:
        ids = request.query_params.getlist("run")
        if not 1 <= len(ids) <= 2:
            return gone(f"Choose two runs to compare; these are {len(ids)}.", 400)
        one, other = self.found(ids[0]), self.found(ids[-1])
        steps = [whole(step) for step in request.query_params.getlist("step")[:2]]
        return page("gallery_pair.html", pair_page(one, other, (*steps, None, None)[:2]))

    def curves(self, request: Request) -> Response:
        run = self.found(request.path_params["id"])
        return data(self.remembered("curves", run, FILE, lambda: panels(run.folder)))

    def samples(self, request: Request) -> Response:
        return data(samples(self.found(request.path_params["id"])))

    def strip(self, request: Request) -> Response:
        run = self.found(request.path_params["id"])
        picture = self.remembered("strip", run, "samples.png", lambda: strip(run.folder))
        if picture is None:
            return Response(status_code=204)  # which a browser does not call an error
        return Response(picture, media_type="image/png", headers=FOREVER)

    def file(self, request: Request) -> Response:
        address = request.path_params["path"]
        kind = KINDS.get(PurePosixPath(address).suffix.lower())
        if kind is None:
            raise HTTPException(404)
        try:
            content = self.shelf.content(address)
        except OSError:
            raise HTTPException(404) from None
        headers = {"content-type": kind}
        if kind.startswith("text/html"):
            headers["content-security-policy"] = self.reports
        elif kind.startswith("image/") and "/samples/step-" in address:
            headers |= FOREVER
        return Response(content, headers=headers)

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404)
        return Response((FOLDER / name).read_bytes(), media_type=STATIC[name])

    def found(self, id: str) -> Run:
        run = self.shelf.find(id)
        if run is None:
            raise HTTPException(404)
        return run

    def remembered(self, what: str, run: Run, file: str, make: Callable):
        """What was made from a file of a run, as long as that is the same."""
        try:
            told = own(run.folder, file).stat()
            stamp = (told.st_mtime_ns, told.st_size)
        except OSError:
            stamp = (changed(run.folder / "samples"), 0)
        key = (what, run.folder)
        before = self.memory.pop(key, None)
        now = before if before and before[0] == stamp else (stamp, make())
        self.memory[key] = now
        if len(self.memory) > REMEMBERED:
            self.memory.pop(next(iter(self.memory)), None)
        return now[1]


def application(shelf: Shelf) -> Guard:
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
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: refused, OSError: refused}))


def refused(request: Request, error: Exception) -> Response:
    """What is not there, or no longer: a folder may vanish while it is looked at."""
    return gone("There is no such page, or no longer.", getattr(error, "status_code", 404))


def page(template: str, context: dict, status: int = 200) -> Response:
    text = environment().get_template(template).render(context)
    return Response(text.encode("utf-8", "replace"), status, media_type="text/html")


def gone(said: str, status: int) -> Response:
    return page("gallery_gone.html", {"said": said}, status)


def data(value) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 12 else None
