//! The maps of tokens and what they stand for.

use std::{
    collections::{HashMap as StdHashMap, HashSet},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError, Queue},
};
use dns_proxy_common::{MAX_TOKENS, Origin, Token};

use super::{BpfError, error::absent_is_fine, take};
use crate::datapath::gate::Origins;

/// What a free slot of the origin map holds.
const NOBODY: Origin = Origin { cgroup: 0, netns: 0, addr: [0; 16] };

/// Tokens and what they stand for.
pub(super) struct TokenMaps {
    maps: Mutex<TokenMapsInner>,
    generation: AtomicU64,
}

struct TokenMapsInner {
    tokens: HashMap<MapData, Origin, u32>,
    origins: Array<MapData, Origin>,
    free: Queue<MapData, u32>,
    quota: HashMap<MapData, u64, u32>,
}

impl TokenMaps {
    /// Those of the object, with every token free that stands for nothing: all, or, where the maps
    /// are a dead daemon's, the others.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let mut maps = TokenMapsInner {
            tokens: take(ebpf, "TOKENS")?,
            origins: take(ebpf, "ORIGINS")?,
            free: take(ebpf, "FREE_TOKENS")?,
            quota: take(ebpf, "QUOTA")?,
        };
        maps.recount().map_err(|source| BpfError::Map { name: "TOKENS", source })?;
        Ok(Self { maps: Mutex::new(maps), generation: AtomicU64::new(0) })
    }

    /// Frees the tokens of which `dead` says so; how many.
    pub(super) fn reclaim(&self, dead: impl Fn(&Origin) -> bool) -> Result<usize, MapError> {
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        let all = maps.tokens.iter().collect::<Result<Vec<_>, _>>()?;
        let mut freed = 0;
        let mut used = StdHashMap::new();
        for (origin, token) in all {
            let share: &mut u32 = used.entry(origin.cgroup).or_default();
            if dead(&origin) {
                absent_is_fine(maps.tokens.remove(&origin))?;
                maps.origins.set(token, NOBODY, 0)?;
                maps.free.push(token, 0)?;
                freed += 1;
            } else {
                *share += 1;
            }
        }
        if freed > 0 {
            for (cgroup, share) in used {
                match share {
                    0 => absent_is_fine(maps.quota.remove(&cgroup))?,
                    _ => maps.quota.insert(cgroup, share, 0)?,
                }
            }
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(freed)
    }
}

impl TokenMapsInner {
    /// Makes the free tokens and the quotas follow from the tokens: whoever filled these maps may
    /// have been killed halfway.
    fn recount(&mut self) -> Result<(), MapError> {
        let used = self.tokens.iter().collect::<Result<StdHashMap<_, _>, _>>()?;
        while self.free.pop(0).is_ok() {}
        let taken: HashSet<u32> = used.values().copied().collect();
        for token in (1..MAX_TOKENS).filter(|token| !taken.contains(token)) {
            self.free.push(token, 0)?;
        }
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
        let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        maps.origins.get(&token.0, 0).ok().filter(|origin| *origin != NOBODY)
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
