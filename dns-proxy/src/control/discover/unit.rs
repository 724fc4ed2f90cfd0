//! systemd units by name: where in the cgroup tree they are, or will be.
//!
//! A unit's cgroup has the unit's name, in the slice that it was put into; so one that runs is found
//! by its name alone, without asking systemd. Only where one is to appear takes knowledge of
//! systemd's habits (systemd.slice(5), systemd.unit(5)).

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::super::pattern::{CgroupPattern, Glob};

/// The kinds of units that have cgroups.
const SUFFIXES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// A unit or several: `nginx.service`, `php*-fpm.service`, `user.slice`; without a suffix a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitName(Glob);

/// Why a text names no unit. Always the operator's to mend.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UnitNameError {
    /// Nothing, or a path.
    #[error("`{0}` is no unit's name; write one such as nginx.service, or a path with --cgroup")]
    NotAName(String),
    /// A template has no cgroup.
    #[error("`{0}` is a template; write {prefix}@*{suffix} for all of it", prefix = .1, suffix = .2)]
    Template(String, String, String),
}

impl UnitName {
    /// Whether a cgroup of this name is its.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }

    /// The one name that it has, if it has but one.
    pub fn fixed(&self) -> Option<&str> {
        self.0.fixed()
    }

    /// Whether there can be a unit that both name.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.overlaps(&other.0)
    }

    /// The slice in which one is to appear unless it was told otherwise, as a path.
    pub fn home(&self) -> CgroupPattern {
        let name = self.0.to_string();
        if let Some(slice) = name.strip_suffix(".slice") {
            let levels: Vec<_> = slice.split('-').collect();
            let above = (1..levels.len()).map(|n| format!("{}.slice", levels[..n].join("-")));
            return CgroupPattern::literal(&above.collect::<Vec<_>>().join("/"));
        }
        match name.split_once('@') {
            // The slice of a template's instances; a dash in it would be a level.
            Some((template, _)) if !template.contains('*') => {
                let escaped = template.replace('-', "\\x2d");
                CgroupPattern::literal(&format!("system.slice/system-{escaped}.slice"))
            }
            _ => CgroupPattern::literal("system.slice"),
        }
    }
}

impl FromStr for UnitName {
    type Err = UnitNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.contains('/') || text.contains(char::is_whitespace) {
            return Err(UnitNameError::NotAName(text.to_owned()));
        }
        let suffix = SUFFIXES.iter().find(|suffix| text.ends_with(**suffix));
        let name = if suffix.is_some() { text.to_owned() } else { format!("{text}.service") };
        if let Some((prefix, suffix)) = name.split_once('@')
            && suffix.starts_with('.')
        {
            let template = UnitNameError::Template(text.into(), prefix.into(), suffix.into());
            return Err(template);
        }
        Ok(Self(Glob::new(&name)))
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_suffix_is_a_services() {
        let cases = [
            ("nginx", "nginx.service", "system.slice"),
            ("nginx.service", "nginx.service", "system.slice"),
            ("getty@tty1", "getty@tty1.service", "system.slice/system-getty.slice"),
            ("my-app@*.service", "my-app@*.service", "system.slice/system-my\\x2dapp.slice"),
            ("user.slice", "user.slice", "/"),
            ("system-my.slice", "system-my.slice", "system.slice"),
            ("a-b-c.slice", "a-b-c.slice", "a.slice/a-b.slice"),
            ("run-1.scope", "run-1.scope", "system.slice"),
            ("php*-fpm", "php*-fpm.service", "system.slice"),
        ];
        for (text, name, home) in cases {
            let unit: UnitName = text.parse().expect(text);
            assert_eq!((unit.to_string().as_str(), unit.home().to_string().as_str()), (name, home));
            assert!(unit.matches(&name.replace('*', "8.2")), "{text}");
            assert!(!unit.matches("nginx.slice"), "{text}");
        }
    }

    #[test]
    fn what_names_no_unit_is_refused() {
        for text in ["", "system.slice/nginx.service", "a b", "getty@.service", "getty@"] {
            let error = text.parse::<UnitName>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("`{text}` is ")), "{error}");
        }
        let error = "getty@".parse::<UnitName>().expect_err("a template").to_string();
        assert!(error.ends_with("write getty@*.service for all of it"), "{error}");
    }
}
