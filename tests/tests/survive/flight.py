"""Makes calls while nobody answers, so that each is in flight when the server dies; says what each returned."""

import os
import socket
import sys
import threading
import time

HERE = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 8080))
unbound = [socket.socket() for _ in range(2)]
client = socket.create_connection(("127.0.0.1", 8080))
answers = {}


def call(name, act):
    answers[name] = repr(act())


def fds():
    return len(os.listdir("/proc/self/fd"))


acts = {
    "socket": lambda: socket.socket().detach() > 2,
    "bind": lambda: unbound[0].bind(("127.0.0.1", 8081)),
    "connect": lambda: unbound[1].connect(("127.0.0.1", 8080)),
    "accept": lambda: listener.accept()[0].detach() > 2,
    "getsockname": listener.getsockname,
}
before = fds()
open(os.path.join(HERE, "ready"), "w").close()
while not os.path.exists(os.path.join(HERE, "call")):
    time.sleep(0.005)
threads = [threading.Thread(target=call, args=act) for act in acts.items()]
for thread in threads:
    thread.start()
open(os.path.join(HERE, "called"), "w").close()
for thread in threads:
    thread.join(60)
assert set(answers) == set(acts), answers
assert answers == {
    "socket": "True", "bind": "None", "connect": "None", "accept": "True", "getsockname": "('127.0.0.1', 8080)"
}, answers
# Answered once: one new fd each for socket and accept, and one more connection in the queue.
assert fds() == before + 2, (before, fds())
listener.settimeout(30)
assert listener.accept()[1] == unbound[1].getsockname()
listener.settimeout(0)
try:
    listener.accept()
    raise AssertionError("a connection too many")
except BlockingIOError:
    print("each once", flush=True)
# Who looks for the server that has answered finds the environment still there.
while not os.path.exists(os.path.join(HERE, "end")):
    time.sleep(0.005)
