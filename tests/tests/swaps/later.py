"""Binds before a swap, listens after it, gives way to a listener of the new network, and closes that, each when it is told to."""
import os, socket, sys, time

directory, port = sys.argv[1:]


def told(word):
    while not os.path.exists(f"{directory}/{word}"):
        time.sleep(0.01)


def say(word, text):
    with open(f"{directory}/{word}.new", "w") as file:
        file.write(str(text))
    os.rename(f"{directory}/{word}.new", f"{directory}/{word}")


bound = socket.socket()
address = "127.0.0.1", int(port)
bound.bind(address)
say("bound", "")
told("listen")
bound.listen()
data = b""
while not data:
    connection, _ = bound.accept()
    data = connection.recv(1, socket.MSG_PEEK)
    # What was not read: the client hears of a reset.
    connection.close()
told("again")
bound.close()
# At once: its address is free.
again = socket.create_server(address)
say("greets", "")
connection, _ = again.accept()
connection.sendall(b"again")
connection.close()
told("close")
again.close()
told("never")
