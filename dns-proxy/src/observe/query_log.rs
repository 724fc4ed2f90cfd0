//! `--query-log`: every query as a line of JSON.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
};

use tracing::warn;

use super::{
    Seen,
    sink::{Order, Sink, Writer},
};
use crate::datapath::tap::{Interest, Record};

/// The query log.
pub struct QueryLog(Writer);

/// The file and how much is in it.
struct Log {
    path: PathBuf,
    file: BufWriter<File>,
    size: u64,
    max_size: Option<u64>,
    /// The last write failed, which was said.
    is_failing: bool,
}

impl QueryLog {
    /// Appends to a file. Once it has `max_size` octets, it is given the further ending `.1`, in place of
    /// the one that had it, and a new one begun.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, max_size: Option<u64>) -> io::Result<Self> {
        let (file, size) = append_to(path)?;
        let path = path.to_owned();
        let mut log = Log { path, file, size, max_size, is_failing: false };
        Ok(Self(Writer::start("query-log", move |inbox, _| log.write_all(inbox))?))
    }
}

impl Sink for QueryLog {
    fn name(&self) -> &'static str {
        "query log"
    }

    fn interest(&self) -> Interest {
        Interest::Queries
    }

    fn take(&self, _: &Record, seen: &Seen) {
        let mut line = serde_json::to_vec(seen).unwrap_or_default();
        line.push(b'\n');
        self.0.write(line);
    }

    fn missed(&self, count: u64) {
        self.0.missed(count);
    }

    fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    fn reopen(&self) {
        self.0.reopen();
    }
}

impl Log {
    fn write_all(&mut self, inbox: &Receiver<Order>) {
        while let Ok(order) = inbox.recv() {
            self.note(|log| log.obey(&order));
            // As long as more is there, it is written together.
            while let Ok(order) = inbox.try_recv() {
                self.note(|log| log.obey(&order));
            }
            self.note(|log| log.file.flush());
        }
    }

    fn obey(&mut self, order: &Order) -> io::Result<()> {
        match order {
            Order::Reopen => self.reopen(),
            Order::Write(line) => {
                if self.max_size.is_some_and(|max| self.size + line.len() as u64 > max) {
                    let mut old = self.path.clone().into_os_string();
                    old.push(".1");
                    self.file.flush()?;
                    fs::rename(&self.path, old)?;
                    self.reopen()?;
                }
                self.size += line.len() as u64;
                self.file.write_all(line)
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file.flush()?;
        (self.file, self.size) = append_to(&self.path)?;
        Ok(())
    }

    /// Says that it fails, once.
    fn note(&mut self, attempt: impl FnOnce(&mut Self) -> io::Result<()>) {
        match attempt(self) {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                warn!(
                    %error,
                    path = %self.path.display(),
                    "cannot write the query log; lines are lost until there is room or permission"
                );
            }
            Err(_) => {}
        }
    }
}

/// Names are nobody's business but the owner's.
fn append_to(path: &Path) -> io::Result<(BufWriter<File>, u64)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((BufWriter::with_capacity(64 * 1024, file), size))
}
