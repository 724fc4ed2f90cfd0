//! The maps of tokens and what they stand for.

use std::{
    collections::{HashMap as StdHashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, Queue},
};
use dns_proxy_common::{Held, MAX_TOKENS, Origin, Token};

use super::{BpfError, error::absent_is_fine, take};
use crate::datapath::gate::Origins;

/// What a free slot of the origin map holds.
const NOBODY: Origin = Origin { cgroup: 0, netns: 0, addr: [0; 16] };

/// Tokens and what they stand for.
pub(super) struct TokenMaps {
    maps: Mutex<TokenMapsInner>,
    /// Apart, because workers look into it: what else is done to tokens may take long.
    origins: Mutex<Array<MapData, Origin>>,
    generation: AtomicU64,
}

struct TokenMapsInner {
    tokens: HashMap<MapData, Origin, Held>,
    free: Queue<MapData, u32>,
    quota: HashMap<MapData, u64, u32>,
}

impl TokenMaps {
    /// Those of the object, with every token free that stands for nothing: all, or, where the maps
    /// are a dead daemon's, the others.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let mut maps = TokenMapsInner {
            tokens: take(ebpf, "TOKENS")?,
            free: take(ebpf, "FREE_TOKENS")?,
            quota: take(ebpf, "QUOTA")?,
        };
        let origins = take(ebpf, "ORIGINS")?;
        maps.recount(&origins).map_err(|source| BpfError::Map { name: "TOKENS", source })?;
        Ok(Self {
            maps: Mutex::new(maps),
            origins: Mutex::new(origins),
            generation: AtomicU64::new(0),
        })
    }

    /// Every origin that has one.
    pub(super) fn all(&self) -> Result<Vec<(Origin, Held)>, MapError> {
        self.lock().tokens.iter().collect()
    }

    /// Gives nobody new the token of `origin`.
    pub(super) fn retire(&self, origin: &Origin) -> Result<(), MapError> {
        absent_is_fine(self.lock().tokens.remove(origin))
    }

    /// Lets retired tokens stand for somebody else.
    pub(super) fn free(&self, tokens: &[Token]) -> Result<(), MapError> {
        if tokens.is_empty() {
            return Ok(());
        }
        tokens.iter().try_for_each(|token| self.lock_origins().set(token.0, NOBODY, 0))?;
        // Before anybody is given one of them.
        self.generation.fetch_add(1, Ordering::Release);
        let mut maps = self.lock();
        tokens.iter().try_for_each(|token| maps.free.push(token.0, 0))
    }

    /// Says how many tokens each cgroup has.
    pub(super) fn set_shares(&self, shares: &StdHashMap<u64, u32>) -> Result<(), MapError> {
        let mut maps = self.lock();
        let known = maps.quota.keys().collect::<Result<Vec<_>, _>>()?;
        for cgroup in known.iter().filter(|cgroup| !shares.contains_key(cgroup)) {
            absent_is_fine(maps.quota.remove(cgroup))?;
        }
        shares.iter().try_for_each(|(cgroup, share)| maps.quota.insert(cgroup, share, 0))
    }

    fn lock(&self) -> MutexGuard<'_, TokenMapsInner> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_origins(&self) -> MutexGuard<'_, Array<MapData, Origin>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenMapsInner {
    /// Makes the free tokens and the quotas follow from the tokens: whoever filled these maps may
    /// have been killed halfway.
    fn recount(&mut self, origins: &Array<MapData, Origin>) -> Result<(), MapError> {
        let used = self.tokens.iter().collect::<Result<StdHashMap<_, _>, _>>()?;
        while self.free.pop(0).is_ok() {}
        let taken: HashSet<u32> = used.values().map(|held| held.token).collect();
        let mut rest = Vec::new();
        for token in (1..MAX_TOKENS).filter(|token| !taken.contains(token)) {
            if taken.is_empty() || origins.get(&token, 0)? == NOBODY {
                self.free.push(token, 0)?;
            } else {
                rest.push(token);
            }
        }
        // Last of all, because somebody may still have them: they were retired.
        rest.into_iter().try_for_each(|token| self.free.push(token, 0))?;
        let mut shares: StdHashMap<u64, u32> = StdHashMap::new();
        used.keys().for_each(|origin| *shares.entry(origin.cgroup).or_default() += 1);
        for (cgroup, share) in shares {
            self.quota.insert(cgroup, share, 0)?;
        }
        Ok(())
    }
}

impl Origins for TokenMaps {
    fn origin(&self, token: Token) -> Option<Origin> {
        self.lock_origins().get(&token.0, 0).ok().filter(|origin| *origin != NOBODY)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
