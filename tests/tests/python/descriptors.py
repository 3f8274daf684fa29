"""Every call that makes a descriptor fails with EMFILE at the limit (20), and works again below it."""

import errno
import resource
import select
import socket

assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 20


def refused(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        return
    raise AssertionError(f"{call} was not refused")


listener = socket.create_server(("127.0.0.1", 0))
address = listener.getsockname()

# Sockets up to the limit, of several kinds.
held = []
kinds = [
    (socket.AF_INET, socket.SOCK_STREAM),
    (socket.AF_INET6, socket.SOCK_STREAM),
    (socket.AF_INET, socket.SOCK_DGRAM),
    (socket.AF_UNIX, socket.SOCK_STREAM),
]
while True:
    try:
        held.append(socket.socket(*kinds[len(held) % len(kinds)]))
    except OSError as error:
        assert error.errno == errno.EMFILE, error
        break
# Three standard files, the listener, and perhaps what the caller left open.
assert 10 <= len(held) <= 16, len(held)
for family, kind in kinds:
    refused(socket.socket, family, kind)

# Sockets made before connect, bind and listen at the limit: these need no descriptor of the program's.
client = next(s for s in held if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM)
client.connect(address)
assert client.getpeername() == address
other = [s for s in held if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM][1]
other.bind(("127.0.0.1", 0))
other.listen()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

# accept refuses, blocking and not, and loses nobody: the connection is still there below the limit.
assert select.select([listener], [], [], 10)[0], "a connection waits"
refused(listener.accept)
listener.setblocking(False)
refused(listener.accept)
listener.setblocking(True)
held.remove(client)
spare = held.pop()
spare.close()
served, peer = listener.accept()
assert peer == client.getsockname(), (peer, client.getsockname())
served.sendall(b"wool")
assert client.recv(10) == b"wool"

# At the limit again. The queue is empty: an accept that will need a descriptor is refused before it waits.
refused(socket.socketpair)
refused(listener.accept)
listener.setblocking(False)
refused(listener.accept)
held.pop().close()
try:
    listener.accept()
    raise AssertionError("nobody is there")
except BlockingIOError:
    pass

# All of them closed: as many as before fit again.
for s in held + [served, client]:
    s.close()
again = []
try:
    while True:
        again.append(socket.socket())
except OSError as error:
    assert error.errno == errno.EMFILE, error
assert len(again) >= len(held), (len(again), len(held))
print("good")
