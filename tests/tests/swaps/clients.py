"""Reaches the listeners of listeners.py by every address and in every way, and checks what both ends see."""
import errno, fcntl, json, os, select, socket, sys

ports = json.load(open(sys.argv[1]))
FOUR, SIX = socket.AF_INET, socket.AF_INET6
ADDRESSES = {
    "127.0.0.1": [(FOUR, "127.0.0.1"), (SIX, "::ffff:127.0.0.1"), (FOUR, "0.0.0.0")],
    "0.0.0.0": [(FOUR, "127.0.0.1"), (FOUR, "127.0.0.3"), (SIX, "::ffff:127.0.0.1")],
    "127.0.0.9": [(FOUR, "127.0.0.9")],
    "::1": [(SIX, "::1")],
    "::": [(SIX, "::1"), (FOUR, "127.0.0.1"), (SIX, "::")],
}
OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
           (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]


def reach(family, address, blocking, source):
    client = socket.socket(family)
    for level, name, value in OPTIONS:
        client.setsockopt(level, name, value)
    if source:
        client.bind((source, 0))
    client.setblocking(blocking)
    os.set_inheritable(client.fileno(), bool(source))
    if not blocking:
        found = client.connect_ex(address)
        assert found in (0, errno.EINPROGRESS), (address, errno.errorcode[found])
        assert select.select([], [client], [], 20)[1], address
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, address
    else:
        client.connect(address)
    assert os.get_inheritable(client.fileno()) == bool(source)
    assert bool(fcntl.fcntl(client, fcntl.F_GETFL) & os.O_NONBLOCK) != blocking
    client.settimeout(20)
    stream = client.makefile("rwb")
    accepted, peer, own = json.loads(stream.readline())
    mapped = lambda name: [name[0].removeprefix("::ffff:"), name[1]]
    assert mapped(accepted) == mapped(peer) == mapped(client.getsockname()), (accepted, peer, client.getsockname())
    assert mapped(own) == mapped(client.getpeername()), (own, client.getpeername())
    for level, name, value in OPTIONS:
        assert client.getsockopt(level, name) == value, (level, name)
    stream.write(b"there and back\n")
    stream.flush()
    assert stream.readline() == b"there and back\n"
    stream.close()
    client.close()


count = 0
for listener, addresses in ADDRESSES.items():
    for family, address in addresses:
        for blocking in True, False:
            for source in [None] + (["127.0.0.1"] if family == FOUR else ["::1"] if address == "::1" else []):
                reach(family, (address, ports[listener]), blocking, source)
                count += 1
for family, address in (FOUR, "127.0.0.1"), (SIX, "::1"):
    refused = socket.socket(family)
    # Listens on another address alone.
    assert refused.connect_ex((address, ports["127.0.0.9"])) == errno.ECONNREFUSED, address
print("reached", count)
