"""Finding out which cluster a voter joins: it asks the nodes it was told of, before it has a log."""

from __future__ import annotations

from ringraft.client import Client, ClientError
from ringraft.node.identity import StartRefused
from ringraft.settings.tree import Settings

ASK_S = 10.0
"""How long a joining voter looks for somebody who answers."""


async def ask_cluster_id(settings: Settings) -> str:
    """The id of the cluster that ``cluster.join`` names. Raises StartRefused when nobody can say."""
    join = ", ".join(settings.cluster.join)
    credential = settings.auth.credential()
    client = Client(settings.cluster.join, token=credential.reveal() if credential is not None else None)
    try:
        status = await client.get("/status", deadline_s=ASK_S)
    except ClientError as fault:
        raise StartRefused(
            f"this voter joins a cluster, and none of {join} told which ({fault}); "
            "start it when one of them answers, or set cluster.cluster_id"
        ) from fault
    finally:
        await client.close()
    cluster_id = status.get("cluster_id")
    if not isinstance(cluster_id, str):
        raise StartRefused(f"{join} has not met its cluster yet; name a voter with --join")
    return cluster_id
