//! System calls trapped to user space (seccomp_unotify(2)).
