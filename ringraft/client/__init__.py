"""The cluster as a client sees it: REST calls and the pipelined ``/work/stream``.

A write has three endings, and so has a call here: an answer, ``ApiError`` or ``Unreachable`` with
``outcome`` "not_applied", or one of them with "unknown". Only what is safe is repeated: what the
cluster says it did not apply, and whatever carries an idempotency key (or is idempotent by token)
with that same key, through whichever address answers.
"""

from ringraft.client.cluster import Answer, Client, base_url
from ringraft.client.errors import ApiError, ClientError, Unreachable
from ringraft.client.stream import Stream

__all__ = ["Answer", "ApiError", "Client", "ClientError", "Stream", "Unreachable", "base_url"]
