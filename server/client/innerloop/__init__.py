"""A client of an innerloop server, sync and async.

from innerloop import Client

with Client("http://127.0.0.1:8000") as client:
    shop = client.session("shop-1")
    shop.adapt([("How do I return something?", "Keep it sixty days, then send it back.")])
    print(shop.generate("can I return this?").text)
"""

from innerloop.aio import AsyncClient, AsyncSession
from innerloop.errors import (
    Conflict,
    Forbidden,
    InnerloopError,
    Invalid,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
)
from innerloop.house import AsyncHouse, House
from innerloop.sync import Client, Session
from innerloop.types import (
    Adapted,
    Answer,
    Event,
    Example,
    HouseInfo,
    Item,
    Learned,
    Preference,
    SessionInfo,
    Token,
)

__all__ = [
    "Adapted",
    "Answer",
    "AsyncClient",
    "AsyncHouse",
    "AsyncSession",
    "Client",
    "Conflict",
    "Event",
    "Example",
    "Forbidden",
    "House",
    "HouseInfo",
    "InnerloopError",
    "Invalid",
    "Item",
    "Learned",
    "NotFound",
    "Preference",
    "RateLimited",
    "Session",
    "SessionInfo",
    "Token",
    "Unauthorized",
    "Unavailable",
]
