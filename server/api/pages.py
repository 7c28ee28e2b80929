"""The pages for browsers: files of `server/web`, served with headers that keep strangers out."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

from server.api.problems import Problem

router = APIRouter(include_in_schema=False)

WEB: Final = Path(__file__).parents[1] / "web"
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing is loaded from elsewhere, nothing inline runs, and no other page may frame this one.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# Read once: what a running server shows does not change under it.
_FILES: Final = {
    path.name: (path.read_bytes(), MEDIA_TYPES[path.suffix])
    for path in sorted(WEB.iterdir())
    if path.suffix in MEDIA_TYPES
}


@router.get("/")
async def playground() -> Response:
    """The playground."""
    return _page("playground.html")


@router.get("/admin")
async def operators() -> Response:
    """The operators' page."""
    return _page("admin.html")


@router.get("/web/{name}")
async def web_file(name: str) -> Response:
    """A file that a page asks for."""
    return _page(name)


def _page(name: str) -> Response:
    if name not in _FILES:
        raise Problem("not-found", f"there is no page {name!r}")
    content, media_type = _FILES[name]
    return Response(content, media_type=media_type, headers=HEADERS)
