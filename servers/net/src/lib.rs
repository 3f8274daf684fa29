//! The standard net servers
