"""The process around the app, over real sockets: what a client gets however it sends, and how it ends."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from absl import flags
from serving import GOOD, LIMITS, TABLE, ByBrightness

from hfgd_jax import cli, configs
from hfgd_jax.data.prepared import open_split
from hfgd_jax.errors import UserError
from hfgd_jax.serve import server
from hfgd_jax.serve.app import make_app
from hfgd_jax.tools import serve


@pytest.fixture(scope="module")
def address():
    """Where a stand-in is served, by a thread of this process."""
    listening = server.bound("127.0.0.1", 0)
    where = listening.getsockname()
    app = make_app(ByBrightness(), TABLE, limits=LIMITS)
    ready, end = threading.Event(), threading.Event()

    def until_told():
        ready.set()
        end.wait()
        raise KeyboardInterrupt

    def run():
        with contextlib.suppress(KeyboardInterrupt):
            server.serve(app, listening, LIMITS, until_told)

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    yield where
    end.set()
    thread.join(10)
    assert not thread.is_alive()


def _exchange(address, sent):
    """Status and JSON of what comes back for these bytes."""
    with socket.create_connection(address, timeout=10) as client:
        client.sendall(sent)
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


def _post(headers, body):
    lines = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _chunked(data, size=1000):
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def test_an_image_in_pieces_is_predicted(address):
    headers = ["Content-Type: image/png", "Transfer-Encoding: chunked", "Accept: application/json"]
    status, content = _exchange(address, _post(headers, _chunked(GOOD)))
    assert status == 200 and b'"width": 60' in content


def test_what_is_too_large_is_sent_to_its_end_and_its_sender_reads_why(address):
    body = bytes(LIMITS.upload_bytes + 50_000)
    for headers, sent in (
        ([f"Content-Length: {len(body)}"], body),
        (["Transfer-Encoding: chunked"], _chunked(body)),
    ):
        status, content = _exchange(address, _post(["Content-Type: image/png", *headers], sent))
        assert status == 413 and "larger than 200000 bytes" in json.loads(content)["error"]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        _post(["X: " + "a" * 30_000], b""),
        _post(["X: " + "a" * 3_000_000], b""),
        _post(["Content-Length: -5"], b"x"),
        _post(["Content-Length: 1", "Content-Length: 2"], b"xy"),
        _post(["Transfer-Encoding: chunked", "Content-Type: image/png"], b"zz\r\nhello\r\n"),
        b"POST /predict HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["no-http", "header", "huge-header", "negative", "two-lengths", "bad-chunk", "no-host"],
)
def test_broken_requests_get_an_error_of_theirs_and_the_next_is_answered(address, sent):
    with contextlib.suppress(ConnectionError):  # of megabytes the rest is not read
        status, _ = _exchange(address, sent)
        assert 400 <= status < 500
    status, _ = _exchange(address, _post(["Content-Type: image/png", f"Content-Length: {len(GOOD)}"], GOOD))
    assert status == 200


def test_a_taken_port_and_an_address_of_others_are_refused_in_a_line(address):
    with pytest.raises(UserError, match=f"--port={address[1]}: Address already in use; choose another"):
        server.bound(*address)
    with pytest.raises(UserError, match=r"--host=192\.0\.2\.1 --port=0: "):
        server.bound("192.0.2.1", 0)
    with pytest.raises(UserError, match=r"--host=aaa.*: label "):
        server.bound("a" * 70, 0)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    wanted = r'^hfgd serve needs uvicorn, python_multipart: pip install "hfgd_jax\[serve\]"$'
    with pytest.raises(UserError, match=wanted):
        serve.main([])  # before it reads anything of a run


def test_a_bundle_is_not_served_and_the_run_asked_for(tmp_path):
    (tmp_path / "manifest.json").touch()
    serve.define_flags()
    try:
        flags.FLAGS(["serve", f"--workdir={tmp_path}"])
        with pytest.raises(UserError, match=r"is a bundle, which is not served; name its run"):
            serve.main([])
    finally:
        cli.forget_options()
        flags.FLAGS.mark_as_parsed()


def test_an_address_beyond_this_machine_is_told():
    assert serve.exposure("127.0.0.1") is serve.exposure("::1") is serve.exposure("localhost") is None
    for host in ("0.0.0.0", "::", "192.168.1.7", "gpu.lan"):
        assert "anyone who reaches this address" in serve.exposure(host)


def test_without_sizes_it_is_compiled_for_the_data_sets_own_or_the_crop(shapes_dir, tmp_path):
    config = configs.load("demo", tiny=True)
    config.data.data_dir = str(shapes_dir)
    want = open_split(shapes_dir, "shapes", "val").example(0)["image"].shape[:2]
    assert serve.usual_size(config) == want != tuple(config.data.crop)
    config.data.data_dir = str(tmp_path)
    assert serve.usual_size(config) == tuple(config.data.crop) and not list(tmp_path.iterdir())


PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
from serving import LIMITS, TABLE, ByBrightness
from hfgd_jax.runtime import shell
from hfgd_jax.serve import server
from hfgd_jax.serve.app import make_app

class Slow(ByBrightness):
    def __call__(self, image):
        print("predicting", flush=True)
        time.sleep(60)

def main(argv):
    listening = server.bound("127.0.0.1", 0)
    ready = lambda: print("serving", listening.getsockname()[1], flush=True)
    server.serve(make_app(Slow(), TABLE), listening, LIMITS, ready)

shell.run(main)
"""


def test_a_signal_ends_it_within_seconds_even_while_it_predicts(user_env):
    program = PROGRAM.format(tests=os.path.dirname(__file__))  # noqa: PTH120
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=user_env
    ) as process:
        port = int(process.stdout.readline().split()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            headers = ["Content-Type: image/png", f"Content-Length: {len(GOOD)}"]
            client.sendall(_post(headers, GOOD))
            assert process.stdout.readline() == "predicting\n"
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=15)
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: ending" in errors and "Traceback" not in errors
