"""What the bodies share. Each body prints what it saw; natively and inside the same lines must come out."""
import errno, os, select, signal, socket, struct, sys, threading, time

LO = "127.0.0.1"


def outcome(call, *args):
    """The call's result, or the name of its errno."""
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))


def show(what, *values):
    print(what, *values, flush=True)


def listener(family=socket.AF_INET, host=LO, port=0, backlog=16, **options):
    sock = socket.socket(family)
    for name, value in options.items():
        level = socket.IPPROTO_IPV6 if name.startswith("IPV6") else socket.SOL_SOCKET
        sock.setsockopt(level, getattr(socket, name), value)
    sock.bind((host, port))
    sock.listen(backlog)
    return sock


def pair(**options):
    server = listener(**options)
    client = socket.create_connection(server.getsockname()[:2])
    accepted, _ = server.accept()
    server.close()
    return client, accepted


def until(condition, what):
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"never: {what}")
        time.sleep(0.002)


def asleep(thread_id):
    """Whether a thread of this process is in a wait."""
    with open(f"/proc/self/task/{thread_id}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "S"
