from common import *
# A network of one's own, made further inside: its sockets are its own, and those made before stay where they were made.
import ctypes, fcntl

NEWNET, NEWUSER = 0x40000000, 0x10000000
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), name)


def loopback_up():
    # struct ifreq: the name, and IFF_UP | IFF_RUNNING.
    request = struct.pack("16sh22x", b"lo", 0x41)
    fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, request)


def reach(port, host=LO):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        return outcome(s.connect, (host, port))


outer = listener(host="")
port = outer.getsockname()[1]
show("before", reach(port))
early, held = socket.socket(), socket.create_connection((LO, port))
child = os.fork()
if child == 0:
    call("unshare", NEWUSER | NEWNET)
    show("cut off", reach(port), reach(port, "::1"))
    loopback_up()
    show("loopback", reach(port), reach(port, "::1"))
    # The outer port is free here.
    inner = listener(host="", port=port)
    show("own", inner.getsockname() == ("0.0.0.0", port), reach(port))
    six = listener(socket.AF_INET6, "::1", 0)
    show("own six", reach(six.getsockname()[1], "::1"))
    show("early", outcome(early.connect, (LO, port)), early.getpeername()[0], early.send(b"early"))
    show("held", held.getpeername() == (LO, port), held.send(b"held"))
    with open("/proc/self/ns/net") as home:

        def wander():
            show("thread", reach(port))
            call("unshare", NEWNET)
            show("thread elsewhere", reach(port))
            loopback_up()
            show("thread elsewhere, loopback", reach(port))
            call("setns", home.fileno(), NEWNET)
            show("thread back", reach(port))

        thread = threading.Thread(target=wander)
        thread.start()
        thread.join()
    show("stayed", reach(port))
    os._exit(0)
show("child", os.waitpid(child, 0)[1])
got = []
for _ in range(3):
    accepted, peer = outer.accept()
    early.close(), held.close()
    got.append(accepted.recv(10))
show("outer heard", sorted(got))
show("after", reach(port))
