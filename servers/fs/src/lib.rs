//! The standard fs servers
