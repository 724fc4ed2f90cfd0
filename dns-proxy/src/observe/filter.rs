//! Which queries somebody wants to see.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Seen;
use crate::{
    datapath::{
        outcome::{Outcome, Road},
        tap::Record,
    },
    escape,
};

/// All that it says must hold; what is not said always does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Asked by this container, pod, unit or cgroup: its name, the beginning of its id, or a path.
    pub container: Option<String>,
    /// A name at or below this one.
    pub name: Option<String>,
    /// Answered so.
    pub rcode: Option<u8>,
    /// Of this type.
    pub qtype: Option<u16>,
    /// Took so long at least.
    pub slow: Option<Duration>,
    /// Went out in plaintext.
    pub plaintext: bool,
}

impl Filter {
    /// What can be said before anybody knows who asked, and cheaply.
    pub fn takes(&self, record: &Record) -> bool {
        let is_plaintext = matches!(record.outcome, Outcome::Answered(Road::Plaintext, _));
        self.rcode.is_none_or(|rcode| record.rcode == rcode)
            && self.qtype.is_none_or(|qtype| record.qtype == qtype)
            && self.slow.is_none_or(|slow| record.took >= slow)
            && (!self.plaintext || is_plaintext)
            && self.name.as_ref().is_none_or(|zone| is_below(&escape::name(&record.name), zone))
    }

    /// What is left to say of one that it takes.
    pub fn takes_asker(&self, seen: &Seen) -> bool {
        let Some(wanted) = &self.container else {
            return true;
        };
        let Some(asker) = &seen.asker else {
            return false;
        };
        let is_path = wanted.starts_with('/');
        let below = asker.cgroup.strip_prefix(wanted.trim_end_matches('/'));
        let id = asker.container_id.as_ref().or(asker.pod_uid.as_ref());
        (is_path && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
            || asker.name == *wanted
            || (wanted.len() >= 4 && id.is_some_and(|id| id.starts_with(wanted)))
            || asker.cgroup.rsplit('/').next() == Some(wanted)
    }
}

/// Names are the same in any case (RFC 4343).
fn is_below(name: &str, zone: &str) -> bool {
    let (name, zone) = (name.to_ascii_lowercase(), zone.trim_matches('.').to_ascii_lowercase());
    let rest = name.strip_suffix(zone.as_str());
    zone.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_takes_its_own_name_and_all_below() {
        for (name, zone, below) in [
            ("example.test", "example.test", true),
            ("a.EXAMPLE.test", "Example.Test.", true),
            ("badexample.test", "example.test", false),
            ("test", "example.test", false),
            ("anything", ".", true),
        ] {
            assert_eq!(is_below(name, zone), below, "{name} {zone}");
        }
    }
}
