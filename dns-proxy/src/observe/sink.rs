//! Where queries go for good. Each has a thread of its own: a full disk or a reader that sleeps holds
//! up nobody.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tracing::{error, warn};

use super::Seen;
use crate::datapath::tap::{Interest, Record};

/// Records that may wait to be written.
const MAX_WAITING: usize = 16_384;
/// How long a writer may take for what it has been given, when all ends.
const FAREWELL: Duration = Duration::from_secs(2);

/// Takes every query.
pub trait Sink {
    /// What it is called.
    fn name(&self) -> &'static str;

    /// How much it wants to know.
    fn interest(&self) -> Interest;

    /// A query.
    fn take(&self, record: &Record, seen: &Seen);

    /// So many queries never came.
    fn missed(&self, count: u64);

    /// How many it could not take.
    fn dropped(&self) -> u64;

    /// Its file may have been moved.
    fn reopen(&self) {}
}

/// What a writer is told.
pub(super) enum Order {
    /// To write this.
    Write(Vec<u8>),
    /// To open its file anew.
    Reopen,
}

/// A thread that writes; it writes all that it has been given before this is dropped.
pub(super) struct Writer {
    orders: Option<SyncSender<Order>>,
    dropped: AtomicU64,
    ending: Arc<AtomicBool>,
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Runs `write` on a thread. Once it is told that all ends, it must not wait for anybody any more.
    pub(super) fn start(
        name: &str,
        write: impl FnOnce(&Receiver<Order>, &AtomicBool) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(MAX_WAITING);
        let ending = Arc::new(AtomicBool::new(false));
        let (end, ended) = channel();
        let told = Arc::clone(&ending);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            write(&inbox, &told);
            // Nobody may be waiting any more.
            let _: Result<(), _> = end.send(());
        })?;
        let (orders, thread) = (Some(orders), Some(thread));
        Ok(Self { orders, dropped: AtomicU64::new(0), ending, ended, thread })
    }

    /// Has something written, if there is room for it.
    pub(super) fn write(&self, octets: Vec<u8>) {
        if let Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) =
            self.orders.as_ref().map(|orders| orders.try_send(Order::Write(octets)))
        {
            self.missed(1);
        }
    }

    /// Has the file opened anew. There is nearly always room; if not, it is being written to.
    pub(super) fn reopen(&self) {
        if let Some(orders) = &self.orders {
            let _: Result<(), _> = orders.try_send(Order::Reopen);
        }
    }

    pub(super) fn missed(&self, count: u64) {
        self.dropped.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        drop(self.orders.take());
        if let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = self.ended.recv_timeout(FAREWELL) {
            warn!("queries are lost that nobody has taken in time");
            return; // it ends with the process
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("a writer thread ended in a panic; report this as a bug");
        }
    }
}
