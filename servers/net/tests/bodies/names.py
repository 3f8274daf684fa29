from common import *
# Addresses of every kind, before and after binding and connecting.
for family, hosts in [(socket.AF_INET, ["", LO, "127.5.6.7", "0.0.0.0"]), (socket.AF_INET6, ["::", "::1", "::ffff:127.0.0.1"])]:
    for host in hosts:
        s = socket.socket(family)
        show("fresh", s.getsockname(), outcome(s.getpeername))
        s.bind((host, 0))
        name = s.getsockname()
        show("bound", host, name[0], name[1] > 0, len(name))
        s.listen()
        targets = {"": [LO, "127.9.9.9"], "0.0.0.0": [LO, "0.0.0.0"], "::": ["::1", "::", LO], "::ffff:127.0.0.1": [LO]}.get(host, [host])
        for target in targets:
            c = socket.create_connection((target, name[1]))
            a, peer = s.accept()
            show("connected", target, c.getpeername()[0], c.getpeername()[1] == name[1], c.getsockname()[0], c.getsockname()[1] != name[1])
            show("accepted", peer[0], peer == a.getpeername(), peer[1] == c.getsockname()[1], a.getsockname()[0], a.getsockname()[1] == name[1], a.family == family)
            c.close(); a.close()
# A client that bound itself.
s = listener(host="0.0.0.0")
for bind_to, to in [(LO, LO), ("127.0.0.9", LO), ("0.0.0.0", "127.0.0.7")]:
    c = socket.socket()
    c.bind((bind_to, 0))
    port = c.getsockname()[1]
    c.connect((to, s.getsockname()[1]))
    a, peer = s.accept()
    show("bound client", c.getsockname()[1] == port, c.getpeername()[0], peer[1] == port, peer[0], a.getsockname()[0])
# Truncated and hostile buffers go through the C library below Python; errors of the plain calls here.
for sock, address in [(socket.socket(), ("10.1.2.3", 8080)), (socket.socket(), ("192.168.0.1", 8081))]:
    show("elsewhere", outcome(sock.bind, address), outcome(sock.connect, address))
six = socket.socket(socket.AF_INET6)
show("elsewhere 6", outcome(six.bind, ("2001:db8::1", 8080)), outcome(six.connect, ("2001:db8::1", 8080)))
show("fstat is a socket", os.fstat(six.fileno()).st_mode >> 12 == 0o14)
