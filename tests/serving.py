"""A server on this machine that behaves badly on request, in place of the published addresses."""

import contextlib
import http.server
import threading


class Server:
    """What it serves, how, and what was asked of it: a list of (path, Range header)."""

    def __init__(self):
        self.files = {}  # path: bytes
        self.manners = {}  # path: a list of what to do, one for each request; after them it serves well
        self.asked = []
        self.address = ""


@contextlib.contextmanager
def serving():
    server = Server()
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            wanted = self.headers.get("Range")
            server.asked.append((self.path, wanted))
            manners = server.manners.get(self.path, [])
            manner = manners.pop(0) if manners else "well"
            if manner == "redirect":
                self.send_response(302)
                self.send_header("Location", "/elsewhere" + self.path)
                self.end_headers()
                return
            content = server.files.get(self.path.removeprefix("/elsewhere"))
            if content is None or manner == "404":
                self.send_error(404)
                return
            if manner == "503":
                self.send_error(503)
                return
            start = 0
            if wanted and "ignores ranges" not in manner:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            rest = content[start:]
            if manner == "wrong bytes":
                rest = bytes([rest[0] ^ 1]) + rest[1:]
            if manner == "odd length":
                self.send_header("Content-Length", "many")
            elif manner == "great length":
                self.send_header("Content-Length", str(10**13))
            elif manner not in ("no length", "endless"):
                self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if manner == "endless":
                while not released.is_set():
                    self.wfile.write(rest)
            elif manner.startswith("breaks soon"):
                self.wfile.write(rest[:30_000])
            elif manner in ("breaks off", "no length"):
                self.wfile.write(rest[: len(rest) // 2])
            elif manner == "stalls":
                self.wfile.write(rest[: len(rest) // 2])
                self.wfile.flush()
                released.wait(20)
            else:
                self.wfile.write(rest)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.handle_error = lambda *arguments: None  # a client that goes away is no news
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{running.server_port}/"
        try:
            yield server
        finally:
            released.set()
            running.shutdown()
            thread.join()
