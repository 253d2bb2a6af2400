"""What ends a call from outside: its client hangs up, or the server stops."""

import asyncio
from contextlib import suppress

from starlette.types import Receive

from bluejay.serving.errors import ApiError, ClientGoneError
from bluejay.serving.lifecycle import Lifecycle
from bluejay.serving.limits import Limits


class Connection:
    """The line to one client, for the length of one call, once its body has been read."""

    def __init__(self, receive: Receive, *, lifecycle: Lifecycle, limits: Limits) -> None:
        self._receive = receive
        self._lifecycle = lifecycle
        self._end: asyncio.Task[ApiError] | None = None
        self.limits = limits

    @property
    def end(self) -> asyncio.Task[ApiError]:
        """Done, with what to say, as soon as the call must end early."""
        if self._end is None:
            self._end = asyncio.create_task(self._wait_for_end())
        return self._end

    async def close(self) -> None:
        """Wait no longer: the call has ended by itself."""
        if self._end is not None:
            self._end.cancel()
            with suppress(asyncio.CancelledError):
                await self._end

    async def _wait_for_end(self) -> ApiError:
        gone = asyncio.create_task(self._wait_for_hang_up())
        stopped = asyncio.create_task(self._lifecycle.stopping.wait())
        try:
            await asyncio.wait((gone, stopped), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return ClientGoneError()
            return self._lifecycle.last_words()
        finally:
            gone.cancel()
            stopped.cancel()

    async def _wait_for_hang_up(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
