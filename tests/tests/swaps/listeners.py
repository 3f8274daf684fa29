"""Listens in every way, and tells each client what it sees of the connection. Its file says where it listens; with `poll` it is never
asleep in accept(2). The ports are arguments."""
import json, os, select, socket, sys, threading

WAYS = [("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("127.0.0.9", socket.AF_INET),
        ("::1", socket.AF_INET6), ("::", socket.AF_INET6)]


def serve(connection, peer):
    with connection:
        seen = [peer[:2], connection.getpeername()[:2], connection.getsockname()[:2]]
        connection.sendall(json.dumps(seen).encode() + b"\n")
        while data := connection.recv(4096):
            connection.sendall(data)


def accept(listener):
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        if sys.argv[2] == "poll":
            poll.poll()
        threading.Thread(target=serve, args=listener.accept(), daemon=True).start()


ports = {}
threads = []
for (host, family), port in zip(WAYS, sys.argv[3:], strict=True):
    listener = socket.create_server((host, int(port)), family=family, backlog=64, dualstack_ipv6=host == "::")
    ports[host] = int(port)
    threads.append(threading.Thread(target=accept, args=(listener,), daemon=True))
for thread in threads:
    thread.start()
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(ports, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
threads[0].join()
