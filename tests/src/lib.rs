//! End-to-end tests: real programs, natively and in an environment
