//! As much of HTTP/1.1 (RFC 9112) as probes, scrapers and browsers need of a page to read: GET and
//! HEAD, without bodies. Pure: octets in, octets out.

use std::fmt::Write as _;

use httparse::{Error, Status};

/// The longest head of a request, in octets.
pub(super) const MAX_HEAD: usize = 8 * 1024;
/// The most fields in one.
const MAX_FIELDS: usize = 64;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Without the query.
    pub(super) path: String,
    /// Only the head is wanted.
    pub(super) head_only: bool,
    /// The connection stays.
    pub(super) keep_alive: bool,
    /// By what name, and perhaps port, we were called.
    pub(super) host: Option<String>,
    /// What is accepted.
    pub(super) accept: String,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) code: Code,
    pub(super) content_type: &'static str,
    /// Further fields, each with its line's end.
    pub(super) fields: String,
    pub(super) body: Vec<u8>,
}

/// Status codes (RFC 9110 section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLarge,
    ServiceUnavailable,
}

/// What the octets received so far are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// A request, and how many octets its head has.
    Whole(Request, usize),
    /// The beginning of one.
    Partial,
    /// Nothing that can be answered with what was asked for; then the connection ends.
    Wrong(Response),
}

impl Head {
    /// Reads them.
    pub(super) fn read(octets: &[u8]) -> Self {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let len = match request.parse(octets) {
            Ok(Status::Complete(len)) if len <= MAX_HEAD => len,
            Ok(Status::Partial) if octets.len() < MAX_HEAD => return Self::Partial,
            Ok(_) | Err(Error::TooManyHeaders) => {
                let text = "The head of the request is too long.\n";
                return Self::Wrong(Response::text(Code::HeadTooLarge, text));
            }
            Err(error) => {
                let text = format!("This is no HTTP request: {error}.\n");
                return Self::Wrong(Response::text(Code::BadRequest, text));
            }
        };
        let head_only = match request.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => {
                let text = "There is nothing to change here: GET and HEAD only.\n";
                let mut response = Response::text(Code::MethodNotAllowed, text);
                response.fields.push_str("Allow: GET, HEAD\r\n");
                return Self::Wrong(response);
            }
        };
        let bad = |text: &str| Self::Wrong(Response::text(Code::BadRequest, text));
        let mut keep_alive = request.version == Some(1);
        let (mut host, mut accept) = (None, String::new());
        for field in request.headers.iter() {
            let Ok(value) = str::from_utf8(field.value) else {
                continue;
            };
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("host") && host.replace(value.trim().to_owned()).is_some() {
                return bad("More than one Host (RFC 9112 section 3.2).\n");
            } else if is("accept") {
                accept.push_str(value);
                accept.push(',');
            } else if is("connection") {
                let says = |word| value.split(',').any(|v| v.trim().eq_ignore_ascii_case(word));
                keep_alive = !says("close") && (keep_alive || says("keep-alive"));
            } else if is("transfer-encoding") || is("content-length") && value.trim() != "0" {
                // It is not read, so that nothing in it may be taken for the next request.
                return bad("A request with a body makes no sense here.\n");
            }
        }
        let target = request.path.unwrap_or_default();
        let path = target.split_once('?').map_or(target, |(path, _)| path).to_owned();
        Self::Whole(Request { path, head_only, keep_alive, host, accept }, len)
    }
}

impl Response {
    /// A response in plain text.
    pub(super) fn text(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            content_type: "text/plain; charset=utf-8",
            fields: String::new(),
            body: text.into().into_bytes(),
        }
    }

    /// What is sent.
    pub(super) fn write(&self, head_only: bool, keep_alive: bool) -> Vec<u8> {
        let mut head = String::with_capacity(512);
        let connection = if keep_alive { "keep-alive" } else { "close" };
        // Into a string nothing can fail.
        let _ = write!(
            head,
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {connection}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
             Cross-Origin-Resource-Policy: same-origin\r\nReferrer-Policy: no-referrer\r\n\
             X-Frame-Options: DENY\r\n{}\r\n",
            self.code.line(),
            self.content_type,
            self.body.len(),
            self.fields,
        );
        let mut octets = head.into_bytes();
        if !head_only {
            octets.extend_from_slice(&self.body);
        }
        octets
    }
}

impl Code {
    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::ServiceUnavailable => "503 Service Unavailable",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Request {
        match Head::read(text.as_bytes()) {
            Head::Whole(request, len) if len == text.len() => request,
            other @ (Head::Whole(..) | Head::Partial | Head::Wrong(_)) => {
                panic!("{text:?}: {other:?}")
            }
        }
    }

    fn code(text: &str) -> Option<Code> {
        match Head::read(text.as_bytes()) {
            Head::Wrong(response) => Some(response.code),
            Head::Whole(..) | Head::Partial => None,
        }
    }

    #[test]
    fn a_request_is_what_it_says() {
        let read = request("GET /metrics?x=1 HTTP/1.1\r\nHost: a:1\r\nAccept: b\r\n\r\n");
        assert_eq!(
            (read.path.as_str(), read.head_only, read.keep_alive),
            ("/metrics", false, true)
        );
        assert_eq!((read.host.as_deref(), read.accept.as_str()), (Some("a:1"), "b,"));
        assert!(request("HEAD / HTTP/1.1\r\n\r\n").head_only);
        assert!(!request("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n").keep_alive);
        assert!(!request("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(request("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n").keep_alive);
    }

    #[test]
    fn what_is_not_to_be_answered_says_why() {
        assert_eq!(Head::read(b"GET / HT"), Head::Partial);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS + 1));
        for (text, expected) in [
            (long.as_str(), Code::HeadTooLarge),
            (&many, Code::HeadTooLarge),
            ("POST / HTTP/1.1\r\n\r\n", Code::MethodNotAllowed),
            ("\x16\x03\x01\x02\0\x01", Code::BadRequest),
            ("GET / HTTP/2.0\r\n\r\n", Code::BadRequest),
            ("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n", Code::BadRequest),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", Code::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Code::BadRequest),
        ] {
            assert_eq!(code(text), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn a_head_is_answered_without_the_body() {
        let response = Response::text(Code::Ok, "text");
        let whole = response.write(false, true);
        let head = response.write(true, true);
        assert_eq!(whole, [&head[..], b"text"].concat());
        assert!(String::from_utf8_lossy(&head).contains("Content-Length: 4\r\n"));
    }
}
