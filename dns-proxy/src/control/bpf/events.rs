//! What the kernel programs tell: events for the control plane, and their log.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use aya_log::EbpfLogger;
use dns_proxy_common::Event;
use tokio::{io::unix::AsyncFd, task::JoinHandle};
use tracing::warn;

use super::{BpfError, take};
use crate::polled::Polled;

/// The stream of events from the kernel.
pub struct Events(AsyncFd<Polled<RingBuf<MapData>>>);

impl Events {
    /// That of the object.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let events: RingBuf<MapData> = take(ebpf, "EVENTS")?;
        let events = Polled::register(events)
            .map_err(|error| BpfError::Map { name: "EVENTS", source: MapError::IoError(error) })?;
        Ok(Self(events))
    }

    /// Waits for the next events and takes all there are.
    ///
    /// # Errors
    /// The ring buffer failed for good.
    pub async fn next(&mut self) -> io::Result<Vec<Event>> {
        let mut ready = self.0.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            if let Ok(bytes) = <[u8; size_of::<Event>()]>::try_from(&*item) {
                let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
                events.push(Event {
                    cgroup: word(0),
                    netns: word(8),
                    pid: word(16) as u32,
                    unseen: (word(16) >> 32) as u32,
                });
            }
        }
        ready.clear_ready();
        Ok(events)
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
