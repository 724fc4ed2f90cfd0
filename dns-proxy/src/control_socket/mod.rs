//! The control socket: how `status`, `watch` and their kin speak to the daemon.
//!
//! A Unix socket for root alone. One [`Request`] for each connection, as one line of JSON; what is
//! answered are lines of JSON.

pub mod client;
pub mod server;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::observe::filter::Filter;

/// Where it is unless `--control` says otherwise.
pub const DEFAULT_PATH: &str = "/run/dns-proxy/control.sock";
/// The longest request, in octets.
pub const MAX_REQUEST: u64 = 64 * 1024;

/// How long a [`Request::Count`] may last, in seconds.
pub const COUNT_SECONDS: std::ops::RangeInclusive<f64> = 0.1..=86_400.0;

/// What can be asked of a daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How it is: one [`crate::status::Status`].
    Status {},
    /// What happens from now on, a [`crate::observe::tally::Count`] after each so many seconds.
    Count {
        /// How many.
        seconds: f64,
    },
    /// Its queries from now on: [`crate::observe::Line`]s.
    Watch {
        /// Which ones.
        filter: Filter,
    },
}

/// What it says instead of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub error: String,
}

/// `--control`: where it is to be, if anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere.
    Off,
    /// There.
    At(std::path::PathBuf),
}

impl Place {
    /// Where, if anywhere.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::At(path) => Some(path),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            // sun_path has 108 octets, the last of which is 0 (unix(7)).
            _ if text.len() > 107 => Err("a socket's path has at most 107 octets".to_owned()),
            _ if Path::new(text).is_absolute() => Ok(Self::At(text.into())),
            _ => Err("write an absolute path, or off".to_owned()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => write!(f, "off"),
            Self::At(path) => write!(f, "{}", path.display()),
        }
    }
}
