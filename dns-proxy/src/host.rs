//! The host's own resolver configuration, as it is now: what `original` means to clients of plain
//! listeners, and which search domains have a default route.

use std::{
    convert::Infallible,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use nix::net::if_::if_nametoindex;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    config::Config,
    datapath::worker::Worker,
    route::{Contradiction, ResolvConf, Route, Routes},
};

/// Where it is, or where a link to it is.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often it is read. It is short, and often replaced as a whole by a link to elsewhere, which is
/// hard to watch.
const READ_EVERY: Duration = Duration::from_secs(2);

/// What the host's configuration says, and what the operator does.
pub struct Host {
    given: Vec<Route>,
    defaults: bool,
    listen: Vec<SocketAddr>,
    conf: ResolvConf,
}

impl Host {
    /// Reads it for the first time.
    pub fn read(config: &Config) -> Self {
        let mut host = Self {
            given: config.policy.routes.clone(),
            defaults: config.policy.default_routes,
            listen: config.plain.listen.clone(),
            conf: ResolvConf::default(),
        };
        if let Some(conf) = host.read_conf() {
            host.conf = conf;
        }
        host
    }

    /// The routes by what it says now.
    ///
    /// # Errors
    /// The operator's contradict each other.
    pub fn routes(&self) -> Result<Arc<Routes>, Contradiction> {
        Routes::new(&self.given, self.defaults, &self.conf).map(Arc::new)
    }

    /// Tells the workers whenever it changes, until cancelled.
    pub async fn follow(&mut self, workers: &[Worker]) -> Infallible {
        loop {
            sleep(READ_EVERY).await;
            // While it is being replaced there may be none.
            if let Some(conf) = self.read_conf().filter(|conf| *conf != self.conf) {
                self.conf = conf;
                match self.routes() {
                    Ok(routes) => {
                        info!("{RESOLV_CONF} has changed; routes follow it");
                        workers.iter().for_each(|worker| worker.reroute(Arc::clone(&routes)));
                    }
                    Err(error) => warn!(%error, "routes stay as they are"),
                }
            }
        }
    }

    fn read_conf(&self) -> Option<ResolvConf> {
        let text = fs::read_to_string(RESOLV_CONF).ok()?;
        let mut conf = ResolvConf::parse(&text, |name| if_nametoindex(name).ok());
        conf.nameservers.retain(|addr| !self.listen.iter().any(|own| is_ours(*own, *addr)));
        Some(conf)
    }
}

/// Whether what is sent to `addr` comes to a listener at `own`: asking it would go round in circles.
fn is_ours(own: SocketAddr, addr: SocketAddr) -> bool {
    let of_this_host = || UdpSocket::bind((addr.ip(), 0)).is_ok();
    own.port() == addr.port()
        && own.is_ipv4() == addr.is_ipv4()
        && (own.ip() == addr.ip() || own.ip().is_unspecified() && of_this_host())
}
