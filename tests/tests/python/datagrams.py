"""UDP over loopback, IPv4 and IPv6, connected and not; an ICMP echo where the kernel allows one; netlink."""
import errno
import socket

for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.settimeout(20)
    server.bind((host, 0))
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.settimeout(20)
    client.connect(server.getsockname())
    client.send(b"baa")
    data, sender = server.recvfrom(100)
    assert data == b"baa" and sender[0] == host
    server.sendto(b"moo", sender)
    assert client.recv(100) == b"moo"
    port = server.getsockname()
    server.close()
    # An unused port answers by ICMP, which a connected socket reports.
    client.send(b"anyone?")
    try:
        client.recv(1)
        raise AssertionError("somebody answered")
    except ConnectionRefusedError:
        pass

interfaces = dict((name, number) for number, name in socket.if_nameindex())
assert interfaces["lo"] == 1

addresses = socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
assert ("127.0.0.1", 80) in [entry[4] for entry in addresses], addresses

pair = socket.socketpair()
pair[0].sendall(b"x")
assert pair[1].recv(1) == b"x"
print("good")
