//! `dns-proxy health`: asks the daemon of this host, over its admin address, whether it is well. For
//! health checks in images that have neither a shell nor curl.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use thiserror::Error;

/// What the daemon is asked.
const REQUEST: &[u8] = b"GET /healthz HTTP/1.0\r\n\r\n";
/// How long each step may take; engines give up after 30 s unless told otherwise.
const LIMIT: Duration = Duration::from_secs(3);
/// As much of an answer as is of interest.
const MAX_ANSWER: u64 = 4096;

/// Why the daemon is not well.
#[derive(Debug, Error)]
pub enum Unwell {
    /// Nobody answers.
    #[error("no answer from {addr}: {source}; does dns-proxy run, and with this --admin address?")]
    Silent {
        /// The admin address.
        addr: SocketAddr,
        /// The operating system's words.
        source: io::Error,
    },
    /// The daemon says so.
    #[error("{addr} says: {answer}")]
    Says {
        /// The admin address.
        addr: SocketAddr,
        /// The status line, or the body if there is one.
        answer: String,
    },
}

/// Asks once.
///
/// # Errors
/// The daemon is not there, or says that something is wrong.
pub fn ask(addr: SocketAddr) -> Result<(), Unwell> {
    let answer = get(addr).map_err(|source| Unwell::Silent { addr, source })?;
    judge(&answer).map_err(|answer| Unwell::Says { addr, answer })
}

fn get(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The status decides; what is wrong is in the body.
fn judge(answer: &str) -> Result<(), String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") if status.starts_with("HTTP/1.") => Ok(()),
        _ if body.trim().is_empty() => Err(status.to_owned()),
        _ => Err(body.trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides_and_the_body_says_why() {
        assert_eq!(judge("HTTP/1.1 200 OK\r\nA: b\r\n\r\nok\n"), Ok(()));
        let unwell = "HTTP/1.0 503 Service Unavailable\r\n\r\nno upstream answers\n";
        assert_eq!(judge(unwell), Err("no upstream answers".to_owned()));
        assert_eq!(judge("HTTP/1.1 404 Not Found\r\n\r\n"), Err("HTTP/1.1 404 Not Found".into()));
        assert_eq!(judge("SSH-2.0-x 200\r\n"), Err("SSH-2.0-x 200".into()));
        assert_eq!(judge(""), Err(String::new()));
    }
}
