//! A typed view of `struct bpf_sock_addr`, the one place that touches its fields.
//!
//! Reads and writes are volatile: the verifier wants each access at its own constant offset from
//! the context pointer, and LLVM must not merge them.

use core::ptr::{addr_of, addr_of_mut};

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext,
};
use dns_proxy_common::Token;

/// `::ffff:0:0/96` as its third word, in network order (RFC 4291 section 2.5.5.2).
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IP address as four words in network order, IPv4 in its mapped form.
#[derive(Clone, Copy)]
pub(crate) struct Addr([u32; 4]);

impl Addr {
    /// The nameserver's address as a map key has it.
    #[inline(always)]
    pub(crate) fn octets(self) -> [u8; 16] {
        // SAFETY: both are 16 bytes of plain integers.
        unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(self.0) }
    }

    /// The address behind a map key.
    #[inline(always)]
    pub(crate) fn from_octets(octets: [u8; 16]) -> Self {
        // SAFETY: both are 16 bytes of plain integers.
        Self(unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(octets) })
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub(crate) fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// 127/8, 0.0.0.0, ::1, :: and their mapped forms: the host talks to itself. The rest of 0/8
    /// and all of 240/4 are addresses like any other to Linux.
    #[inline(always)]
    pub(crate) fn is_loopback(self) -> bool {
        if self.is_v4() {
            return self.v4()[0] == 127 || self.0[3] == 0;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] & !1_u32.to_be() == 0
    }

    /// 224/4, 255.255.255.255, ff00::/8: many listen, or all.
    #[inline(always)]
    pub(crate) fn is_multicast(self) -> bool {
        if self.is_v4() {
            return self.v4()[0] & 0xf0 == 224 || self.0[3] == u32::MAX;
        }
        self.0[0].to_ne_bytes()[0] == 0xff
    }

    /// fe80::/10 (RFC 4291 section 2.5.6).
    #[inline(always)]
    pub(crate) fn is_link_local(self) -> bool {
        self.0[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// The address of `token` that an application speaking to `self` can reach.
    #[inline(always)]
    pub(crate) fn token_beside(self, token: Token) -> Self {
        if self.is_v4() {
            Self([0, 0, MAPPED, u32::from_ne_bytes(token.v4())])
        } else if self.is_link_local() {
            Self::from_octets(token.v6_link_local())
        } else {
            Self::from_octets(token.v6())
        }
    }

    /// The token that this address may stand for.
    #[inline(always)]
    pub(crate) fn token(self) -> Option<Token> {
        if self.is_v4() { Token::from_v4(self.v4()) } else { Token::from_v6(self.octets()) }
    }

    #[inline(always)]
    fn v4(self) -> [u8; 4] {
        self.0[3].to_ne_bytes()
    }
}

/// The form of the socket address that a hook sees.
pub(crate) trait Sockaddr {
    /// The address in it.
    fn addr(ctx: &SockAddrContext) -> Addr;
    /// Replaces the address in it.
    fn set_addr(ctx: &SockAddrContext, addr: Addr);
    /// The address that the socket is connected to.
    fn peer(ctx: &SockAddrContext) -> Addr;
}

/// `struct sockaddr_in`.
pub(crate) struct Sockaddr4;

/// `struct sockaddr_in6`, which may hold an IPv4-mapped address.
pub(crate) struct Sockaddr6;

impl Sockaddr for Sockaddr4 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Addr {
        // SAFETY: the context is valid while the program runs; `user_ip4` may be read.
        Addr([0, 0, MAPPED, unsafe { addr_of!((*ctx.sock_addr).user_ip4).read_volatile() }])
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Addr) {
        // SAFETY: as above; `user_ip4` may be written as one word.
        unsafe { addr_of_mut!((*ctx.sock_addr).user_ip4).write_volatile(addr.0[3]) };
    }

    #[inline(always)]
    fn peer(ctx: &SockAddrContext) -> Addr {
        // SAFETY: the context is valid while the program runs, and so is the socket it names.
        let v4 = unsafe {
            let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
            addr_of!((*sk).dst_ip4).read_volatile()
        };
        Addr([0, 0, MAPPED, v4])
    }
}

macro_rules! word {
    ($ctx:ident, $index:literal) => {
        // SAFETY: the context is valid while the program runs; each word of `user_ip6` may be read
        // and written on its own.
        unsafe { &raw mut (*$ctx.sock_addr).user_ip6[$index] }
    };
}

impl Sockaddr for Sockaddr6 {
    #[inline(always)]
    fn addr(ctx: &SockAddrContext) -> Addr {
        let [a, b, c, d] = [word!(ctx, 0), word!(ctx, 1), word!(ctx, 2), word!(ctx, 3)];
        // SAFETY: see `word`.
        let words =
            unsafe { [a.read_volatile(), b.read_volatile(), c.read_volatile(), d.read_volatile()] };
        Addr(words)
    }

    #[inline(always)]
    fn set_addr(ctx: &SockAddrContext, addr: Addr) {
        let [a, b, c, d] = [word!(ctx, 0), word!(ctx, 1), word!(ctx, 2), word!(ctx, 3)];
        // SAFETY: see `word`.
        unsafe {
            a.write_volatile(addr.0[0]);
            b.write_volatile(addr.0[1]);
            c.write_volatile(addr.0[2]);
            d.write_volatile(addr.0[3]);
        }
    }

    #[inline(always)]
    fn peer(ctx: &SockAddrContext) -> Addr {
        // SAFETY: the context is valid while the program runs, and so is the socket it names.
        unsafe {
            let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
            Addr([
                addr_of!((*sk).dst_ip6[0]).read_volatile(),
                addr_of!((*sk).dst_ip6[1]).read_volatile(),
                addr_of!((*sk).dst_ip6[2]).read_volatile(),
                addr_of!((*sk).dst_ip6[3]).read_volatile(),
            ])
        }
    }
}

/// The port, in network byte order.
#[inline(always)]
pub(crate) fn port_be(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid while the program runs; `user_port` holds the port in its low
    // half and may be read.
    unsafe { addr_of!((*ctx.sock_addr).user_port).read_volatile() as u16 }
}

/// Replaces the port, given in network byte order.
#[inline(always)]
pub(crate) fn set_port_be(ctx: &SockAddrContext, port_be: u16) {
    // SAFETY: as above; `user_port` may be written as one word.
    unsafe { addr_of_mut!((*ctx.sock_addr).user_port).write_volatile(u32::from(port_be)) };
}

/// The socket's protocol (`IPPROTO_*`).
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context is valid while the program runs; `protocol` may be read.
    unsafe { addr_of!((*ctx.sock_addr).protocol).read_volatile() }
}

/// Index of the device that the socket is bound to (`SO_BINDTODEVICE`), or 0.
#[inline(always)]
pub(crate) fn bound_device(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context is valid while the program runs, and so is the socket it names.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        addr_of!((*sk).bound_dev_if).read_volatile()
    }
}

/// Whether the socket is connected to the address of this call, as one for IPv6 that is connected to
/// an IPv4 address is at every send: the kernel then fills in the address itself.
#[inline(always)]
pub(crate) fn is_connected_there(ctx: &SockAddrContext, addr: Addr) -> bool {
    // SAFETY: the context is valid while the program runs, and so is the socket it names. The port
    // is read as a word, as kernels before 5.18 want it, and ends in zeros.
    let (peer, port_be) = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let port = addr_of!((*sk).dst_port).cast::<u32>();
        (addr_of!((*sk).dst_ip4).read_volatile(), port.read_volatile() as u16)
    };
    addr.is_v4() && peer == addr.0[3] && port_be == self::port_be(ctx)
}

/// The port that the socket is connected to, in network byte order.
#[inline(always)]
pub(crate) fn peer_port_be(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is valid while the program runs, and so is the socket it names.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        addr_of!((*sk).dst_port).read_volatile()
    }
}

/// Cookie of the socket's network namespace.
#[inline(always)]
pub(crate) fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the hook's own context (5.7).
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}
