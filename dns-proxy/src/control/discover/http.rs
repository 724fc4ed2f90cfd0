//! HTTP/1.1 as the interfaces of runtimes and of Kubernetes speak it: short documents, and streams of
//! JSON with one object in each line. The owner of hyper.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header,
};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// The longest document: a list of some ten thousand containers.
const MAX_DOCUMENT: usize = 64 << 20;
/// The longest line of a stream: one object with all that it says of itself.
const MAX_LINE: usize = 8 << 20;
/// How much of what an error says is passed on.
const MAX_COMPLAINT: usize = 256;
/// How long a document may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why nothing is to be had.
#[derive(Debug, Error)]
pub(super) enum HttpError {
    /// It is not what we take it for.
    #[error("{0}")]
    Protocol(#[from] hyper::Error),
    /// It does not want to.
    #[error("{status}: {complaint}")]
    Status {
        /// What it says in short.
        status: StatusCode,
        /// What it says.
        complaint: String,
    },
    /// Too much of it.
    #[error("an answer of more than {0} octets")]
    TooLong(usize),
    /// Nothing of it.
    #[error("no answer within {LIMIT:?}")]
    Silent,
    /// Our own mistake.
    #[error("{0}")]
    Request(#[from] hyper::http::Error),
}

impl HttpError {
    /// What it said in short, if it said anything.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            Self::Protocol(_) | Self::TooLong(_) | Self::Silent | Self::Request(_) => None,
        }
    }
}

/// A connection, for one request after another.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    host: String,
    token: Option<String>,
}

/// A stream of lines.
pub(super) struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    /// How much of it has no end of a line.
    searched: usize,
    _connection: Connection,
}

impl Connection {
    /// Over an open stream to `host`, with a bearer token if there is one.
    ///
    /// # Errors
    /// It ended at once.
    pub(super) async fn new<S>(
        stream: S,
        host: &str,
        token: Option<String>,
    ) -> Result<Self, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Whoever waits for an answer hears why there is none.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, host: host.to_owned(), token })
    }

    /// A whole document.
    ///
    /// # Errors
    /// As the variants say.
    pub(super) async fn get(&mut self, path: &str) -> Result<Vec<u8>, HttpError> {
        let whole = async {
            let body = self.request(path).await?;
            read_up_to(body, MAX_DOCUMENT).await
        };
        timeout(LIMIT, whole).await.map_err(|_| HttpError::Silent)?
    }

    /// A stream, which takes the connection. It may be long before it begins: some servers say nothing
    /// before there is something to tell.
    ///
    /// # Errors
    /// As the variants say.
    pub(super) async fn stream(mut self, path: &str) -> Result<Lines, HttpError> {
        let body = self.request(path).await?;
        Ok(Lines { body, buffer: Vec::new(), searched: 0, _connection: self })
    }

    async fn request(&mut self, path: &str) -> Result<Incoming, HttpError> {
        let mut request = Request::get(path).header(header::HOST, &self.host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Empty::new())?).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let complaint = read_up_to(response.into_body(), MAX_DOCUMENT).await?;
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        let complaint = complaint.chars().take(MAX_COMPLAINT).collect();
        Err(HttpError::Status { status, complaint })
    }
}

impl Lines {
    /// The next line; `None` at the end.
    ///
    /// # Errors
    /// The stream broke off, or a line is too long.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, HttpError> {
        loop {
            let new = &self.buffer[self.searched..];
            if let Some(end) = new.iter().position(|octet| *octet == b'\n') {
                let end = self.searched + end;
                self.searched = 0;
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE {
                return Err(HttpError::TooLong(MAX_LINE));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

async fn read_up_to(mut body: Incoming, limit: usize) -> Result<Vec<u8>, HttpError> {
    let mut whole = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            whole.extend_from_slice(&data);
        }
        if whole.len() > limit {
            return Err(HttpError::TooLong(limit));
        }
    }
    Ok(whole)
}
