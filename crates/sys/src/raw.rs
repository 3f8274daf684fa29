//! System calls without libc: for those that a trap is answered by.
//!
//! libc's wrappers lie apart from each other, each on a page of its own that has left the caches whenever the CPU comes back from the
//! program, and some of them look for a cancelled thread (pthread_cancel(3)), which there is none of here.

use std::ffi::{c_int, c_long};
use std::io;

/// Makes a system call, see syscall(2).
///
/// # Errors
/// Those of the call.
///
/// # Safety
/// As for the call: what the arguments point at is live for as long, and valid for what the kernel does with it.
#[inline(always)]
pub(crate) unsafe fn call(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> io::Result<usize> {
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel changes rax, rcx, r11 and the memory that the caller vouches for, and nothing else.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel changes x0 and the memory that the caller vouches for, and nothing else.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    // The last page of numbers are errors.
    if (-4095..0).contains(&result) {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    Ok(result as usize)
}

/// A number as the kernel takes an `int`.
#[inline(always)]
pub(crate) fn int(value: c_int) -> usize {
    value as usize
}

/// The address of a value.
#[inline(always)]
pub(crate) fn at<T>(value: *const T) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_returns_what_the_kernel_says() {
        // SAFETY: takes no arguments.
        assert_eq!(unsafe { call(libc::SYS_getpid, [0; 6]) }.unwrap(), std::process::id() as usize);
        // SAFETY: plain numbers; there is no such fd.
        let error = unsafe { call(libc::SYS_close, [int(-1), 0, 0, 0, 0, 0]) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
