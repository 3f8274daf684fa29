from common import *
s = listener(); address = s.getsockname()
s.setblocking(False); show("empty", outcome(s.accept)); s.setblocking(True)
# A time limit on the socket itself, as C programs set it.
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 150000))
start = time.monotonic(); show("limit", outcome(socket.socket.accept, s) if False else outcome(lambda: socket.socket._accept(s))); show("lasted", 0.1 < time.monotonic() - start < 3)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
# A signal: with a handler Python goes on by itself (EINTR), and nothing is lost.
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1)); signal.setitimer(signal.ITIMER_REAL, 0.02, 0.005)
def poke():
    until(lambda: len(hits) >= 10, "ten signals"); c.append(socket.create_connection(address))
c = []; t = threading.Thread(target=poke); t.start(); a, peer = s.accept(); t.join(); signal.setitimer(signal.ITIMER_REAL, 0)
show("after signals", peer == c[0].getsockname(), a.getpeername() == peer)
class Stop(Exception): pass
def stop(*_): raise Stop
signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, 0.05)
try: s.accept(); show("accepted?")
except Stop: show("interrupted")
extra = socket.create_connection(address); show("next one is not lost", s.accept()[1] == extra.getsockname())
# A storm of signals while connections come: each arrives once. (Natively a full backlog would cost a second each time.)
s = listener(backlog=512); address = s.getsockname()
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False); signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
mine = []
def many():
    for _ in range(300): mine.append(socket.create_connection(address))
t = threading.Thread(target=many); t.start(); got = [s.accept() for _ in range(300)]; t.join(); signal.setitimer(signal.ITIMER_REAL, 0)
show("storm", sorted(p for _, p in got) == sorted(m.getsockname() for m in mine))
# Several threads in one accept.
results, ids = [], []
def one():
    ids.append(threading.get_native_id()); results.append(s.accept()[1])
threads = [threading.Thread(target=one) for _ in range(8)]; [t.start() for t in threads]
until(lambda: len(ids) == 8 and all(asleep(i) for i in ids), "eight waiters"); clients = [socket.create_connection(address) for _ in range(8)]
[t.join(10) for t in threads]; show("threads", sorted(results) == sorted(x.getsockname() for x in clients))
# Shut down while somebody waits.
ids.clear(); ends = []
def waiter():
    ids.append(threading.get_native_id()); ends.append(outcome(s.accept))
t = threading.Thread(target=waiter); t.start(); until(lambda: ids and asleep(ids[0]), "a waiter"); s.shutdown(socket.SHUT_RDWR); t.join(10); show("shut down", ends)
c = socket.socket(); show("afterwards", outcome(c.connect, address))
# Forked workers share a listener; its last close refuses.
s = listener(); address = s.getsockname(); r, w = os.pipe(); kids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        for _ in range(5): x, p = s.accept(); os.write(w, b"."); x.close()
        os._exit(0)
    kids.append(pid)
s.close(); socks = [socket.create_connection(address) for _ in range(15)]; [os.waitpid(k, 0) for k in kids]
show("forked", len(os.read(r, 100)), outcome(socket.socket().connect, address))
# Passed over a Unix socket.
left, right = socket.socketpair(socket.AF_UNIX); s = listener(); address = s.getsockname()
socket.send_fds(left, [b"x"], [s.fileno()]); s.close(); fd = socket.recv_fds(right, 1, 1)[1][0]; passed = socket.socket(fileno=fd)
show("passed", passed.family.name, passed.proto, passed.getsockname() == address); c = socket.create_connection(address); show("accepts", passed.accept()[1] == c.getsockname())
# Flags of accept4 and inheritance.
a = passed; c = socket.create_connection(address); fd, _ = a._accept(); import fcntl
show("flags", fcntl.fcntl(fd, fcntl.F_GETFD), fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)
x = socket.socket(); show("not listening", outcome(x.accept)); x.bind((LO, 0)); show("bound", outcome(x.accept))
