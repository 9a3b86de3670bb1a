"""What the guide's webhook is sent to, as a process on the hosts' back network: it prints what comes."""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.send_response(200)
        self.end_headers()
        sys.stdout.write(f"{body}\n")
        sys.stdout.flush()

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    HTTPServer(("10.0.0.1", 8000), _Taking).serve_forever()
