//! What outlives the daemon under `--fail closed`, in the bpf file system:
//!
//! ```text
//! DIR/maps/TOKENS ...        so that the tokens that sockets hold stay valid for the next daemon
//! DIR/at-CGROUP/connect4 ... the attachments to one cgroup
//! ```
//!
//! The programs bring along what they need to refuse: the scope above all.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader,
    maps::{Map, MapData, MapError, MapType, PerCpuArray},
    pin::PinError,
};
use dns_proxy_common::{Counter, Held, MAX_TOKENS, Origin};
use thiserror::Error;
use tracing::{info, warn};

use super::{super::cgroup::CgroupId, BpfError};

/// What a map that the next daemon takes over must be. Whoever changes what is in one counts
/// [`LAYOUT`](super::super::claim::LAYOUT) up.
struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
}

const INHERITED: [Shape; 4] = [
    Shape {
        name: "TOKENS",
        kind: MapType::Hash,
        key: size_of::<Origin>(),
        value: size_of::<Held>(),
    },
    Shape { name: "ORIGINS", kind: MapType::Array, key: 4, value: size_of::<Origin>() },
    Shape { name: "FREE_TOKENS", kind: MapType::Queue, key: 0, value: 4 },
    Shape { name: "QUOTA", kind: MapType::Hash, key: 8, value: 4 },
];
/// The map that it only reads.
const COUNTERS: &str = "COUNTERS";
/// What the names of attachments begin with.
const ATTACHMENT: &str = "at-";

/// A directory for pins. Whoever made it removes it.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
}

/// Why a dead daemon's maps are not taken over.
#[derive(Debug, Error)]
enum Unusable {
    #[error("{name}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("{0} is another kind of map than ours")]
    Shape(&'static str),
    #[error("{name}: {source}")]
    Pin { name: &'static str, source: PinError },
}

impl Pins {
    /// In `dir`, with the tokens that one of the `predecessors` left in theirs.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn new(dir: &Path, predecessors: &[&Path]) -> Result<Self, BpfError> {
        let pins = Self { dir: dir.to_owned() };
        let maps = pins.maps();
        // One that never came to attach has given out no tokens.
        let candidates = predecessors.iter().copied().filter(|dir| has_attachments(dir));
        for left in candidates {
            fs::create_dir(&maps).map_err(failed(&maps))?;
            match pins.inherit(&left.join("maps")) {
                Ok(refused) => {
                    info!(refused, "taking over from a daemon that died");
                    return Ok(pins);
                }
                Err(error) => warn!(
                    %error, dir = %left.display(),
                    "cannot take over the tokens of a daemon that died; \
                     connections that its clients have to nameservers must be made anew"
                ),
            }
            fs::remove_dir_all(&maps).map_err(failed(&maps))?;
        }
        fs::create_dir(&maps).map_err(failed(&maps))?;
        Ok(pins)
    }

    /// Makes the loader pin the maps here, or take those that are pinned here already.
    pub(super) fn prepare(&self, loader: &mut EbpfLoader<'_>) {
        for name in INHERITED.iter().map(|shape| shape.name).chain([COUNTERS]) {
            loader.map_pin_path(name, self.maps().join(name));
        }
    }

    /// A new directory for the links to a cgroup.
    pub(super) fn attachment(&self, cgroup: CgroupId) -> Result<PathBuf, BpfError> {
        let dir = self.dir.join(format!("{ATTACHMENT}{}", cgroup.0));
        fs::create_dir(&dir).map_err(failed(&dir))?;
        Ok(dir)
    }

    fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    /// All or nothing; how many queries were refused since that daemon died.
    fn inherit(&self, left: &Path) -> Result<u64, Unusable> {
        let maps = INHERITED.iter().map(|shape| Ok((shape.name, shape.open(left)?)));
        for (name, map) in maps.collect::<Result<Vec<_>, _>>()? {
            map.pin(self.maps().join(name)).map_err(|source| Unusable::Pin { name, source })?;
        }
        Ok(refused(left).unwrap_or(0))
    }
}

impl Shape {
    fn open(&self, dir: &Path) -> Result<MapData, Unusable> {
        let failed = |source| Unusable::Map { name: self.name, source };
        let map = MapData::from_pin(dir.join(self.name)).map_err(failed)?;
        let info = map.info().map_err(failed)?;
        let fits = info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key
            && info.value_size() as usize == self.value
            && info.max_entries() == MAX_TOKENS;
        fits.then_some(map).ok_or(Unusable::Shape(self.name))
    }
}

/// Whether a daemon that had this directory came to attach its programs.
pub fn has_attachments(dir: &Path) -> bool {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with(ATTACHMENT))
}

fn refused(maps: &Path) -> Result<u64, MapError> {
    let counters = Map::PerCpuArray(MapData::from_pin(maps.join(COUNTERS))?);
    let counters = PerCpuArray::<_, u64>::try_from(counters)?;
    Ok(counters.get(&(Counter::DaemonDead as u32), 0)?.iter().sum())
}

pub(super) fn failed(path: &Path) -> impl Fn(io::Error) -> BpfError {
    move |source| BpfError::Pins { path: path.display().to_string(), source }
}
