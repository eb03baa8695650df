"""GET /greet?name=…&language=… and GET /counts, answered in JSON."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from service.greetings import Greeter, UnknownLanguage


def make_server(port, address=""):
    """A server that listens already; port 0 picks a free one."""
    greeter = Greeter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            if url.path == "/greet":
                try:
                    self.answer(200, {"greeting": greeter.greet(query.get("name"), query.get("language", "en"))})
                except UnknownLanguage as error:
                    self.answer(400, {"error": str(error)})
            elif url.path == "/counts":
                self.answer(200, dict(greeter.counts))
            else:
                self.answer(404, {"error": f"no such page: {url.path}"})

        def answer(self, status, content):
            body = json.dumps(content, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer((address, port), Handler)
