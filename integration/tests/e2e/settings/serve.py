"""serve.py FOLDER ADDRESS PORT [CERTIFICATE KEY]: the folder's files by HTTP, or HTTPS where there is a certificate."""
import functools
import http.server
import ssl
import sys

folder, address, port = sys.argv[1:4]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
server = http.server.ThreadingHTTPServer((address, int(port)), handler)
if sys.argv[4:]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*sys.argv[4:])
    server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
