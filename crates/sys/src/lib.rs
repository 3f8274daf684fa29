//! Linux as safe Rust: what hurdle asks of the kernel, and the only crate that holds `unsafe`.
//!
//! Each module wraps one facility thinly; each function names its man page and what can fail. Nothing here knows of
//! messages, environments or policy. Layout:
//! - [`ns`], [`mount`], [`process`], [`tty`]: what makes and holds an environment;
//! - [`seccomp`], [`target`]: system calls trapped to user space, and the memory and fds of who made them;
//! - [`seqpacket`], [`memfd`], [`abstract_socket`]: what channels are made of, and how they are found;
//! - [`fuse`], [`shared`]: file systems served by a process, and memory that outlives it;
//! - [`landlock`]: rights that a process gives up.
#![allow(unsafe_code)]

pub mod abstract_socket;
pub mod fuse;
pub mod landlock;
pub mod memfd;
pub mod mount;
pub mod ns;
mod pages;
pub mod probe;
pub mod process;
mod raw;
pub mod seccomp;
pub mod seqpacket;
pub mod shared;
pub mod target;
pub mod tty;
