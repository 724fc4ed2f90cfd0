//! What the kernel programs tell: events for the control plane, and their log.

use std::{io, marker::PhantomData};

use aya::{
    Ebpf, Pod,
    maps::{MapData, MapError, RingBuf},
};
use aya_log::EbpfLogger;
use dns_proxy_common::{EarlyQuery, Event};
use tokio::{io::unix::AsyncFd, task::JoinHandle};
use tracing::warn;

use super::{BpfError, take};
use crate::polled::Polled;

/// What the kernel programs tell.
pub struct Events {
    /// Something that has not been seen yet.
    pub unseen: Ring<Event>,
    /// Queries that were captured, since nobody listens for them yet.
    pub early: Ring<EarlyQuery>,
}

/// A stream of what one ring buffer carries.
pub struct Ring<T> {
    buffer: AsyncFd<Polled<RingBuf<MapData>>>,
    carries: PhantomData<T>,
}

impl Events {
    /// Those of the object.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self { unseen: Ring::of(ebpf, "EVENTS")?, early: Ring::of(ebpf, "EARLY")? })
    }
}

impl<T: Pod> Ring<T> {
    fn of(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, BpfError> {
        let buffer: RingBuf<MapData> = take(ebpf, name)?;
        let buffer = Polled::register(buffer)
            .map_err(|error| BpfError::Map { name, source: MapError::IoError(error) })?;
        Ok(Self { buffer, carries: PhantomData })
    }

    /// Waits for the next and takes all there are.
    ///
    /// # Errors
    /// The ring buffer failed for good.
    pub async fn next(&mut self) -> io::Result<Vec<T>> {
        let mut ready = self.buffer.readable_mut().await?;
        let mut all = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            if item.len() == size_of::<T>() {
                // SAFETY: there are as many octets as `T` has, and `Pod` takes any; nothing is said
                // of how they are aligned, nor need be.
                all.push(unsafe { item.as_ptr().cast::<T>().read_unaligned() });
            }
        }
        ready.clear_ready();
        Ok(all)
    }
}

/// Writes what they log to our log, as long as the runtime turns.
pub(super) fn start_logger(ebpf: &mut Ebpf) -> Option<JoinHandle<()>> {
    let logger = EbpfLogger::init(ebpf)
        .map_err(|error| warn!(%error, "no log from the kernel programs"))
        .ok()?;
    let mut logger = Polled::register(logger)
        .map_err(|error| warn!(%error, "no log from the kernel programs"))
        .ok()?;
    Some(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
