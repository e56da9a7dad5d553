"""PrefixRouter: Ray Serve's router of requests, by their prefixes; and questions to all replicas."""

from __future__ import annotations

from typing import Any

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from rocforge.server.routing import Placement

ASKING = 5.0
"""Seconds that replicas have for an answer."""


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Chooses replicas as Placement does, by the argument `prefix` of a call."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._placement = Placement()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica of the prefix, and then the others, should it not answer."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        prefix = ""
        if pending_request is not None:
            prefix = pending_request.kwargs.get("prefix", "")
            pending_request.routing_context.should_backoff = True  # where none takes it, wait before the next round
        first = replicas.pop(self._placement.choose(prefix, [*replicas]))
        return [[first], [*replicas.values()]]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """As Ray says."""
        prefix, id = pending_request.kwargs.get("prefix", ""), pending_request.metadata.internal_request_id
        self._placement.begun(prefix, replica_id.unique_id, id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """As Ray says."""
        self._placement.ended(replica_id.unique_id, internal_request_id)


async def ask_all(replicas: DeploymentHandle, method: str, *arguments: Any) -> list[Any]:
    """What a method of all replicas gives, without None and without those that do not answer."""
    try:
        call = replicas.broadcast(method, *arguments)
        answers = await call.results_async(timeout_s=ASKING, return_exceptions=True)
    except (DeploymentUnavailableError, TimeoutError):
        return []
    return [answer for answer in answers if answer is not None and not isinstance(answer, BaseException)]
