//! `--dnstap`: every query and answer as dnstap (dnstap.info), in Frame Streams, to a Unix socket or a
//! file.
//!
//! Both formats in as much as they are needed: nine fields of protobuf, and five control frames.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    net::IpAddr,
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dns_proxy_common::DNS_PORT;
use nix::unistd::gethostname;
use tracing::{info, warn};

use super::{
    Seen,
    sink::{Order, Sink, Writer},
};
use crate::{
    datapath::tap::{Interest, Messages, Record},
    upstream::Transport,
};

/// What the frames hold.
const CONTENT_TYPE: &[u8] = b"protobuf:dnstap.Dnstap";
/// How long after a failure a reader is looked for again.
const RETRY: Duration = Duration::from_secs(1);
/// How long a reader may sleep before it is taken for gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a reader has to say that it has read all, at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// The longest control frame that is read (Frame Streams says 512).
const MAX_CONTROL: u32 = 512;

/// `--dnstap`: where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To whoever listens there.
    Unix(PathBuf),
    /// There, anew with each start.
    File(PathBuf),
}

/// The taker of dnstap.
pub struct Dnstap {
    writer: Writer,
    identity: Vec<u8>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("write unix:/PATH of a socket or file:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Dnstap {
    /// Starts to write. A reader may come later, and come again.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn start(target: &Target) -> io::Result<Self> {
        let identity = gethostname()?.into_encoded_bytes();
        let writer = match target {
            Target::Unix(path) => {
                let path = path.clone();
                Writer::start("dnstap", move |inbox, ending| {
                    write_to_socket(inbox, ending, &path);
                })?
            }
            Target::File(path) => {
                let path = path.clone();
                let file = create(&path)?;
                Writer::start("dnstap", move |inbox, _| write_to_file(inbox, &path, file))?
            }
        };
        Ok(Self { writer, identity })
    }
}

impl Sink for Dnstap {
    fn name(&self) -> &'static str {
        "dnstap"
    }

    fn interest(&self) -> Interest {
        Interest::Messages
    }

    fn take(&self, record: &Record, seen: &Seen) {
        let Some(messages) = &record.messages else {
            return self.writer.missed(1); // it came before anybody wanted it
        };
        let mut frames = Vec::with_capacity(messages.query.len() + messages.answer.len() + 512);
        for kind in [Kind::Query, Kind::Response] {
            let frame = frame(kind, record, messages, &self.identity, &seen.who());
            frames.extend((frame.len() as u32).to_be_bytes());
            frames.extend(frame);
        }
        self.writer.write(frames);
    }

    fn missed(&self, count: u64) {
        self.writer.missed(count);
    }

    fn dropped(&self) -> u64 {
        self.writer.dropped()
    }

    fn reopen(&self) {
        self.writer.reopen();
    }
}

/// Which of the two messages; dnstap's CLIENT_QUERY and CLIENT_RESPONSE.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Query = 5,
    Response = 6,
}

/// A `dnstap.Dnstap` message.
fn frame(kind: Kind, record: &Record, messages: &Messages, identity: &[u8], who: &str) -> Vec<u8> {
    let client = record.client;
    let asked = record.origin.map(|origin| IpAddr::from(origin.addr).to_canonical());
    let mut message = Proto::default();
    message.number(1, kind as u64);
    message.number(2, if client.ip().to_canonical().is_ipv4() { 1 } else { 2 });
    message.number(
        3,
        match record.transport {
            Transport::Datagram => 1,
            Transport::Stream => 2,
        },
    );
    message.address(4, client.ip());
    message.number(6, client.port().into());
    if let Some(asked) = asked {
        message.address(5, asked);
        message.number(7, DNS_PORT.into());
    }
    message.time(8, 9, record.came);
    match kind {
        Kind::Query => message.octets(10, &messages.query),
        Kind::Response => {
            message.time(12, 13, record.came + record.took);
            message.octets(14, &messages.answer);
        }
    }
    let mut dnstap = Proto::default();
    dnstap.octets(1, identity);
    dnstap.octets(2, concat!("dns-proxy ", env!("CARGO_PKG_VERSION")).as_bytes());
    dnstap.octets(3, who.as_bytes());
    dnstap.octets(14, &message.0);
    dnstap.number(15, 1); // MESSAGE
    dnstap.0
}

/// A protobuf message that is being written.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.varint(field << 3);
        self.varint(number);
    }

    fn octets(&mut self, field: u64, octets: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(octets.len() as u64);
        self.0.extend_from_slice(octets);
    }

    fn address(&mut self, field: u64, ip: IpAddr) {
        match ip.to_canonical() {
            IpAddr::V4(v4) => self.octets(field, &v4.octets()),
            IpAddr::V6(v6) => self.octets(field, &v6.octets()),
        }
    }

    fn time(&mut self, seconds: u64, nanoseconds: u64, time: SystemTime) {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.number(seconds, since_1970.as_secs());
        self.varint(nanoseconds << 3 | 5);
        self.0.extend_from_slice(&since_1970.subsec_nanos().to_le_bytes());
    }
}

/// Frame Streams' control frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Accept = 1,
    Start = 2,
    Stop = 3,
    Ready = 4,
    Finish = 5,
}

fn control(control: Control) -> Vec<u8> {
    let mut frame = (control as u32).to_be_bytes().to_vec();
    if !matches!(control, Control::Stop | Control::Finish) {
        frame.extend(1_u32.to_be_bytes()); // the field CONTENT_TYPE
        frame.extend((CONTENT_TYPE.len() as u32).to_be_bytes());
        frame.extend(CONTENT_TYPE);
    }
    // Escaped by a length of 0.
    let length = (frame.len() as u32).to_be_bytes();
    [&[0; 4], &length[..], &frame].concat()
}

/// Reads a control frame that must be this one.
fn expect(stream: &mut impl Read, wanted: Control) -> io::Result<()> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    let [escape, length] =
        [0, 4].map(|at| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no Frame Streams reader there");
    if escape != 0 || !(4..=MAX_CONTROL).contains(&length) {
        return Err(wrong());
    }
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame)?;
    if frame[..4] == (wanted as u32).to_be_bytes() { Ok(()) } else { Err(wrong()) }
}

/// Writes to whoever listens, as long as there are orders.
fn write_to_socket(inbox: &Receiver<Order>, ending: &AtomicBool, path: &Path) {
    let mut said = String::new();
    while !ending.load(Ordering::Relaxed) {
        match connect(path).and_then(|stream| {
            info!(path = %path.display(), "dnstap reader found");
            said.clear();
            pass_on(inbox, stream)
        }) {
            Ok(()) => return,
            Err(error) => {
                if said != error.to_string() {
                    said = error.to_string();
                    warn!(%error, path = %path.display(), "no dnstap reader; looking for one");
                }
            }
        }
        // What comes meanwhile is kept, as much as there is room for.
        thread::sleep(RETRY);
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&control(Control::Ready))?;
    expect(&mut stream, Control::Accept)?;
    stream.write_all(&control(Control::Start))?;
    Ok(stream)
}

/// Until no more orders come, or the reader is gone.
fn pass_on(inbox: &Receiver<Order>, stream: UnixStream) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, stream);
    while write_what_there_is(inbox, &mut out)?.is_some() {}
    out.write_all(&control(Control::Stop))?;
    out.flush()?;
    out.get_ref().set_read_timeout(Some(FAREWELL))?;
    expect(&mut out.get_ref(), Control::Finish)
}

/// `None` at the end; whether the file is to be opened anew.
fn write_what_there_is(
    inbox: &Receiver<Order>,
    out: &mut BufWriter<impl Write>,
) -> io::Result<Option<bool>> {
    let mut order = match inbox.recv_timeout(PATIENCE) {
        Ok(order) => order,
        Err(RecvTimeoutError::Timeout) => return Ok(Some(false)),
        Err(RecvTimeoutError::Disconnected) => return Ok(None),
    };
    loop {
        match order {
            Order::Write(frames) => out.write_all(&frames)?,
            Order::Reopen => {
                out.flush()?;
                return Ok(Some(true));
            }
        }
        match inbox.try_recv() {
            Ok(next) => order = next,
            Err(_) => {
                out.flush()?;
                return Ok(Some(false));
            }
        }
    }
}

fn create(path: &Path) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut file = BufWriter::with_capacity(64 * 1024, file);
    file.write_all(&control(Control::Start))?;
    file.flush()?;
    Ok(file)
}

fn write_to_file(inbox: &Receiver<Order>, path: &Path, mut file: BufWriter<File>) {
    let written = (|| -> io::Result<()> {
        while let Some(reopen) = write_what_there_is(inbox, &mut file)? {
            if reopen {
                file.write_all(&control(Control::Stop))?;
                file.flush()?;
                file = create(path)?;
            }
        }
        file.write_all(&control(Control::Stop))?;
        file.flush()
    })();
    if let Err(error) = written {
        warn!(%error, path = %path.display(), "cannot write dnstap; the file ends here");
        // What is dropped is counted by whoever finds nobody to give it to.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_by_kind() {
        assert_eq!("unix:/run/x.sock".parse(), Ok(Target::Unix("/run/x.sock".into())));
        assert_eq!("file:x.fstrm".parse(), Ok(Target::File("x.fstrm".into())));
        for text in ["", "/run/x", "unix:", "unix:x", "tcp:1.2.3.4:5", "file:"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
