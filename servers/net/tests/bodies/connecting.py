from common import *
s = listener(backlog=64); address = s.getsockname()
c = socket.socket(); c.setblocking(False)
show("nonblocking", errno.errorcode[c.connect_ex(address)])
show("writable", [len(x) for x in select.select([], [c], [], 5)], c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
show("again", errno.errorcode.get(c.connect_ex(address), 0), errno.errorcode.get(c.connect_ex(address), 0))
c = socket.create_connection(address); show("twice", outcome(c.connect, address))
free = socket.socket(); free.bind((LO, 0)); dead = free.getsockname(); free.close()
c = socket.socket(); show("refused", outcome(c.connect, dead)); show("then", outcome(c.connect, address), c.getpeername() == address)
c = socket.socket(); c.bind((LO, 0)); show("bound not listening", outcome(socket.socket().connect, c.getsockname()))
c = socket.socket(); show("port 0", outcome(c.connect, (LO, 0)))
c = socket.socket(); show("wildcard", outcome(c.connect, ("0.0.0.0", address[1])), c.getpeername()[0])
show("not connected", outcome(socket.socket().getpeername))
# Backlog: a blocking connect over it waits until one is accepted.
tight = listener(backlog=0); first = socket.create_connection(tight.getsockname())
second = socket.socket(); second.settimeout(0.4); second_result = outcome(second.connect, tight.getsockname())
done = []
def late():
    t = socket.socket(); t.connect(tight.getsockname()); done.append(t)
thread = threading.Thread(target=late, daemon=True); thread.start()
a = tight.accept()[0]; b = tight.accept()[0]; thread.join(10); show("backlog waits and goes on", len(done))
# select, poll and epoll on a listener and a fresh socket.
e = select.epoll(); e.register(s, select.EPOLLIN); fresh = socket.socket(); p = select.poll(); p.register(fresh)
show("fresh poll", p.poll(0)[0][1] == (select.POLLOUT | select.POLLHUP))
while e.poll(0): s.accept()
show("idle", e.poll(0)); c = socket.create_connection(address); show("event", [m for _, m in e.poll(5)], len(select.select([s], [], [], 5)[0]))
# AF_UNSPEC: the socket is as new.
import ctypes; libc = ctypes.CDLL(None, use_errno=True)
unspec = struct.pack("=H14x", socket.AF_UNSPEC)
show("unconnect", libc.connect(c.fileno(), unspec, 16), outcome(c.getpeername)); show("reconnect", outcome(c.connect, address), outcome(c.getpeername) == address)
# Wrong lengths and families, straight from C.
def raw(call, sock, data, length):
    r = call(sock.fileno(), data, length); return r if r == 0 else errno.errorcode[ctypes.get_errno()]
v4 = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", address[1], socket.inet_aton(LO))
v6 = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", address[1], 0, socket.inet_pton(socket.AF_INET6, "::1"), 0)
for call, name in [(libc.connect, "connect"), (libc.bind, "bind")]:
    for data, length in [(v4, 16), (v4, 15), (v4, 14), (v4, 2), (v4, 0), (v4, -1), (v6, 28), (v6, 24), (v6, 23), (v6, 16), (v6, 14), (None, 16), (b"\x01\x00/x", 4)]:
        for family in (socket.AF_INET, socket.AF_INET6):
            show(name, family, None if data is None else data[0], length, raw(call, socket.socket(family), data, length))
show("not a socket", outcome(lambda: raw(libc.connect, open("/dev/null"), v4, 16)), raw(libc.bind, open("/dev/null"), v4, 16))
for fd_call in (libc.listen,):
    show("bad fd", fd_call(999, 1), errno.errorcode[ctypes.get_errno()])
