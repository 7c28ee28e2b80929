"""Query parameters by the names that a route has: a misspelt one would silently do nothing."""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from server.api.problems import invalid


def refuse_unknown(request: Request) -> None:
    """Refuse a query parameter that the route does not have.

    Raises:
        Problem: invalid.
    """
    if not request.query_params:
        return
    known = sorted(set(_names(request.scope["route"].dependant)))
    for name in request.query_params:
        if name not in known:
            those = f"it has {', '.join(known)}" if known else "it has none"
            raise invalid(name, f"this route has no such query parameter; {those}", "query")


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (parameter.alias for parameter in dependant.query_params)
    for other in dependant.dependencies:
        yield from _names(other)
