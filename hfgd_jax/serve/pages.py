"""The OpenAPI document of the server, and a page of it that needs nothing but the server."""

import html as escaping
import json
from typing import Any

from hfgd_jax import __version__
from hfgd_jax.serve.limits import FORMATS, Limits

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_REFUSALS: dict[str, str] = {
    "400": "malformed or empty upload, or an unknown `format`",
    "403": "the request comes from another site's page",
    "406": "the Accept header wants neither image/png nor application/json",
    "408": "the upload took too long",
    "413": "too many bytes, or an image of too many pixels",
    "415": "a body of another media type",
    "421": "the Host header is not a name of this server",
    "422": "no image of a known format, a damaged one, or one that does not fit the device",
    "431": "the request's headers are too large",
    "503": "busy; the Retry-After header says for how many seconds to wait",
}


def document(limits: Limits) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server with these limits."""
    health = {"application/json": {"schema": {"$ref": "#/components/schemas/Health"}}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hfgd serve",
            "version": __version__,
            "description": "Predicts the class of every pixel of an image, with one trained model.",
        },
        "paths": {
            "/predict": {"post": _predict(limits)},
            "/healthz": {
                "get": {
                    "summary": "Whether the server answers, its model and its limits",
                    "operationId": "health",
                    "responses": {"200": {"description": "it does", "content": health}},
                }
            },
        },
        "components": {"schemas": _schemas()},
    }


def _predict(limits: Limits) -> dict[str, Any]:
    about = (
        f"Formats: {', '.join(FORMATS)}. At most {limits.upload_bytes} bytes, {limits.pixels} pixels and "
        f"{limits.upload_seconds:g} s; {limits.requests} requests at once. Of animations and many-page files "
        "the first image is taken. A PNG mask holds the classes' ids in the classes' colours."
    )
    form = {
        "name": "format",
        "in": "query",
        "description": "`png` or `json`; without it the Accept header decides, and `png` is the default",
        "schema": {"type": "string", "enum": ["png", "json"]},
    }
    multipart = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": _BINARY["schema"]},
    }
    upload = {
        "image/*": _BINARY,
        "application/octet-stream": _BINARY,
        "multipart/form-data": {"schema": multipart},
    }
    return {
        "summary": "Predict an image",
        "description": about,
        "operationId": "predict",
        "parameters": [form],
        "requestBody": {"required": True, "content": upload},
        "responses": _responses(),
    }


def _responses() -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    prediction = {"schema": {"$ref": "#/components/schemas/Prediction"}}
    mask = {
        "description": "the mask, at the size of the image as it is shown (EXIF rotation applied)",
        "content": {"image/png": _BINARY, "application/json": prediction},
    }
    refusals = {status: {"description": text, "content": error} for status, text in _REFUSALS.items()}
    refusals["503"]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return {"200": mask, **refusals}


def _schemas() -> dict[str, Any]:
    whole, number, text = {"type": "integer"}, {"type": "number"}, {"type": "string"}
    listed = {"id": whole, "name": text, "color": text, "share": number}
    times = {"waiting": number, "decoding": number, "predicting": number}
    limits = {"upload_bytes": whole, "pixels": whole, "requests": whole}
    return {
        "Error": _object({"error": text}),
        "Prediction": _object(
            {
                "width": whole,
                "height": whole,
                "tiles": {**whole, "description": "1, or more for a large image"},
                "milliseconds": _object(times),
                "classes": {"type": "array", "items": _object(listed), "description": "largest share first"},
                "mask": {**text, "contentEncoding": "base64", "contentMediaType": "image/png"},
            }
        ),
        "Health": _object(
            {
                "status": text,
                "model": text,
                "classes": {"type": "array", "items": text},
                "requests": {**whole, "description": "read, waiting or predicted now"},
                "predictions": {**whole, "description": "so far"},
                "limits": _object(limits),
            }
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def html(document: dict[str, Any]) -> str:
    """The document as a page: each path with its parameters, bodies and answers, and the schemas."""
    parts = []
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            parts.append(_operation(path, method, about))
    for name, schema in document["components"]["schemas"].items():
        shown = _text(json.dumps(schema, indent=2))
        parts.append(
            f'<section><h2 id="{_text(name)}">{_text(name)}</h2>'
            f'<pre tabindex="0" aria-label="schema of {_text(name)}">{shown}</pre></section>'
        )
    info = document["info"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>API of {_text(info['title'])}</title>"
        '<link rel="stylesheet" href="/static/page.css"><link rel="icon" href="/static/icon.svg"></head>'
        '<body><header><h1>API</h1><nav><a href="/">Page</a> <a href="/openapi.json">OpenAPI</a></nav>'
        "</header>"
        f'<main class="text"><p>{_text(info["description"])}</p>{"".join(parts)}</main></body></html>\n'
    )


def _operation(path: str, method: str, about: dict[str, Any]) -> str:
    rows = [("summary", about["summary"])]
    if "description" in about:
        rows.append(("about", about["description"]))
    rows += [(f"?{p['name']}=", p["description"]) for p in about.get("parameters", ())]
    if "requestBody" in about:
        rows.append(("body", ", ".join(about["requestBody"]["content"])))
    for status, response in about["responses"].items():
        rows.append((status, f"{response['description']} ({', '.join(response['content'])})"))
    lines = "".join(f'<tr><th scope="row">{_text(a)}</th><td>{_text(b)}</td></tr>' for a, b in rows)
    return f"<section><h2>{_text(method.upper())} {_text(path)}</h2><table>{lines}</table></section>"


def _text(value: str) -> str:
    return escaping.escape(value.replace("`", ""))
