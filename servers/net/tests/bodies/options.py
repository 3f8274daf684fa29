from common import *
T, I, S, V = socket.IPPROTO_TCP, socket.IPPROTO_IP, socket.SOL_SOCKET, socket.IPPROTO_IPV6
for family in (socket.AF_INET, socket.AF_INET6):
    for level, name, values in [(T, 1, [1, 0, 7]), (T, 3, [1, 0]), (T, 4, [60, 0, 32767, 32768]), (T, 5, [5, 0]), (T, 6, [3, 0, 127, 128]),
            (T, 7, [4, 0]), (T, 12, [0, 1]), (T, 18, [5000, -1]), (T, 23, [5]), (T, 2, [1000, 10]), (T, 99, [1]), (I, 1, [16, 8]), (I, 2, [5, 0, 256]),
            (I, 10, [0, 2]), (I, 24, [1]), (S, 15, [1, 0]), (S, 2, [1, 0]), (S, 9, [1, 0]), (V, 16, [9, -1]), (V, 67, [32, -1]), (V, 26, [1, 0])]:
        s = socket.socket(family)
        before = outcome(s.getsockopt, level, name)
        show(family.name, level, name, before, [(v, outcome(s.setsockopt, level, name, v), outcome(s.getsockopt, level, name)) for v in values])
    s = socket.socket(family)
    show("identity", [s.getsockopt(S, o) for o in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL, socket.SO_ACCEPTCONN, socket.SO_ERROR)])
    show("congestion", s.getsockopt(T, socket.TCP_CONGESTION, 16)[:5], outcome(s.setsockopt, T, socket.TCP_CONGESTION, b"reno"), s.getsockopt(T, socket.TCP_CONGESTION, 16)[:5], outcome(s.setsockopt, T, socket.TCP_CONGESTION, b"nope"))
    show("short", outcome(s.setsockopt, T, 1, b"\1"), outcome(s.getsockopt, T, 1, 1), outcome(s.getsockopt, T, 1, 0), outcome(s.getsockopt, T, 1, 64))
    show("linger", s.getsockopt(S, socket.SO_LINGER, 8), outcome(s.setsockopt, S, socket.SO_LINGER, struct.pack("ii", 1, 5)), s.getsockopt(S, socket.SO_LINGER, 8))
    show("maxseg", s.getsockopt(T, socket.TCP_MAXSEG), "state", s.getsockopt(T, socket.TCP_INFO, 104)[0])
client, accepted = pair()
for end in (client, accepted):
    end.setsockopt(T, 1, 1); twin = end.dup()
    show("connected", end.getsockopt(T, 1), twin.getsockopt(T, 1), end.getsockopt(T, socket.TCP_MAXSEG) > 30000, end.getsockopt(T, socket.TCP_INFO, 104)[0], len(end.getsockopt(T, socket.TCP_INFO, 104)))
s = listener(); show("listener state", s.getsockopt(T, socket.TCP_INFO, 104)[0], s.getsockopt(S, socket.SO_ACCEPTCONN))
s.setsockopt(T, 1, 1); s.setsockopt(T, 4, 77); s.setsockopt(T, 2, 1000); s.setsockopt(T, 18, 1234)
c = socket.create_connection(s.getsockname()); a, _ = s.accept(); show("inherited", a.getsockopt(T, 1), a.getsockopt(T, 4), a.getsockopt(T, 18), c.getsockopt(T, 1))
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((LO, 0)); show("udp", u.getsockopt(I, 2), outcome(u.getsockopt, T, 1), u.getsockopt(S, socket.SO_PROTOCOL), u.getsockname()[0])
x = socket.socket(socket.AF_UNIX); show("unix", outcome(x.getsockopt, T, 1), x.getsockopt(S, socket.SO_DOMAIN), outcome(x.setsockopt, S, 15, 1))
