"""multiprocessing: a pool, a queue, shared memory, semaphores, a manager and connections over TCP."""
import multiprocessing
from multiprocessing import shared_memory
from multiprocessing.connection import Client, Listener


def square(number):
    return number * number


def fill(name, value):
    block = shared_memory.SharedMemory(name=name)
    block.buf[0] = value
    block.close()


def add(counter, lock):
    for _ in range(200):
        with lock:
            counter.value += 1


def answer(address):
    with Client(address, authkey=b"wool") as connection:
        connection.send([connection.recv(), "black sheep"])


if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        with context.Pool(2) as pool:
            assert pool.map(square, range(100)) == [n * n for n in range(100)]

    block = shared_memory.SharedMemory(create=True, size=4096)
    worker = multiprocessing.Process(target=fill, args=(block.name, 42))
    worker.start()
    worker.join()
    assert block.buf[0] == 42
    block.close()
    block.unlink()

    counter, lock = multiprocessing.Value("i", 0, lock=False), multiprocessing.Lock()
    workers = [multiprocessing.Process(target=add, args=(counter, lock)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.value == 800

    with multiprocessing.Manager() as manager:
        shared = manager.dict()
        shared["count"] = 1
        assert dict(shared) == {"count": 1}

    with Listener(("127.0.0.1", 0), authkey=b"wool") as listener:
        worker = multiprocessing.Process(target=answer, args=(listener.address,))
        worker.start()
        with listener.accept() as connection:
            assert listener.last_accepted[0] == "127.0.0.1"
            connection.send("baa")
            assert connection.recv() == ["baa", "black sheep"]
        worker.join()
        assert worker.exitcode == 0
    print("good")
