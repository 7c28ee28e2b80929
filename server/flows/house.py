"""A version of a tenant's house, as sessions are derived from it."""

from dataclasses import dataclass

from adapters.state import AdapterState
from server.sessions import Pointer


@dataclass(frozen=True)
class House:
    """A version of a house: its adapter, and the ids of the house's items that it contains."""

    pointer: Pointer
    state: AdapterState
    items: tuple[int, ...]

    @property
    def name(self) -> str:
        """The version, as records of what is derived from it name it."""
        return self.pointer.name
