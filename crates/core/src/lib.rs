//! The message-passing core: environments, rights, activation, restart, swap, store, init
