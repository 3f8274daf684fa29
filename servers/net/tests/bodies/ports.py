from common import *
R, P = "SO_REUSEADDR", "SO_REUSEPORT"
def made(family, host, port, **options):
    sock = socket.socket(family)
    for name, value in options.items():
        level = socket.IPPROTO_IPV6 if name.startswith("IPV6") else socket.SOL_SOCKET
        sock.setsockopt(level, getattr(socket, name), value)
    return sock, outcome(sock.bind, (host, port))
V4, V6 = socket.AF_INET, socket.AF_INET6
port = 21000
hosts = [(V4, LO), (V4, "127.0.0.2"), (V4, "0.0.0.0"), (V6, "::1"), (V6, "::"), (V6, "::ffff:127.0.0.1")]
for listening in (False, True):
    for options in ({}, {R: 1}, {P: 1}, {R: 1, P: 1}):
        for f1, h1 in hosts:
            for f2, h2 in hosts:
                port += 1
                one, first = made(f1, h1, port, **options)
                if listening:
                    one.listen()
                two, second = made(f2, h2, port, **options)
                third = outcome(two.listen) if second is None and listening else "-"
                show(listening, sorted(options), h1, h2, first, second, third)
                one.close(); two.close()
for only in (0, 1):
    six, _ = made(V6, "::", port + 1, IPV6_V6ONLY=only); six.listen()
    four, result = made(V4, "0.0.0.0", port + 1)
    show("v6only", only, result, six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    c = socket.socket()
    show("v4 to it", outcome(c.connect, (LO, port + 1)))
    six.close(); four.close()
show("v6only after bind", outcome(made(V6, "::", 0)[0].setsockopt, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1))
s, _ = made(V4, LO, 0)
show("bind twice", outcome(s.bind, (LO, 0)))
show("ephemeral", len({made(V4, LO, 0)[0].getsockname()[1] for _ in range(50)}) >= 1)
kept = [made(V4, LO, 0)[0] for _ in range(200)]
show("distinct", len({k.getsockname()[1] for k in kept}), all(32768 <= k.getsockname()[1] <= 60999 for k in kept))
# Released by the last close, not the first: dup, fork, SCM_RIGHTS.
s, _ = made(V4, LO, 0); port = s.getsockname()[1]; twin = s.dup(); s.close()
show("dup holds", made(V4, LO, port)[1]); twin.close(); show("released", made(V4, LO, port)[1])
# Listening unbound.
s = socket.socket(); s.listen(); show("autobound", s.getsockname()[0], s.getsockname()[1] > 0)
c = socket.create_connection((LO, s.getsockname()[1])); show("reached", c.getpeername()[0])
show("listen on connected", outcome(c.listen), "connect listener", outcome(s.connect, (LO, 1)))
# Load spread over a group.
group = [made(V4, LO, 22999, **{P: 1})[0] for _ in range(3)]
for g in group: g.listen(200)
clients = [socket.create_connection((LO, 22999)) for _ in range(90)]
counts = []
for g in group:
    g.setblocking(False); n = 0
    while not isinstance(outcome(g.accept), str): n += 1
    counts.append(n)
show("spread", sum(counts), all(n > 5 for n in counts))
