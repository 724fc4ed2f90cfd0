//! Datagrams in and out of a socket, many by one system call (`recvmmsg` 2.6.33, `sendmmsg` 3.0),
//! each with its local address (`IP_PKTINFO`): the query's tells which nameserver was meant, and the
//! answer must leave from the same.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    ops::Range,
    os::fd::AsRawFd as _,
    ptr,
};

use nix::libc;
use tracing::debug;

use super::query::MAX_QUERY_LEN;

/// Datagrams handled by one system call.
pub const BATCH: usize = 32;
/// One octet more than a query may have, so that a longer one shows.
const BUFFER: usize = MAX_QUERY_LEN + 1;
/// Room for one control message with packet info of either family, aligned as its header must be.
type Control = [u64; 8];

/// A control message as it lies in memory: both kinds of packet info are aligned no stricter than
/// the header's end, so nothing comes between (`CMSG_DATA`).
#[repr(C)]
struct Message<T> {
    header: libc::cmsghdr,
    info: T,
}

/// A datagram's way: who sent it to which of our addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Who sent it.
    pub client: SocketAddr,
    /// Our address.
    pub local: IpAddr,
    /// Device it came in by; the way back to a link-local client.
    pub ifindex: u32,
}

/// What the kernel is told of a batch: where each datagram comes from or goes to, and lies. It is
/// written anew for each call, since it holds pointers; only what is used of it costs anything.
struct Frame {
    names: [libc::sockaddr_storage; BATCH],
    controls: [Control; BATCH],
    slices: [libc::iovec; BATCH],
    headers: [libc::mmsghdr; BATCH],
}

/// The datagrams received last, and the answers that leave together; one for all sockets of a worker.
pub struct Buffers {
    /// What was received.
    pub inbox: Inbox,
    /// What is to be sent.
    pub outbox: Outbox,
}

/// Datagrams that were received.
pub struct Inbox {
    octets: Box<[u8]>,
    frame: Box<Frame>,
    count: usize,
}

/// Answers to be sent, one behind the other.
pub struct Outbox {
    octets: Vec<u8>,
    /// Where each ends, and its way.
    answers: Vec<(usize, Path)>,
    frame: Box<Frame>,
}

impl Frame {
    fn new() -> Box<Self> {
        // SAFETY: all of these are integers, pointers and arrays of such, for which zero is a value.
        Box::new(unsafe { zeroed() })
    }

    /// Says where the datagrams lie: each by its first octet, and how many.
    fn point_at(&mut self, datagrams: impl Iterator<Item = (*mut u8, usize)>) {
        for (index, (octets, len)) in datagrams.enumerate() {
            self.slices[index] = libc::iovec { iov_base: octets.cast(), iov_len: len };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = (&raw mut self.names[index]).cast();
            header.msg_iov = &raw mut self.slices[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
        }
    }

    /// Says how long the name and the control message of a datagram are, or may be.
    fn set_lengths(&mut self, index: usize, name: usize, control: usize) {
        let header = &mut self.headers[index].msg_hdr;
        header.msg_namelen = name as libc::socklen_t;
        header.msg_controllen = control as _;
    }
}

impl Default for Buffers {
    fn default() -> Self {
        let inbox = Inbox {
            octets: vec![0; BATCH * BUFFER].into_boxed_slice(),
            frame: Frame::new(),
            count: 0,
        };
        let answers = Vec::with_capacity(BATCH);
        Self { inbox, outbox: Outbox { octets: Vec::new(), answers, frame: Frame::new() } }
    }
}

impl Inbox {
    /// Receives what there is, [`BATCH`] datagrams at most; how many. The socket must be
    /// non-blocking and have `IP_PKTINFO` or `IPV6_RECVPKTINFO` on.
    ///
    /// # Errors
    /// There is nothing, or the socket has failed.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.count = 0;
        let (name, control) = (size_of::<libc::sockaddr_storage>(), size_of::<Control>());
        (0..BATCH).for_each(|index| self.frame.set_lengths(index, name, control));
        let buffers = self.octets.chunks_exact_mut(BUFFER);
        self.frame.point_at(buffers.map(|buffer| (buffer.as_mut_ptr(), buffer.len())));
        // SAFETY: every pointer in the headers is to memory of `self.frame` or of `self.octets`, of
        // the length that stands beside it, and nothing else uses that memory meanwhile.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.frame.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        self.count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(self.count)
    }

    /// What was received last. One whose addresses are missing cannot be answered and is left out.
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], Path)> {
        let Frame { names, controls, headers, .. } = &*self.frame;
        let received = self.octets.chunks_exact(BUFFER).zip(headers).take(self.count);
        received.zip(names.iter().zip(controls)).filter_map(
            |((buffer, header), (name, control))| {
                let path = read_path(name, control, header.msg_hdr.msg_controllen)?;
                Some((&buffer[..header.msg_len as usize], path))
            },
        )
    }
}

impl Outbox {
    /// Nothing is to be sent.
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Takes what is appended to the octets for an answer, if it is said to be one; whether it is.
    pub fn take(&mut self, path: Path, append: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let start = self.octets.len();
        let is_answer = append(&mut self.octets);
        if is_answer {
            self.answers.push((self.octets.len(), path));
        } else {
            self.octets.truncate(start);
        }
        is_answer
    }

    /// Sends all, each from the address that its query was sent to, and is empty then. What the socket
    /// has no room for comes back; one that cannot be sent is given up.
    pub fn send(&mut self, socket: &UdpSocket) -> Vec<(Vec<u8>, Path)> {
        let mut sent = 0;
        while sent < self.answers.len() {
            match self.send_from(socket, sent) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    debug!(%error, client = %self.answers[sent].1.client, "answer not sent");
                    sent += 1;
                }
            }
        }
        let rest = (sent..self.answers.len()).map(|index| {
            let answer = &self.octets[range(&self.answers, index)];
            (answer.to_vec(), self.answers[index].1)
        });
        let rest = rest.collect();
        self.answers.clear();
        self.octets.clear();
        rest
    }

    /// Sends answers from this one on, [`BATCH`] at most; how many were sent.
    fn send_from(&mut self, socket: &UdpSocket, first: usize) -> io::Result<usize> {
        let count = (self.answers.len() - first).min(BATCH);
        for (index, (_, path)) in self.answers[first..][..count].iter().enumerate() {
            let name = write_name(&mut self.frame.names[index], path.client);
            let control = write_local(&mut self.frame.controls[index], path);
            self.frame.set_lengths(index, name, control);
        }
        let octets = self.octets.as_mut_ptr();
        let ranges = (first..first + count).map(|index| range(&self.answers, index));
        self.frame.point_at(ranges.map(|range| (octets.wrapping_add(range.start), range.len())));
        // SAFETY: every pointer in the headers is to memory of `self.frame` or of `self.octets`, which
        // the kernel only reads, of the length that stands beside it.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.frame.headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// Where an answer lies: behind the one before.
fn range(answers: &[(usize, Path)], index: usize) -> Range<usize> {
    let start = index.checked_sub(1).map_or(0, |before| answers[before].0);
    start..answers[index].0
}

/// Writes a socket address; its length.
fn write_name(name: &mut libc::sockaddr_storage, addr: SocketAddr) -> usize {
    match addr {
        SocketAddr::V4(addr) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: addr.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(addr.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: `sockaddr_storage` has room for and is aligned as every socket address.
            unsafe { ptr::from_mut(name).cast::<libc::sockaddr_in>().write(v4) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(addr) => {
            let v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: addr.port().to_be(),
                sin6_flowinfo: addr.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: addr.ip().octets() },
                sin6_scope_id: addr.scope_id(),
            };
            // SAFETY: as above.
            unsafe { ptr::from_mut(name).cast::<libc::sockaddr_in6>().write(v6) };
            size_of::<libc::sockaddr_in6>()
        }
    }
}

/// Writes the control message that says where an answer leaves from; its length.
fn write_local(control: &mut Control, path: &Path) -> usize {
    match path.local {
        IpAddr::V4(local) => {
            let ifindex = if local.is_link_local() { path.ifindex } else { 0 };
            let info = libc::in_pktinfo {
                ipi_ifindex: ifindex as libc::c_int,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(local.octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        IpAddr::V6(local) => {
            let ifindex = if local.is_unicast_link_local() { path.ifindex } else { 0 };
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: local.octets() },
                ipi6_ifindex: ifindex as _,
            };
            write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

fn write_control<T>(control: &mut Control, level: i32, kind: i32, info: T) -> usize {
    const { assert!(size_of::<Message<T>>() <= size_of::<Control>()) };
    const { assert!(align_of::<Message<T>>() <= align_of::<Control>()) };
    let cmsg_len = size_of::<libc::cmsghdr>() + size_of::<T>();
    let header = libc::cmsghdr { cmsg_len: cmsg_len as _, cmsg_level: level, cmsg_type: kind };
    // SAFETY: by the assertions the buffer has room for the message and is aligned for it.
    unsafe { ptr::from_mut(control).cast::<Message<T>>().write(Message { header, info }) };
    size_of::<Message<T>>()
}

/// Both ends of a received datagram.
fn read_path(name: &libc::sockaddr_storage, control: &Control, len: usize) -> Option<Path> {
    let client = read_name(name)?;
    if len < size_of::<libc::cmsghdr>() {
        return None;
    }
    // SAFETY: the kernel wrote a header at least, and the buffer is aligned for it.
    let header = unsafe { ptr::from_ref(control).cast::<libc::cmsghdr>().read() };
    let (local, ifindex) = match (header.cmsg_level, header.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: that is what the kernel writes of this type, and there is room for it.
            let Message { info, .. } =
                unsafe { ptr::from_ref(control).cast::<Message<libc::in_pktinfo>>().read() };
            (IpAddr::from(info.ipi_addr.s_addr.to_ne_bytes()), info.ipi_ifindex as u32)
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: as above.
            let Message { info, .. } =
                unsafe { ptr::from_ref(control).cast::<Message<libc::in6_pktinfo>>().read() };
            (IpAddr::from(info.ipi6_addr.s6_addr), info.ipi6_ifindex)
        }
        _ => return None,
    };
    Some(Path { client, local, ifindex })
}

fn read_name(name: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says which address the storage holds.
            let v4 = unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in>().read() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { ptr::from_ref(name).cast::<libc::sockaddr_in6>().read() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{setsockopt, sockopt};

    use super::*;

    /// A socket on the wildcard address, and one that sends to it.
    fn pair(wildcard: &str, to: &str) -> (UdpSocket, UdpSocket) {
        let server = UdpSocket::bind((wildcard, 0)).expect("bind");
        match wildcard {
            "::" => setsockopt(&server, sockopt::Ipv6RecvPacketInfo, &true).expect("IPv6"),
            _ => setsockopt(&server, sockopt::Ipv4PacketInfo, &true).expect("IPv4"),
        }
        let client = UdpSocket::bind((to, 0)).expect("bind");
        client.connect((to, server.local_addr().expect("bound").port())).expect("connect");
        (server, client)
    }

    #[test]
    fn answers_leave_from_where_their_queries_went() {
        for (wildcard, to) in [("0.0.0.0", "127.64.3.4"), ("::", "::1")] {
            let (server, client) = pair(wildcard, to);
            for number in 0..BATCH as u8 + 1 {
                client.send(&[number; 3]).expect("send");
            }
            let Buffers { mut inbox, mut outbox } = Buffers::default();
            assert_eq!(inbox.receive(&server).expect("a full batch"), BATCH);
            for (message, path) in inbox.datagrams() {
                assert_eq!(path.local.to_string(), to);
                assert!(outbox.take(path, |octets| {
                    octets.extend_from_slice(message);
                    true
                }));
                assert!(!outbox.take(path, |_| false));
            }
            assert!(outbox.send(&server).is_empty() && outbox.is_empty());
            assert_eq!(inbox.receive(&server).expect("the last one"), 1);
            let nothing = inbox.receive(&server).expect_err("no more");
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
            // Connected: what came from another address would not be received.
            for number in 0..BATCH as u8 {
                let mut buffer = [0; 8];
                let len = client.recv(&mut buffer).expect("an answer");
                assert_eq!(buffer[..len], [number; 3]);
            }
        }
    }

    #[test]
    fn a_datagram_that_is_too_long_shows() {
        let (server, client) = pair("0.0.0.0", "127.0.0.1");
        client.send(&[0; MAX_QUERY_LEN + 100]).expect("send");
        let mut inbox = Buffers::default().inbox;
        inbox.receive(&server).expect("one");
        assert!(inbox.datagrams().all(|(message, _)| message.len() == MAX_QUERY_LEN + 1));
    }
}
