"""Two hundred clients of an asyncio echo server, some of which are cancelled, some time out, some half-close."""
import asyncio
import socket


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionResetError:
        pass
    finally:
        writer.close()


async def client(port, number, host):
    reader, writer = await asyncio.open_connection(host, port)
    assert writer.get_extra_info("peername")[:2] == (host, port)
    payload = bytes([number % 256]) * (number * 1000 + 1)
    writer.write(payload)
    writer.write_eof()
    received = await reader.read()
    assert received == payload, (number, len(received), len(payload))
    writer.close()
    await writer.wait_closed()


async def silent_server(reader, writer):
    await reader.read()
    writer.close()


async def main():
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        server = await asyncio.start_server(echo, host, 0, family=family, backlog=256)
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(client(port, number, host) for number in range(100)))
        server.close()
        await server.wait_closed()
        try:
            await asyncio.open_connection(host, port)
        except ConnectionRefusedError:
            pass
        else:
            raise AssertionError("a closed server accepted")

    server = await asyncio.start_server(silent_server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.wait_for(reader.read(1), 0.05)
    except asyncio.TimeoutError:
        pass
    else:
        raise AssertionError("silence was answered")
    writer.close()

    # A socket of the program's own, connected by the loop without blocking.
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", port))
    assert raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    raw.close()
    server.close()


asyncio.run(main())
print("good")
