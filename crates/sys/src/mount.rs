//! Mounts by file descriptor (fsopen(2), move_mount(2)).
