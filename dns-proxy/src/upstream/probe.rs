//! Whether a server is there and the one that was meant, for those who want to know and have nothing
//! to ask.

use std::time::Duration;

use tokio::time::timeout;

use super::{ConnectionError, Settings, dial::dial};
use crate::addr::UpstreamAddr;

/// A server that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Why it is used without being authenticated, if it is.
    pub doubt: Option<String>,
}

/// Connects, shakes hands and hangs up, within the limit.
///
/// # Errors
/// Why no query can be asked of it.
pub async fn probe(
    settings: &Settings,
    upstream: &UpstreamAddr,
    limit: Duration,
) -> Result<Reachable, ConnectionError> {
    let client = settings.tls.client(upstream);
    match timeout(limit, dial(upstream, &client, &*settings.exempt)).await {
        Ok(Ok((_, doubt))) => Ok(Reachable { doubt }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(ConnectionError::Unreachable { upstream: upstream.clone() }),
    }
}
