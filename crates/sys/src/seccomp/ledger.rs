//! Shared memory that trapped calls are received into.
//!
//! A ledger is a memfd of [`LEDGER_SLOTS`] slots, each one call. A slot whose `id` is 0 is free. The kernel writes a call
//! straight into its slot, and the slot is cleared after the answer; so at any moment that the handler dies, each call
//! that was received and not answered is in the ledger, and [`Ledger::recover`] finds it.

use super::listener::{Call, Listener};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many calls can be received and unanswered at one time. The file is sparse: what is never used costs nothing.
pub const LEDGER_SLOTS: usize = 1024;

const BYTES: usize = LEDGER_SLOTS * size_of::<Call>();

/// The mapping of a ledger, and which of its slots are free.
#[derive(Debug)]
pub struct Ledger {
    base: *mut Call,
    /// Free slots; the one used last is used first, so that an idle environment touches one page.
    free: Mutex<Vec<u16>>,
}

// SAFETY: the memory lives as long as the value; a slot is written only by the holder of its `Slot`, which is unique.
unsafe impl Send for Ledger {}
// SAFETY: as above; the free list has a lock.
unsafe impl Sync for Ledger {}

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

    /// Maps a ledger (mmap(2)). Every slot that holds a call is taken; [`Ledger::recover`] yields those.
    ///
    /// # Errors
    /// `InvalidData` if the file is too short; ENOMEM.
    pub fn map(file: impl AsFd) -> io::Result<Ledger> {
        use std::os::unix::fs::FileExt;
        let fd = file.as_fd();
        let contents = std::fs::File::from(fd.try_clone_to_owned()?);
        if contents.metadata()?.len() < BYTES as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the ledger's file is too short"));
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping; the file is long enough, and its keeper (the core) never shortens it.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), BYTES, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ledger = Ledger { base: base.cast(), free: Mutex::new(Vec::new()) };
        // Read through the file, not the mapping: a look at a hole of it would fill the hole with a page.
        let mut bytes = [0u8; size_of::<Call>()];
        for slot in (0..LEDGER_SLOTS as u16).rev() {
            contents.read_exact_at(&mut bytes, u64::from(slot) * size_of::<Call>() as u64)?;
            if bytes.iter().any(|byte| *byte != 0) {
                if bytes[..8] != [0; 8] {
                    continue;
                }
                // Its handler died between the two steps of `clear`.
                ledger.clear(&Slot(slot));
            }
            ledger.free_list().push(slot);
        }
        Ok(ledger)
    }

    fn id(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: the slot is within the mapping, `id` is the first field of `Call` and aligned.
        unsafe { AtomicU64::from_ptr(self.base.add(slot.into()).cast()) }
    }

    /// The calls that an earlier handler received and did not answer, with their slots. Calls that were cancelled since
    /// are dropped. To be asked once, before the first [`Ledger::receive`].
    pub fn recover(&self, listener: &Listener) -> Vec<(Slot, Call)> {
        let mut found = Vec::new();
        let free: Vec<u16> = self.free_list().clone();
        for slot in (0..LEDGER_SLOTS as u16).filter(|slot| !free.contains(slot)) {
            let slot = Slot(slot);
            let call = self.read(&slot);
            if call.id != 0 && listener.is_valid(call.id) {
                found.push((slot, call));
            } else {
                self.release(slot);
            }
        }
        found
    }

    fn free_list(&self) -> std::sync::MutexGuard<'_, Vec<u16>> {
        self.free.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn read(&self, slot: &Slot) -> Call {
        // SAFETY: within the mapping; only the holder of the `Slot` writes it. Any bytes are a valid `Call`.
        unsafe { self.base.add(slot.0.into()).read_volatile() }
    }

    /// Takes a free slot; `None` if all of them hold calls.
    pub fn take(&self) -> Option<Slot> {
        self.free_list().pop().map(Slot)
    }

    /// Waits for the next call and receives it into this slot.
    ///
    /// # Errors
    /// As [`Listener::receive`].
    pub fn receive(&self, listener: &Listener, slot: &Slot) -> io::Result<Call> {
        // SAFETY: the slot is ours, within the mapping, and was zeroed when it was released.
        unsafe { listener.receive_raw(self.base.add(slot.0.into())) }?;
        Ok(self.read(slot))
    }

    /// Clears a slot whose call was answered, so that it can be received into again.
    pub fn clear(&self, slot: &Slot) {
        // The rest first: a slot with an id is a call for whoever comes next.
        self.id(slot.0).store(0, Ordering::Release);
        // SAFETY: the slot is ours and within the mapping.
        unsafe { self.base.add(slot.0.into()).write_volatile(Call::default()) };
    }

    /// Clears a slot and gives it back.
    pub fn release(&self, slot: Slot) {
        self.clear(&slot);
        self.free_list().push(slot.0);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing borrows from it any more.
        unsafe { libc::munmap(self.base.cast(), BYTES) };
    }
}
