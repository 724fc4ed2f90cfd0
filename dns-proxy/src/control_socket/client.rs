//! The side of `status` and its kin: asks, and reads lines.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::libc;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Refusal, Request};

/// How long a daemon that is alive may take to say something when it owes an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why nothing came from a daemon.
#[derive(Debug, Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "no dns-proxy daemon listens at {}; start one with `dns-proxy run`, or name its socket with \
         --control",
        .0.display()
    )]
    NoDaemon(PathBuf),
    /// The socket is for root.
    #[error("{}: permission denied; the daemon's control socket is for root, so use sudo", .0.display())]
    Denied(PathBuf),
    /// Something else is the matter with it.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The operating system's words.
        source: io::Error,
    },
    /// It ended, or is of another version.
    #[error("the daemon at {} gave no answer that can be understood: {reason}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The daemon refused.
    #[error("the daemon refused: {0}")]
    Refused(String),
}

/// The lines that answer a request.
#[derive(Debug)]
pub struct Answer {
    path: PathBuf,
    lines: BufReader<UnixStream>,
    line: String,
}

/// Asks the daemon at `path`.
///
/// # Errors
/// Nobody is there, or nobody who speaks to us.
pub fn ask(path: &Path, request: &Request) -> Result<Answer, AskError> {
    let failed = |source| AskError::Io { path: path.to_owned(), source };
    let mut stream = UnixStream::connect(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ECONNREFUSED) => AskError::NoDaemon(path.to_owned()),
        Some(libc::EACCES) => AskError::Denied(path.to_owned()),
        Some(_) | None => failed(error),
    })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::other).map_err(failed)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    Ok(Answer { path: path.to_owned(), lines: BufReader::new(stream), line: String::new() })
}

impl Answer {
    /// Waits for lines for as long as it takes.
    ///
    /// # Errors
    /// The operating system refused.
    pub fn wait_for_good(&self) -> Result<(), AskError> {
        let set = self.lines.get_ref().set_read_timeout(None);
        set.map_err(|source| AskError::Io { path: self.path.clone(), source })
    }

    /// The next line; `None` after the last.
    ///
    /// # Errors
    /// The daemon refused the request, is gone, or says something else.
    pub fn line<T: DeserializeOwned>(&mut self) -> Result<Option<T>, AskError> {
        let wrong = |reason: String| AskError::Answer { path: self.path.clone(), reason };
        self.line.clear();
        let read =
            self.lines.read_line(&mut self.line).map_err(|error| wrong(error.to_string()))?;
        if read == 0 {
            return Ok(None);
        }
        serde_json::from_str(&self.line).map(Some).map_err(|error| {
            match serde_json::from_str::<Refusal>(&self.line) {
                Ok(refusal) => AskError::Refused(refusal.error),
                Err(_) => wrong(error.to_string()),
            }
        })
    }

    /// The only line.
    ///
    /// # Errors
    /// As [`Answer::line`], or there is none.
    pub fn only<T: DeserializeOwned>(mut self) -> Result<T, AskError> {
        let first = self.line()?;
        first.ok_or(AskError::Answer { path: self.path, reason: "it is gone".to_owned() })
    }
}
