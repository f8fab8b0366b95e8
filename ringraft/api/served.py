"""What the API asks of the node it serves; ``node.app.Node`` is one, tests have smaller ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp

from ringraft.membership.heartbeat import Leader
from ringraft.metrics import Metrics
from ringraft.node.identity import Identity
from ringraft.settings.tree import Settings


class ServedNode(Protocol):
    """The node behind the API.

    ``replica``, ``consensus`` and ``archive`` are None where no log is kept, ``worker`` where nothing
    is run. The parts are those of ``ringraft.node``; the API takes what they offer and holds none.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def identity(self) -> Identity: ...

    @property
    def replica(self) -> Any: ...

    @property
    def consensus(self) -> Any: ...

    @property
    def membership(self) -> Any: ...

    @property
    def archive(self) -> Any: ...

    @property
    def worker(self) -> Any: ...

    @property
    def loops(self) -> Any: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def client(self) -> aiohttp.ClientSession: ...

    @property
    def cluster_addresses(self) -> Sequence[str]:
        """URLs of nodes that may be asked for the cluster, the likeliest first."""
        ...

    def leader_url(self) -> str | None: ...

    def leader(self) -> Leader: ...

    def last_elections(self) -> list[dict[str, Any]]: ...

    def peer_url(self, node_id: str) -> str | None: ...

    def request_shutdown(self, *, graceful: bool = True) -> None: ...

    def status_fields(self) -> Mapping[str, Any]: ...

    def resources(self) -> Mapping[str, Any]: ...

    def rates(self) -> Mapping[str, float]: ...
