"""python3 -m service [PORT]: serves until interrupted."""

import sys

from service.server import make_server

if __name__ == "__main__":
    server = make_server(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
    print(f"listening on port {server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
