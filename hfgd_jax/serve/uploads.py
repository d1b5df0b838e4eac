"""The image in a request's body, which is counted while it comes and kept in memory alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from hfgd_jax.serve.limits import Limits, Refused

FIELD = "image"
_DRAINED = 2.0  # seconds
_RAW = ("image/", "application/octet-stream")


async def read(headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    """The image of a request: its raw body, or the file `image` of a multipart form.

    Args:
        headers: of the request, Starlette's, whose names have no case.
        chunks: of its body.
        limits: of them `upload_bytes` and `upload_seconds`.

    Raises:
        Refused: 400 malformed or empty, 408 too slow, 413 too many bytes, 415 of another media type.
    """
    kind = headers.get("content-type", "").strip().lower()
    multipart = kind.startswith("multipart/form-data")
    if not multipart and not kind.startswith(_RAW):
        raise Refused(
            415,
            f"Content-Type {kind[:80] or '(none)'!r}: want image/jpeg (or another image type), "
            f"application/octet-stream, or multipart/form-data with a file {FIELD!r}",
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > limits.upload_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            counted = _counted(chunks, limits)
            data = await (_form(headers, counted, limits) if multipart else _joined(counted))
    except TimeoutError:
        raise Refused(408, f"the upload took more than {limits.upload_seconds:g} s") from None
    if not data:
        raise Refused(400, "the image is empty: send the bytes of an image file")
    return data


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the upload is larger than {limits.upload_bytes} bytes: send a smaller file")


async def _counted(chunks: AsyncIterator[bytes], limits: Limits) -> AsyncIterator[bytes]:
    received = 0
    async for chunk in chunks:
        received += len(chunk)
        if received > limits.upload_bytes:
            raise _too_large(limits)
        yield chunk


async def _joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _form(headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    parser = MultiPartParser(headers, chunks, max_files=1, max_fields=4, max_part_size=1024)
    parser.spool_max_size = limits.upload_bytes + 1  # never a file on the disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"multipart form: {error.message}") from None
    try:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise Refused(400, f"multipart form: has no file {FIELD!r}: curl -F {FIELD}=@photo.jpg")
        return await file.read()
    finally:
        await form.close()


async def drain(chunks: AsyncIterator[bytes], limits: Limits) -> None:
    """Takes what is still to come of a refused body, within bounds, so that the client reads the answer.

    Where a connection is closed on what was sent, clients see an error of the connection instead.
    """
    with contextlib.suppress(Exception):  # a client that is gone
        async with asyncio.timeout(_DRAINED):
            left = limits.upload_bytes
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return
