from common import *
# What goes on when the server is killed: calls that wait, sockets of every state, names and options.
# The kills come while no call is being answered with an fd: the kernel turns such an answer into 0.
FILE = os.environ.get("CRASH_FILE")
def crash():
    if FILE:
        open(FILE, "w").close()
        until(lambda: not os.path.exists(FILE), "a successor")
s = listener(backlog=128, SO_REUSEADDR=1); address = s.getsockname(); ids, results = [], []
def accepts():
    ids.append(threading.get_native_id()); a, peer = s.accept(); results.append((a, peer))
for round in range(3):
    ids.clear(); results.clear()
    threads = [threading.Thread(target=accepts) for _ in range(4)]; [t.start() for t in threads]
    until(lambda: len(ids) == 4 and all(asleep(i) for i in ids), "four waiters")
    crash(); crash()
    clients = [socket.create_connection(address) for _ in range(4)]; [t.join(10) for t in threads]
    show("parked accepts", sorted(p for _, p in results) == sorted(c.getsockname() for c in clients))
# A connect that waits for room.
tight = listener(backlog=0); first = socket.create_connection(tight.getsockname()); done = []
def connects():
    ids.append(threading.get_native_id()); done.append(socket.create_connection(tight.getsockname()))
ids.clear(); t = threading.Thread(target=connects); t.start(); until(lambda: ids and asleep(ids[0]), "a connect")
crash(); accepted = [tight.accept()[0] for _ in range(2)]; t.join(10); show("parked connect", len(done))
# Sockets in every state keep what they were told.
fresh = socket.socket(socket.AF_INET6); fresh.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
bound = socket.socket(); bound.bind((LO, 0)); port = bound.getsockname()[1]
client, other = pair(); client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77); queued = socket.create_connection(address)
names = [x.getsockname() for x in (fresh, bound, client, other, s)] + [client.getpeername(), other.getpeername()]
crash()
show("names", names == [x.getsockname() for x in (fresh, bound, client, other, s)] + [client.getpeername(), other.getpeername()])
show("options", fresh.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), fresh.family.name)
show("taken", outcome(socket.socket().bind, (LO, port)), outcome(socket.socket().bind, ("0.0.0.0", address[1])), outcome(socket.socket().connect, (LO, port)))
show("queued", s.accept()[1] == queued.getsockname()); client.sendall(b"on"); show("data", other.recv(2))
bound.listen(); c = socket.create_connection((LO, port)); show("listens", bound.accept()[1] == c.getsockname())
# A time limit and a signal go on counting.
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 400000)); ids.clear(); ends = []
def limited():
    ids.append(threading.get_native_id()); ends.append(outcome(s._accept))
t = threading.Thread(target=limited); t.start(); until(lambda: ids and asleep(ids[0]), "a waiter"); crash(); t.join(10); show("limit", ends)
s.close(); crash(); show("released", outcome(socket.socket().connect, address))
