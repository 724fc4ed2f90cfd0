//! The host's own resolver configuration, as it is now: what `original` means to clients of plain
//! listeners, and which search domains have a default route.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::net::if_::if_nametoindex;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{
    circles::{self, Suspect},
    config::Config,
    datapath::{stats::Stats, worker::Worker},
    meter::Counter,
    route::{Contradiction, ResolvConf, Route, Routes, Zone},
    upstream::Exempt,
};

/// Where it is, or where a link to it is.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often it is read. It is short, and often replaced as a whole by a link to elsewhere, which is
/// hard to watch.
const READ_EVERY: Duration = Duration::from_secs(2);
/// How often it is seen at most whether nameservers ask us in turn, when names cannot be resolved.
const TRY_EVERY: Duration = Duration::from_secs(10);
/// The same after times that nothing was found.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// How many queries in plaintext between two looks are many.
const MANY: u64 = 100;
/// A zone that goes to the host's own nameservers by default.
const ORIGINAL_ZONE: &str = "internal";

/// What the host's configuration says, and what the operator does.
pub struct Host {
    given: Vec<Route>,
    defaults: bool,
    listen: Vec<SocketAddr>,
    conf: ResolvConf,
    /// Nameservers that ask us what we ask them.
    circular: BTreeSet<SocketAddr>,
    exempt: Option<Arc<dyn Exempt>>,
}

impl Host {
    /// Reads it for the first time.
    pub fn read(config: &Config) -> Self {
        let mut host = Self {
            given: config.policy.routes.clone(),
            defaults: config.policy.default_routes,
            listen: config.plain.listen.clone(),
            conf: ResolvConf::default(),
            circular: BTreeSet::new(),
            exempt: None,
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
        let mut routes = Routes::new(&self.given, self.defaults, &self.conf)?;
        routes.avoid(&self.given, &self.circular);
        Ok(Arc::new(routes))
    }

    /// What it sends itself is not to be redirected, which is done so.
    pub fn exempt_by(&mut self, exempt: Arc<dyn Exempt>) {
        self.exempt = Some(exempt);
    }

    /// Tells the workers whenever it changes, until cancelled.
    pub async fn follow(&mut self, workers: &[Worker]) -> Infallible {
        let (mut next_try, mut pause) = (Instant::now(), TRY_EVERY);
        let mut before = [0; 2];
        loop {
            sleep(READ_EVERY).await;
            if (self.is_suspicious(workers, &mut before) || !self.circular.is_empty())
                && Instant::now() >= next_try
            {
                let has_changed = self.look_for_circles().await;
                pause = if has_changed { TRY_EVERY } else { (pause * 2).min(LONGEST_PAUSE) };
                next_try =
                    Instant::now() + if self.circular.is_empty() { pause } else { TRY_EVERY };
                if has_changed {
                    self.reroute(workers);
                }
            }
            // While it is being replaced there may be none.
            if let Some(conf) = self.read_conf().filter(|conf| *conf != self.conf) {
                self.conf = conf;
                info!("{RESOLV_CONF} has changed; routes follow it");
                self.reroute(workers);
            }
        }
    }

    /// What goes in circles fails in the end, or goes on and on.
    fn is_suspicious(&self, workers: &[Worker], before: &mut [u64; 2]) -> bool {
        let sum = |counter: fn(&Stats) -> &Counter| -> u64 {
            workers.iter().map(|worker| counter(worker.stats()).get()).sum()
        };
        let now = [sum(|stats| &stats.failed), sum(|stats| &stats.plaintext)];
        let [failed, plaintext] = std::mem::replace(before, now);
        now[0] > failed || now[1] - plaintext >= MANY
    }

    fn reroute(&self, workers: &[Worker]) {
        match self.routes() {
            Ok(routes) => workers.iter().for_each(|worker| worker.reroute(Arc::clone(&routes))),
            Err(error) => warn!(%error, "routes stay as they are"),
        }
    }

    /// Sees which nameservers ask us in turn, and says whether others do than before.
    async fn look_for_circles(&mut self) -> bool {
        let given = self.given.iter();
        let routed = given.filter_map(|route| Some((route.target.address()?, route.zone.clone())));
        // Clients that were redirected have a nameserver of their own.
        let are_asked = self.defaults && !self.listen.is_empty();
        let inside: Zone = ORIGINAL_ZONE.parse().expect("a zone in the source");
        let resolvers = self.conf.nameservers.iter().filter(|_| are_asked);
        let resolvers = resolvers.map(|addr| (*addr, inside.clone()));
        let suspects: Vec<Suspect> = routed.chain(resolvers).collect();
        if suspects.is_empty() {
            return false;
        }
        let found = circles::find(&suspects, self.exempt.as_deref()).await;
        for addr in found.difference(&self.circular) {
            let zones = suspects.iter().filter(|(of, _)| of == addr);
            let zones: Vec<_> = zones.map(|(_, zone)| zone.to_string()).collect();
            warn!(
                nameserver = %addr, zones = zones.join(" "),
                "a nameserver that names are routed to asks us for them in turn; it is left out \
                 until it asks somebody else (--route, or its own configuration)"
            );
        }
        for addr in self.circular.difference(&found) {
            info!(nameserver = %addr, "this nameserver does not ask us any more, and is asked again");
        }
        let has_changed = found != self.circular;
        self.circular = found;
        has_changed
    }

    fn read_conf(&self) -> Option<ResolvConf> {
        let text = fs::read_to_string(RESOLV_CONF).ok()?;
        let mut conf = ResolvConf::parse(&text, |name| if_nametoindex(name).ok());
        conf.nameservers
            .retain(|addr| !self.listen.iter().any(|own| circles::is_ours(*own, *addr)));
        Some(conf)
    }
}
