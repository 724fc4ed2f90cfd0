//! Which tokens nobody uses any more, and when their numbers may stand for somebody else.
//!
//! ```text
//! live ── idle, and wanted back ─► retired ── a rest later, still no socket ─► free
//! ```
//! A *live* token is what the kernel programs send its origin to. A *retired* one is given to nobody
//! new: who asks that nameserver gets another. Whoever has it goes on as before, since it still
//! stands for what it did. A *free* number waits in a queue for its next origin.
//!
//! A token is in use while a socket is connected to it, and for a rest after somebody was last sent
//! to it: that long may the answer take to an unconnected socket. The second rest, as a retired one,
//! is for those who were given the token in the very moment that it was retired.
//!
//! Pure: knows no map, no socket and no clock.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use dns_proxy_common::{MAX_TOKENS, NEARLY_ALL_CGROUP_TOKENS, Origin, Token};
use tokio::time::Instant;

/// From here on all are short of tokens.
const NEARLY_ALL_TOKENS: usize = MAX_TOKENS as usize / 4 * 3;

/// A token that the kernel programs give out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// What it stands for.
    pub origin: Origin,
    /// Its number.
    pub token: Token,
    /// How long ago, at least, somebody was last sent to it.
    pub idle: Duration,
}

/// Tokens to take back, if no socket is connected to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Live ones to retire.
    pub retire: Vec<(Origin, Token)>,
    /// Retired ones to free.
    pub free: Vec<(Origin, Token)>,
}

/// The retired tokens.
#[derive(Debug)]
pub struct Ledger {
    rest: Duration,
    retired: HashMap<Token, (Origin, Instant)>,
}

impl Ledger {
    /// `rest` must be longer than any answer may take.
    pub fn new(rest: Duration) -> Self {
        Self { rest, retired: HashMap::new() }
    }

    /// What may be taken back: of cgroups that are short of tokens, of all if all are, and of those
    /// who are `gone`.
    pub fn due(&self, live: &[Live], gone: impl Fn(&Origin) -> bool, now: Instant) -> Due {
        let shares = self.shares(live);
        let all_short = self.is_pool_short(live);
        let is_short = |origin: &Origin| all_short || is_nearly_all(shares[&origin.cgroup]);
        let idle = live.iter().filter(|token| token.idle >= self.rest);
        let wanted = idle.filter(|token| is_short(&token.origin) || gone(&token.origin));
        let rested = self.retired.iter().filter(|(_, (_, at))| now - *at >= self.rest);
        Due {
            retire: wanted.map(|token| (token.origin, token.token)).collect(),
            free: rested.map(|(token, (origin, _))| (*origin, *token)).collect(),
        }
    }

    /// A token is given to nobody new from now on.
    pub fn retire(&mut self, origin: Origin, token: Token, now: Instant) {
        self.retired.insert(token, (origin, now));
    }

    /// A retired token is nobody's any more.
    pub fn free(&mut self, token: Token) {
        self.retired.remove(&token);
    }

    /// How many tokens each cgroup has, the retired ones included: nobody gets more by letting them
    /// lie.
    pub fn shares(&self, live: &[Live]) -> HashMap<u64, u32> {
        let mut shares = HashMap::new();
        let retired = self.retired.values().map(|(origin, _)| origin);
        for origin in live.iter().map(|token| &token.origin).chain(retired) {
            *shares.entry(origin.cgroup).or_default() += 1;
        }
        shares
    }

    /// Whether somebody is short of tokens.
    pub fn is_anybody_short(&self, live: &[Live]) -> bool {
        self.is_pool_short(live) || self.shares(live).into_values().any(is_nearly_all)
    }

    fn is_pool_short(&self, live: &[Live]) -> bool {
        live.len() + self.retired.len() >= NEARLY_ALL_TOKENS
    }
}

/// The tokens of `due` to which no socket is connected, as far as `connected` knows of the sockets
/// in each network namespace: nothing of a namespace that could not be looked at.
pub fn unconnected(
    due: &[(Origin, Token)],
    connected: &HashMap<u64, Option<HashSet<Token>>>,
) -> Vec<(Origin, Token)> {
    let is_free = |(origin, token): &&(Origin, Token)| match connected.get(&origin.netns) {
        Some(Some(sockets)) => !sockets.contains(token),
        Some(None) => false,
        // Not in service: nobody is sent there, and the gate is closed.
        None => true,
    };
    due.iter().filter(is_free).copied().collect()
}

fn is_nearly_all(share: u32) -> bool {
    share >= NEARLY_ALL_CGROUP_TOKENS
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

    use super::*;

    const REST: Duration = Duration::from_secs(3);
    const NETNS: u64 = 42;

    fn origin(cgroup: u64, addr: u16) -> Origin {
        let [high, low] = addr.to_be_bytes();
        let addr = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, high, low];
        Origin { cgroup, netns: NETNS, addr }
    }

    fn live(count: u32, cgroup: u64, idle: Duration) -> Vec<Live> {
        let token = |n| Live { origin: origin(cgroup, n as u16), token: Token(n), idle };
        (1..=count).map(token).collect()
    }

    #[test]
    fn tokens_are_taken_back_only_from_the_idle_that_are_short_of_them_or_gone() {
        let ledger = Ledger::new(REST);
        let check = |count: u32, idle: u64, gone: bool, taken: usize| {
            let live = live(count, 1, Duration::from_secs(idle));
            let due = ledger.due(&live, |_| gone, Instant::now());
            assert_eq!(due.retire.len(), taken, "{count} tokens, idle for {idle} s");
        };
        let enough = NEARLY_ALL_CGROUP_TOKENS;
        check(enough - 1, 60, false, 0);
        check(enough, 60, false, enough as usize);
        check(enough, 2, false, 0);
        check(1, 60, true, 1);
        check(1, 2, true, 0);
    }

    #[test]
    fn retired_tokens_count_towards_the_share_until_they_are_free() {
        let (mut ledger, now) = (Ledger::new(REST), Instant::now());
        ledger.retire(origin(1, 9), Token(9), now);
        assert_eq!(ledger.shares(&live(2, 1, REST)), HashMap::from([(1, 3)]));
        assert_eq!(ledger.due(&[], |_| true, now + REST / 2).free, []);
        assert_eq!(ledger.due(&[], |_| true, now + REST).free, [(origin(1, 9), Token(9))]);
        ledger.free(Token(9));
        assert!(ledger.shares(&[]).is_empty());
    }

    #[test]
    fn nothing_is_taken_back_where_nobody_could_look() {
        let due = [(origin(1, 7), Token(7)), (origin(1, 8), Token(8))];
        let check = |connected, expected: &[_]| {
            assert_eq!(unconnected(&due, &connected), expected);
        };
        check(HashMap::from([(NETNS, None)]), &[]);
        check(HashMap::from([(NETNS, Some(HashSet::from([Token(7)])))]), &due[1..]);
        check(HashMap::new(), &due);
    }

    /// What the kernel knows, at one moment.
    #[derive(Default)]
    struct Kernel {
        tokens: HashMap<Origin, (Token, Instant)>,
        free: std::collections::VecDeque<Token>,
        /// Sockets that are connected, and to whom they believe to be.
        sockets: Vec<(Token, Origin)>,
        /// What was last sent to a token, and when.
        sent: HashMap<Token, (Origin, Instant)>,
    }

    impl Kernel {
        /// Somebody asks; an answer may come for a while, and to a socket that stays connected ever
        /// after.
        fn ask(&mut self, origin: Origin, connect: bool, now: Instant) {
            let token = match self.tokens.get(&origin) {
                Some((token, _)) => *token,
                None => match self.free.pop_front() {
                    Some(token) => token,
                    None => return,
                },
            };
            self.tokens.insert(origin, (token, now));
            self.use_token(token, origin, connect, now);
        }

        fn use_token(&mut self, token: Token, origin: Origin, connect: bool, now: Instant) {
            if let Some((before, at)) = self.sent.insert(token, (origin, now)) {
                assert!(before == origin || now - at >= REST, "{token:?} changed its meaning");
            }
            let others = self.sockets.iter().filter(|(other, _)| *other == token);
            assert!(others.into_iter().all(|(_, known)| *known == origin), "{token:?} is in use");
            if connect {
                self.sockets.push((token, origin));
            }
        }

        fn live(&self, now: Instant) -> Vec<Live> {
            let live = self.tokens.iter();
            live.map(|(origin, (token, used))| Live {
                origin: *origin,
                token: *token,
                idle: now - *used,
            })
            .collect()
        }

        fn connected(&self) -> HashMap<u64, Option<HashSet<Token>>> {
            HashMap::from([(NETNS, Some(self.sockets.iter().map(|(token, _)| *token).collect()))])
        }
    }

    /// Whatever happens, also between the steps of a sweep, no token changes its meaning for anybody
    /// who could still use it, and none is lost.
    #[test]
    fn no_token_ever_means_something_else_to_somebody_who_has_it() {
        for seed in 0..8 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut now = Instant::now();
            let mut ledger = Ledger::new(REST);
            let all = 900;
            let mut kernel = Kernel { free: (1..=all).map(Token).collect(), ..Kernel::default() };
            for _ in 0..60 {
                for _ in 0..300 {
                    let asked = origin(1, random.random_range(0..2_000));
                    kernel.ask(asked, random.random_ratio(1, 50), now);
                }
                now += Duration::from_millis(random.random_range(100..2_000));
                let mut live = kernel.live(now);
                let due = ledger.due(&live, |_| false, now);
                let connected = kernel.connected();
                // Somebody looks tokens up now, and uses them only after the sweep.
                let racing: Vec<_> = kernel
                    .tokens
                    .iter()
                    .take(5)
                    .map(|(origin, (token, _))| (*token, *origin))
                    .collect();
                for (_, token) in unconnected(&due.free, &connected) {
                    ledger.free(token);
                    kernel.free.push_back(token);
                }
                let retire = unconnected(&due.retire, &connected);
                for (origin, token) in &retire {
                    kernel.tokens.remove(origin);
                    ledger.retire(*origin, *token, now);
                }
                for (token, origin) in racing {
                    kernel.use_token(token, origin, random.random_ratio(1, 2), now);
                }
                kernel.sockets.retain(|_| random.random_ratio(3, 4));
                live.retain(|live| !retire.contains(&(live.origin, live.token)));
                let shares: u32 = ledger.shares(&live).values().sum();
                assert_eq!(shares as usize + kernel.free.len(), all as usize, "a token is lost");
            }
        }
    }
}
