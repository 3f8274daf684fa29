//! Sealed memory files (memfd_create(2)).
