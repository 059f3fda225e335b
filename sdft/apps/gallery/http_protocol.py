"""HTTP connections that end when a request is not completed in time: a half-sent one would be kept forever."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 15  # in which a request must be complete


class TimedHttpProtocol(H11Protocol):
    """A connection that is closed unless it is sending an answer, `REQUEST_SECONDS` after its start and after each check."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.check = self.loop.call_later(REQUEST_SECONDS, self.close_unless_answering)

    def close_unless_answering(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.check = self.loop.call_later(REQUEST_SECONDS, self.close_unless_answering)

    def connection_lost(self, exc: Exception | None) -> None:
        self.check.cancel()
        super().connection_lost(exc)
