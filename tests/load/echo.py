"""An echo server, and a client that holds what comes back against what it sent: `echo.py serve`, `echo.py ask`.

A round keeps a few connections, makes many short ones beside them, and ends with a line that counts: `120 exchanges`.
"""

import os
import random
import selectors
import socket
import sys

PLACE = ("127.0.0.1", 7777)
KEPT, SHORT = 4, 20


def serve():
    listener = socket.create_server(PLACE, backlog=64)
    chosen = selectors.DefaultSelector()
    chosen.register(listener, selectors.EVENT_READ)
    open("listening", "w").close()
    while True:
        for key, _ in chosen.select():
            if key.fileobj is listener:
                connection, peer = listener.accept()
                assert connection.getpeername() == peer, peer
                chosen.register(connection, selectors.EVENT_READ)
            elif data := key.fileobj.recv(65536):
                key.fileobj.sendall(data)
            else:
                chosen.unregister(key.fileobj)
                key.fileobj.close()


def connect():
    connection = socket.create_connection(PLACE, timeout=30)
    # Set here and read back later: it must survive whoever remembers it.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection, connection.getsockname()


def exchange(connection, name):
    sent = os.urandom(random.randrange(1, 20_000))
    connection.sendall(sent)
    back = bytearray()
    while len(back) < len(sent):
        piece = connection.recv(65536)
        assert piece, f"end of file after {len(back)} of {len(sent)} bytes"
        back += piece
    assert back == sent, "other bytes came back"
    assert connection.getsockname() == name and connection.getpeername() == PLACE, "other names"
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1, "an option is lost"


def ask():
    kept = [connect() for _ in range(KEPT)]
    count = 0
    for _ in range(5):
        for _ in range(SHORT):
            short = connect()
            exchange(*short)
            short[0].close()
            exchange(*random.choice(kept))
            count += 2
    print(count, "exchanges")


serve() if sys.argv[1] == "serve" else ask()
