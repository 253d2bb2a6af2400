"""Requests that wait: first come, first served within a tenant, tenants in turn.

Starts without JAX.
"""

from collections import deque
from collections.abc import Iterator

from bluejay.generation.scheduled_steps import ScheduledRequest


class FairQueue:
    """Queued requests by tenant, and the order in which tenants take turns."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[ScheduledRequest]] = {}
        self.num_requests = 0
        self.num_tokens = 0  # of their prompts

    def __iter__(self) -> Iterator[ScheduledRequest]:
        return (scheduled for waiting in self._waiting.values() for scheduled in waiting)

    @property
    def tenants(self) -> tuple[str, ...]:
        """Those in the rotation, the one whose turn it is first."""
        return tuple(self._waiting)

    def head(self, tenant: str) -> ScheduledRequest | None:
        """The tenant's oldest request."""
        waiting = self._waiting[tenant]
        return waiting[0] if waiting else None

    def append(self, scheduled: ScheduledRequest) -> None:
        """Queue a request. A tenant that is new to the rotation enters it as the last."""
        self._waiting.setdefault(scheduled.request.tenant, deque()).append(scheduled)
        self.num_requests += 1
        self.num_tokens += scheduled.num_tokens

    def remove(self, scheduled: ScheduledRequest) -> None:
        """Take a request out; its tenant stays in the rotation until it is dismissed."""
        self._waiting[scheduled.request.tenant].remove(scheduled)
        self.num_requests -= 1
        self.num_tokens -= scheduled.num_tokens

    def rotate(self, tenant: str) -> None:
        """The tenant has had its turn: all others come before it."""
        self._waiting[tenant] = self._waiting.pop(tenant)

    def dismiss(self, tenant: str) -> None:
        """Take a tenant out of the rotation if it has no queued request."""
        if not self._waiting.get(tenant, True):
            del self._waiting[tenant]
