"""One prediction at a time, in the order of the requests, and a bounded number of them."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hfgd_jax.serve.limits import Refused

T = TypeVar("T")


class Turns:
    """Places for requests, and the device's one thread.

    Attributes:
        places: requests at once.
        taken: of them, now.
        done: calls of `run` that ended.
    """

    def __init__(self, places: int):
        self.places, self.taken, self.done = places, 0, 0
        self._device = asyncio.Lock()  # those that wait get it in their order
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._seconds = 1.0  # of a call, lately

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place for the time of the block.

        Raises:
            Refused: 503, none is free; Retry-After is when about half of them will be.
        """
        if self.taken >= self.places:
            seconds = math.ceil(min(60.0, max(1.0, self._seconds * self.places / 2)))
            line = f"busy with {self.taken} requests: try again in {seconds} s"
            raise Refused(503, line, {"Retry-After": str(seconds)})
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(
        self, work: Callable[[float], T], is_gone: Callable[[], Awaitable[bool]] | None = None
    ) -> T:
        """Calls `work(milliseconds waited)` in the device's thread once it is this call's turn.

        Where the request is cancelled meanwhile, the thread ends what it has begun before the next.

        Args:
            work: the prediction.
            is_gone: asked when it is this call's turn: whether nobody waits for the answer any more.

        Raises:
            Refused: 499, where nobody does; and what `work` raises.
        """
        start = time.perf_counter()
        async with self._device:
            if is_gone is not None and await is_gone():
                raise Refused(499, "the client closed the connection")
            begun = time.perf_counter()
            try:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, work, 1e3 * (begun - start))
            finally:
                self.done += 1
                self._seconds += 0.2 * (time.perf_counter() - begun - self._seconds)

    def close(self) -> None:
        """Nothing that waits is begun any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
