//! The lines a child writes, as they come.

use crate::process::Process;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Collected lines; clones are the same log.
#[derive(Clone, Debug, Default)]
pub struct Log {
    inner: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Log {
    /// Collects what the process writes to its piped outputs.
    pub fn of(process: &mut Process) -> Self {
        let log = Self::default();
        let pipes = process.pipes();
        if let Some(stdout) = pipes.stdout.take() {
            log.collect(stdout);
        }
        if let Some(stderr) = pipes.stderr.take() {
            log.collect(stderr);
        }
        log
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    /// All lines so far, as one text.
    pub fn text(&self) -> String {
        self.lock().join("\n")
    }

    /// Waits until `holds` says yes to the lines; says whether it did within `limit`.
    pub fn wait_until(&self, limit: Duration, holds: impl Fn(&[String]) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut lines = self.lock();
        while !holds(&lines) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return false;
            };
            let waited = self.inner.1.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the other end closes, on a thread of its own.
    fn collect(&self, pipe: impl Read + Send + 'static) {
        let log = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                log.lock().push(String::from_utf8_lossy(&line).into_owned());
                log.inner.1.notify_all();
            }
        });
    }
}
