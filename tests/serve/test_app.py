"""The app around a stand-in for the model: its answers, and what it refuses."""

import asyncio
import base64
import contextlib
import io
import json
import tempfile

import numpy as np
import pytest
from PIL import Image
from serving import FORM, GOOD, HOSTILE, LIMITS, TABLE, ByBrightness, encoded, form, photo
from starlette.testclient import TestClient

from hfgd_jax.inference import render
from hfgd_jax.serve import answers, guard, pages
from hfgd_jax.serve.app import make_app
from hfgd_jax.serve.limits import Refused


@contextlib.contextmanager
def _client(predictor=None, **settings):
    lines = []
    app = make_app(predictor or ByBrightness(), TABLE, **{"limits": LIMITS, "log": lines.append} | settings)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        client.lines = lines
        yield client


@pytest.fixture
def client():
    with _client() as made:
        yield made


def _mask(content):
    image = Image.open(io.BytesIO(content))
    assert image.mode == "P"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_the_mask_is_what_the_model_gives_for_the_image(name):
    predictor = ByBrightness()
    data = encoded(photo(), name)
    with _client(predictor) as client:
        answer = client.post("/predict", content=data, headers={"Content-Type": f"image/{name.lower()}"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(predictor.images[0], want)
    np.testing.assert_array_equal(_mask(answer.content), want[..., 0] // 64)


def test_the_file_is_the_one_that_predict_writes_and_json_holds_it_with_the_classes(client, tmp_path):
    image = photo(20, 30)
    render.write_mask(tmp_path / "mask.png", image[..., 0] // 64, TABLE.palette)
    written = (tmp_path / "mask.png").read_bytes()
    headers = {"Content-Type": "application/octet-stream"}
    assert client.post("/predict", content=encoded(image), headers=headers).content == written
    answer = client.post("/predict?format=json", files={"image": ("a.png", encoded(image))}).json()
    assert base64.b64decode(answer["mask"]) == written
    assert (answer["width"], answer["height"], answer["tiles"]) == (30, 20, 1)
    assert answer["milliseconds"].keys() == {"waiting", "decoding", "predicting"}
    counts = np.bincount((image[..., 0] // 64).ravel(), minlength=4)
    assert {c["id"]: c["share"] for c in answer["classes"]} == dict(enumerate(counts / 600))
    assert [c["share"] for c in answer["classes"]] == sorted(counts / 600, reverse=True)
    red = next(c for c in answer["classes"] if c["name"] == "red")
    assert (red["id"], red["color"]) == (1, "#c80000")


def test_an_image_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    predictor = ByBrightness()
    with _client(predictor) as client:
        data = encoded(photo(20, 30), "JPEG", exif=exif)
        answer = client.post("/predict?format=json", files={"image": ("a.jpg", data)}).json()
    assert (answer["width"], answer["height"]) == (20, 30) and predictor.images[0].shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("query", "accept", "want"),
    [
        (None, None, "png"),
        (None, "*/*", "png"),
        (None, "application/json", "json"),
        (None, "image/png;q=0.5, application/json", "json"),
        (None, "image/*, application/json;q=0.9", "png"),
        (None, "text/html, */*;q=0.1", "png"),
        (None, "application/json;q=nonsense", "json"),
        (None, "text/html", 406),
        (None, "image/png;q=0", 406),
        ("json", "image/png", "json"),
        ("xml", None, 400),
    ],
)
def test_the_form_is_the_querys_or_what_the_accept_header_prefers(query, accept, want):
    if isinstance(want, str):
        assert answers.form_of(query, accept) == want
        return
    with pytest.raises(Refused) as refused:
        answers.form_of(query, accept)
    assert refused.value.status == want


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_uploads_are_refused_with_a_line_and_the_next_image_is_predicted(client, name):
    content, kind, status = HOSTILE[name]
    answer = client.post("/predict", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status, answer.text
    line = answer.json()["error"]
    assert answer.json().keys() == {"error"} and line and "\n" not in line and len(line) < 300
    assert client.lines == [f"refused: {status} {line}"]
    assert client.post("/predict", content=GOOD, headers={"Content-Type": "image/png"}).status_code == 200


def test_an_uploads_name_is_of_no_use_and_no_file_is_written(client, monkeypatch):
    """Beyond a megabyte Starlette would put it on the disk."""

    def refuse(*_, **__):
        raise AssertionError("a file on the disk")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    data = encoded(photo()) + bytes(2_000_000)
    with _client(limits=LIMITS.__class__(pixels=10_000)) as client:
        answer = client.post("/predict", files={"image": ("../../../tmp/x.png", data, "text/html")})
    assert answer.status_code == 200 and _mask(answer.content).shape == (40, 60)


def test_too_many_bytes_are_refused_by_the_header_alone_and_too_many_pixels_before_decoding(client):
    headers = {"Content-Type": "image/png", "Content-Length": str(10**12)}
    answer = client.post("/predict", content=b"x", headers=headers)
    assert answer.status_code == 413 and "larger than 200000 bytes" in answer.json()["error"]
    assert client.post("/predict", files={"image": encoded(photo(101, 100))}).status_code == 413
    assert client.post("/predict", files={"image": encoded(photo(100, 100))}).status_code == 200


def test_a_failure_of_the_model_is_an_answer_and_the_next_image_is_predicted():
    class Fails(ByBrightness):
        def __call__(self, image):
            if len(self.images) == 0:
                self.images.append(image)
                raise RuntimeError("secret")
            return super().__call__(image)

    with _client(Fails()) as client:
        answer = client.post("/predict", files={"image": GOOD})
        assert answer.status_code == 500 and "secret" not in answer.text and "error" in answer.json()
        assert client.post("/predict", files={"image": GOOD}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/healthz", "/static/page.js", "/none", "/predict"]
)
def test_every_answer_forbids_what_the_page_does_not_need(client, path):
    headers = client.get(path).headers
    assert guard.HEADERS.items() <= {n: headers.get(n) for n in guard.HEADERS}.items()
    assert "access-control-allow-origin" not in headers
    policy = dict(part.strip().split(" ", 1) for part in guard.POLICY.split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("gpu.lan:8000", 200),
        ("evil.example", 421),
        ("localhost.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("localhost:8000@evil.example", 421),
    ],
)
def test_only_our_names_and_ip_addresses_are_answered(host, status):
    with _client(names=["gpu.lan"]) as client:
        answer = client.get("/healthz", headers={"Host": host})
    assert answer.status_code == status
    assert ("error" in answer.json()) == (status != 200)
    assert "content-security-policy" in answer.headers


def test_another_sites_page_may_not_send_images_and_large_headers_are_refused(client):
    def send(**headers):
        return client.post("/predict", files={"image": GOOD}, headers=headers).status_code

    assert send(Origin="http://127.0.0.1:8000") == 200
    assert send(Origin="http://evil.example") == send(Origin="null") == 403
    assert send(Origin="http://127.0.0.1:9000") == 403
    assert send(X="a" * 20_000) == 431
    with pytest.raises(Refused):
        guard.check([(b"host", b"localhost"), (b"host", b"localhost")], {"localhost"})


def test_other_paths_and_methods_are_refused_with_a_line(client):
    for method, path, status in (("GET", "/none", 404), ("GET", "/predict", 405), ("DELETE", "/", 405)):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json().keys() == {"error"}
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_the_openapi_document_names_what_the_app_answers(client):
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0" and set(document["paths"]) == {"/predict", "/healthz"}
    listed = document["paths"]["/predict"]["post"]["responses"]
    assert {str(status) for _, _, status in HOSTILE.values()} <= listed.keys()
    schemas = document["components"]["schemas"]
    answer = client.post("/predict?format=json", files={"image": GOOD}).json()
    assert answer.keys() == set(schemas["Prediction"]["required"])
    listed = schemas["Prediction"]["properties"]["classes"]["items"]
    assert answer["classes"][0].keys() == set(listed["required"])
    assert client.get("/healthz").json().keys() == set(schemas["Health"]["required"])


def test_the_pages_load_nothing_from_elsewhere(client):
    """Nor has a page scripts or styles within it, which the policy would refuse."""
    for path in ("/", "/docs"):
        text = client.get(path).text
        assert (
            "//" not in text.replace("http://www.w3.org", "")
            and "style=" not in text
            and "<style" not in text
        )
        assert "onclick" not in text and text.count("<script") == text.count("<script src=")
        for part in text.split('"'):
            if part.startswith("/"):
                assert client.get(part).status_code == 200, part
    assert pages.html(json.loads(client.get("/openapi.json").text)) == client.get("/docs").text


def test_health_tells_the_model_the_limits_and_how_much_was_done():
    with _client(name="small, step 3") as client:
        client.post("/predict", files={"image": GOOD})
        answer = client.get("/healthz").json()
    assert answer["status"] == "ok" and answer["model"] == "small, step 3" and answer["predictions"] == 1
    assert answer["classes"] == list(TABLE.classes) and answer["requests"] == 0
    assert answer["limits"] == {"upload_bytes": 200_000, "pixels": 10_000, "requests": 3}


def test_a_form_may_hold_small_fields_besides(client):
    head = b'--xyz\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    answer = client.post("/predict", content=head + form(GOOD), headers={"Content-Type": FORM})
    assert answer.status_code == 200


@pytest.mark.parametrize("kind", [b"image/png", FORM.encode()])
def test_a_client_that_leaves_within_its_upload_is_no_error_and_has_left(kind):
    lines = []
    app = make_app(ByBrightness(), TABLE, limits=LIMITS, log=lines.append)
    headers = [(b"host", b"localhost"), (b"content-type", kind)]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    part = {"type": "http.request", "body": form(GOOD)[:200], "more_body": True}
    messages = iter([part, {"type": "http.disconnect"}])

    async def receive():
        return next(messages)

    async def send(message):
        pass

    asyncio.run(app(scope, receive, send))
    assert lines == ["refused: 499 the client closed the connection within its upload"]
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/healthz").json()["requests"] == 0
