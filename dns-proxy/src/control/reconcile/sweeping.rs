//! Takes tokens back that nobody uses, where they are wanted.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use dns_proxy_common::{Held, Origin, Token};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{
    super::{
        cgroup::CgroupId,
        namespace::Namespace,
        tokens::{Live, unconnected},
    },
    Control, ControlError, SWEEP, SWEEP_PAUSE,
};
use crate::pulse;

impl Control {
    /// Now and then, and sooner if somebody is short of tokens.
    pub(super) fn sweep_if_due(&mut self) {
        let begun = Instant::now();
        let [soonest, latest] = self.sweep_at;
        if begun < if self.scarce { soonest } else { latest } {
            return;
        }
        if let Err(error) = self.sweep() {
            warn!(%error, "cannot take tokens back; trying again");
        }
        let now = Instant::now();
        self.sweep_at = [now + begun.elapsed() * SWEEP_PAUSE, now + SWEEP];
    }

    /// One round; [`Control::scarce`] says whether the next should come soon.
    fn sweep(&mut self) -> Result<(), ControlError> {
        // In this order: what is used after the first look is connected at the second, or rests.
        let mut live = self.live_tokens()?;
        let served: HashMap<_, _> = self
            .namespaces
            .values()
            .map(|served| (served.namespace.cookie(), &served.namespace))
            .collect();
        let gone = |origin: &Origin| {
            !self.census.is_member(CgroupId(origin.cgroup)) || !served.contains_key(&origin.netns)
        };
        let now = Instant::now();
        let due = self.ledger.due(&live, gone, now);
        let places: HashSet<_> =
            due.retire.iter().chain(&due.free).map(|(origin, _)| origin.netns).collect();
        let looked_at = served.iter().filter(|(cookie, _)| places.contains(cookie));
        let connected =
            looked_at.map(|(cookie, namespace)| (*cookie, connected(namespace))).collect();

        let free = unconnected(&due.free, &connected);
        self.bpf.free(&free.iter().map(|(_, token)| *token).collect::<Vec<_>>())?;
        free.iter().for_each(|(_, token)| self.ledger.free(*token));

        let retire: HashMap<_, _> =
            unconnected(&due.retire, &connected).into_iter().map(|(o, t)| (t, o)).collect();
        for (token, origin) in &retire {
            self.bpf.retire(origin)?;
            self.ledger.retire(*origin, *token, now);
        }
        live.retain(|live| !retire.contains_key(&live.token));
        self.tokens = live.len();
        self.bpf.set_shares(&self.ledger.shares(&live))?;
        self.scarce = self.ledger.is_anybody_short(&live);
        if !retire.is_empty() || !free.is_empty() {
            debug!(retired = retire.len(), freed = free.len(), live = live.len(), "tokens");
        }
        Ok(())
    }

    fn live_tokens(&self) -> Result<Vec<Live>, ControlError> {
        let now = Duration::from_nanos(pulse::now());
        let live = self.bpf.tokens()?.into_iter().map(|(origin, held)| {
            // At the end of its second, for all we know.
            let used = Duration::from_nanos((u64::from(held.used) + 1) << Held::USED_SHIFT);
            Live { origin, token: Token(held.token), idle: now.saturating_sub(used) }
        });
        Ok(live.collect())
    }
}

/// The tokens to which sockets of a namespace are connected; `None` if the kernel does not tell.
fn connected(namespace: &Namespace) -> Option<HashSet<Token>> {
    let peers = namespace.peers().inspect_err(|error| {
        warn!(%error, netns = namespace.id().0, "cannot list sockets; no token is taken back there");
    });
    let token = |peer| match peer {
        IpAddr::V4(addr) => Token::from_v4(addr.octets()),
        IpAddr::V6(addr) => Token::from_v6(addr.octets()),
    };
    Some(peers.ok()?.into_iter().filter_map(token).collect())
}
