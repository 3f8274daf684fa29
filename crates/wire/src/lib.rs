//! Typed messages over SEQPACKET channels: frames, fds, deadlines, interface!
