//! `--admin`: the daemon's health, for probes, scrapers and people, over HTTP.
//!
//! | path | says |
//! |---|---|
//! | `/healthz` | whether the daemon's threads turn, whatever the upstreams do |
//! | `/readyz` | whether queries would be answered, and if not, what is missing |
//! | `/metrics` | figures, for Prometheus |
//!
//! It has a thread of its own and waits for no other one longer than a moment, so that no load and no
//! hang of the query path can fail it. It reads what workers count anyway; nothing is written.
//!
//! That it cannot listen is no reason not to encrypt, so it warns and tries again: in an upgrade the port
//! is the predecessor's, which is about to end.

mod exposition;
mod health;
mod http;
mod metrics;
mod ready;
mod server;

use std::{
    fmt, io,
    net::{SocketAddr, TcpListener},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use exposition::Format;
use health::Health;
use http::{Code, Request, Response};
use nix::libc;
use ready::{Check, Prober};
use tokio::{sync::oneshot, time::sleep};
use tracing::{error, info, warn};

use crate::{datapath::worker::Worker, pulse::Pulse, status::gather::Gatherer, upstream::Settings};

/// How often to listen is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// `--admin`: where it is to be, if anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

/// The thread, which ends when this is dropped.
pub struct Admin {
    site: Arc<Site>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is there to be looked at.
pub struct Parts {
    /// The threads on the query path.
    pub workers: Arc<[Worker]>,
    /// Knows how the daemon is.
    pub gatherer: Arc<Gatherer>,
    /// The control plane's.
    pub main: Arc<Pulse>,
    /// Queries are intercepted, not only taken in by plain listeners.
    pub intercepts: bool,
    /// Whom to ask for what no route sends elsewhere, and how.
    pub upstream: Settings,
}

/// How far the daemon has come.
#[derive(Clone)]
enum Phase {
    Starting(Instant),
    Running(Arc<Parts>),
    Draining(Arc<Parts>),
}

/// All that can be asked for.
struct Site {
    phase: Mutex<Phase>,
    prober: Prober,
}

impl Admin {
    /// Starts the thread; the daemon is starting, for all that it says.
    ///
    /// # Errors
    /// There can be no such thread.
    pub fn start(addr: SocketAddr) -> io::Result<Self> {
        let listener = match TcpListener::bind(addr) {
            Ok(listener) => Some(listener),
            Err(error) => {
                warn!(
                    "cannot listen on --admin {addr}, trying again: {error}; {}",
                    remedy(&error, addr)
                );
                None
            }
        };
        let phase = Mutex::new(Phase::Starting(Instant::now()));
        let site = Arc::new(Site { phase, prober: Prober::default() });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        let served = Arc::clone(&site);
        let run = move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = ended => {}
                    failed = serve(addr, listener, served) => {
                        error!(error = ?failed.err(), "--admin {addr} failed and is closed");
                    }
                }
            });
        };
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(run)?;
        Ok(Self { site, end: Some(end), thread: Some(thread) })
    }

    /// The daemon is up.
    pub fn running(&self, parts: Parts) {
        self.site.set(Phase::Running(Arc::new(parts)));
    }

    /// The daemon is about to end.
    pub fn draining(&self) {
        if let Phase::Running(parts) = self.site.phase() {
            self.site.set(Phase::Draining(parts));
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the admin thread ended in a panic; report this as a bug");
        }
    }
}

async fn serve(addr: SocketAddr, listener: Option<TcpListener>, site: Arc<Site>) -> io::Result<()> {
    let listener = match listener {
        Some(listener) => listener,
        None => loop {
            sleep(RETRY).await;
            if let Ok(listener) = TcpListener::bind(addr) {
                break listener;
            }
        },
    };
    info!(%addr, "admin: /healthz, /readyz, /metrics");
    server::serve(listener, site).await
}

impl Site {
    fn phase(&self) -> Phase {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    async fn answer(&self, request: &Request) -> Response {
        match request.path.as_str() {
            "/healthz" => Health::of(&self.phase()).response(),
            "/readyz" => ready::response(&self.checks().await),
            "/metrics" => self.metrics(Format::accepted(&request.accept)).await,
            _ => Response::text(Code::NotFound, "There are /healthz, /readyz and /metrics here.\n"),
        }
    }

    async fn metrics(&self, format: Format) -> Response {
        let (Phase::Running(parts) | Phase::Draining(parts)) = self.phase() else {
            return Response::text(Code::ServiceUnavailable, "starting\n");
        };
        let text = metrics::render(&parts.gatherer, format).await;
        Response { content_type: format.content_type(), ..Response::text(Code::Ok, text) }
    }

    /// All that must be so for queries to be answered.
    async fn checks(&self) -> Vec<Check> {
        let not = |what: &str| vec![Check { holds: false, what: what.to_owned() }];
        let parts = match self.phase() {
            Phase::Starting(_) => return not("starting: nothing is served yet"),
            Phase::Draining(_) => return not("draining: about to end"),
            Phase::Running(parts) => parts,
        };
        let place = if parts.intercepts { "programs are attached" } else { "listening" };
        let health = Health::of(&Phase::Running(Arc::clone(&parts)));
        let upstream = self.prober.check(&parts.upstream).await;
        vec![
            Check { holds: true, what: place.to_owned() },
            Check { holds: health.is_well(), what: health.to_string() },
            Check { holds: upstream.holds, what: upstream.what.clone() },
        ]
    }
}

impl FromStr for Place {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<SocketAddr>() {
            _ if text == "off" => Ok(Self::Off),
            Ok(addr) if addr.port() != 0 => Ok(Self::At(addr)),
            _ => Err("write ADDR:PORT, such as 127.0.0.1:9153 or [::1]:9153, or off"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(addr) => addr.fmt(f),
        }
    }
}

fn remedy(error: &io::Error, addr: SocketAddr) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "`ss -lntp sport = :{}` shows who does; several daemons on one host need ports of their \
             own, or off",
            addr.port()
        ),
        Some(libc::EADDRNOTAVAIL) => "`ip addr` shows this host's addresses".to_owned(),
        Some(libc::EACCES) => "ports below 1024 need root or CAP_NET_BIND_SERVICE".to_owned(),
        Some(_) | None => "--admin off does without".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_address_or_nowhere() {
        for text in ["off", "127.0.0.1:9153", "[::1]:80"] {
            assert_eq!(text.parse::<Place>().map(|place| place.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "on", "9153", ":9153", "localhost:9153", "127.0.0.1:0", "127.0.0.1"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }
}
