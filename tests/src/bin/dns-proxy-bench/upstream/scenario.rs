//! What is measured, and what ours is to reach.

use std::time::Duration;

use super::{
    clients::{Load, Transport},
    figures::Figures,
    server::{End, Orders},
};

/// Something that happens to the first upstream a second into the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// It closes everything and refuses connections for four seconds.
    Refuse,
    /// It closes everything and never comes back.
    Kill,
    /// It neither reads nor accepts any more.
    Freeze,
    /// It closes the idle connections, before anything is asked.
    IdleClose,
}

/// One row of the table.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) orders: Orders,
    pub(super) with_late: bool,
    pub(super) transport: Transport,
    pub(super) load: Load,
    pub(super) time: Duration,
    pub(super) upstreams: usize,
    pub(super) event: Option<Event>,
    /// One query is all that is asked.
    pub(super) single: bool,
    pub(super) target: Target,
}

/// Says what is to be reached, and whether it was: of ours, and of the best peer where it counts.
pub(super) type Target = fn(&Figures, &[Figures]) -> (String, bool);

const TRIP: Duration = Duration::from_millis(20);
const SECONDS: fn(u64) -> Duration = Duration::from_secs;

fn orders(round_trip: Duration) -> Orders {
    Orders { round_trip, ..Orders::default() }
}

fn ending(after: usize, end: End) -> Orders {
    Orders { end: Some((after, end)), ..orders(TRIP) }
}

fn best(peers: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    peers.iter().map(of).fold(f64::NAN, f64::max)
}

/// Not so if there is no peer to compare with.
fn below(ratio: f64, target: f64) -> bool {
    ratio < target
}

fn p99_below(ours: &Figures, limit: f64) -> (String, bool) {
    (format!("0 lost, p99 <= {limit} ms"), ours.lost == 0.0 && ours.p99 <= limit)
}

/// A steady thousand a second, 20 ms away, all well.
fn steady(name: &'static str, target: Target) -> Scenario {
    Scenario {
        name,
        orders: orders(TRIP),
        with_late: false,
        transport: Transport::Udp,
        load: Load::Pace(1_000),
        time: SECONDS(4),
        upstreams: 1,
        event: None,
        single: false,
        target,
    }
}

/// All of them, in the order of the table.
pub(super) fn all() -> Vec<Scenario> {
    vec![
        Scenario {
            orders: orders(Duration::ZERO),
            load: Load::Window(100),
            time: SECONDS(3),
            ..steady("uncached, no delay, window 100", |ours, peers| {
                let ratio = ours.rate / best(peers, |peer| peer.rate);
                let text = format!("<= 9 us a query; x{ratio:.2} the best peer's rate (x2)");
                (text, ours.cpu <= 9.0 && !below(ratio, 2.0))
            })
        },
        Scenario {
            load: Load::Window(2_000),
            time: SECONDS(3),
            ..steady("uncached, 20 ms, window 2,000", |ours, peers| {
                let ratio = ours.rate / best(peers, |peer| peer.rate);
                let text = format!("0 lost; x{ratio:.2} the best peer's rate (x1.7)");
                (text, ours.lost == 0.0 && !below(ratio, 1.7))
            })
        },
        steady("1,000/s at 20 ms", |ours, _| {
            ("p50 20.1, p99 <= 21.5 ms".to_owned(), ours.p50 <= 20.15 && ours.p99 <= 21.5)
        }),
        Scenario {
            orders: Orders { late: Duration::from_millis(300), ..orders(TRIP) },
            with_late: true,
            ..steady("1 % of answers 300 ms late", |ours, _| {
                let text = "p99 of the others <= 22 ms, late ones answered, none asked again";
                let good = ours.p99 <= 22.0 && ours.lost == 0.0 && ours.asked_again == 0.0;
                (text.to_owned(), good)
            })
        },
        Scenario {
            single: true,
            ..steady("first answer", |ours, _| ("<= 63 ms".to_owned(), ours.p50 <= 63.0))
        },
        Scenario {
            single: true,
            event: Some(Event::IdleClose),
            ..steady("first answer after idle close", |ours, _| {
                ("<= 63 ms".to_owned(), ours.p50 <= 63.0)
            })
        },
        Scenario {
            orders: ending(100, End::Close),
            ..steady("close every 100 answers", |ours, _| p99_below(ours, 65.0))
        },
        Scenario {
            orders: ending(100, End::Reset),
            ..steady("RST every 100 answers", |ours, _| p99_below(ours, 65.0))
        },
        Scenario {
            orders: ending(1_000, End::Silence),
            ..steady("silent after 1,000 answers", |ours, _| p99_below(ours, 105.0))
        },
        Scenario {
            orders: ending(1_000, End::Junk),
            ..steady("junk after 1,000 answers", |ours, _| p99_below(ours, 65.0))
        },
        Scenario {
            time: SECONDS(8),
            event: Some(Event::Refuse),
            ..steady("refusing for 4 s", |ours, _| {
                ("back to normal within 100 ms".to_owned(), ours.recovery <= 100.0)
            })
        },
        Scenario {
            upstreams: 2,
            event: Some(Event::Kill),
            ..steady("two upstreams, one killed", |ours, _| p99_below(ours, 200.0))
        },
        Scenario {
            upstreams: 2,
            event: Some(Event::Freeze),
            ..steady("two upstreams, one frozen", |ours, _| p99_below(ours, 200.0))
        },
        Scenario {
            orders: orders(Duration::ZERO),
            transport: Transport::TcpKept(10),
            load: Load::Window(100),
            time: SECONDS(3),
            ..steady("TCP clients, kept open", |ours, _| {
                ("<= 6 us a query".to_owned(), ours.cpu <= 6.0)
            })
        },
        Scenario {
            orders: orders(Duration::ZERO),
            transport: Transport::TcpOnce,
            load: Load::Window(20),
            time: SECONDS(3),
            ..steady("TCP clients, one query each", |ours, _| {
                ("<= 34 us a query".to_owned(), ours.cpu <= 34.0)
            })
        },
    ]
}
