//! The cgroup v2 tree, and which part of it is meant.

use std::{
    collections::HashMap,
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use dns_proxy_common::FailMode;
use nix::libc;

use super::{
    discover::Selector,
    pattern::{CgroupPattern, Glob},
};

/// A cgroup's id: the inode number of its directory, the same that the kernel programs see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupId(pub u64);

/// What is selected and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// `--cgroup`.
    pub select: Vec<CgroupPattern>,
    /// Who is selected by what he is.
    pub selectors: Vec<Selector>,
    /// `--exclude-cgroup`; wins.
    pub exclude: Vec<CgroupPattern>,
}

impl Scope {
    /// Whether it selects nothing, and never will.
    pub fn is_empty(&self) -> bool {
        self.select.is_empty() && self.selectors.is_empty()
    }

    /// Whether there can be a cgroup that both select. May say yes where that is hard to tell.
    pub fn overlaps(&self, other: &Self) -> bool {
        let excluded = |pattern| {
            let mut exclude = self.exclude.iter().chain(&other.exclude);
            exclude.any(|exclude| exclude.covers(pattern))
        };
        let mut pairs = self.select.iter().flat_map(|a| other.select.iter().map(move |b| (a, b)));
        let by_place = pairs.any(|(a, b)| a.overlaps(b) && !excluded(a) && !excluded(b));
        let mut pairs =
            self.selectors.iter().flat_map(|a| other.selectors.iter().map(move |b| (a, b)));
        let by_nature = pairs.any(|(a, b)| a.overlaps(b));
        // A container may be anywhere.
        let anywhere = [(self, other), (other, self)].into_iter().any(|(one, other)| {
            !one.selectors.is_empty() && other.select.iter().any(|pattern| !excluded(pattern))
        });
        by_place || by_nature || anywhere
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let select = self.select.iter().map(ToString::to_string);
        let select: Vec<_> = select.chain(self.selectors.iter().map(ToString::to_string)).collect();
        write!(f, "{}", select.join(", "))?;
        for exclude in &self.exclude {
            write!(f, " without {exclude}")?;
        }
        Ok(())
    }
}

/// The mounted tree.
#[derive(Clone, Debug)]
pub struct CgroupTree {
    root: PathBuf,
    fail: FailMode,
}

impl CgroupTree {
    /// The tree mounted at `root`. To fail closed, a cgroup that is named must be refused also if it
    /// is made anew, as a service's is that starts again, while nobody lives to see it.
    pub fn new(root: PathBuf, fail: FailMode) -> Self {
        Self { root, fail }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether what may be made anew while nobody sees it is to be refused.
    pub fn is_closed(&self) -> bool {
        self.fail == FailMode::Closed
    }

    /// The deepest existing cgroup that contains all that the scope may ever select; to fail closed,
    /// one that stays when what is selected goes.
    pub fn common_ancestor(&self, scope: &Scope) -> PathBuf {
        if !scope.selectors.is_empty() {
            return self.root.clone();
        }
        let mut prefixes = scope.select.iter().map(|pattern| {
            let mut prefix = pattern.fixed_prefix();
            if self.may_be_remade(pattern.levels()) {
                prefix.pop();
            }
            prefix
        });
        let first = prefixes.next().unwrap_or_default();
        let common = prefixes.fold(first, |common, other| {
            common.iter().zip(other.iter()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
        });
        let deepest = self.root.join(common);
        let existing = deepest.ancestors().take_while(|dir| dir.starts_with(&self.root));
        existing.into_iter().find(|dir| dir.is_dir()).unwrap_or(&self.root).to_owned()
    }

    /// The paths below the root of the cgroups that a pattern means by itself. Of a tree that cannot
    /// be looked at, none.
    pub fn matches(&self, pattern: &CgroupPattern) -> Vec<PathBuf> {
        let mut found = vec![PathBuf::new()];
        for level in pattern.levels() {
            let below = |path: PathBuf| {
                let names = children(&self.root.join(&path)).unwrap_or_default().into_keys();
                let matching = names.filter(|name| level.matches_os(name));
                matching.map(|name| path.join(name)).collect::<Vec<_>>()
            };
            found = found.into_iter().flat_map(below).collect();
        }
        found
    }

    /// Whether one cgroup is meant that may go and come again while nobody sees it. Those at the top
    /// stay: slices, and the parents of all containers.
    pub fn may_be_remade(&self, levels: &[Glob]) -> bool {
        let is_one = levels.iter().all(|level| level.fixed().is_some());
        self.fail == FailMode::Closed && is_one && levels.len() > 1
    }
}

/// The id of the cgroup at `dir`.
///
/// # Errors
/// It does not exist.
pub fn id(dir: &Path) -> io::Result<CgroupId> {
    Ok(CgroupId(fs::metadata(dir)?.ino()))
}

/// The children of the cgroup at `dir`, by name; none if it is gone.
///
/// # Errors
/// Something else than that kept us from looking.
pub fn children(dir: &Path) -> io::Result<HashMap<OsString, CgroupId>> {
    let Some(entries) = unless_gone(fs::read_dir(dir))? else {
        return Ok(HashMap::new());
    };
    let mut children = HashMap::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.insert(entry.file_name(), CgroupId(entry.ino()));
        }
    }
    Ok(children)
}

/// Tells "there is nothing" (any more, or by its nature) from "I could not look".
///
/// # Errors
/// The latter.
pub fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(select: &[&str], exclude: &[&str]) -> Scope {
        let parse = |list: &[&str]| list.iter().map(|p| p.parse().expect(p)).collect();
        Scope { select: parse(select), selectors: Vec::new(), exclude: parse(exclude) }
    }

    /// Plain directories stand in for the tree: only the walk is tested here.
    fn tree(dirs: &[&str]) -> (tempfile::TempDir, CgroupTree) {
        let root = tempfile::tempdir().expect("a temporary directory");
        for dir in dirs {
            fs::create_dir_all(root.path().join(dir)).expect(dir);
        }
        let tree = CgroupTree::new(root.path().to_owned(), FailMode::Open);
        (root, tree)
    }

    #[test]
    fn scopes_overlap_unless_one_excludes_what_the_other_selects() {
        let cases = [
            (scope(&["/"], &[]), scope(&["docker"], &[]), true),
            (scope(&["/"], &["docker"]), scope(&["docker"], &[]), false),
            (scope(&["/"], &["docker/a"]), scope(&["docker"], &[]), true),
            (scope(&["/"], &["docker"]), scope(&["docker/a", "docker/b*"], &[]), false),
            (scope(&["docker"], &[]), scope(&["kubepods.slice"], &[]), false),
        ];
        for (one, other, overlap) in cases {
            assert_eq!(one.overlaps(&other), overlap, "{one} {other}");
            assert_eq!(other.overlaps(&one), overlap, "{other} {one}");
        }
    }

    #[test]
    fn the_common_ancestor_exists_and_contains_the_scope() {
        let (_guard, tree) = tree(&["a/b/c", "a/d"]);
        let cases: [(&[&str], &str); 5] = [
            (&["a/b/c"], "a/b/c"),
            (&["a/b/c", "a/d"], "a"),
            (&["a/b/x*"], "a/b"),
            (&["a/missing/deep"], "a"),
            (&["a", "z"], ""),
        ];
        for (select, expected) in cases {
            let ancestor = tree.common_ancestor(&scope(select, &[]));
            assert_eq!(ancestor, tree.root().join(expected), "{select:?}");
        }
    }
}
