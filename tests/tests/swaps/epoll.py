"""Registers a socket in epoll sets before it connects; the registrations hold whatever became of the socket."""
import asyncio, errno, json, select, socket, sys, threading, time

port = json.load(open(sys.argv[1]))["127.0.0.1"]
IN, OUT, HUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP


def wait(epoll, fd, wanted):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for found, events in epoll.poll(1):
            if found == fd and events & wanted:
                assert not events & HUP, events
                return events
    raise SystemExit(f"never: {wanted} of {fd}")


def connect(client):
    found = client.connect_ex(("127.0.0.1", port))
    assert found in (0, errno.EINPROGRESS), errno.errorcode[found]


for flags in 0, select.EPOLLET, select.EPOLLONESHOT:
    client = socket.socket()
    client.setblocking(False)
    copy = client.dup()
    one, two = select.epoll(), select.epoll()
    one.register(client, IN | OUT | flags)
    two.register(client, OUT)
    two.register(copy, IN)
    connect(client)
    wait(one, client.fileno(), OUT)
    wait(two, client.fileno(), OUT)
    assert copy.getpeername() == client.getpeername()
    two.modify(client, 0)
    wait(two, copy.fileno(), IN)
    if flags == select.EPOLLONESHOT:
        assert one.poll(0) == []
    # Both may have come at once.
    one.modify(client, IN | flags)
    # What the listener says first.
    wait(one, client.fileno(), IN)
    assert client.recv(4096).endswith(b"\n")
    if flags == select.EPOLLET:
        assert all(not events & IN for _, events in one.poll(0))
    if flags == select.EPOLLONESHOT:
        one.modify(client, IN | flags)
    copy.sendall(b"back")
    wait(one, client.fileno(), IN)
    assert copy.recv(4) == b"back"
    one.unregister(client)
    two.unregister(copy)
    two.unregister(client)
    client.close()
    copy.close()
    assert one.poll(0) == two.poll(0) == []

# A thread that waits in the set meanwhile.
client = socket.socket()
client.setblocking(False)
epoll = select.epoll()
epoll.register(client, IN | select.EPOLLET)
seen = []
waiting = threading.Thread(target=lambda: seen.append(wait(epoll, client.fileno(), IN)))
epoll.poll(0)
waiting.start()
connect(client)
waiting.join(20)
assert seen and seen[0] & IN


async def ask():
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.readline()
    writer.write(b"from asyncio\n")
    assert await asyncio.wait_for(reader.readline(), 20) == b"from asyncio\n"
    writer.close()
    await writer.wait_closed()


async def ask_all():
    await asyncio.gather(*[ask() for _ in range(20)])


asyncio.run(ask_all())
print("registered")
