"""A hub that answers as huggingface_hub expects the real one to, from this machine."""

import base64
import contextlib
import http.server
import json
import threading

COMMIT = "a" * 40  # the one that every repository is at


class Hub(http.server.BaseHTTPRequestHandler):
    """Files of repositories, and commits to them; `files` and `errors` are set by `start`."""

    files: dict[str, dict[str, bytes]]
    errors: dict[str, tuple[int, dict[str, str]]]

    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self.resolve(body=False)

    def do_GET(self):
        if self.path.startswith("/api/whoami"):
            self.reply({"name": "me", "type": "user"})
        elif self.path.startswith("/api/"):
            self.answer(404, {})
        else:
            self.resolve(body=True)

    def resolve(self, body):
        """/OWNER/NAME/resolve/REVISION/FILE."""
        owner, name, _, revision, file = self.path.strip("/").split("/", 4)
        status, headers, data = 200, {}, b""
        repository = f"{owner}/{name}"
        if repository in self.errors and self.headers.get("authorization") != "Bearer good":
            status, headers = self.errors[repository]
        elif revision not in ("main", COMMIT):
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif file not in self.files.get(repository, {}):
            status, headers = 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        else:
            data = self.files[repository][file]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hash(data) % 2**64:x}"'}
        self.answer(status, headers, data, body=body)

    def do_POST(self):
        """What `create_repo` and `upload_folder` ask for; every file comes in the commit itself."""
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        if self.path != "/api/validate-yaml" and self.headers.get("authorization") != "Bearer good":
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif self.path == "/api/repos/create":
            name = "/".join(filter(None, (json.loads(asked).get("organization"), json.loads(asked)["name"])))
            self.files.setdefault(name, {})
            self.reply({"url": f"http://{self.headers['Host']}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            asked = [file["path"] for file in json.loads(asked)["files"]]
            same = {"uploadMode": "regular", "shouldIgnore": False}
            self.reply({"files": [same | {"path": path} for path in asked]})
        elif parts[4] == "commit":
            for line in map(json.loads, asked.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files["/".join(parts[2:4])][line["value"]["path"]] = content
            url = f"http://{self.headers['Host']}/{'/'.join(parts[2:4])}/commit/{COMMIT}"
            self.reply({"commitUrl": url, "commitOid": COMMIT})

    def reply(self, value):
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer(self, status, headers, data=b"", body=True):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


class Running:
    """A hub that serves until it is stopped; `files` is what it holds."""

    def __init__(self, handler):
        self.files = handler.files
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        with contextlib.suppress(OSError):
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


def start(monkeypatch, folder, files, errors):
    """Starts a hub, and makes huggingface_hub use it with an empty cache in `folder` and without a token."""
    from huggingface_hub import constants

    running = Running(type("Hub", (Hub,), {"files": files, "errors": errors}))
    endpoint = f"http://127.0.0.1:{running.server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    # Between its attempts.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return running
