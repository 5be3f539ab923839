"""A Hugging Face hub on this machine that serves one data set out of a folder."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def fake_hub(folder: Path, repository: str):
    """Yields the address and the list of the files fetched so far."""
    fetched: list[str] = []
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            path = self.path.split("?")[0]
            api = f"/api/datasets/{repository}/"
            resolve = f"/datasets/{repository}/resolve/{COMMIT}/"
            if path in (f"{api}revision/main", f"{api}revision/{COMMIT}"):
                siblings = [{"rfilename": name} for name in files]
                self.reply(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(), {})
            elif path.startswith(f"{api}tree/{COMMIT}"):
                tree = [
                    {"type": "file", "path": name, "size": (folder / name).stat().st_size, "oid": COMMIT}
                    for name in files
                ]
                self.reply(json.dumps(tree).encode(), {})
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                name = path.removeprefix(resolve)
                content = (folder / name).read_bytes()
                if body:
                    fetched.append(name)
                etag = hashlib.sha1(content).hexdigest()
                self.reply(content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
            else:
                self.send_error(404)

        def reply(self, content, headers, body=True):
            self.send_response(200)
            for name, value in {**headers, "Content-Length": len(content)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
