"""Pipes, exit codes, signals, sessions and timeouts of child processes."""
import os
import signal
import subprocess
import sys

assert subprocess.run(["true"]).returncode == 0
assert subprocess.run(["sh", "-c", "exit 7"]).returncode == 7
assert subprocess.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM
assert subprocess.check_output("echo one | tr a-z A-Z", shell=True) == b"ONE\n"

large = os.urandom(1 << 20)
assert subprocess.run(["cat"], input=large, capture_output=True).stdout == large

try:
    subprocess.run(["sleep", "100"], timeout=0.1)
except subprocess.TimeoutExpired:
    pass
else:
    raise AssertionError("no timeout")

# A child in a session of its own is killed with its whole group.
child = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True)
grandchild = int(child.stdout.readline())
assert os.getpgid(grandchild) == child.pid == os.getsid(child.pid)
os.killpg(child.pid, signal.SIGKILL)
assert child.wait() == -signal.SIGKILL
assert child.stdout.read() == b""

# An orphan is reaped by somebody: it must not stay a zombie for good.
shell = subprocess.run(["sh", "-c", "sleep 0.01 & echo $!"], capture_output=True, text=True)
orphan = int(shell.stdout)
fd = None
try:
    fd = os.pidfd_open(orphan)
except ProcessLookupError:
    pass
if fd is not None:
    import select
    assert select.select([fd], [], [], 20)[0], "the orphan lives on"

try:
    subprocess.run(["/nonexistent/program"])
except FileNotFoundError:
    pass
else:
    raise AssertionError("ran what does not exist")

children = [subprocess.Popen([sys.executable, "-c", f"import sys; sys.exit({n})"]) for n in range(10)]
assert [child.wait() for child in children] == list(range(10))
print("good")
