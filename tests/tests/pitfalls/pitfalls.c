// What may happen to a process between a system call and its answer. Each case ends with "good"; an argument chooses it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char *self;

static void fail(int line, const char *what) {
    fprintf(stderr, "line %d: %s: %s\n", line, what, strerror(errno));
    _exit(1);
}
#define must(x) ((x) ? (void)0 : fail(__LINE__, #x))

static int port_of(int fd) {
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    must(getsockname(fd, (struct sockaddr *)&name, &length) == 0);
    return ntohs(name.sin_port);
}

static int listener(int backlog) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0 && bind(fd, (struct sockaddr *)&name, sizeof name) == 0 && listen(fd, backlog) == 0);
    return fd;
}

static int client(int port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    must(fd >= 0 && connect(fd, (struct sockaddr *)&name, sizeof name) == 0);
    return fd;
}

// A client that says which one it is.
static int client_number(int port, int number) {
    int fd = client(port);
    must(write(fd, &number, sizeof number) == sizeof number);
    return fd;
}

static int number_of(int fd) {
    int number;
    must(recv(fd, &number, sizeof number, MSG_WAITALL) == sizeof number);
    return number;
}

static void rest(int ms) { poll(NULL, 0, ms); }

// Waits until thread or process `tid` sleeps in a system call: its state is S for a while.
static void until_asleep(int tid) {
    char path[64], text[512];
    sprintf(path, "/proc/%d/stat", tid);
    for (int seen = 0, tries = 0; seen < 20 && tries < 20000; tries++) {
        FILE *file = fopen(path, "r");
        must(file && fgets(text, sizeof text, file));
        fclose(file);
        seen = strrchr(text, ')')[2] == 'S' ? seen + 1 : 0;
        rest(1);
    }
}

struct blocked {
    int on, got, error;
    volatile int tid;
    pthread_t thread;
};

static void *blocked_accept(void *of) {
    struct blocked *it = of;
    it->tid = syscall(SYS_gettid);
    it->got = accept(it->on, NULL, NULL);
    it->error = errno;
    return NULL;
}

static void block(struct blocked *it, int on) {
    *it = (struct blocked){.on = on};
    must(pthread_create(&it->thread, NULL, blocked_accept, it) == 0);
    while (!it->tid) rest(1);
    until_asleep(it->tid);
}

static void waits_well(pid_t pid) {
    int status;
    must(waitpid(pid, &status, 0) == pid);
    errno = 0;
    if (status) fprintf(stderr, "status %x\n", status);
    must(status == 0);
}

// The target execs between trap and answer: a thread of its own waits in accept.
static void exec_case(void) {
    struct blocked other;
    int fd = listener(8);
    block(&other, fd);
    char number[16];
    sprintf(number, "%d", fd);
    execl(self, self, "exec_after", number, NULL);
    must(0);
}

static void exec_after(int fd) {
    int theirs = client_number(port_of(fd), 7);
    int ours = accept(fd, NULL, NULL);
    must(ours >= 0 && number_of(ours) == 7);
    close(theirs);
}

// It exits there: the listener is its parent's, too, who gets the next connection.
static void exit_case(void) {
    int fd = listener(8);
    for (int how = 0; how < 2; how++) {
        pid_t pid = fork();
        if (!pid) {
            struct blocked other;
            block(&other, fd);
            if (how) raise(SIGKILL);
            _exit(0);
        }
        int status;
        must(waitpid(pid, &status, 0) == pid && status == (how ? SIGKILL : 0));
        int theirs = client_number(port_of(fd), how);
        int ours = accept(fd, NULL, NULL);
        must(ours >= 0 && number_of(ours) == how);
        close(theirs), close(ours);
    }
}

static volatile int rung;
static void ring(int signal) { rung++; }

// Signals all the time, while accept waits.
static void storm(int flags, int signal) {
    struct sigaction action = {.sa_handler = ring, .sa_flags = flags};
    must(sigaction(signal, &action, NULL) == 0);
    int fd = listener(64), count = 40, interrupted = 0, calls = 0;
    pid_t stormy = getpid(), kids[2];
    if (!(kids[0] = fork())) {
        while (getppid() == stormy) {
            if (kill(stormy, signal)) break;
            usleep(3000);
        }
        _exit(0);
    }
    while (rung < 3) rest(1);
    if (!(kids[1] = fork())) {
        struct timespec pause = {.tv_nsec = 5000000};
        for (int n = 0; n < count; n++) {
            nanosleep(&pause, NULL);
            client_number(port_of(fd), n);
        }
        _exit(0);
    }
    for (int n = 0; n < count;) {
        calls++;
        int ours = accept(fd, NULL, NULL);
        if (ours < 0) {
            must(errno == EINTR);
            interrupted++;
            continue;
        }
        int number = -1;
        ssize_t got;
        while ((got = recv(ours, &number, sizeof number, MSG_WAITALL)) < 0) must(errno == EINTR);
        must(got == sizeof number && number == n++);
        close(ours);
    }
    must(flags & SA_RESTART ? !interrupted : interrupted);
    kill(kids[0], SIGKILL);
    waitpid(kids[0], NULL, 0);
    int status;
    while (waitpid(kids[1], &status, 0) < 0) must(errno == EINTR);
    must(status == 0);
}

// A thread closes the fd that another one's accept waits on, or puts another file there: the call goes on with the old one.
static void replaced(int with_another) {
    struct blocked other;
    int fd = listener(8), another = listener(8), port = port_of(fd), port2 = port_of(another);
    block(&other, fd);
    if (with_another) must(dup2(another, fd) == fd);
    else must(close(fd) == 0);
    int theirs = client_number(port, 1);
    pthread_join(other.thread, NULL);
    errno = other.error;
    must(other.got >= 0 && number_of(other.got) == 1);
    close(theirs);
    // Now nobody listens there any more.
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int late = socket(AF_INET, SOCK_STREAM, 0);
    must(connect(late, (struct sockaddr *)&name, sizeof name) < 0 && errno == ECONNREFUSED);
    if (with_another) {
        theirs = client_number(port2, 2);
        int ours = accept(fd, NULL, NULL);
        must(ours >= 0 && number_of(ours) == 2);
    }
}

// A process forks while a thread of its own waits for an answer.
static void fork_case(void) {
    struct blocked other;
    int fd = listener(64), port = port_of(fd);
    block(&other, fd);
    for (int n = 0; n < 10; n++) {
        pid_t pid = fork();
        if (!pid) {
            int own = listener(8);
            int theirs = client_number(port_of(own), 100 + n);
            int ours = accept(own, NULL, NULL);
            must(ours >= 0 && number_of(ours) == 100 + n);
            close(theirs);
            must(port_of(fd) == port);
            _exit(0);
        }
        waits_well(pid);
    }
    pid_t pid = fork();
    if (!pid) {
        client_number(port, 5);
        _exit(0);
    }
    waits_well(pid);
    pthread_join(other.thread, NULL);
    must(other.got >= 0 && number_of(other.got) == 5);
}

// A vfork child shares its parent's memory; it makes trapped calls before its exec, and after it.
static void vfork_case(void) {
    int fd = listener(8);
    volatile int made = -1;
    char number[16];
    sprintf(number, "%d", port_of(fd));
    pid_t pid = vfork();
    if (!pid) {
        made = socket(AF_INET, SOCK_STREAM, 0);
        close(made);
        execl(self, self, "vfork_after", number, NULL);
        _exit(9);
    }
    must(pid > 0 && made > 2);
    int ours = accept(fd, NULL, NULL);
    must(ours >= 0 && number_of(ours) == 3);
    waits_well(pid);
}

// Nobody may look into it.
static void undumpable(void) {
    must(prctl(PR_SET_DUMPABLE, 0) == 0 && prctl(PR_GET_DUMPABLE) == 0);
    int fd = listener(8), theirs = client_number(port_of(fd), 4);
    struct sockaddr_in name;
    socklen_t length = sizeof name;
    int ours = accept(fd, (struct sockaddr *)&name, &length), one = 1;
    must(ours >= 0 && number_of(ours) == 4 && ntohs(name.sin_port) == port_of(theirs));
    must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
}

// The same after a change of ids by exec: a set-user-ID program.
static void setuid_case(void) {
    must(geteuid() != getuid());
    must(prctl(PR_GET_DUMPABLE) != 1);
    undumpable();
}

static void room_for(unsigned long fds) {
    struct rlimit limit;
    must(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < fds + 50) {
        printf("little room\n");
        exit(0);
    }
    limit.rlim_cur = limit.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

static void many_sockets(void) {
    enum { MANY = 10000 };
    static int fds[MANY];
    room_for(MANY);
    int first = listener(8);
    for (int n = 0; n < MANY; n++) must((fds[n] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int n = 0; n < MANY; n += 997) {
        must(bind(fds[n], (struct sockaddr *)&name, sizeof name) == 0 && listen(fds[n], 4) == 0);
        int theirs = client_number(port_of(fds[n]), n), ours = accept(fds[n], NULL, NULL);
        must(ours >= 0 && number_of(ours) == n);
        close(theirs), close(ours);
    }
    for (int n = 0; n < MANY; n++) must(close(fds[n]) == 0);
    must(client_number(port_of(first), 1) >= 0);
}

static void long_queue(void) {
    enum { MANY = 2000 };
    static int theirs[MANY], ports[65536];
    room_for(2 * MANY);
    int fd = listener(MANY + 10);
    for (int n = 0; n < MANY; n++) ports[port_of(theirs[n] = client_number(port_of(fd), n))] = n + 1;
    for (int n = 0; n < MANY; n++) {
        struct sockaddr_in name;
        socklen_t length = sizeof name;
        int ours = accept(fd, (struct sockaddr *)&name, &length);
        must(ours >= 0);
        int number = number_of(ours);
        must(number == n && ports[ntohs(name.sin_port)] == n + 1);
        must(write(ours, &number, sizeof number) == sizeof number && number_of(theirs[n]) == n);
        close(ours);
    }
}

// A process that waits for an answer ends, and another one gets its number at once. Needs the right to choose numbers.
static void same_pid(void) {
    int fd = listener(8), mine = listener(8);
    for (int round = 0; round < 20; round++) {
        pid_t pid = fork();
        if (!pid) {
            accept(fd, NULL, NULL);
            _exit(1);
        }
        until_asleep(pid);
        must(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
        int last = open("/proc/sys/kernel/ns_last_pid", O_WRONLY);
        char text[16];
        must(last >= 0);
        must(write(last, text, sprintf(text, "%d", pid - 1)) > 0);
        close(last);
        pid_t again = fork();
        if (!again) {
            int ours = accept(mine, NULL, NULL);
            must(ours >= 0 && number_of(ours) == round);
            _exit(0);
        }
        must(again == pid);
        client_number(port_of(mine), round);
        waits_well(again);
    }
    // What the dead ones waited for is still there.
    client_number(port_of(fd), 77);
    int ours = accept(fd, NULL, NULL);
    must(ours >= 0 && number_of(ours) == 77);
}

int main(int count, char **words) {
    must(count > 1);
    self = words[0];
    const char *name = words[1];
    setvbuf(stdout, NULL, _IONBF, 0);
    alarm(100);
#define is(text) (!strcmp(name, text))
    if is("exec") exec_case();
    else if is("exec_after") exec_after(atoi(words[2]));
    else if is("exit") exit_case();
    else if is("storm_restart") storm(SA_RESTART, SIGUSR1);
    else if is("storm_eintr") storm(0, SIGUSR1);
    else if is("alarm_restart") storm(SA_RESTART, SIGALRM);
    else if is("alarm_eintr") storm(0, SIGALRM);
    else if is("closed") replaced(0);
    else if is("replaced") replaced(1);
    else if is("fork") fork_case();
    else if is("vfork") vfork_case();
    else if is("vfork_after") _exit(client_number(atoi(words[2]), 3) < 0);
    else if is("undumpable") undumpable();
    else if is("setuid") setuid_case();
    else if is("many_sockets") many_sockets();
    else if is("long_queue") long_queue();
    else if is("same_pid") same_pid();
    else must(0);
    printf("good\n");
    return 0;
}
