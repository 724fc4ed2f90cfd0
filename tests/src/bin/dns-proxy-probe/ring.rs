//! The same calls through io_uring, which makes them from its own worker threads if told to.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use dns_proxy_tests::wire::{Answer, frame};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use crate::shapes::{Ask, BUFFER, is_good, report};

/// Who makes the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// This thread, as it submits them.
    Caller,
    /// A worker (`IOSQE_ASYNC`).
    Worker,
    /// The kernel's polling thread (`IORING_SETUP_SQPOLL`).
    Poller,
}

/// A ring whose calls end within a time.
struct Ring {
    ring: IoUring,
    who: Who,
    limit: types::Timespec,
}

/// Marks the completion of a call, rather than that of its time-out.
const CALL: u64 = 1;
/// How long the polling thread stays awake, in milliseconds.
const POLLER_IDLE: u32 = 100;

impl Ring {
    fn new(who: Who, limit: Duration) -> Result<Self> {
        let ring = match who {
            Who::Caller | Who::Worker => IoUring::new(8),
            Who::Poller => IoUring::builder().setup_sqpoll(POLLER_IDLE).build(8),
        };
        let ring = ring.context("io_uring_setup: is kernel.io_uring_disabled 0?")?;
        Ok(Self { ring, who, limit: limit.into() })
    }

    /// Makes one call and waits for its end, and for the kernel to let go of what it points at.
    fn call(&mut self, entry: squeue::Entry) -> Result<usize> {
        let mut flags = squeue::Flags::IO_LINK;
        if self.who == Who::Worker {
            flags |= squeue::Flags::ASYNC;
        }
        let call = entry.flags(flags).user_data(CALL);
        let time_out = opcode::LinkTimeout::new(&raw const self.limit).build();
        // SAFETY: everything that the entries point at outlives this function, which does not
        // return before the last completion of both has come.
        unsafe { self.ring.submission().push_multiple(&[call, time_out])? };
        let (mut result, mut expected) = (0, 2);
        while expected > 0 {
            self.ring.submit_and_wait(1)?;
            for done in self.ring.completion() {
                expected -= usize::from(!cqueue::more(done.flags()));
                if done.user_data() == CALL && !cqueue::notif(done.flags()) {
                    result = done.result();
                }
            }
        }
        let failed = || io::Error::from_raw_os_error(-result);
        usize::try_from(result).map_err(|_| failed().into())
    }

    fn connect(&mut self, fd: RawFd, server: SocketAddr) -> Result<()> {
        let address = SockAddr::from(server);
        let to = address.as_ptr().cast();
        self.call(opcode::Connect::new(types::Fd(fd), to, address.len()).build())?;
        ensure!(address == SockAddr::from(server), "connect changed the caller's address");
        Ok(())
    }

    fn send(&mut self, fd: RawFd, bytes: &[u8]) -> Result<()> {
        let length = bytes.len().try_into()?;
        let sent = self.call(opcode::Send::new(types::Fd(fd), bytes.as_ptr(), length).build())?;
        ensure!(sent == bytes.len(), "sent {sent} of {} bytes", bytes.len());
        Ok(())
    }

    fn receive(&mut self, fd: RawFd) -> Result<Vec<u8>> {
        let mut buffer = vec![0; BUFFER];
        let length = buffer.len().try_into()?;
        let room = buffer.as_mut_ptr();
        let received = self.call(opcode::Recv::new(types::Fd(fd), room, length).build())?;
        buffer.truncate(received);
        Ok(buffer)
    }

    fn send_message(
        &mut self,
        fd: RawFd,
        bytes: &[u8],
        server: SocketAddr,
        zero_copy: bool,
    ) -> Result<()> {
        let address = SockAddr::from(server);
        let mut slice =
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut header = message(&mut slice);
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
        let (fd, header) = (types::Fd(fd), &raw const header);
        let sent = self.call(if zero_copy {
            opcode::SendMsgZc::new(fd, header).build()
        } else {
            opcode::SendMsg::new(fd, header).build()
        })?;
        ensure!(sent == bytes.len(), "sent {sent} of {} bytes", bytes.len());
        ensure!(address == SockAddr::from(server), "sendmsg changed the caller's address");
        Ok(())
    }

    fn receive_message(&mut self, fd: RawFd) -> Result<(Vec<u8>, SocketAddr)> {
        let mut buffer = vec![0; BUFFER];
        let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: BUFFER };
        let mut header = message(&mut slice);
        let mut from = SockAddrStorage::zeroed();
        header.msg_name = (&raw mut from).cast();
        header.msg_namelen = from.size_of();
        let call = opcode::RecvMsg::new(types::Fd(fd), &raw mut header).build();
        buffer.truncate(self.call(call)?);
        // SAFETY: the kernel wrote an address of this length.
        let from = unsafe { SockAddr::new(from, header.msg_namelen) };
        Ok((buffer, from.as_socket().context("no sender")?))
    }
}

/// A header for one buffer, without an address.
fn message(slice: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all of its fields are integers and pointers, for which zeroes are valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = slice;
    header.msg_iovlen = 1;
    header
}

/// Connects, sends and receives over UDP.
pub(crate) fn connected(ask: &Ask<'_>, who: Who) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = Socket::new(Domain::for_address(server), Type::DGRAM, None)?;
    let (mut ring, fd) = (Ring::new(who, ask.limit)?, socket.as_raw_fd());
    ring.connect(fd, server)?;
    ring.send(fd, &query)?;
    let (message, from) = ring.receive_message(fd)?;
    let answer = Answer::to(&query, &message)?;
    report(&[("from", &from)], &answer, started);
    Ok(from == server && is_good(&answer))
}

/// The same over TCP.
pub(crate) fn tcp(ask: &Ask<'_>, who: Who) -> Result<bool> {
    let (started, server, query) = (Instant::now(), ask.server()?, ask.query()?);
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    let (mut ring, fd) = (Ring::new(who, ask.limit)?, socket.as_raw_fd());
    ring.connect(fd, server)?;
    let peer = socket.peer_addr()?.as_socket().context("no peer")?;
    ring.send(fd, &frame(&query))?;
    let mut inbox = Vec::new();
    let message = loop {
        if let Some(message) = dns_proxy_tests::wire::take_message(&mut inbox) {
            break message;
        }
        let more = ring.receive(fd)?;
        ensure!(!more.is_empty(), "closed before the answer");
        inbox.extend(more);
    };
    let answer = Answer::to(&query, &message)?;
    report(&[("peer", &peer)], &answer, started);
    Ok(peer == server && is_good(&answer))
}

/// `sendmsg` and `recvmsg` on one unconnected socket, to each server.
pub(crate) fn messages(ask: &Ask<'_>, who: Who, zero_copy: bool) -> Result<bool> {
    let socket = Socket::new(Domain::for_address(ask.server()?), Type::DGRAM, None)?;
    let (mut ring, fd) = (Ring::new(who, ask.limit)?, socket.as_raw_fd());
    let mut good = true;
    for &server in ask.servers {
        let (started, query) = (Instant::now(), ask.query()?);
        ring.send_message(fd, &query, server, zero_copy)?;
        let (message, from) = ring.receive_message(fd)?;
        let answer = Answer::to(&query, &message)?;
        report(&[("server", &server), ("from", &from)], &answer, started);
        good &= from == server && is_good(&answer);
    }
    Ok(good)
}
