//! Looks addresses up for the gate of a namespace's listener.

use std::{cell::RefCell, io, net::IpAddr};

use super::netlink::Netlink;
use crate::datapath::gate::Locals;

/// The addresses of one namespace. To look one up takes the kernel some microseconds, and no
/// waiting.
#[derive(Debug)]
pub struct Addresses(RefCell<Netlink>);

impl Addresses {
    /// Those of the namespace that this thread is in.
    ///
    /// # Errors
    /// No socket can be made.
    pub fn open() -> io::Result<Self> {
        Netlink::open().map(RefCell::new).map(Self)
    }
}

impl Locals for Addresses {
    fn has(&self, addr: IpAddr) -> bool {
        self.0.borrow_mut().is_local(addr).unwrap_or(false)
    }
}
