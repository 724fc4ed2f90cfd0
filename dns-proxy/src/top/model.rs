//! What there is to be seen, and what keys do to it.

use std::collections::{HashMap, VecDeque};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    control::identity::Kind,
    observe::tally::{Count, Sums},
    status::Status,
};

/// How many latencies of an upstream are remembered.
const HISTORY: usize = 60;
/// Rows that are remembered of each table; the least busy ones are forgotten.
const MAX_ROWS: usize = 1_000;
/// Characters of a filter.
const MAX_FILTER: usize = 60;

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    End,
}

/// What rows are in the order of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Rate,
    Total,
    Plaintext,
    Failed,
    Latency,
    Name,
}

/// An asker or a name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: &'static str,
    /// In the last second.
    pub(super) now: Sums,
    /// How long that was.
    pub(super) seconds: f64,
    /// Since we look.
    pub(super) total: Sums,
}

/// What is to be seen.
pub(super) struct Model {
    pub(super) colours: bool,
    pub(super) status: Option<Status>,
    askers: HashMap<String, Row>,
    names: HashMap<String, Row>,
    /// By address.
    latencies: HashMap<String, VecDeque<f64>>,
    pub(super) order: Order,
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    /// How many rows are scrolled by.
    pub(super) scrolled: usize,
    pub(super) rate: f64,
    /// Of the last second's queries, in parts of 1, if there were any.
    pub(super) hit_rate: Option<f64>,
    pub(super) missed: u64,
}

impl Row {
    pub(super) fn rate(&self) -> f64 {
        self.now.queries as f64 / self.seconds
    }

    /// On average, in milliseconds.
    pub(super) fn latency(&self) -> f64 {
        self.total.latency_ms / self.total.queries.max(1) as f64
    }
}

impl Order {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Total => "total",
            Self::Plaintext => "plaintext",
            Self::Failed => "failed",
            Self::Latency => "latency",
            Self::Name => "name",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Rate => Self::Total,
            Self::Total => Self::Plaintext,
            Self::Plaintext => Self::Failed,
            Self::Failed => Self::Latency,
            Self::Latency => Self::Name,
            Self::Name => Self::Rate,
        }
    }

    /// What is first is greatest.
    fn rank(self, row: &Row) -> f64 {
        match self {
            Self::Rate => row.rate(),
            Self::Total => row.total.queries as f64,
            Self::Plaintext => row.total.plaintext as f64,
            Self::Failed => row.total.failed as f64,
            Self::Latency => row.latency(),
            Self::Name => 0.0,
        }
    }
}

impl Model {
    pub(super) fn new(colours: bool) -> Self {
        Self {
            colours,
            status: None,
            askers: HashMap::new(),
            names: HashMap::new(),
            latencies: HashMap::new(),
            order: Order::Rate,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            scrolled: 0,
            rate: 0.0,
            hit_rate: None,
            missed: 0,
        }
    }

    /// A second has passed.
    pub(super) fn counted(&mut self, count: Count) {
        if self.is_paused {
            return;
        }
        // The first says how it was.
        let seconds = count.seconds.max(0.001);
        let askers = count.askers.iter().map(|asker| {
            let kind = match asker.who.as_ref().map(|who| who.kind) {
                Some(Kind::Container) => "container",
                Some(Kind::Pod) => "pod",
                Some(Kind::Unit) => "unit",
                Some(Kind::Other) => "cgroup",
                None => "client",
            };
            (asker.name(), kind, asker.sums)
        });
        update(&mut self.askers, askers, seconds);
        let names = count.names.iter().map(|name| (name.name.clone(), "", name.sums));
        update(&mut self.names, names, seconds);
        for upstream in &count.status.upstreams {
            let history = self.latencies.entry(upstream.address.clone()).or_default();
            history.extend(upstream.latency_seconds);
            history.drain(..history.len().saturating_sub(HISTORY));
        }
        let queries: u64 = count.askers.iter().map(|asker| asker.sums.queries).sum();
        let cached: u64 = count.askers.iter().map(|asker| asker.sums.cached).sum();
        self.rate = queries as f64 / seconds;
        self.hit_rate = (queries > 0).then(|| cached as f64 / queries as f64);
        self.missed += count.missed;
        self.status = Some(count.status);
    }

    /// Somebody has pressed a key.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most keys mean nothing")]
    pub(super) fn key(&mut self, key: KeyEvent) -> Flow {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Flow::End;
        }
        if self.is_typing {
            self.typed(key.code);
            return Flow::On;
        }
        match key.code {
            KeyCode::Char('q') => return Flow::End,
            KeyCode::Esc if self.filter.is_empty() => return Flow::End,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Down | KeyCode::Char('j') => self.scrolled += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageDown => self.scrolled += 10,
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(10),
            KeyCode::Home => self.scrolled = 0,
            _ => {}
        }
        self.scrolled = self.scrolled.min(self.askers.len().max(self.names.len()));
        Flow::On
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most keys mean nothing")]
    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(c) if self.filter.chars().count() < MAX_FILTER && !c.is_control() => {
                self.filter.push(c);
            }
            _ => {}
        }
        self.scrolled = 0;
    }

    pub(super) fn askers(&self) -> Vec<&Row> {
        self.rows(&self.askers)
    }

    pub(super) fn names(&self) -> Vec<&Row> {
        self.rows(&self.names)
    }

    /// The latencies of an upstream, the last one last.
    pub(super) fn latencies(&self, address: &str) -> impl DoubleEndedIterator<Item = f64> {
        self.latencies.get(address).into_iter().flatten().copied()
    }

    fn rows<'a>(&self, rows: &'a HashMap<String, Row>) -> Vec<&'a Row> {
        let filter = self.filter.to_lowercase();
        let shown = rows.values().filter(|row| row.name.to_lowercase().contains(&filter));
        let mut shown: Vec<_> = shown.collect();
        shown.sort_by(|a, b| {
            let ranks = self.order.rank(b).total_cmp(&self.order.rank(a));
            ranks
                .then_with(|| b.total.queries.cmp(&a.total.queries))
                .then_with(|| a.name.cmp(&b.name))
        });
        if self.order == Order::Name {
            shown.sort_by(|a, b| a.name.cmp(&b.name));
        }
        shown
    }
}

fn update(
    rows: &mut HashMap<String, Row>,
    counted: impl Iterator<Item = (String, &'static str, Sums)>,
    seconds: f64,
) {
    for row in rows.values_mut() {
        (row.now, row.seconds) = (Sums::default(), seconds);
    }
    for (name, kind, sums) in counted {
        let row = rows.entry(name.clone()).or_insert_with(|| Row {
            name,
            kind,
            now: Sums::default(),
            seconds,
            total: Sums::default(),
        });
        row.now += sums;
        row.total += sums;
    }
    if rows.len() > MAX_ROWS {
        let mut totals: Vec<_> = rows.values().map(|row| row.total.queries).collect();
        totals.sort_unstable_by_key(|total| std::cmp::Reverse(*total));
        let least = totals[MAX_ROWS / 2];
        rows.retain(|_, row| row.now.queries > 0 || row.total.queries > least);
    }
}
