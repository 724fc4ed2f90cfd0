//! Descriptors that the runtime watches for readiness.

use std::{
    io,
    ops::{Deref, DerefMut},
    os::fd::{AsFd, AsRawFd, RawFd},
};

use tokio::io::unix::AsyncFd;

/// Owns a descriptor that stays open, and the same, for as long as this lives.
pub(crate) struct Polled<T>(T);

impl<T: AsFd> Polled<T> {
    /// Registers a non-blocking descriptor with the current runtime.
    ///
    /// # Errors
    /// The runtime could not watch it.
    pub(crate) fn register(inner: T) -> io::Result<AsyncFd<Self>> {
        // SAFETY: `AsFd` is tied to I/O safety: `inner` owns its descriptor, which is open until it
        // is dropped. `Polled` gives nobody a way to replace `inner`: its field is private, and
        // what `DerefMut` lends are the types of this crate's callers, none of which lets go of its
        // descriptor.
        unsafe { AsyncFd::register(Self(inner)) }.map_err(Into::into)
    }
}

impl<T: AsFd> AsRawFd for Polled<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl<T> Deref for Polled<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Polled<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
