//! Names that we make up and ask nameservers for ourselves, to see whether they come back: then what a
//! route sends there comes back to us, and would go round for ever.
//!
//! Looked for only among queries that are about to leave in plaintext, which a loop goes through by
//! its nature; one that is found ends here.

use std::sync::{Mutex, PoisonError};

use crate::route::Zone;

/// What their first label begins with.
const PREFIX: &str = "dns-proxy-loop-";
/// Hexadecimal digits that follow.
const DIGITS: usize = 16;
/// Octets of the first label.
const LABEL_LEN: usize = PREFIX.len() + DIGITS;
/// How many may have come back and not been asked after. Anybody can make some up.
const MAX_SEEN: usize = 256;

/// Those that came back.
static SEEN: Mutex<Vec<Echo>> = Mutex::new(Vec::new());

/// What makes one of these names differ from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo(u64);

impl Echo {
    /// A new one, that nobody can guess.
    pub fn new() -> Self {
        Self(rand::random())
    }

    /// Its name in a zone; `None` if that is too long.
    pub fn name_in(self, zone: &Zone) -> Option<Vec<u8>> {
        let label = format!("{PREFIX}{:0DIGITS$x}", self.0);
        let mut name = vec![LABEL_LEN as u8];
        name.extend_from_slice(label.as_bytes());
        name.extend_from_slice(zone.wire());
        (name.len() <= 255).then_some(name) // RFC 1035 section 2.3.4
    }

    /// The one that a name on the wire is of.
    fn of(name: &[u8]) -> Option<Self> {
        let (&len, rest) = name.split_first()?;
        if usize::from(len) != LABEL_LEN {
            return None;
        }
        let label = std::str::from_utf8(rest.get(..LABEL_LEN)?).ok()?;
        let (prefix, digits) = label.split_at_checked(PREFIX.len())?;
        // Resolvers may play with the case (draft-vixie-dnsext-dns0x20).
        let is_ours = prefix.eq_ignore_ascii_case(PREFIX);
        is_ours.then(|| u64::from_str_radix(digits, 16).ok().map(Self)).flatten()
    }

    /// Whether it has come back since it was made.
    pub fn has_come_back(self) -> bool {
        let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.len();
        seen.retain(|echo| *echo != self);
        seen.len() < before
    }
}

impl Default for Echo {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a query is for such a name, and is to go no further.
pub(super) fn comes_back(name: &[u8]) -> bool {
    let Some(echo) = Echo::of(name) else {
        return false;
    };
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() == MAX_SEEN {
        seen.remove(0);
    }
    seen.push(echo);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_comes_back_is_known_whatever_its_case() {
        let echo = Echo::new();
        let zone: Zone = "corp.example".parse().expect("a zone");
        let name = echo.name_in(&zone).expect("short");
        assert!(!echo.has_come_back());
        assert!(comes_back(&name.to_ascii_uppercase()));
        assert!(echo.has_come_back());
        assert!(!echo.has_come_back(), "it is told once");
    }

    #[test]
    fn other_names_are_not_ours() {
        let zone: Zone = "dns-proxy-loop-0123456789abcdex.example".parse().expect("a zone");
        for name in [zone.wire(), b"", b"\x00", b"\x03www\x00", b"\x1fdns-proxy-loop-"] {
            assert!(!comes_back(name), "{name:?}");
        }
    }
}
