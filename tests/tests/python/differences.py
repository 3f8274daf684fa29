"""What docs/compatibility.md says of streams under `--net local` that differ from TCP, and that no other test meets."""
import array, errno, fcntl, select, socket, struct


def refused(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return error.errno


def listener():
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def pair():
    server = listener()
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0]


def same(what, found, expected):
    assert found == expected, f"{what}: {found!r}, not {expected!r}"


a, b = pair()
name = a.getpeername()
a.shutdown(socket.SHUT_RDWR), b.close()
same("the peer's name at the end", a.getpeername(), name)

server = listener()
address = server.getsockname()
server.shutdown(socket.SHUT_RDWR)
server.listen()
same("a listener after shutdown", refused(socket.create_connection, address), errno.ECONNREFUSED)

server = listener()
MSG_FASTOPEN = 0x20000000
same("MSG_FASTOPEN", refused(socket.socket().sendto, b"x", MSG_FASTOPEN, server.getsockname()), errno.EOPNOTSUPP)

a, b = pair()
a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
data, fds, _, _ = socket.recv_fds(b, 1, 1)
same("SCM_RIGHTS", (data, len(fds)), (b"x", 1))

a.sendall(b"trunc")
same("MSG_TRUNC", b.recv(5, socket.MSG_TRUNC | socket.MSG_WAITALL), b"trunc")
a.sendall(b"queue")
same("MSG_ERRQUEUE", b.recvmsg(5, 100, socket.MSG_ERRQUEUE)[0], b"queue")

SO_TIMESTAMP, TCP_INQ = 29, 36
b.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1), b.setsockopt(socket.IPPROTO_TCP, TCP_INQ, 1)
a.sendall(b"x")
same("control messages", b.recvmsg(1, 100)[1], [])

events = select.epoll()
events.register(b, select.EPOLLIN)
a.close()
same("the peer's close", bool(events.poll(5)[0][1] & select.EPOLLHUP), True)

stream = socket.socket()
same("SO_MARK", refused(stream.setsockopt, socket.SOL_SOCKET, socket.SO_MARK, 1), errno.EPERM)
same("SO_PRIORITY", refused(stream.setsockopt, socket.SOL_SOCKET, socket.SO_PRIORITY, 7), errno.EPERM)
SIOCGIFADDR, LO = 0x8915, struct.pack("40s", b"lo")
same("SIOCGIFADDR", refused(fcntl.ioctl, stream, SIOCGIFADDR, LO), errno.ENOTTY)
answer = fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), SIOCGIFADDR, LO)
same("SIOCGIFADDR of one for datagrams", answer[20:24], socket.inet_aton("127.0.0.1"))
print("good")
