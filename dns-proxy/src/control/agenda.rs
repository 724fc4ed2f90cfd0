//! What is to be looked at again, and when. Pure.
//!
//! A change is seen before all that belongs to it is done: a process joins its cgroup before it
//! enters its namespace, and a file is made before a namespace is bound to it.

use std::{
    collections::{BTreeMap, HashSet},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// How long after a change the same is looked at again.
const AFTERTHOUGHTS: [Duration; 4] = [
    Duration::from_millis(2),
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
];

/// Things that have changed of late.
#[derive(Debug)]
pub struct Agenda<T> {
    /// By when they are due; the number keeps apart what is due at the same moment.
    due: BTreeMap<(Instant, u64), T>,
    next: u64,
}

impl<T> Default for Agenda<T> {
    /// Nothing yet.
    fn default() -> Self {
        Self { due: BTreeMap::new(), next: 0 }
    }
}

impl<T: Clone + Eq + Hash> Agenda<T> {
    /// This has changed now.
    pub fn note(&mut self, what: &T, now: Instant) {
        for after in AFTERTHOUGHTS {
            self.due.insert((now + after, self.next), what.clone());
            self.next += 1;
        }
    }

    /// When to ask for what is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes what is to be looked at by now, each once.
    pub fn take_due(&mut self, now: Instant) -> HashSet<T> {
        let later = self.due.split_off(&(now, u64::MAX));
        std::mem::replace(&mut self.due, later).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_looked_at_four_times_and_then_forgotten() {
        let mut agenda = Agenda::default();
        let start = Instant::now();
        agenda.note(&'a', start);
        let mut looks = Vec::new();
        while let Some(next) = agenda.next() {
            assert_eq!(agenda.take_due(next), HashSet::from(['a']));
            looks.push((next - start).as_millis());
        }
        assert_eq!(looks, [2, 10, 30, 100]);
    }

    #[test]
    fn what_has_changed_several_times_is_looked_at_once() {
        let mut agenda = Agenda::default();
        let start = Instant::now();
        for what in ['a', 'b', 'a'] {
            agenda.note(&what, start);
        }
        let due = agenda.take_due(start + Duration::from_millis(5));
        assert_eq!(due, HashSet::from(['a', 'b']));
        assert!(agenda.take_due(start + Duration::from_millis(5)).is_empty());
    }
}
