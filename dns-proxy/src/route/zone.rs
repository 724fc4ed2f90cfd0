//! Zones: a domain and all that is below it, and a tree that finds those above a name.

use std::{collections::HashMap, fmt, str::FromStr};

use thiserror::Error;

use crate::wire::{MAX_LABEL_LEN, MAX_NAME_LEN};

/// Labels that a name can have: each takes two octets at least, and the root one.
const MAX_LABELS: usize = MAX_NAME_LEN / 2;

/// A domain and everything below it, on the wire (RFC 1035 section 3.1) and in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Zone(Box<[u8]>);

/// Why a text is no zone. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ZoneError {
    /// Nothing at all.
    #[error("a zone is missing; write a domain, such as corp.example, or `.` for every name")]
    Empty,
    /// A pattern.
    #[error("`{0}`: a zone takes in all names below it; write it without `*`")]
    Wildcard(String),
    /// Two dots in a row, or one in front.
    #[error("`{0}` has an empty label; write a domain, such as corp.example")]
    EmptyLabel(String),
    /// RFC 1035 section 2.3.4.
    #[error("`{0}` is too long: a label has 63 octets at most, a name 255")]
    Long(String),
    /// Not a host name, or one in letters beyond ASCII.
    #[error(
        "`{0}` is no domain: write letters, digits, `-`, `_` and dots, and other letters in their \
         ASCII form (xn--...)"
    )]
    Character(String),
}

impl Zone {
    /// All names.
    pub fn root() -> Self {
        Self([0].into())
    }

    /// The name on the wire.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// All names are in it.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = |fault: fn(String) -> ZoneError| fault(text.to_owned());
        let mut wire = Vec::with_capacity(text.len() + 2);
        match text {
            "" => return Err(ZoneError::Empty),
            "." => {}
            _ => {
                for label in text.strip_suffix('.').unwrap_or(text).split('.') {
                    if label.is_empty() {
                        return Err(fault(ZoneError::EmptyLabel));
                    }
                    if label.contains('*') {
                        return Err(fault(ZoneError::Wildcard));
                    }
                    let is_usual = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_');
                    if !label.bytes().all(is_usual) {
                        return Err(fault(ZoneError::Character));
                    }
                    if label.len() > MAX_LABEL_LEN {
                        return Err(fault(ZoneError::Long));
                    }
                    wire.push(label.len() as u8);
                    wire.extend(label.bytes().map(|c| c.to_ascii_lowercase()));
                }
            }
        }
        wire.push(0);
        if wire.len() > MAX_NAME_LEN {
            return Err(fault(ZoneError::Long));
        }
        Ok(Self(wire.into()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        let (starts, count) = labels(&self.0);
        for (index, start) in starts[..count].iter().enumerate() {
            let dot = if index > 0 { "." } else { "" };
            write!(f, "{dot}{}", String::from_utf8_lossy(label(&self.0, *start)))?;
        }
        Ok(())
    }
}

/// Something for each of many zones. A look-up takes a step for each label, from the last one, and
/// ends where no zone begins with those seen: for nearly every name after one step.
#[derive(Clone, Debug)]
pub(super) struct Tree<T> {
    here: Option<T>,
    below: HashMap<Box<[u8]>, Self>,
}

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self { here: None, below: HashMap::new() }
    }
}

impl<T> Tree<T> {
    /// The place of a zone.
    pub(super) fn entry(&mut self, zone: &Zone) -> &mut Option<T> {
        let (starts, count) = labels(zone.wire());
        let mut node = self;
        for start in starts[..count].iter().rev() {
            node = node.below.entry(label(zone.wire(), *start).into()).or_default();
        }
        &mut node.here
    }

    /// What there is for the zones that a name on the wire is in, the shortest zone first, each with
    /// its number of labels.
    pub(super) fn above<'a>(&'a self, name: &[u8]) -> impl Iterator<Item = (usize, &'a T)> {
        let (starts, count) = labels(name);
        let mut node = Some(self);
        (0..=count)
            .map_while(move |depth| {
                if depth > 0 {
                    let label = label(name, starts[count - depth]);
                    let mut lower = [0; MAX_LABEL_LEN];
                    let lower = lower.get_mut(..label.len())?;
                    lower.copy_from_slice(label);
                    lower.make_ascii_lowercase(); // RFC 4343
                    node = node?.below.get(&*lower);
                }
                node.map(|node| (depth, node.here.as_ref()))
            })
            .filter_map(|(depth, here)| Some((depth, here?)))
    }
}

/// How many labels a name on the wire has.
pub(super) fn label_count(name: &[u8]) -> usize {
    labels(name).1
}

/// Where the labels of a name on the wire start, and how many there are.
fn labels(name: &[u8]) -> ([u8; MAX_LABELS], usize) {
    let (mut starts, mut count, mut at) = ([0; MAX_LABELS], 0, 0);
    while count < MAX_LABELS
        && let Some(&len @ 1..) = name.get(at)
    {
        starts[count] = at as u8;
        count += 1;
        at += 1 + usize::from(len);
    }
    (starts, count)
}

/// The label that starts there.
fn label(name: &[u8], start: u8) -> &[u8] {
    let start = usize::from(start);
    let len = usize::from(name[start]);
    name.get(start + 1..start + 1 + len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(text: &str) -> Zone {
        text.parse().expect(text)
    }

    #[test]
    fn zones_are_read_in_any_case_with_or_without_the_last_dot() {
        for text in ["Corp.Example", "corp.example.", "CORP.EXAMPLE"] {
            assert_eq!(zone(text).wire(), b"\x04corp\x07example\x00");
            assert_eq!(zone(text).to_string(), "corp.example");
        }
        assert_eq!(zone(".").wire(), b"\x00");
        assert_eq!(zone(".").to_string(), ".");
        assert_eq!(zone("_tcp.xn--bcher-kva.10.in-addr.arpa").to_string().len(), 34);
    }

    #[test]
    fn every_mistake_is_named() {
        use ZoneError as Error;
        let long = "a".repeat(64);
        let longer = ["a".repeat(62).as_str(); 5].join(".");
        for (text, error) in [
            ("a..b", Error::EmptyLabel("a..b".to_owned())),
            (".b", Error::EmptyLabel(".b".to_owned())),
            ("..", Error::EmptyLabel("..".to_owned())),
            ("*.corp", Error::Wildcard("*.corp".to_owned())),
            ("bücher.example", Error::Character("bücher.example".to_owned())),
            ("two words", Error::Character("two words".to_owned())),
            (&long, Error::Long(long.clone())),
            (&longer, Error::Long(longer.clone())),
        ] {
            assert_eq!(text.parse::<Zone>(), Err(error));
        }
        assert_eq!("".parse::<Zone>(), Err(ZoneError::Empty));
    }

    #[test]
    fn the_zones_above_a_name_are_found_whatever_its_case() {
        let mut tree = Tree::default();
        for text in [".", "example", "b.example", "c.b.example", "ample"] {
            *tree.entry(&zone(text)) = Some(text.to_owned());
        }
        let cases: [(&str, &[&str]); 7] = [
            (".", &["."]),
            ("test", &["."]),
            ("eXample", &[".", "example"]),
            ("a.B.EXAMPLE", &[".", "example", "b.example"]),
            ("x.c.b.example", &[".", "example", "b.example", "c.b.example"]),
            ("xb.example", &[".", "example"]),
            ("b.example.ample", &[".", "ample"]),
        ];
        for (name, expected) in cases {
            let mut name = zone(name).wire().to_vec();
            name.make_ascii_uppercase(); // length octets are below 64 and stay
            let found: Vec<_> = tree.above(&name).map(|(_, text)| text.as_str()).collect();
            assert_eq!(found, expected, "{name:?}");
        }
    }

    #[test]
    fn the_longest_names_are_looked_up() {
        let name: Vec<u8> = [1, b'a'].repeat(127).into_iter().chain([0]).collect();
        assert_eq!(label_count(&name), 127);
        let mut tree = Tree::default();
        *tree.entry(&zone(&["a"; 127].join("."))) = Some(());
        assert_eq!(tree.above(&name).map(|(depth, ())| depth).collect::<Vec<_>>(), [127]);
    }

    #[test]
    fn what_is_no_name_is_no_danger() {
        let tree: Tree<()> = Tree::default();
        for name in [&b""[..], b"\x05ab", b"\xc0\x0c", &[0xff; 300]] {
            assert_eq!(tree.above(name).count(), 0, "{name:?}");
        }
    }
}
