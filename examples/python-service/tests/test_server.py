import json
import threading
import unittest
from urllib.error import HTTPError
from urllib.request import urlopen

from service.server import make_server


class ServerTest(unittest.TestCase):
    def setUp(self):
        self.server = make_server(0, "127.0.0.1")
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def get(self, path):
        with urlopen(f"http://127.0.0.1:{self.server.server_port}{path}", timeout=30) as answer:
            return json.load(answer)

    def test_it_greets_and_counts(self):
        self.assertEqual(self.get("/greet?name=Ada"), {"greeting": "Hello, Ada!"})
        self.assertEqual(self.get("/greet?name=Ada&language=de"), {"greeting": "Guten Tag, Ada again!"})
        self.assertEqual(self.get("/counts"), {"Ada": 2})

    def test_bad_requests_say_what_is_wrong(self):
        for path, status, said in [("/greet?language=xx", 400, "no words in 'xx'"), ("/nowhere", 404, "/nowhere")]:
            with self.subTest(path), self.assertRaises(HTTPError) as caught:
                self.get(path)
            with caught.exception as answer:
                self.assertEqual(answer.code, status)
                self.assertIn(said, json.load(answer)["error"])
