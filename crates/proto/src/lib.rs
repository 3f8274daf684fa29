//! The interfaces of hurdle's core and standard servers, one file each
