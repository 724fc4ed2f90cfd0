//! TCP and TLS to an upstream, or why not.

use std::{io, net::SocketAddr, os::fd::AsFd as _};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpSocket;
use tracing::debug;

use super::{
    ConnectionError, Exempt,
    tls::{self, Secured, TlsClient},
};
use crate::addr::UpstreamAddr;

/// When the kernel gives up on unacknowledged data (`TCP_USER_TIMEOUT`, RFC 5482), milliseconds.
const TCP_USER_TIMEOUT_MS: u32 = 5_000;

/// Connects and authenticates.
///
/// # Errors
/// Why there is no connection that may be trusted.
pub(super) async fn dial(
    upstream: &UpstreamAddr,
    tls: &TlsClient,
    exempt: &dyn Exempt,
) -> Result<Secured, ConnectionError> {
    let connected = async {
        let socket = match upstream.socket_addr() {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        exempt.exempt(socket.as_fd())?;
        setsockopt(&socket, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS)?;
        // To a server that gave us a cookie before, the SYN carries the ClientHello (RFC 7413): a
        // round trip less. A kernel that has it turned off says so.
        if let Err(error) = setsockopt(&socket, sockopt::TcpFastOpenConnect, &true) {
            debug!(%error, "no TCP Fast Open");
        }
        let stream = socket.connect(upstream.socket_addr()).await?;
        // What there is to send is sent in one piece anyway, and must not wait for an ACK.
        stream.set_nodelay(true)?;
        tls.connect(stream).await
    };
    connected.await.map_err(|error: io::Error| connection_error(upstream, &error))
}

/// What an I/O error on a connection means.
pub(super) fn connection_error(upstream: &UpstreamAddr, error: &io::Error) -> ConnectionError {
    let upstream = upstream.clone();
    match tls::reason(error) {
        Some(reason) => ConnectionError::Tls { upstream, reason },
        None => ConnectionError::Io { upstream, reason: error.to_string() },
    }
}
