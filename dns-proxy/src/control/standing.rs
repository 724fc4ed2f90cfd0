//! What the scope says of a cgroup by where it is in the tree. Pure.

use std::ffi::OsStr;

use dns_proxy_common::Policy;

use super::{
    cgroup::Scope,
    pattern::{CgroupPattern, Glob},
};

/// Of one cgroup; its children's follow from it and their names.
#[derive(Clone, Debug)]
pub struct Standing {
    select: Patterns,
    exclude: Patterns,
}

/// How far patterns of one kind have come on the way down to a cgroup.
#[derive(Clone, Debug, Default)]
struct Patterns {
    /// Those that hold so far and have levels to go: the pattern's index, and how many it has used.
    begun: Vec<(usize, usize)>,
    /// One ends with this cgroup.
    here: bool,
    /// One ended with a cgroup above.
    above: bool,
}

/// Which names of children matter, where the cgroup itself is not selected.
#[derive(Debug)]
pub enum Wanted<'a> {
    /// Any: a new child may be selected by its name.
    Any,
    /// These, each of which can only be one cgroup.
    Only(Vec<&'a str>),
}

impl Standing {
    /// That of the root.
    pub fn of_root(scope: &Scope) -> Self {
        Self { select: Patterns::begin(&scope.select), exclude: Patterns::begin(&scope.exclude) }
    }

    /// That of a child with this name.
    pub fn of_child(&self, scope: &Scope, name: &OsStr) -> Self {
        Self {
            select: self.select.go_on(&scope.select, name),
            exclude: self.exclude.go_on(&scope.exclude, name),
        }
    }

    /// It is selected by itself, whatever patterns say.
    pub fn pick(&mut self) {
        self.select.here = true;
    }

    /// Whether it is excluded, by itself or from above.
    pub fn is_excluded(&self) -> bool {
        self.exclude.end()
    }

    /// Whether it is selected, by itself or from above, and not excluded.
    pub fn is_member(&self) -> bool {
        self.select.end() && !self.exclude.end()
    }

    /// What a pattern says of the cgroup itself.
    pub fn policy(&self, scope: &Scope) -> Option<Policy> {
        // By what may be excluded, not by what is now: a cgroup made a moment ago counts as well.
        let select = if scope.exclude.is_empty() { Policy::SelectAll } else { Policy::Select };
        match (self.exclude.here, self.select.here) {
            (true, _) => Some(Policy::Exclude),
            (false, true) => Some(select),
            (false, false) => None,
        }
    }

    /// Whether anything below can be in the scope.
    pub fn leads_on(&self) -> bool {
        !self.exclude.end() && (self.select.end() || !self.select.begun.is_empty())
    }

    /// Which children matter to a cgroup that is no member itself. That a name is there tells nothing
    /// of a pattern that ends with it and `may_be_remade`.
    pub fn wanted<'a>(
        &self,
        scope: &'a Scope,
        may_be_remade: impl Fn(&CgroupPattern) -> bool,
    ) -> Wanted<'a> {
        let names = self.select.begun.iter().map(|&(index, level)| {
            let pattern = &scope.select[index];
            let ends = level + 1 == pattern.levels().len();
            pattern.levels()[level].fixed().filter(|_| !(ends && may_be_remade(pattern)))
        });
        names.collect::<Option<Vec<_>>>().map_or(Wanted::Any, Wanted::Only)
    }
}

impl Patterns {
    fn begin(patterns: &[CgroupPattern]) -> Self {
        let mut all = Self::default();
        for (index, pattern) in patterns.iter().enumerate() {
            all.reach(index, pattern.levels(), 0);
        }
        all
    }

    fn go_on(&self, patterns: &[CgroupPattern], name: &OsStr) -> Self {
        let mut all = Self { above: self.end(), ..Self::default() };
        for &(index, level) in &self.begun {
            let levels = patterns[index].levels();
            if levels[level].matches_os(name) {
                all.reach(index, levels, level + 1);
            }
        }
        all
    }

    fn reach(&mut self, index: usize, levels: &[Glob], level: usize) {
        if level == levels.len() {
            self.here = true;
        } else {
            self.begun.push((index, level));
        }
    }

    fn end(&self) -> bool {
        self.here || self.above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn standing(select: &[&str], exclude: &[&str], path: &str) -> (Scope, Standing) {
        let parse = |list: &[&str]| list.iter().map(|p| p.parse().expect(p)).collect();
        let scope = Scope { select: parse(select), selectors: Vec::new(), exclude: parse(exclude) };
        let root = Standing::of_root(&scope);
        let levels = path.split('/').filter(|level| !level.is_empty());
        let there = levels.fold(root, |above, name| above.of_child(&scope, OsStr::new(name)));
        (scope, there)
    }

    #[test]
    fn everything_below_a_match_is_in_unless_excluded() {
        let cases: [(&[&str], &[&str], &str, bool); 8] = [
            (&["/"], &[], "", true),
            (&["/"], &[], "a/b", true),
            (&["a"], &[], "", false),
            (&["a"], &[], "a/b/c", true),
            (&["a/*/c"], &[], "a/b", false),
            (&["a/*/c"], &[], "a/b/c/d", true),
            (&["a"], &["a/b"], "a/b/c", false),
            (&["a/b"], &["a"], "a/b", false),
        ];
        for (select, exclude, path, is_member) in cases {
            let (_, standing) = standing(select, exclude, path);
            assert_eq!(standing.is_member(), is_member, "{select:?} {exclude:?} {path}");
        }
    }

    #[test]
    fn a_cgroup_has_a_policy_where_a_pattern_ends() {
        let check = |exclude: &[&str], path, policy| {
            let (scope, standing) = standing(&["a"], exclude, path);
            assert_eq!(standing.policy(&scope), policy, "{exclude:?} {path}");
        };
        check(&[], "a", Some(Policy::SelectAll));
        check(&["b"], "a", Some(Policy::Select));
        check(&["a"], "a", Some(Policy::Exclude));
        check(&["a/x*"], "a/xy", Some(Policy::Exclude));
        check(&[], "a/b", None);
        check(&[], "", None);
    }

    #[test]
    fn nothing_below_matters_where_no_pattern_goes_on_or_one_excludes() {
        let cases: [(&[&str], &[&str], &str, bool); 6] = [
            (&["a/b"], &[], "", true),
            (&["a/b"], &[], "a", true),
            (&["a/b"], &[], "c", false),
            (&["a/b"], &[], "a/b/c", true),
            (&["a/b"], &["a"], "a", false),
            (&["a"], &["b/c"], "b", false),
        ];
        for (select, exclude, path, leads_on) in cases {
            let (_, standing) = standing(select, exclude, path);
            assert_eq!(standing.leads_on(), leads_on, "{select:?} {exclude:?} {path}");
        }
    }

    #[test]
    fn names_matter_unless_any_may() {
        let check = |select: &[&str], path, remade, names: Option<&[&str]>| {
            let (scope, standing) = standing(select, &[], path);
            match (standing.wanted(&scope, |_| remade), names) {
                (Wanted::Any, None) => {}
                (Wanted::Only(only), Some(names)) => assert_eq!(only, names, "{select:?} {path}"),
                (wanted, _) => panic!("{select:?} {path}: {wanted:?}"),
            }
        };
        check(&["a/b"], "", false, Some(&["a"]));
        check(&["a/b", "c"], "", false, Some(&["a", "c"]));
        check(&["a/*"], "a", false, None);
        check(&["a/b", "*/c"], "a", false, Some(&["b", "c"]));
        check(&["a/b"], "", true, Some(&["a"]));
        check(&["a/b"], "a", true, None);
    }
}
