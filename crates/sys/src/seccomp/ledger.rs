//! Shared memory that trapped calls are received into.
//!
//! A ledger is a memfd of [`LEDGER_SLOTS`] slots, each one call. A slot whose `id` is 0 is free. The kernel writes a call
//! straight into its slot, and the slot is cleared after the answer; so at any moment that the handler dies, each call
//! that was received and not answered is in the ledger, and [`Ledger::recover`] finds it.
//!
//! Servers that stand one on the other share a ledger. One of them receives; a call that goes down stays in its slot, and a byte
//! beside the slots says at which [`Height`] it is, so that each server recovers its own.

use super::listener::{Call, Listener};
use crate::pages::Pages;
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How many calls can be received and unanswered at one time. The file is sparse: what is never used costs nothing.
pub const LEDGER_SLOTS: usize = 4096;

/// How long the last step of a killed server's worker may take.
const TURN: Duration = Duration::from_secs(1);

const CALLS: usize = LEDGER_SLOTS * size_of::<Call>();
/// The calls, a byte for each that says its height, and two words.
const BYTES: usize = CALLS + LEDGER_SLOTS + 8;
/// Where the number of the worker's process stands.
const WORKER: u64 = (CALLS + LEDGER_SLOTS) as u64;
/// Where it says that a thread has gone to another network namespace by itself.
const MOVED: usize = CALLS + LEDGER_SLOTS + 4;

/// Ends a worker by its number, if that is still one's.
fn end_worker(pid: i32) {
    let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if let Ok(pidfd) = crate::process::pidfd(pid)
        && name().trim() == "hurdle-traps"
    {
        let _ = crate::process::signal(&pidfd, libc::SIGKILL);
    }
}

/// Where the first data at or after `at` are (lseek(2)); none: there is a hole to the end.
fn next_data(file: &File, at: usize) -> Option<usize> {
    // SAFETY: plain numbers. The position that it changes is used by nobody.
    match unsafe { libc::lseek(file.as_raw_fd(), at as libc::off_t, libc::SEEK_DATA) } {
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::ENXIO) => None,
        // A kernel that can't tell.
        -1 => Some(at),
        data => usize::try_from(data).ok(),
    }
}

/// Where a server stands among those that share a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Height {
    /// How many servers stand below it.
    pub below: u8,
    /// None stands above it: it receives.
    pub top: bool,
}

impl Height {
    /// Of a server that stands alone.
    pub const ALONE: Height = Height { below: 0, top: true };
}

/// The mapping of a ledger, and which of its slots are free.
#[derive(Debug)]
pub struct Ledger {
    pages: Pages,
    height: Height,
    /// Free slots; the one used last is used first, so that an idle environment touches one page.
    free: Mutex<Vec<u16>>,
}

/// The right to one slot of a ledger.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Ledger {
    /// Makes the memory file of an empty ledger (memfd_create(2)).
    ///
    /// # Errors
    /// EMFILE, ENFILE, ENOMEM.
    pub fn create() -> io::Result<std::os::fd::OwnedFd> {
        use std::os::fd::FromRawFd;
        // SAFETY: the name is a constant C string.
        let fd = unsafe { libc::memfd_create(c"hurdle-ledger".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: memfd_create returned a new fd that nobody else owns.
        let file = std::fs::File::from(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
        file.set_len(BYTES as u64)?;
        Ok(file.into())
    }

    /// Maps a ledger (mmap(2)) for a server at this height. Every slot that holds a call is taken; [`Ledger::recover`] yields those.
    ///
    /// # Errors
    /// `InvalidData` if the file is too short; ENOMEM.
    pub fn map(file: impl AsFd, height: Height) -> io::Result<Ledger> {
        let fd = file.as_fd();
        let contents = File::from(fd.try_clone_to_owned()?);
        if contents.metadata()?.len() < BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ledger's file is too short"));
        }
        // Its keeper (the core) never shortens it.
        let ledger = Ledger { pages: Pages::shared(fd, BYTES)?, height, free: Mutex::new(Vec::new()) };
        // Read through the file, not the mapping: a look at a hole of it would fill the hole with a page.
        const STRIDE: usize = 64;
        let mut bytes = [0u8; STRIDE * size_of::<Call>()];
        let mut used = [false; LEDGER_SLOTS];
        let mut at = 0;
        // Mostly the first page is all that was ever used: the kernel says where something is.
        while let Some(data) = next_data(&contents, at).filter(|data| *data < CALLS) {
            let first = data / size_of::<Call>() / STRIDE * STRIDE;
            contents.read_exact_at(&mut bytes, (first * size_of::<Call>()) as u64)?;
            for (call, used) in bytes.chunks_exact(size_of::<Call>()).zip(&mut used[first..]) {
                *used = call.iter().any(|byte| *byte != 0);
            }
            at = (first + STRIDE) * size_of::<Call>();
        }
        ledger.free_list().extend((0..LEDGER_SLOTS as u16).rev().filter(|slot| !used[usize::from(*slot)]));
        Ok(ledger)
    }

    /// Waits until nobody else answers calls of this ledger: the worker of a killed server may be at its last one. Who has the
    /// turn has it until the file is closed. A worker that takes too long is ended.
    ///
    /// # Errors
    /// EMFILE.
    pub fn turn(ledger: &impl AsFd) -> io::Result<File> {
        // Opened anew: the lock is the open file's, and all servers hold one and the same.
        let path = format!("/proc/self/fd/{}", ledger.as_fd().as_raw_fd());
        let file = File::options().read(true).write(true).open(path)?;
        let begin = Instant::now();
        let mut ended = false;
        while file.try_lock().is_err() && begin.elapsed() < 2 * TURN {
            if begin.elapsed() > TURN && !std::mem::replace(&mut ended, true) {
                let mut pid = [0; 4];
                file.read_exact_at(&mut pid, WORKER)?;
                end_worker(i32::from_ne_bytes(pid));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(file)
    }

    /// Notes which process answers, for who has the turn next.
    ///
    /// # Errors
    /// None are known.
    pub fn note_worker(turn: &File, pid: i32) -> io::Result<()> {
        turn.write_all_at(&pid.to_ne_bytes(), WORKER)
    }

    /// A slot is written only by the holder of its [`Slot`], which is unique.
    fn base(&self) -> *mut Call {
        self.pages.start().as_ptr().cast()
    }

    fn id(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: the slot is within the mapping, `id` is the first field of `Call` and aligned.
        unsafe { AtomicU64::from_ptr(self.base().add(slot.into()).cast()) }
    }

    /// How high the call of a slot is; 0 for a free one.
    fn level(&self, slot: u16) -> &AtomicU8 {
        // SAFETY: the bytes behind the calls are within the mapping, one for each slot.
        unsafe { AtomicU8::from_ptr(self.pages.start().as_ptr().add(CALLS + usize::from(slot))) }
    }

    /// The calls that an earlier server at this height received and did not answer, with their slots. Calls that were cancelled
    /// since are dropped. To be asked once, before the first [`Ledger::receive`].
    pub fn recover(&self, listener: &Listener) -> Vec<(Slot, Call)> {
        let mut found = Vec::new();
        let free: HashSet<u16> = self.free_list().iter().copied().collect();
        for slot in (0..LEDGER_SLOTS as u16).filter(|slot| !free.contains(slot)) {
            let level = self.level(slot).load(Ordering::Acquire);
            if level != self.height.below && !(self.height.top && level > self.height.below) {
                continue;
            }
            let slot = Slot(slot);
            let call = self.read(&slot);
            if call.id != 0 && listener.is_valid(call.id) {
                self.level(slot.0).store(self.height.below, Ordering::Release);
                found.push((slot, call));
            } else {
                self.level(slot.0).store(0, Ordering::Release);
                self.release(slot);
            }
        }
        found
    }

    /// The call `id`, which the server above has received into slot number `slot` and passes down: from now on it is this server's.
    /// `None`: it is not there, since it was answered or never was.
    pub fn adopt(&self, slot: u16, id: u64) -> Option<(Slot, Call)> {
        if usize::from(slot) >= LEDGER_SLOTS || id == 0 || self.id(slot).load(Ordering::Acquire) != id {
            return None;
        }
        self.level(slot).store(self.height.below, Ordering::Release);
        let slot = Slot(slot);
        let call = self.read(&slot);
        Some((slot, call))
    }

    fn free_list(&self) -> std::sync::MutexGuard<'_, Vec<u16>> {
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    #[inline]
    fn read(&self, slot: &Slot) -> Call {
        // SAFETY: within the mapping; only the holder of the `Slot` writes it. Any bytes are a valid `Call`.
        let call = unsafe { self.base().add(slot.0.into()).read_volatile() };
        if call.moves() {
            self.moves().store(1, Ordering::Release);
        }
        call
    }

    fn moves(&self) -> &AtomicU8 {
        // SAFETY: the last word is within the mapping.
        unsafe { AtomicU8::from_ptr(self.pages.start().as_ptr().add(MOVED)) }
    }

    /// Whether a call was ever received by which a thread may go to another network namespace ([`Call::moves`]).
    pub fn moved(&self) -> bool {
        self.moves().load(Ordering::Acquire) != 0
    }

    /// Takes a free slot; `None` if all of them hold calls. For a thread that receives, while it has none; of a server that stands on
    /// others, only one does.
    pub fn take(&self) -> Option<Slot> {
        let mut free = self.free_list();
        if free.is_empty() && self.height.below > 0 {
            // Those that servers below have cleared.
            free.extend((0..LEDGER_SLOTS as u16).rev().filter(|slot| self.id(*slot).load(Ordering::Acquire) == 0));
        }
        free.pop().map(Slot)
    }

    /// Waits for the next call and receives it into this slot.
    ///
    /// # Errors
    /// As [`Listener::receive`].
    #[inline]
    pub fn receive(&self, listener: &Listener, slot: &Slot) -> io::Result<Call> {
        if self.height.below > 0 {
            self.level(slot.0).store(self.height.below, Ordering::Release);
        }
        // SAFETY: the slot is ours, within the mapping, and was zeroed when it was released.
        unsafe { listener.receive_raw(self.base().add(slot.0.into())) }?;
        Ok(self.read(slot))
    }

    /// Clears a slot whose call was answered, so that it can be received into again.
    #[inline]
    pub fn clear(&self, slot: &Slot) {
        if self.height.below > 0 {
            self.level(slot.0).store(0, Ordering::Release);
        }
        let mut rest = Call::default();
        rest.id = self.id(slot.0).load(Ordering::Acquire);
        // SAFETY: the slot is ours and within the mapping.
        unsafe { self.base().add(slot.0.into()).write_volatile(rest) };
        // The id last: from then on whoever receives may take it.
        self.id(slot.0).store(0, Ordering::Release);
    }

    /// Its number, by which a server below finds it.
    pub fn number(slot: &Slot) -> u16 {
        slot.0
    }

    /// Clears a slot and gives it back.
    pub fn release(&self, slot: Slot) {
        self.clear(&slot);
        // Who does not receive takes none.
        if self.height.top {
            self.free_list().push(slot.0);
        }
    }
}
