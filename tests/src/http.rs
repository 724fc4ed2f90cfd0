//! A plain HTTP client: sends what it is told, and shows what comes back.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::Netns;

/// Longer than any response takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A response.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its status code.
    pub code: u16,
    /// Status line and fields.
    pub head: String,
    /// All behind the head.
    pub body: String,
}

/// Asks for a path.
pub fn get(netns: &Netns, server: SocketAddr, path: &str) -> Result<Response> {
    get_with(netns, server, path, &format!("Host: {server}\r\n"))
}

/// Asks for a path with these fields, each with its line's end.
pub fn get_with(netns: &Netns, server: SocketAddr, path: &str, fields: &str) -> Result<Response> {
    let request = format!("GET {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
    exchange(netns, server, request.as_bytes())
}

/// Sends these octets and reads until the other side closes.
pub fn exchange(netns: &Netns, server: SocketAddr, request: &[u8]) -> Result<Response> {
    let mut stream = connect(netns, server)?;
    stream.write_all(request)?;
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).with_context(|| format!("{server}: read the response"))?;
    let text = String::from_utf8_lossy(&octets);
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no head: {text:?}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let code = code.with_context(|| format!("no status code: {head:?}"))?;
    Ok(Response { code, head: head.to_owned(), body: body.to_owned() })
}

/// A connection on which nothing was asked yet.
pub fn connect(netns: &Netns, server: SocketAddr) -> Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect_timeout(&server, LIMIT))?;
    let stream = stream.with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

impl Response {
    /// A field of the head.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}
