//! SEQPACKET pairs that carry fds (unix(7)).
