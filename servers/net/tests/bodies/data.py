from common import *
import tempfile
a, b = pair(); a.sendall(b"hello"); show("peek", b.recv(2, socket.MSG_PEEK), b.recv(10))
a.shutdown(socket.SHUT_WR); show("half close", b.recv(1), outcome(a.send, b"x") if False else "", b.send(b"back"), a.recv(9)); b.close(); show("end", a.recv(1))
a, b = pair(); show("dontwait", outcome(a.recv, 1, socket.MSG_DONTWAIT)); a.settimeout(0.05)
try: a.recv(1)
except TimeoutError: show("timeout")
with tempfile.TemporaryFile() as f:
    f.write(b"z" * 100000); f.flush(); a.settimeout(None)
    sent = []; t = threading.Thread(target=lambda: sent.append(os.sendfile(a.fileno(), f.fileno(), 0, 100000))); t.start(); got = b""
    while len(got) < 100000: got += b.recv(65536)
    t.join(); show("sendfile", sent, len(got))
r, w = os.pipe(); b.sendall(b"spliced"); n = os.splice(a.fileno(), w, 100); show("splice in", n, os.read(r, 100)); os.write(w, b"out"); show("splice out", os.splice(r, a.fileno(), 3), b.recv(9))
big = os.urandom(5_000_000); t = threading.Thread(target=lambda: (a.sendall(big), a.shutdown(socket.SHUT_WR))); t.start(); got = bytearray()
while chunk := b.recv(1 << 20): got += chunk
t.join(); show("much", bytes(got) == big)
# A reset by SO_LINGER 0, seen by the peer.
for reader in ("recv", "poll"):
    a, b = pair(); a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); a.close()
    if reader == "recv": show("reset", outcome(b.recv, 1))
    else:
        p = select.poll(); p.register(b, select.POLLIN); show("reset poll", bool(p.poll(5000)[0][1] & select.POLLERR), b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
a, b = pair(); a.sendall(b"unread"); until(lambda: b.recv(1, socket.MSG_PEEK), "data"); b.close(); show("closed with unread data", outcome(a.recv, 1))
a, b = pair(); show("sendmsg", a.sendmsg([b"x", b"yz"]), b.recvmsg(10)[0]); pid = os.fork()
if pid == 0: a.sendall(b"child"); os._exit(0)
os.waitpid(pid, 0); show("forked", b.recv(5)); a.close(); show("eof", b.recv(1))
x, y = socket.socketpair(socket.AF_UNIX); x.sendall(b"u"); show("unix", y.recv(1), x.getsockname(), outcome(x.connect, "/nonexistent"), outcome(socket.socket(socket.AF_UNIX).connect, "/nonexistent"))
d1 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d1.bind((LO, 0)); d2 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); d2.connect(d1.getsockname()); d2.send(b"udp"); m, frm = d1.recvfrom(9); show("udp", m, frm == d2.getsockname(), d2.getpeername() == d1.getsockname())
ab = socket.socket(socket.AF_UNIX); ab.bind("\0hurdle-test"); ab.listen(); cc = socket.socket(socket.AF_UNIX); cc.connect("\0hurdle-test"); show("abstract", ab.accept()[1], cc.getpeername())
