//! Cgroup patterns: `/`, `system.slice/nginx.service`, `system.slice/docker-*.scope`.

use std::{ffi::OsStr, fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// A path below the cgroup v2 root, in which `*` stands for any text within one level. Everything
/// below a match is meant too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPattern {
    levels: Vec<Glob>,
}

/// A text in which `*` stands for any text, such as one level of a pattern: the pieces between its
/// `*`s, so `["docker-", ".scope"]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Glob(Vec<String>);

/// Why a text is no pattern. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CgroupPatternError {
    /// Nothing at all.
    #[error("the pattern is empty; `/` selects everything")]
    Empty,
    /// A level that no cgroup can have.
    #[error("`{0}`: `.`, `..` and empty levels name no cgroup; write a path below the root")]
    Level(String),
    /// `**` promises more than it could keep.
    #[error("`{0}`: `*` stays within one level, and everything below a match is in anyway")]
    DoubleStar(String),
}

impl CgroupPattern {
    /// The levels, from the root down; none for the root itself.
    pub fn levels(&self) -> &[Glob] {
        &self.levels
    }

    /// The cgroup at `path`, exactly; `*` has no special meaning.
    pub fn literal(path: &str) -> Self {
        let levels = path.split('/').filter(|level| !level.is_empty());
        Self { levels: levels.map(|level| Glob(vec![level.to_owned()])).collect() }
    }

    /// Whether there can be a cgroup that both mean.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.levels.iter().zip(&other.levels).all(|(a, b)| a.overlaps(b))
    }

    /// Whether this means every cgroup that `other` means. May say no where that is hard to tell.
    pub fn covers(&self, other: &Self) -> bool {
        self.levels.len() <= other.levels.len()
            && self.levels.iter().zip(&other.levels).all(|(a, b)| a.covers(b))
    }

    /// The part before the first level with a `*`.
    pub fn fixed_prefix(&self) -> PathBuf {
        self.levels.iter().map_while(Glob::fixed).collect()
    }
}

impl Glob {
    /// The texts that `text` stands for.
    pub fn new(text: &str) -> Self {
        Self(text.split('*').map(str::to_owned).collect())
    }

    /// The one name that matches, if there is but one.
    pub fn fixed(&self) -> Option<&str> {
        match self.0.as_slice() {
            [name] => Some(name),
            _ => None,
        }
    }

    /// Whether there can be a text that matches both. May say yes where that is hard to tell.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.fixed(), other.fixed()) {
            (Some(name), _) => other.matches(name),
            (_, Some(name)) => self.matches(name),
            // Between the ends there is room for what either wants.
            (None, None) => {
                let ([a, .., z], [b, .., y]) = (self.0.as_slice(), other.0.as_slice()) else {
                    return true;
                };
                let starts = a.starts_with(b.as_str()) || b.starts_with(a.as_str());
                starts && (z.ends_with(y.as_str()) || y.ends_with(z.as_str()))
            }
        }
    }

    fn covers(&self, other: &Self) -> bool {
        let any = self.0.iter().all(String::is_empty);
        any || self == other || other.fixed().is_some_and(|name| self.matches(name))
    }

    /// Whether this name of a file matches.
    pub fn matches_os(&self, name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| self.matches(name))
    }

    /// Whether this text matches.
    pub fn matches(&self, name: &str) -> bool {
        let [first, middle @ .., last] = self.0.as_slice() else {
            return self.fixed() == Some(name);
        };
        let Some(inner) =
            name.strip_prefix(first.as_str()).and_then(|n| n.strip_suffix(last.as_str()))
        else {
            return false;
        };
        // Leftmost is best: what a piece leaves to the right is all that later pieces need.
        let mut rest = Some(inner);
        for piece in middle {
            rest = rest.and_then(|rest| rest.split_once(piece.as_str())).map(|(_, after)| after);
        }
        rest.is_some()
    }
}

impl FromStr for CgroupPattern {
    type Err = CgroupPatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(CgroupPatternError::Empty);
        }
        let inner = text.strip_prefix('/').unwrap_or(text);
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        if inner.is_empty() {
            return Ok(Self { levels: Vec::new() });
        }
        if inner.contains("**") {
            return Err(CgroupPatternError::DoubleStar(text.to_owned()));
        }
        let levels = inner.split('/').map(|level| match level {
            "" | "." | ".." => Err(CgroupPatternError::Level(text.to_owned())),
            _ => Ok(Glob::new(level)),
        });
        Ok(Self { levels: levels.collect::<Result<_, _>>()? })
    }
}

impl fmt::Display for CgroupPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.levels.is_empty() {
            return f.write_str("/");
        }
        let levels: Vec<_> = self.levels.iter().map(ToString::to_string).collect();
        f.write_str(&levels.join("/"))
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("*"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(text: &str) -> Glob {
        let pattern: CgroupPattern = text.parse().expect(text);
        pattern.levels()[0].clone()
    }

    #[test]
    fn a_star_stands_for_any_text_within_a_level() {
        let cases = [
            ("docker-*.scope", "docker-0a1b.scope", true),
            ("docker-*.scope", "docker-.scope", true),
            ("docker-*.scope", "docker-0a1b.service", false),
            ("docker-*.scope", "dockerscope", false),
            ("*", "anything", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c", false),
            ("ab*ba", "aba", false),
            ("plain", "plain", true),
            ("plain", "plainer", false),
        ];
        for (pattern, name, matches) in cases {
            assert_eq!(level(pattern).matches(name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_overlap_if_a_cgroup_can_match_both() {
        let cases = [
            ("/", "a", true),
            ("a", "a/b", true),
            ("a/b", "a/c", false),
            ("a/*", "a", true),
            ("a/x*", "a/xyz/deep", true),
            ("a/x*", "a/y", false),
            ("a/x*", "a/xy*", true),
            ("a/*.scope", "a/*.service", false),
            ("a/docker-*.scope", "a/*-7.scope", true),
            ("*/b", "a/*", true),
        ];
        for (a, b, overlap) in cases {
            let [left, right] = [a, b].map(|text| text.parse::<CgroupPattern>().expect(text));
            assert_eq!(left.overlaps(&right), overlap, "{a} {b}");
            assert_eq!(right.overlaps(&left), overlap, "{b} {a}");
        }
    }

    #[test]
    fn a_pattern_covers_what_it_means_at_least() {
        let cases = [
            ("/", "a/b", true),
            ("a", "a/b*", true),
            ("a/b", "a", false),
            ("a/*", "a/b/c", true),
            ("a/b*", "a/b*", true),
            ("a/b*", "a/c", false),
        ];
        for (a, b, covers) in cases {
            let [left, right] = [a, b].map(|text| text.parse::<CgroupPattern>().expect(text));
            assert_eq!(left.covers(&right), covers, "{a} {b}");
        }
    }

    #[test]
    fn slashes_at_the_ends_do_not_matter() {
        for text in ["a/b", "/a/b", "a/b/", "/a/b/"] {
            assert_eq!(text.parse::<CgroupPattern>().expect(text).to_string(), "a/b");
        }
        assert_eq!("/".parse::<CgroupPattern>().expect("the root").levels(), []);
    }

    #[test]
    fn every_mistake_is_named() {
        use CgroupPatternError as Error;
        let cases = [
            ("", Error::Empty),
            ("a//b", Error::Level("a//b".into())),
            ("../b", Error::Level("../b".into())),
            ("a/**/b", Error::DoubleStar("a/**/b".into())),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<CgroupPattern>(), Err(error), "{text}");
        }
    }

    #[test]
    fn the_fixed_prefix_ends_at_the_first_star() {
        for (text, prefix) in [("a/b/c*/d", "a/b"), ("*", ""), ("/", ""), ("a/b", "a/b")] {
            let pattern: CgroupPattern = text.parse().expect(text);
            assert_eq!(pattern.fixed_prefix(), PathBuf::from(prefix));
        }
    }
}
