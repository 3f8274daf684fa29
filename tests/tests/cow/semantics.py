"""What files do on Linux: each function is one test, run natively and in a copy-on-write environment.

`semantics.py prepare DIR` makes files on the host. `semantics.py run DIR` runs the tests on them and on fresh files, and
prints a line `NAME ok`, or `NAME FAIL`, for each; what failed is told on stderr. A test that speaks of `old` files works on
those that were there before, which an environment sees through its layer.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import traceback

libc = ctypes.CDLL(None, use_errno=True)
TESTS = []
OLD = {"text": b"wool\n" * 1000, "second": b"milk\n" * 1000, "other": b"x" * 70000}


def test(function):
    TESTS.append(function)
    return function


def write(path, data=b"", flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def fails(number, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, f"{errno.errorcode[error.errno]}, not {errno.errorcode[number]}"
    else:
        raise AssertionError(f"no {errno.errorcode[number]}")


def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(source, target, flags):
    call("renameat2", -100, source.encode(), -100, target.encode(), flags)


def child(function):
    """What a function answers in a process of its own: true or false."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if function() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def prepare():
    """Each test gets a copy of this directory for itself."""
    for name, data in OLD.items():
        write(name, data)
    os.link("second", "second-link")
    os.makedirs("tree/branch/twig")
    for number in range(5):
        write(f"tree/branch/twig/{number}", b"leaf")
    os.symlink("text", "link")
    os.symlink("nowhere", "dangling")
    os.mkfifo("fifo")
    write("script", b"#!/bin/sh\necho hello\n", mode=0o755)
    os.chmod("script", 0o755)
    shutil.copy("/bin/sleep", "sleep")
    with open("sparse", "wb") as file:
        file.truncate(256 << 20)
        file.seek(128 << 20)
        file.write(b"island")
    os.setxattr("text", "user.colour", b"white")
    os.utime("text", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    os.utime("tree/branch", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    os.mkdir("many")
    for number in range(300):
        write(f"many/{number}")


# Memory

@test
def mmap_shared_writes_reach_the_file_old():
    with open("text", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:4] = b"WOOL"
        assert os.pread(file.fileno(), 5, 0) == b"WOOL\n" and read("text")[:5] == b"WOOL\n"
        os.pwrite(file.fileno(), b"lamb", 5)
        assert memory[5:9] == b"lamb"
        memory.flush()


@test
def mmap_shared_is_shared_between_processes():
    write("fresh", b"\0" * 8192)
    with open("fresh", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert child(lambda: memory.__setitem__(slice(4096, 4100), b"ewes") is None)
        assert memory[4096:4100] == b"ewes" and read("fresh")[4096:4100] == b"ewes"


@test
def mmap_private_writes_do_not_reach_the_file_old():
    with open("text", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as memory:
        memory[0:4] = b"WOOL"
        assert memory[0:5] == b"WOOL\n" and read("text") == OLD["text"]


@test
def mmap_of_a_read_only_fd_refuses_to_write():
    with open("text", "rb") as file:
        fails(errno.EACCES, lambda: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE))


@test
def a_mapping_made_before_sees_later_writes_old():
    with open("text", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        assert memory[:4] == b"wool"
        write("text", b"lamb", os.O_WRONLY)
        assert memory[:4] == b"lamb"


@test
def a_file_opened_before_sees_later_writes_old():
    with open("text", "rb", buffering=0) as file:
        assert file.read(4) == b"wool"
        write("text", b"lamb", os.O_WRONLY)
        assert os.pread(file.fileno(), 4, 0) == b"lamb"


@test
def maps_and_fds_have_the_names_of_files_old():
    path = os.path.realpath("text")
    with open("text", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == path
        with open("/proc/self/maps") as maps:
            assert any(line.endswith(f" {path}\n") for line in maps)
    assert os.path.realpath(os.getcwd()) == os.path.dirname(path)


# Programs

@test
def programs_run_old():
    assert subprocess.check_output(["./script"]) == b"hello\n"
    os.chmod("script", 0o644)
    fails(errno.EACCES, os.execv, "./script", ["script"])
    os.chmod("script", 0o755)
    write("script", b"#!/bin/sh\necho again\n")
    assert subprocess.check_output(["./script"]) == b"again\n"


@test
def a_running_program_is_busy_old():
    running = subprocess.Popen(["./sleep", "100"])
    try:
        assert os.path.samefile(f"/proc/{running.pid}/exe", "sleep")
        fails(errno.ETXTBSY, os.open, "sleep", os.O_WRONLY)
    finally:
        running.kill()
        running.wait()
    write("sleep", b"", os.O_WRONLY)


@test
def a_running_program_is_busy():
    shutil.copy("sleep", "fresh")
    running = subprocess.Popen(["./fresh", "100"])
    try:
        fails(errno.ETXTBSY, os.open, "fresh", os.O_WRONLY)
        shutil.copy("sleep", "newer")
        os.rename("newer", "fresh")
    finally:
        running.kill()
        running.wait()


# Locks

@test
def flock_excludes_old():
    with open("text", "rb") as file, open("text", "r+b") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        fails(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@test
def record_locks_exclude_other_processes_old():
    def locked():
        with open("text", "r+b") as other:
            fails(errno.EAGAIN, fcntl.lockf, other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
            holder = struct.unpack("hhqqixxxx", fcntl.fcntl(other, fcntl.F_GETLK, struct.pack(
                "hhqqixxxx", fcntl.F_WRLCK, 0, 0, 50, 0)))
            return holder[0] == fcntl.F_WRLCK and holder[4] == os.getppid()
    with open("text", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        assert child(locked)


@test
def locks_of_open_files_exclude():
    write("fresh", b"0123456789")
    lock = struct.pack("hhqqixxxx", fcntl.F_WRLCK, 0, 0, 5, 0)
    with open("fresh", "r+b") as file, open("fresh", "r+b") as other:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        fails(errno.EAGAIN, fcntl.fcntl, other, fcntl.F_OFD_SETLK, lock)


@test
def a_lock_taken_before_a_first_write_holds_after_it_old():
    with open("text", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write("text", b"lamb", os.O_WRONLY)
        with open("text", "rb") as other:
            fails(errno.EAGAIN, fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# Extended attributes

@test
def extended_attributes_of_files_and_directories():
    write("fresh")
    for name in ["fresh", "tree"]:
        os.setxattr(name, "user.breed", b"merino")
        assert os.getxattr(name, "user.breed") == b"merino" and os.listxattr(name) == ["user.breed"]
        fails(errno.EEXIST, os.setxattr, name, "user.breed", b"", os.XATTR_CREATE)
        os.removexattr(name, "user.breed")
        fails(errno.ENODATA, os.getxattr, name, "user.breed")


@test
def extended_attributes_old():
    assert os.getxattr("text", "user.colour") == b"white" and os.listxattr("text") == ["user.colour"]
    os.setxattr("text", "user.colour", b"black", os.XATTR_REPLACE)
    os.chmod("text", 0o600)
    assert os.getxattr("text", "user.colour") == b"black" and read("text") == OLD["text"]
    os.removexattr("text", "user.colour")
    assert os.listxattr("text") == []


@test
def extended_attributes_survive_a_first_write_old():
    write("text", b"lamb", os.O_WRONLY)
    assert os.getxattr("text", "user.colour") == b"white"


@test
def access_lists_are_kept_and_inherited():
    entry = lambda tag, mode, who=0xFFFFFFFF: struct.pack("<HHI", tag, mode, who)
    me = os.geteuid()
    acl = struct.pack("<I", 2) + entry(1, 7) + entry(2, 7, me) + entry(4, 5) + entry(0x10, 7) + entry(0x20, 0)
    os.setxattr("tree", "system.posix_acl_default", acl)
    write("tree/fresh")
    assert b"".join([struct.pack("<HHI", 2, 7, me)]) in os.getxattr("tree/fresh", "system.posix_acl_access")


# Hard links

@test
def hard_links_share_a_file():
    write("fresh", b"one")
    os.link("fresh", "same")
    write("same", b"two")
    assert read("fresh") == b"two" and os.path.samefile("fresh", "same") and os.stat("fresh").st_nlink == 2
    os.unlink("fresh")
    assert read("same") == b"two" and os.stat("same").st_nlink == 1


@test
def a_new_link_to_a_file_shares_it_old():
    os.link("text", "same")
    assert os.stat("text").st_nlink == 2 and os.path.samefile("text", "same")
    write("same", b"lamb", os.O_WRONLY)
    assert read("text")[:4] == b"lamb"


@test
def links_from_before_share_a_file_old():
    assert os.path.samefile("second", "second-link") and os.stat("second").st_nlink == 2
    write("second", b"lamb", os.O_WRONLY)
    assert read("second-link")[:4] == b"lamb" and os.path.samefile("second", "second-link")


@test
def a_link_to_a_symbolic_link_is_one_too_old():
    os.link("link", "another", follow_symlinks=False)
    assert os.readlink("another") == "text"


# Sparse files

@test
def sparse_files_take_little_room():
    with open("fresh", "w+b") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"island")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_blocks < 2048
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 1 << 39
        assert os.lseek(file.fileno(), (1 << 39) + 4096, os.SEEK_HOLE) <= (1 << 39) + 65536


@test
def sparse_files_stay_sparse_after_a_first_write_old():
    write("sparse", b"x", os.O_WRONLY)
    assert os.stat("sparse").st_blocks < 16384 and os.stat("sparse").st_size == 256 << 20
    with open("sparse", "rb") as file:
        assert os.pread(file.fileno(), 6, 128 << 20) == b"island"


@test
def holes_are_found_old():
    with open("sparse", "rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 128 << 20
        fails(errno.ENXIO, os.lseek, file.fileno(), 200 << 20, os.SEEK_DATA)


@test
def holes_are_punched_and_room_is_allocated():
    with open("fresh", "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        assert os.fstat(file.fileno()).st_blocks >= 2048
        call("fallocate", file.fileno(), 3, ctypes.c_long(0), ctypes.c_long(1 << 20))
        assert os.fstat(file.fileno()).st_blocks < 100 and os.fstat(file.fileno()).st_size == 1 << 20


# Files without a name

@test
def files_without_a_name_get_one():
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"lamb")
    assert os.fstat(fd).st_nlink == 0
    call("linkat", -100, f"/proc/self/fd/{fd}".encode(), -100, b"named", 0x400)
    assert read("named") == b"lamb" and os.fstat(fd).st_nlink == 1


@test
def unlinked_files_live_on_while_open_old():
    for name in ["text", "fresh"]:
        if name == "fresh":
            write(name, OLD["text"])
        with open(name, "r+b", buffering=0) as file, open(name, "rb", buffering=0) as reader:
            os.unlink(name)
            assert not os.path.exists(name) and os.fstat(file.fileno()).st_nlink == 0
            file.write(b"LAMB")
            assert os.pread(reader.fileno(), 6, 0) == b"LAMB\nw", name
            file.truncate(2)
            assert os.fstat(reader.fileno()).st_size == 2
            write(name, b"successor")
            assert os.pread(reader.fileno(), 6, 0) == b"LA"


@test
def a_reader_of_an_unlinked_file_reads_on_old():
    with open("text", "rb", buffering=0) as reader:
        os.unlink("text")
        write("text", b"successor")
        assert reader.read(5) == b"wool\n" and os.fstat(reader.fileno()).st_nlink == 0


# Directories

@test
def directories_are_renamed():
    os.makedirs("fresh/below")
    write("fresh/below/file", b"1")
    with open("fresh/below/file", "rb") as file:
        os.rename("fresh", "moved")
        assert read("moved/below/file") == b"1" and file.read() == b"1" and not os.path.exists("fresh")
    fails(errno.EINVAL, os.rename, "moved", "moved/below/inside")
    os.mkdir("empty")
    os.rename("moved", "empty")
    fails(errno.ENOTEMPTY, os.rename, "empty", "many")


@test
def directories_are_renamed_old():
    os.rename("tree/branch", "moved")
    assert sorted(os.listdir("moved/twig")) == list("01234") and os.listdir("tree") == []
    os.unlink("moved/twig/0")
    os.rename("moved/twig", "tree/twig")
    assert sorted(os.listdir("tree/twig")) == list("1234")


@test
def mv_moves_directories_old():
    subprocess.check_call(["mv", "tree/branch", "moved"])
    assert read("moved/twig/3") == b"leaf" and os.listdir("tree") == []


@test
def files_are_renamed_over_others_old():
    os.rename("text", "second")
    assert read("second") == OLD["text"] and not os.path.exists("text")
    os.rename("second", "tree/branch/twig/0")
    assert read("tree/branch/twig/0") == OLD["text"] and read("second-link") == OLD["second"]


@test
def renames_exchange_and_keep_from_replacing_old():
    fails(errno.EEXIST, renameat2, "text", "other", 1)
    write("fresh", b"fresh")
    renameat2("text", "fresh", 2)
    assert read("text") == b"fresh" and read("fresh") == OLD["text"]


@test
def deleted_files_are_gone_and_come_again_old():
    os.unlink("text")
    assert "text" not in os.listdir(".")
    fails(errno.ENOENT, os.stat, "text")
    write("text", b"new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    assert read("text") == b"new" and os.stat("text").st_nlink == 1
    fails(errno.EEXIST, os.open, "other", os.O_CREAT | os.O_EXCL)


@test
def deleted_directories_come_again_empty_old():
    fails(errno.ENOTEMPTY, os.rmdir, "tree")
    shutil.rmtree("tree")
    fails(errno.ENOENT, os.stat, "tree/branch")
    os.mkdir("tree")
    assert os.listdir("tree") == []
    write("tree/branch")
    assert os.listdir("tree") == ["branch"] and os.path.isfile("tree/branch")


@test
def a_directory_can_be_emptied_while_it_is_read_old():
    for number in range(300, 2000):
        write(f"many/{number}")
    with os.scandir("many") as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir("many") == []
    os.rmdir("many")


@test
def entries_tell_type_and_number_old():
    write("fresh")
    os.mkdir("directory")
    with os.scandir(".") as entries:
        for entry in entries:
            assert entry.inode() == os.lstat(entry.path).st_ino, entry.name
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(os.lstat(entry.path).st_mode), entry.name


@test
def all_files_are_of_one_file_system_old():
    write("text", b"", os.O_WRONLY)
    write("fresh")
    assert {os.lstat(name).st_dev for name in os.listdir(".")} == {os.stat(".").st_dev}


@test
def a_file_keeps_its_number_old():
    for name in ["text", "tree/branch", "link"]:
        before = os.lstat(name)
        os.utime(name, follow_symlinks=False)
        after = os.lstat(name)
        assert (before.st_ino, before.st_dev) == (after.st_ino, after.st_dev), name


@test
def a_file_keeps_its_number_while_it_is_written_old():
    before = os.stat("text")
    write("text", b"lamb", os.O_WRONLY)
    assert os.stat("text").st_ino == before.st_ino and os.stat("text").st_dev == before.st_dev


@test
def a_directory_stays_where_its_user_is_old():
    os.chdir("tree/branch")
    here = os.open(".", os.O_PATH)
    write("new")
    os.unlink("twig/0")
    assert sorted(os.listdir(".")) == ["new", "twig"] and os.stat("new", dir_fd=here)
    os.chdir("../..")


# Names

@test
def names_have_any_bytes_and_255_of_them():
    names = [b"\xff\xfe\x80", b"new\nline", b"\xc3\x28", b"x" * 255, b" "]
    for name in names:
        write(name)
        os.symlink(name, b"to-" + name[:200])
        assert os.stat(b"to-" + name[:200]).st_ino == os.stat(name).st_ino
    assert set(names) <= set(os.listdir(b"."))
    fails(errno.ENAMETOOLONG, os.open, b"x" * 256, os.O_CREAT)


@test
def symbolic_links_old():
    assert os.readlink("link") == "text" and os.readlink("dangling") == "nowhere"
    write("dangling", b"through")
    assert read("nowhere") == b"through"
    write("link", b"lamb", os.O_WRONLY)
    assert read("text")[:4] == b"lamb" and os.path.islink("link")
    fails(errno.ELOOP, os.open, "link", os.O_RDONLY | os.O_NOFOLLOW)
    os.symlink("loop", "loop")
    fails(errno.ELOOP, os.stat, "loop")


@test
def pipes_and_sockets_with_a_name_old():
    thread = threading.Thread(target=write, args=("fifo", b"lamb", os.O_WRONLY))
    thread.start()
    assert read("fifo") == b"lamb"
    thread.join()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("socket")
        listener.listen()
        client.connect("socket")
        assert stat.S_ISSOCK(os.stat("socket").st_mode)


# Times, owners and modes

@test
def times_are_kept_by_what_does_not_write_old():
    before = os.stat("text")
    assert before.st_mtime_ns == 1_100_000_000_987_654_321
    os.chmod("text", 0o640)
    after = os.stat("text")
    assert after.st_mtime_ns == before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns
    assert stat.S_IMODE(after.st_mode) == 0o640 and after.st_size == before.st_size
    write("tree/branch/twig/0", b"x", os.O_WRONLY)
    assert os.stat("tree/branch").st_mtime_ns == before.st_mtime_ns


@test
def times_follow_writes_old():
    write("text", b"x", os.O_WRONLY)
    assert os.stat("text").st_mtime_ns > 1_200_000_000_000_000_000
    write("tree/branch/new")
    assert os.stat("tree/branch").st_mtime_ns > 1_200_000_000_000_000_000
    os.utime("text", ns=(5, 1_700_000_000_000_000_001))
    assert os.stat("text").st_mtime_ns == 1_700_000_000_000_000_001


@test
def modes_are_masked_inherited_and_cleared():
    os.umask(0o027)
    write("fresh", mode=0o666)
    assert stat.S_IMODE(os.stat("fresh").st_mode) == 0o640
    os.umask(0o022)
    os.mkdir("group")
    os.chmod("group", 0o2775)
    os.mkdir("group/below")
    assert os.stat("group/below").st_mode & stat.S_ISGID
    os.chmod("fresh", 0o4755)
    if os.geteuid() != 0:
        write("fresh", b"x", os.O_WRONLY)
        assert stat.S_IMODE(os.stat("fresh").st_mode) == 0o755


@test
def what_a_mode_forbids_is_refused_to_all_but_root_old():
    os.chmod("text", 0)
    if os.geteuid() == 0:
        assert read("text") == OLD["text"]
    else:
        fails(errno.EACCES, os.open, "text", os.O_RDONLY)
        os.chmod("tree", 0o500)
        fails(errno.EACCES, os.mkdir, "tree/new")


# Reading and writing

@test
def appends_go_to_the_end_old():
    with open("text", "ab", buffering=0) as one, open("text", "ab", buffering=0) as other:
        one.write(b"1\n")
        other.write(b"2\n")
        one.write(b"3\n")
    assert read("text") == OLD["text"] + b"1\n2\n3\n"


@test
def files_are_truncated_and_extended_old():
    os.truncate("text", 7)
    assert read("text") == b"wool\nwo"
    os.truncate("text", 9)
    assert read("text") == b"wool\nwo\0\0"
    write("other", b"")
    assert os.stat("other").st_size == 0


@test
def copy_file_range_old():
    with open("other", "rb") as source, open("fresh", "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 40000) == 40000
    assert read("fresh") == OLD["other"][:40000]


@test
def copy_file_range_in_the_layer():
    write("fresh", b"x" * 70000)
    with open("fresh", "rb") as source, open("copy", "wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 40000) == 40000
    assert read("copy") == b"x" * 40000


@test
def copies_in_the_kernel_old():
    with open("other", "rb") as source, open("fresh", "wb") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, 70000) == 70000
    assert read("fresh") == OLD["other"]
    reading, writing = os.pipe()
    with open("second", "rb") as source:
        assert os.splice(source.fileno(), writing, 500) == 500 and os.read(reading, 1000) == OLD["second"][:500]


@test
def direct_reads_and_writes_old():
    memory = mmap.mmap(-1, 8192)
    fd = os.open("other", os.O_RDWR | os.O_DIRECT)
    assert os.preadv(fd, [memory], 0) == 8192 and memory[:] == b"x" * 8192
    memory[:4] = b"lamb"
    assert os.pwritev(fd, [memory], 8192) == 8192 and read("other")[8192:8196] == b"lamb"


@test
def everything_can_be_synced_old():
    with open("text", "r+b", buffering=0) as file:
        file.write(b"lamb")
        os.fdatasync(file.fileno())
        os.fsync(file.fileno())
        call("syncfs", file.fileno())
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    assert os.statvfs(".").f_blocks > 0 and os.fstatvfs(directory).f_namemax == 255


# Notification

def notified(mask, watched, work):
    """The events, as (mask, name), that `work` causes."""
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    call("inotify_add_watch", fd, watched.encode(), mask)
    work()
    events = []
    while select.select([fd], [], [], 0.2)[0]:
        data = os.read(fd, 4096)
        while data:
            _, kind, _, size = struct.unpack_from("iIII", data)
            events.append((kind & 0xFFF, data[16:16 + size].rstrip(b"\0").decode()))
            data = data[16 + size:]
    os.close(fd)
    return events


CREATE, DELETE, MODIFY, ATTRIB, FROM, TO = 0x100, 0x200, 0x2, 0x4, 0x40, 0x80


@test
def changes_in_a_directory_are_notified_old():
    def work():
        write("tree/branch/new", b"1")
        os.chmod("tree/branch/new", 0o600)
        os.rename("tree/branch/new", "tree/branch/newer")
        os.unlink("tree/branch/newer")
    events = notified(CREATE | DELETE | MODIFY | ATTRIB | FROM | TO, "tree/branch", work)
    assert events == [(CREATE, "new"), (MODIFY, "new"), (ATTRIB, "new"), (FROM, "new"), (TO, "newer"),
                      (DELETE, "newer")], events


@test
def a_first_write_is_notified_old():
    events = notified(MODIFY | ATTRIB, "text", lambda: write("text", b"lamb", os.O_WRONLY))
    assert (MODIFY, "") in events, events
    events = notified(MODIFY | DELETE, ".", lambda: write("second", b"lamb", os.O_WRONLY))
    assert (MODIFY, "second") in events, events


def main():
    what, directory = sys.argv[1:3]
    os.umask(0o022)
    if what == "prepare":
        for function in TESTS:
            path = os.path.join(directory, function.__name__)
            os.mkdir(path)
            os.chdir(path)
            prepare()
        return
    for function in TESTS:
        os.chdir(os.path.join(directory, function.__name__))
        try:
            function()
            result = "ok"
        except Exception:
            print(f"--- {function.__name__}", file=sys.stderr)
            traceback.print_exc()
            result = "FAIL"
        print(function.__name__, result, flush=True)


main()
