//! A right on loan, and what comes with it.

use std::os::fd::OwnedFd;

use hurdle_proto::server::{ClientChannel, Grant, Stored, store};
use hurdle_proto::spec::Spec;
use hurdle_sys::process::numbers::EINVAL;
use hurdle_wire::tap::Tap;
use hurdle_wire::{Channel, Fd, Refused};

use crate::Target;
use crate::below::Lower;

/// What the core lent: given to the function that starts a server.
pub struct Borrowed {
    /// The interface's name.
    pub interface: String,
    /// What the user chose.
    pub spec: Spec,
    /// The environment's name.
    pub env: String,
    pub(crate) attachments: Vec<(String, Fd)>,
    pub(crate) stored: Vec<Stored>,
    store: store::Client,
    pub(crate) clients: Vec<ClientChannel>,
    pub(crate) returning: Vec<Box<dyn FnOnce() + Send>>,
    pub(crate) stays: bool,
    pub(crate) below: Vec<Lower>,
    tap: Tap,
}

impl Borrowed {
    pub(crate) fn new(grant: Grant, tap: Tap) -> Result<Borrowed, Refused> {
        let kind = &grant.spec.split().0.kind;
        tap.call_it(kind.rsplit_once('/').map_or(kind, |(_, file)| file));
        let core = Channel::from(grant.core.into_owned()?);
        Ok(Borrowed {
            interface: grant.interface,
            spec: grant.spec,
            env: grant.env,
            attachments: grant.attachments,
            stored: grant.store,
            store: store::Client::from(core),
            clients: grant.channels,
            returning: Vec::new(),
            stays: false,
            below: Vec::new(),
            tap,
        })
    }

    /// An attachment by its name, once. EINVAL: it was not lent.
    pub fn attachment(&mut self, name: &str) -> Result<OwnedFd, Refused> {
        let at = self.attachments.iter().position(|(other, _)| other == name);
        let missing = || Refused::new(EINVAL, format!("no attachment {name:?} came with {}", self.interface));
        Ok(self.attachments.swap_remove(at.ok_or_else(missing)?).1.into_owned()?)
    }

    /// Whether an attachment of this name is there.
    pub fn has(&self, name: &str) -> bool {
        self.attachments.iter().any(|(other, _)| other == name)
    }

    /// The environment's processes.
    pub fn target(&mut self) -> Result<Target, Refused> {
        Ok(Target::new(self.attachment("pidfd")?)?)
    }

    /// What an earlier holder of the right stored under `key`, once.
    pub fn stored(&mut self, key: &str) -> Option<Stored> {
        let at = self.stored.iter().position(|entry| entry.key == key)?;
        Some(self.stored.swap_remove(at))
    }

    /// Where to report what else than messages is served, while somebody traces.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// Where to put what must outlive this process.
    pub fn store(&self) -> store::Client {
        self.store.clone()
    }

    /// Runs when the core asks for the right back, after the last call was answered and before it learns so.
    pub fn on_return(&mut self, act: impl FnOnce() + Send + 'static) {
        self.returning.push(Box::new(act));
    }

    /// Keeps the process alive though no client speaks: something else may need it at once.
    pub fn stay(&mut self) {
        self.stays = true;
    }
}
