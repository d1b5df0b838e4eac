"""The app: a function of what predicts and of the classes."""

import contextlib
import dataclasses
import importlib.resources
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

from hfgd_jax.data.labels import LabelTable
from hfgd_jax.errors import printable
from hfgd_jax.inference.predict import Predictor
from hfgd_jax.serve import answers, pages, uploads
from hfgd_jax.serve.guard import Guard
from hfgd_jax.serve.limits import Limits, Refused
from hfgd_jax.serve.turns import Turns

Endpoint = Callable[[Any], Awaitable[Any]]  # from Starlette's request to its response
LOCAL_NAMES = ("localhost",)
# The whole of what is served from the disk; no name that a client sends is looked for there.
STATIC = {
    "page.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@dataclasses.dataclass(frozen=True)
class Service:
    """What the app's answers are made of.

    Attributes:
        predictor: called in one thread, one image at a time.
        table: the classes.
        name: of the model, for people.
        limits: what is accepted.
        turns: whose turn it is.
        log: takes a line for each prediction and each refusal.
    """

    predictor: Predictor
    table: LabelTable
    name: str
    limits: Limits
    turns: Turns
    log: Callable[[str], Any]

    async def predict(
        self,
        headers: Mapping[str, str],
        form: str | None,
        chunks: AsyncIterator[bytes],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> answers.Body:
        """Answers `POST /predict`.

        Args:
            headers: of the request, their names without case.
            form: the query's `format`.
            chunks: the body.
            is_gone: whether the client has closed the connection; then nothing is predicted for it.

        Raises:
            Refused: 400, 406, 408, 413, 415, 422, 499 or 503 (see `turns`, `uploads`, `answers`).
            ClientDisconnect: Starlette's, the client closed the connection within its upload.
        """
        wanted = answers.form_of(form, headers.get("accept"))

        def work(waited: float) -> answers.Body:
            predicted = answers.predict(self.predictor, data, self.limits)
            height, width = predicted.mask.shape
            self.log(f"{width}x{height}: {predicted.predicting:.0f} ms, waited {waited:.0f} ms")
            return answers.body(predicted, self.table, wanted, waited)

        async with self.turns.place():
            data = await uploads.read(headers, chunks, self.limits)
            return await self.turns.run(work, is_gone)

    def health(self) -> dict[str, Any]:
        """What `GET /healthz` says."""
        return {
            "status": "ok",
            "model": self.name,
            "classes": list(self.table.classes),
            "requests": self.turns.taken,
            "predictions": self.turns.done,
            "limits": {
                "upload_bytes": self.limits.upload_bytes,
                "pixels": self.limits.pixels,
                "requests": self.limits.requests,
            },
        }


def make_app(
    predictor: Predictor,
    table: LabelTable,
    *,
    name: str = "model",
    names: Collection[str] = (),
    limits: Limits | None = None,
    log: Callable[[str], Any] = lambda line: None,
) -> Guard:
    """The ASGI application.

    Args:
        predictor: gives the mask of an image; never called by two threads at once.
        table: the classes and their colours.
        name: of the model, for people.
        names: that the server may be called by, besides `LOCAL_NAMES` and IP addresses.
        limits: what is accepted; None: the defaults.
        log: takes a line for each prediction and each refusal.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    limits = limits or Limits()
    service = Service(predictor, table, name, limits, Turns(limits.requests), log)

    async def health(request: Any) -> JSONResponse:
        return JSONResponse(service.health())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.turns.close()

    routes = [Route("/predict", _predict(service), methods=["POST"]), Route("/healthz", health)]
    routes += [Route(path, _fixed(*answer)) for path, answer in _files(limits).items()]
    handlers = {HTTPException: _not_routed, Exception: _failed}
    return Guard(
        Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), {*LOCAL_NAMES, *names}
    )


def _predict(service: Service) -> Endpoint:
    """`POST /predict`."""
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response

    async def predict(request: Request) -> Response:
        try:
            answer = await service.predict(
                request.headers, request.query_params.get("format"), request.stream(), request.is_disconnected
            )
        except Refused as error:
            service.log(f"refused: {error.status} {printable(error.line)}")
            await uploads.drain(request.stream(), service.limits)
            return _refusal(error.status, error.line, error.headers)
        except ClientDisconnect:
            service.log("refused: 499 the client closed the connection within its upload")
            return _refusal(499, "the client closed the connection")
        return Response(answer.content, media_type=answer.media_type)

    return predict


def _files(limits: Limits) -> dict[str, answers.Body]:
    """What never changes, by its path: the page, its files, and the API's description."""
    folder, document = importlib.resources.files(__package__) / "static", pages.document(limits)
    found = {
        f"/static/{name}": answers.Body((folder / name).read_bytes(), kind) for name, kind in STATIC.items()
    }
    found["/"] = found.pop("/static/page.html")
    found["/docs"] = answers.Body(pages.html(document).encode(), STATIC["page.html"])
    found["/openapi.json"] = answers.Body(json.dumps(document).encode(), "application/json")
    return found


def _fixed(content: bytes, media_type: str) -> Endpoint:
    from starlette.responses import Response

    async def answer(request: Any) -> Response:
        return Response(content, media_type=media_type)

    return answer


def _refusal(status: int, line: str, headers: Mapping[str, str] | None = None) -> Any:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": line}, status, headers)


async def _not_routed(request: Any, error: Any) -> Any:
    line = f"{request.method} {request.url.path[:80]}: {error.detail}"
    return _refusal(error.status_code, line, error.headers)


async def _failed(request: Any, error: Exception) -> Any:
    return _refusal(500, "the prediction failed; the server's own output says why")
