"""A change board that is asked between two waves: over TLS, signatures checked by other people's library. It answers what
stands in the file `verdict`, and writes down what it was asked."""

import json
import os
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from standardwebhooks import Webhook

SECRET = sys.argv[1]


class Board(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Webhook(SECRET).verify(body, {name.lower(): value for name, value in self.headers.items()})
        asked = dict(json.loads(body), webhook_id=self.headers["webhook-id"])
        with open("asked.jsonl", "a") as out:
            out.write(json.dumps(asked) + "\n")
        answer = open("verdict").read().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


open("asked.jsonl", "a").close()
server = HTTPServer(("127.0.0.1", 0), Board)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("board.pem", "board.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
with open("board.port.new", "w") as out:
    out.write(str(server.server_port))
os.rename("board.port.new", "board.port")
server.serve_forever()
