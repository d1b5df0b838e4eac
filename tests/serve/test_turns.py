"""Bodies are counted while they come; predictions are made one at a time, in order, and few requests wait."""

import asyncio

import httpx2
import pytest
from serving import FORM, LIMITS, TABLE, ByBrightness, encoded, form, photo

from hfgd_jax.serve import uploads
from hfgd_jax.serve.app import make_app
from hfgd_jax.serve.limits import Limits, Refused
from hfgd_jax.serve.turns import Turns

PNG = {"content-type": "image/png"}


class Chunks:
    """A body in chunks; counts those that were taken."""

    def __init__(self, chunk, count, pause=0.0):
        self.chunk, self.count, self.pause, self.taken = chunk, count, pause, 0

    async def __aiter__(self):
        for _ in range(self.count):
            self.taken += 1
            await asyncio.sleep(self.pause)
            yield self.chunk


@pytest.mark.parametrize("kind", ["image/png", FORM])
def test_a_body_without_a_length_is_refused_as_soon_as_it_is_too_large(kind):
    head = form(b"").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    chunks = Chunks(head + bytes(1000 - len(head)) if kind == FORM else bytes(1000), 10**9)

    async def body():
        async for chunk in chunks:
            yield chunk if chunks.taken == 1 else bytes(1000)

    with pytest.raises(Refused) as refused:
        asyncio.run(uploads.read({"content-type": kind, "Content-Type": kind}, body(), LIMITS))
    assert refused.value.status == 413 and chunks.taken == LIMITS.upload_bytes // 1000 + 1


def test_a_body_that_does_not_come_is_given_up():
    limits = Limits(upload_seconds=0.05)
    with pytest.raises(Refused) as refused:
        asyncio.run(uploads.read(PNG, Chunks(b"x", 1000, pause=0.02), limits))
    assert refused.value.status == 408


def test_what_is_left_of_a_refused_body_is_taken_within_bounds():
    chunks = Chunks(bytes(1000), 10**9)
    asyncio.run(uploads.drain(chunks, LIMITS))
    assert chunks.taken == LIMITS.upload_bytes // 1000 + 1


def _run(test, **settings):
    """Runs `await test(client, predictor)` with a client of the app in the same event loop."""
    predictor = ByBrightness()
    app = make_app(predictor, TABLE, **{"limits": LIMITS} | settings)

    async def all_of_it():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await asyncio.wait_for(test(client, predictor), 30)

    asyncio.run(all_of_it())


def _post(client, seed, height=10):
    content = encoded(photo(height, 10 + seed))
    return asyncio.create_task(client.post("/predict", content=content, headers=PNG))


async def _until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_predictions_are_made_one_at_a_time_in_the_order_of_the_requests():
    async def test(client, predictor):
        predictor.gate.clear()
        tasks = []
        for seed in range(6):
            tasks.append(_post(client, seed))
            await asyncio.sleep(0.02)
        await _until(lambda: predictor.images)
        health = (await client.get("/healthz")).json()  # the loop is free meanwhile
        assert (health["requests"], health["predictions"]) == (6, 0)
        predictor.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert [image.shape[1] for image in predictor.images] == [10, 11, 12, 13, 14, 15]
        assert predictor.most_at_once == 1

    _run(test, limits=Limits(requests=6))


def test_beyond_the_bound_requests_are_sent_away_until_there_is_a_place():
    async def test(client, predictor):
        predictor.gate.clear()
        tasks = [_post(client, seed) for seed in range(LIMITS.requests)]
        await _until(lambda: predictor.images)
        refused = await _post(client, 9)
        assert refused.status_code == 503 and "busy" in refused.json()["error"]
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        predictor.gate.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert (await _post(client, 9)).status_code == 200
        assert (await client.post("/predict", content=b"x", headers=PNG)).status_code == 422
        assert (await client.get("/healthz")).json()["requests"] == 0  # refused ones have left, too

    _run(test)


def test_nothing_is_predicted_for_a_client_that_is_gone():
    async def test():
        turns, done = Turns(2), []

        async def gone():
            return True

        with pytest.raises(Refused):
            await turns.run(done.append, gone)
        await turns.run(done.append)
        assert len(done) == 1

    asyncio.run(test())
