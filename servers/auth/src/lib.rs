//! The standard auth servers
