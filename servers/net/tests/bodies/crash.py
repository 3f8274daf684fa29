from common import *
# Parked accepts, connects, names and options, while the server dies again and again. What may be seen of a death: a
# connection that was being handed over ends. What may not: a wrong name, a forgotten option, a call that hangs.
s = listener(backlog=128); address = s.getsockname(); wrong, ids, died = [], [], []
def server():
    ids.append(threading.get_native_id())
    while True:
        try:
            a, peer = s.accept()
            if a.getpeername() != peer or a.getsockname() != address: wrong.append((peer, a.getpeername(), a.getsockname()))
            data = a.recv(10); a.sendall(data); a.close()
        except OSError as error:
            died.append(error); continue
        if data == b"end": return
threads = [threading.Thread(target=server) for _ in range(3)]; [t.start() for t in threads]
until(lambda: len(ids) == 3 and all(asleep(i) for i in ids), "three waiters"); time.sleep(0.1)
end = time.monotonic() + 1.5; n = good = 0
while time.monotonic() < end:
    n += 1
    try:
        c = socket.socket(); c.settimeout(10); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); c.connect(address)
        if not c.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) or c.getpeername() != address: wrong.append("forgot")
        c.sendall(b"%d" % n)
        if c.recv(10) == b"%d" % n: good += 1
        c.close()
        t2 = socket.socket(); r = outcome(t2.bind, address)
        if r != "EADDRINUSE": wrong.append(("bound", r))
        t2.close()
    except TimeoutError: wrong.append("hangs")
    except OSError as error: died.append(error)
for attempt in range(1000):
    if not any(t.is_alive() for t in threads): break
    try: c = socket.create_connection(address, 10); c.sendall(b"end"); c.recv(3); c.close()
    except OSError as error: died.append(error)
[t.join(10) for t in threads]; s.close()
show("went on", n > 20, good >= n * 0.8, not any(t.is_alive() for t in threads), wrong[:3], outcome(socket.socket().connect, address))
