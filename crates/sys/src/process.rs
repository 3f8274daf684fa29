//! Processes behind pidfds (pidfd_open(2)).
