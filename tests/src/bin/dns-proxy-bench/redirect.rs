//! `dns-proxy-bench redirect`: what the kernel programs add to a system call.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_common::Token;
use dns_proxy_tests::{bpf::Counting, require_root_and_bpf};

use crate::{
    load::{Call, LISTENER, OTHER},
    states::{NAMESERVER, Stand, State},
    stats::Spread,
};

/// How often each state is put up and measured, unless told otherwise.
pub(crate) const ROUNDS: usize = 21;
/// Fewer say nothing.
const MIN_ROUNDS: usize = 7;
/// What redirection may add, in nanoseconds (issue: redirect cost).
const TARGET: f64 = 500.0;

/// What is measured in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Connect,
    Sendto,
    RoundTrip,
    OtherConnect,
    OtherSendto,
    Wire,
}

impl Column {
    const DNS: [Self; 3] = [Self::Connect, Self::Sendto, Self::RoundTrip];
    const OTHER: [Self; 3] = [Self::OtherConnect, Self::OtherSendto, Self::Wire];
    const ALL: [Self; 6] = [
        Self::Connect,
        Self::Sendto,
        Self::RoundTrip,
        Self::OtherConnect,
        Self::OtherSendto,
        Self::Wire,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Connect | Self::OtherConnect => "socket+connect+close",
            Self::Sendto => "sendto",
            Self::RoundTrip => "new-socket round trip",
            Self::OtherSendto => "sendto, loopback",
            Self::Wire => "sendto, out of eth0",
        }
    }

    /// Whether the column means something in this state.
    fn is_for(self, state: State) -> bool {
        match (self, state) {
            // A datagram for the daemon wakes the daemon, which nothing in the other states does.
            (column, State::Daemon) => column == Self::Connect,
            (column, State::Straight) => Self::DNS.contains(&column),
            _ => true,
        }
    }
}

/// Nanoseconds, by round, state and column; NaN where nothing is measured.
struct Figures(Vec<[[f64; Column::ALL.len()]; State::ALL.len()]>);

pub(crate) fn run(rounds: usize) -> Result<()> {
    ensure!(rounds >= MIN_ROUNDS, "at least {MIN_ROUNDS} rounds");
    require_root_and_bpf();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut stand = Stand::new()?;
    // Never read: once it is full every datagram takes the same way.
    let gateway = stand.gateway();
    let sink = stand.host().run(|| UdpSocket::bind((gateway, OTHER)))?.context("the sink")?;

    let mut figures = Figures(Vec::new());
    for round in 0..rounds {
        let mut row = [[f64::NAN; Column::ALL.len()]; State::ALL.len()];
        // Another one is first in each round, so that none always comes after the same.
        for step in 0..State::ALL.len() {
            let at = (round + step) % State::ALL.len();
            let state = State::ALL[at];
            row[at] = measure(&mut stand, state)
                .with_context(|| format!("round {round}, {}", state.name()))?;
        }
        figures.0.push(row);
    }
    drop(sink);
    report(&figures, rounds)?;
    run_counters(&mut stand)
}

fn measure(stand: &mut Stand, state: State) -> Result<[f64; Column::ALL.len()]> {
    let put = stand.put(state)?;
    // Once for nothing: what was just put up, and a core that was idle meanwhile, is cold.
    one(stand, state, Column::Connect)?;
    let mut row = [f64::NAN; Column::ALL.len()];
    for column in Column::ALL {
        if column.is_for(state) {
            row[column as usize] =
                one(stand, state, column).with_context(|| column.name().to_owned())?;
        }
    }
    put.take_away()?;
    Ok(row)
}

fn one(stand: &mut Stand, state: State, column: Column) -> Result<f64> {
    let listener = match state {
        State::Straight | State::Redirected | State::Nested | State::Unguarded | State::Nft => {
            LISTENER
        }
        State::Nothing | State::Idle | State::NotSelected | State::Daemon => 53,
    };
    let nameserver = if state == State::Straight {
        SocketAddrV4::new(Ipv4Addr::from(Token(1).v4()), LISTENER)
    } else {
        SocketAddrV4::new(NAMESERVER, 53)
    };
    let other = SocketAddrV4::new(NAMESERVER, OTHER);
    let wire = SocketAddrV4::new(stand.gateway(), OTHER);
    let (call, to, answer) = match column {
        Column::Connect => (Call::Connect, nameserver, listener),
        Column::Sendto => (Call::Sendto, nameserver, listener),
        Column::RoundTrip => (Call::RoundTrip, nameserver, listener),
        Column::OtherConnect => (Call::Connect, other, OTHER),
        Column::OtherSendto => (Call::Sendto, other, OTHER),
        Column::Wire => (Call::Sendto, wire, OTHER),
    };
    stand.load.measure(call, to, answer)
}

impl Figures {
    fn of(&self, state: State, column: Column) -> Spread {
        Spread::of(self.0.iter().map(|round| round[state as usize][column as usize]))
    }

    /// What a state adds to another, each round for itself: what slows a whole round down cancels
    /// out.
    fn added(&self, state: State, to: State, column: Column) -> Spread {
        let column = column as usize;
        let added = |round: &[[f64; Column::ALL.len()]; State::ALL.len()]| {
            round[state as usize][column] - round[to as usize][column]
        };
        Spread::of(self.0.iter().map(added))
    }
}

fn report(figures: &Figures, rounds: usize) -> Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!(
        "Linux {}; one thread on one core, both ends of loopback UDP over IPv4.",
        kernel.trim()
    );
    println!(
        "Medians (and quartiles) of {rounds} rounds that alternate all states; ns, added to `nothing` \
         of the same round.\n"
    );
    table("Port 53", figures, Column::DNS);
    table("Other ports", figures, Column::OTHER);

    for column in Column::DNS {
        let added = |state, to| figures.added(state, to, column).median;
        let programs = added(State::Redirected, State::Straight);
        let target = format!("target < {TARGET:.0} ns {}", met(programs < TARGET));
        // Both end at a loopback address, so both are set against the same nameserver's.
        let (ours, nft) =
            (added(State::Redirected, State::Nothing), added(State::Nft, State::Nothing));
        let below = if column == Column::Connect {
            "nft sees packets, and a connect sends none".to_owned()
        } else {
            format!("in all {ours:+.0}, below nft's {nft:+.0} {}", met(ours < nft))
        };
        println!("{:<22} the programs add {programs:+.0} ns: {target}; {below}", column.name());
    }
    for column in Column::OTHER {
        let [ours, idle] = [State::Redirected, State::Idle]
            .map(|state| figures.added(state, State::Nothing, column).median);
        println!(
            "{:<22} on other ports {ours:+.0} ns, where empty programs add {idle:+.0} ns",
            column.name()
        );
    }
    Ok(())
}

fn table(title: &str, figures: &Figures, columns: [Column; 3]) {
    let header: String = columns.iter().map(|column| format!("  {:>27}", column.name())).collect();
    println!("{title:<23}{header}");
    for state in State::ALL {
        if !columns.iter().any(|column| column.is_for(state)) {
            continue;
        }
        let cells: String = columns.map(|column| cell(figures, state, column)).concat();
        println!("{:<23}{cells}", state.name());
    }
    println!();
}

fn cell(figures: &Figures, state: State, column: Column) -> String {
    let cell = if !column.is_for(state) {
        String::new()
    } else if state == State::Nothing {
        format!("{:.0}       ", figures.of(state, column).median)
    } else {
        let Spread { low, median, high } = figures.added(state, State::Nothing, column);
        let nothing = figures.of(State::Nothing, column).median;
        format!("{median:+.0} ({low:+.0} {high:+.0}) x{:.2}", 1.0 + median / nothing)
    };
    format!("  {cell:>27}")
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// The programs' own time, as the kernel counts it, in a pass of its own: counting costs.
fn run_counters(stand: &mut Stand) -> Result<()> {
    let counting = match Counting::start() {
        Ok(counting) => counting,
        Err(error) => {
            println!("\nno run counters: {error:#}");
            return Ok(());
        }
    };
    println!(
        "\nns a run, by the kernel's run counters (which count themselves, some 20 ns a run):"
    );
    for state in [State::Idle, State::Redirected, State::Nested, State::NotSelected] {
        let put = stand.put(state)?;
        for (what, columns) in [("port 53", Column::DNS), ("other ports", Column::OTHER)] {
            let before = counting.read()?;
            for column in columns {
                one(stand, state, column)?;
            }
            let runs = counting.since(&before)?;
            let runs: Vec<String> =
                runs.iter().map(|run| format!("{} {:.0}", run.name, run.average())).collect();
            println!("{:<23}  {what:<11}  {}", state.name(), runs.join(", "));
        }
        put.take_away()?;
    }
    Ok(())
}
