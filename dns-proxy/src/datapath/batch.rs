//! Datagrams in and out of a socket, many by one system call (`recvmmsg` 2.6.33, `sendmmsg` 3.0),
//! each with its local address (`IP_PKTINFO`): the query's tells which nameserver was meant, and the
//! answer must leave from the same.

use std::{
    io,
    mem::{size_of, zeroed},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    os::fd::AsRawFd as _,
    ptr,
};

use nix::libc;

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

/// Buffers for received datagrams; one set for all sockets of a worker.
pub struct Inbox {
    octets: Box<[u8]>,
    received: Vec<(usize, Path)>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            octets: vec![0; BATCH * BUFFER].into_boxed_slice(),
            received: Vec::with_capacity(BATCH),
        }
    }
}

impl Inbox {
    /// Receives what there is, [`BATCH`] datagrams at most; how many. The socket must be
    /// non-blocking and have `IP_PKTINFO` or `IPV6_RECVPKTINFO` on.
    ///
    /// # Errors
    /// There is nothing, or the socket has failed.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        // SAFETY: all of these are integers, pointers and arrays of such, for which zero is a value.
        let (mut names, mut controls, mut slices, mut headers): (
            [libc::sockaddr_storage; BATCH],
            [Control; BATCH],
            [libc::iovec; BATCH],
            [libc::mmsghdr; BATCH],
        ) = unsafe { zeroed() };
        for (index, buffer) in self.octets.chunks_exact_mut(BUFFER).enumerate() {
            slices[index] =
                libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut slices[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[index]).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        // SAFETY: every pointer in the headers is to memory of this frame or of `self.octets`, of
        // the length that stands beside it, and nothing else uses that memory meanwhile.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (index, header) in headers.iter().enumerate().take(count) {
            // One whose addresses are missing cannot be answered; an empty message never is.
            let len = header.msg_hdr.msg_controllen;
            let path = read_path(&names[index], &controls[index], len);
            let (len, path) = path.map_or((0, UNKNOWN), |path| (header.msg_len as usize, path));
            self.received.push((len, path));
        }
        Ok(count)
    }

    /// What was received last.
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], Path)> {
        let buffers = self.octets.chunks_exact(BUFFER);
        buffers.zip(&self.received).map(|(buffer, (len, path))| (&buffer[..*len], *path))
    }
}

/// The path of a datagram whose addresses are missing; nobody is there.
const UNKNOWN: Path = Path {
    client: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
    local: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    ifindex: 0,
};

/// Sends answers, [`BATCH`] at most, each from the address that its query was sent to; how many
/// were sent.
///
/// # Errors
/// The first one cannot be sent (now).
pub fn send(socket: &UdpSocket, answers: &[(Vec<u8>, Path)]) -> io::Result<usize> {
    // SAFETY: as in `Inbox::receive`.
    let (mut names, mut controls, mut slices, mut headers): (
        [libc::sockaddr_storage; BATCH],
        [Control; BATCH],
        [libc::iovec; BATCH],
        [libc::mmsghdr; BATCH],
    ) = unsafe { zeroed() };
    let count = answers.len().min(BATCH);
    for (index, (answer, path)) in answers[..count].iter().enumerate() {
        slices[index] =
            libc::iovec { iov_base: answer.as_ptr().cast_mut().cast(), iov_len: answer.len() };
        let header = &mut headers[index].msg_hdr;
        header.msg_name = (&raw mut names[index]).cast();
        header.msg_namelen = write_name(&mut names[index], path.client);
        header.msg_iov = &raw mut slices[index];
        header.msg_iovlen = 1;
        header.msg_control = (&raw mut controls[index]).cast();
        header.msg_controllen = write_local(&mut controls[index], path) as _;
    }
    // SAFETY: every pointer in the headers is to memory of this frame or of `answers`, which the
    // kernel only reads, of the length that stands beside it.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Writes a socket address; its length.
fn write_name(name: &mut libc::sockaddr_storage, addr: SocketAddr) -> libc::socklen_t {
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
            size_of::<libc::sockaddr_in>() as libc::socklen_t
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
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
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
            let mut inbox = Inbox::default();
            assert_eq!(inbox.receive(&server).expect("a full batch"), BATCH);
            let answers: Vec<_> =
                inbox.datagrams().map(|(message, path)| (message.to_vec(), path)).collect();
            assert!(answers.iter().all(|(_, path)| path.local.to_string() == to), "{answers:?}");
            assert_eq!(send(&server, &answers).expect("send"), BATCH);
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
        let mut inbox = Inbox::default();
        inbox.receive(&server).expect("one");
        assert!(inbox.datagrams().all(|(message, _)| message.len() == MAX_QUERY_LEN + 1));
    }
}
