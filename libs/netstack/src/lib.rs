//! What a net server needs: trapped calls decoded, addresses, the targets memory and fds
