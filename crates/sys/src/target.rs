//! The memory and fds of another process (process_vm_readv(2), pidfd_getfd(2)).
