"""torch's process group, if the program has one up: this process's rank in it, and the session that rank 0 names.

torch is never imported here. The name goes through the group's own key-value store, by one key and no collective, and
only at a tracker's start: the exception to the rule that ranks do not talk to each other, for where nothing else tells
all of them which session they are. Under torchrun that store is the agents', who keep it while they restart their
ranks: there each rank also counts its starts, since an agent counts only the failures of its own ranks.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

AGREE_TIMEOUT_S: Final = 10.0

# How often this process has asked, for a key of its own each time: every rank counts alike.
_agreed: Final[list[int]] = [0]
_started: Final[list[int]] = [0]


@attrs.frozen
class TorchGroup:
    """The default process group of more than one rank.

    Attributes:
        rank: this process's.
        world_size: how many there are.
        find_store: returns the group's store.
    """

    rank: int
    world_size: int
    find_store: Callable[[], Any]

    def session_of_rank_0(self, own: str, timeout_s: float = AGREE_TIMEOUT_S) -> str | None:
        """Return the session that rank 0 names to all ranks; None if it names none in time.

        Each rank calls it equally often. `own` is what rank 0 names, unless it has named one before it was restarted.
        """
        _agreed[0] += 1
        key = f"stormphase/session/{_agreed[0]}"
        try:
            store = self.find_store()
            if self.rank == 0 and not store.check([key]):
                store.set(key, own)
                return own
            store.wait([key], dt.timedelta(seconds=timeout_s))
            return str(store.get(key).decode("ascii"))
        except Exception:  # noqa: BLE001 - no store, another version's API, rank 0 not there, a connection that broke
            return None

    def starts(self) -> int | None:
        """Return how often this rank has asked for this, in the life of the store; None if the store cannot tell.

        Each rank calls it equally often. Never waits for another rank.
        """
        _started[0] += 1
        try:
            return int(self.find_store().add(f"stormphase/starts/{_started[0]}/{self.rank}", 1))
        except Exception:  # noqa: BLE001 - as above
            return None


def torch_group(modules: Mapping[str, Any]) -> TorchGroup | None:
    """Return the process group that is up, if torch has been imported and there is one of several ranks."""
    try:
        distributed = modules["torch.distributed"]
        if not distributed.is_available() or not distributed.is_initialized():
            return None
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
    except Exception:  # noqa: BLE001 - not imported, or another version's API: as if torch were not there
        return None
    if type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size or world_size == 1:
        return None

    def find_store() -> Any:
        # torch has no public name for it.
        return modules["torch.distributed.distributed_c10d"]._get_default_store()

    return TorchGroup(rank, world_size, find_store)
