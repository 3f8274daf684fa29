"""Makes sockets before a swap, and binds, listens and connects after it."""
import errno, json, os, socket, sys, time

file, command = sys.argv[1:]
ports = json.load(open(file))
sockets = [socket.socket() for _ in range(5)]
open(command + ".ready", "w").close()
end = time.monotonic() + 60
while not os.path.exists(command):
    assert time.monotonic() < end, "never told"
    time.sleep(0.01)

one, two, three, four, five = sockets
# Somebody has these, in whatever network he listens.
for host, port in ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.5", "0.0.0.0"), ("127.0.0.1", "::"):
    for reuse in 0, 1:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        try:
            one.bind((host, ports[port]))
            raise SystemExit(f"{host} {port} is free")
        except OSError as e:
            assert e.errno == errno.EADDRINUSE, e
one.bind(("127.0.0.8", ports["127.0.0.9"]))
one.listen()
two.listen()
three.bind(("127.0.0.1", 0))
three.listen()
for listener in one, two, three:
    client = socket.create_connection(("127.0.0.1", listener.getsockname()[1])) if listener != one else four
    if client is four:
        four.connect(one.getsockname())
    accepted, peer = listener.accept()
    assert peer == client.getsockname(), (peer, client.getsockname())
    accepted.sendall(b"x")
    assert client.recv(9) == b"x"
five.connect(("127.0.0.1", ports["127.0.0.1"]))
assert five.recv(4096)
# Where the kernel has them, they are TCP.
known = {line.split()[1] for line in open("/proc/self/net/tcp").readlines()[1:]}
print(all(f"0100007F:{one.getsockname()[1]:04X}" not in known and
          any(entry.endswith(f":{listener.getsockname()[1]:04X}") for entry in known) for listener in (two, three)))
