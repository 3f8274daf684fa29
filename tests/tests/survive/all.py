"""Makes all that a net server knows of, waits until the file `go` is there (servers die meanwhile), and holds it against before."""

import errno
import os
import select
import socket
import sys
import threading
import time

HERE = sys.argv[1]
TCP = socket.IPPROTO_TCP


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def options(sock):
    """Frequent ones, which a socket remembers by itself, and rare ones."""
    names = [(TCP, socket.TCP_NODELAY), (TCP, socket.TCP_KEEPIDLE), (TCP, socket.TCP_KEEPCNT), (TCP, socket.TCP_SYNCNT)]
    names += [(TCP, socket.TCP_USER_TIMEOUT), (TCP, socket.TCP_LINGER2), (socket.IPPROTO_IP, socket.IP_TOS)]
    names += [(socket.IPPROTO_IP, socket.IP_TTL), (socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
    return [sock.getsockopt(*name) for name in names]


def set_options(sock, seed):
    sock.setsockopt(TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(TCP, socket.TCP_KEEPIDLE, 100 + seed)
    sock.setsockopt(TCP, socket.TCP_SYNCNT, 3 + seed)
    sock.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1000 + seed)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 20 + seed)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def names(sock):
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError as error:
        assert error.errno == errno.ENOTCONN
        return sock.getsockname(), None


listener = socket.create_server(("0.0.0.0", 8080), backlog=16)
six = socket.create_server(("::", 8081), family=socket.AF_INET6, dualstack_ipv6=True)
set_options(listener, 1)
# Connections that wait in its queue, one of them with bytes; and one to a host that the listener's own name does not say.
queued = [socket.create_connection(("127.0.0.1", 8080)) for _ in range(5)]
queued[2].sendall(b"early")
elsewhere = socket.socket()
elsewhere.bind(("127.0.0.1", 0))
elsewhere.connect(("127.0.0.5", 8081))
# One whose queue is full, and a client that waits for room in it.
narrow = socket.create_server(("127.0.0.1", 8082), backlog=0)
first = socket.create_connection(("127.0.0.1", 8082))
late = []
waits = threading.Thread(target=lambda: late.append(socket.create_connection(("127.0.0.1", 8082), timeout=60)))
waits.start()
# Half open: it was told EINPROGRESS, and did not ask again.
half = socket.socket()
half.setblocking(False)
assert half.connect_ex(("127.0.0.1", 8080)) == errno.EINPROGRESS
# An accept that waits.
lonely = socket.create_server(("127.0.0.1", 8083))
taken = []
takes = threading.Thread(target=lambda: taken.append(lonely.accept()))
takes.start()
bound = socket.socket()
bound.bind(("127.0.0.1", 0))
made = [listener, six, *queued, elsewhere, narrow, first, half, lonely, bound]
for seed, sock in enumerate(made[2:8]):
    set_options(sock, seed)
before = [(names(sock), options(sock)) for sock in made if sock is not half]

open(os.path.join(HERE, "ready"), "w").close()
until(lambda: os.path.exists(os.path.join(HERE, "go")))

after = [(names(sock), options(sock)) for sock in made if sock is not half]
assert after == before, f"{after}\n{before}"
assert elsewhere.getpeername() == ("127.0.0.5", 8081), elsewhere.getpeername()
# The queue has the same connections in the same order.
for number, client in enumerate(queued):
    served, peer = listener.accept()
    assert peer == client.getsockname() == served.getpeername(), (number, peer)
    assert served.getsockopt(TCP, socket.TCP_SYNCNT) == 4, "what a listener passes on"
    if number == 2:
        assert served.recv(9) == b"early"
    served.sendall(b"late")
    assert client.recv(9) == b"late"
# The half open one is connected, and says so once.
assert select.select([], [half], [], 30)[1] and half.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
served, peer = listener.accept()
assert peer == half.getsockname() and half.getpeername() == ("127.0.0.1", 8080)
# Nobody else is there.
listener.setblocking(False)
assert select.select([listener], [], [], 0)[0] == []
# Who waited for room gets it; who waited for a connection gets one.
assert not taken and takes.is_alive()
client = socket.create_connection(("127.0.0.1", 8083))
takes.join(30)
assert taken[0][1] == client.getsockname() and len(taken) == 1
lonely.setblocking(False)
assert select.select([lonely], [], [], 0)[0] == []
narrow.accept()
narrow.accept()
waits.join(30)
assert late[0].getpeername() == ("127.0.0.1", 8082)
# A port in use is in use, and a free one is free.
for port, free in [(8080, False), (8084, True)]:
    try:
        socket.create_server(("127.0.0.1", port), reuse_port=False).close()
        assert free, port
    except OSError as error:
        assert not free and error.errno == errno.EADDRINUSE, (port, error)
print("all as before")
