//! The standard proc servers
