//! Where queries come together for those who want to see them.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval},
};

use super::{Line, Seen, filter::Filter, sink::Sink, tally::Tally, who::Who};
use crate::{
    datapath::{
        tap::{Batch, Interest, Record},
        worker::Worker,
    },
    status::gather::Gatherer,
};

/// How often the taps are emptied.
const PERIOD: Duration = Duration::from_millis(20);
/// Octets that may wait for one watcher.
const MAX_WAITING: usize = 1 << 20;

/// Takes what workers show, and gives it to whom it concerns.
pub struct Hub {
    workers: Arc<[Worker]>,
    watchers: RefCell<Vec<Weak<Watcher>>>,
    tallies: RefCell<Vec<Weak<RefCell<Tally>>>>,
    sinks: Vec<Box<dyn Sink>>,
    who: RefCell<Who>,
    /// Wakes the loop.
    wanted: Notify,
}

/// Somebody who looks, until it is dropped.
pub struct Watcher {
    filter: Filter,
    lines: RefCell<VecDeque<Vec<u8>>>,
    waiting: Cell<usize>,
    dropped: Cell<u64>,
    more: Notify,
}

impl Hub {
    /// One that gives everything to the sinks.
    pub fn new(workers: Arc<[Worker]>, gatherer: Arc<Gatherer>, sinks: Vec<Box<dyn Sink>>) -> Self {
        let who = RefCell::new(Who::new(gatherer));
        let (watchers, tallies) = (RefCell::default(), RefCell::default());
        Self { workers, watchers, tallies, sinks, who, wanted: Notify::new() }
    }

    /// Lets somebody look.
    pub fn watch(&self, filter: Filter) -> Rc<Watcher> {
        let watcher = Rc::new(Watcher {
            filter,
            lines: RefCell::default(),
            waiting: Cell::new(0),
            dropped: Cell::new(0),
            more: Notify::new(),
        });
        self.watchers.borrow_mut().push(Rc::downgrade(&watcher));
        self.interest();
        self.wanted.notify_one();
        watcher
    }

    /// Counts from now on, as long as somebody has the tally.
    pub fn count(&self) -> Rc<RefCell<Tally>> {
        let tally = Rc::default();
        self.tallies.borrow_mut().push(Rc::downgrade(&tally));
        self.interest();
        self.wanted.notify_one();
        tally
    }

    /// Runs for good; it sleeps while nobody looks.
    pub async fn run(&self) {
        loop {
            let mut period = interval(PERIOD);
            period.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while self.interest() != Interest::None {
                period.tick().await;
                self.turn();
            }
            self.wanted.notified().await;
        }
    }

    /// Reopens what is kept in files.
    pub fn reopen(&self) {
        self.sinks.iter().for_each(|sink| sink.reopen());
    }

    /// How many records each sink has dropped.
    pub fn dropped(&self) -> Vec<(&'static str, u64)> {
        self.sinks.iter().map(|sink| (sink.name(), sink.dropped())).collect()
    }

    /// Tells the workers how much there is to be shown.
    fn interest(&self) -> Interest {
        let mut watchers = self.watchers.borrow_mut();
        watchers.retain(|watcher| watcher.strong_count() > 0);
        let mut tallies = self.tallies.borrow_mut();
        tallies.retain(|tally| tally.strong_count() > 0);
        let nobody = watchers.is_empty() && tallies.is_empty();
        let of_watchers = if nobody { Interest::None } else { Interest::Queries };
        let interest = self.sinks.iter().map(|sink| sink.interest()).fold(of_watchers, Ord::max);
        self.workers.iter().for_each(|worker| worker.tap().open(interest));
        interest
    }

    /// Takes what workers have shown, and gives it.
    pub fn turn(&self) {
        let watchers: Vec<_> = self.watchers.borrow().iter().filter_map(Weak::upgrade).collect();
        let tallies: Vec<_> = self.tallies.borrow().iter().filter_map(Weak::upgrade).collect();
        for worker in &*self.workers {
            let Batch { records, passed, dropped } = worker.tap().take();
            for record in &records {
                self.give(record, &watchers, &tallies);
            }
            for tally in &tallies {
                passed.iter().for_each(|passed| tally.borrow_mut().passed(passed));
                tally.borrow_mut().missed(dropped);
            }
            if dropped > 0 {
                watchers.iter().for_each(|watcher| watcher.missed(dropped));
                self.sinks.iter().for_each(|sink| sink.missed(dropped));
            }
        }
        watchers.iter().for_each(|watcher| watcher.more.notify_one());
    }

    fn give(&self, record: &Record, watchers: &[Rc<Watcher>], tallies: &[Rc<RefCell<Tally>>]) {
        let mut wanted = watchers.iter().filter(|watcher| watcher.filter.takes(record)).peekable();
        if wanted.peek().is_none() && self.sinks.is_empty() && tallies.is_empty() {
            return;
        }
        let seen = Seen::of(record, self.who.borrow_mut().is(record.origin));
        self.sinks.iter().for_each(|sink| sink.take(record, &seen));
        tallies.iter().for_each(|tally| tally.borrow_mut().add(record, &seen));
        let mut line = None;
        for watcher in wanted.filter(|watcher| watcher.filter.takes_asker(&seen)) {
            let line = line.get_or_insert_with(|| line_of(&Line::Seen(Box::new(seen.clone()))));
            watcher.push(line);
        }
    }
}

impl Watcher {
    /// Waits for the next lines.
    pub async fn next(&self) -> Vec<u8> {
        loop {
            let mut text: Vec<u8> = self.lines.take().into_iter().flatten().collect();
            self.waiting.set(0);
            let dropped = self.dropped.replace(0);
            if dropped > 0 {
                text.extend(line_of(&Line::Dropped { dropped }));
            }
            if !text.is_empty() {
                return text;
            }
            self.more.notified().await;
        }
    }

    fn push(&self, line: &[u8]) {
        if self.waiting.get() + line.len() > MAX_WAITING {
            return self.missed(1);
        }
        self.waiting.update(|waiting| waiting + line.len());
        self.lines.borrow_mut().push_back(line.to_vec());
    }

    fn missed(&self, count: u64) {
        self.dropped.update(|dropped| dropped + count);
    }
}

fn line_of(line: &Line) -> Vec<u8> {
    // Strings and numbers can always be written.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
