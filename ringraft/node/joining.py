"""Finding out which cluster a voter joins: it asks the nodes it was told of, before it has a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ringraft.client import Client, ClientError
from ringraft.node.identity import StartRefused
from ringraft.settings.tree import Settings

ASK_S = 10.0
"""How long a joining voter looks for somebody who answers."""


@dataclass(frozen=True, slots=True)
class Met:
    """The cluster that answered: its id, and its voters' ``host:port`` by id."""

    cluster_id: str
    voters: Mapping[str, str]


async def ask_cluster(settings: Settings) -> Met:
    """The cluster that ``cluster.join`` names. Raises StartRefused when nobody can say."""
    join = ", ".join(settings.cluster.join)
    credential = settings.auth.credential()
    client = Client(settings.cluster.join, token=credential.reveal() if credential is not None else None)
    try:
        status = await client.get("/status", deadline_s=ASK_S)
    except ClientError as fault:
        raise StartRefused(
            f"this voter joins a cluster, and none of {join} told which ({fault}); start it when one of them answers"
        ) from fault
    finally:
        await client.close()
    cluster_id = status.get("cluster_id")
    if not isinstance(cluster_id, str):
        raise StartRefused(f"{join} has not met its cluster yet; name a voter with --join")
    rows = [(row["node_id"], row["url"]) for row in status["voters"] if row.get("url")]
    return Met(cluster_id, {node_id: url.partition("://")[2].rstrip("/") for node_id, url in rows})
