//! `dns-proxy top`: who asks how much, what for, and through whom, on a screen of its own.
//!
//! ```text
//! control socket ─┐
//! keys, size ─────┼─► model (what is to be seen) ─► screen (how)
//! signals ────────┘
//! ```
//! The only owner of ratatui. `model` and `screen` know no terminal, and no socket.

mod model;
mod screen;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use anyhow::{Context as _, Result, bail};
use model::{Flow, Model};
use nix::sys::signal::{SigSet, Signal};
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};

use crate::{
    control_socket::{
        Request,
        client::{self, Answer},
    },
    observe::tally::Count,
};

/// How often there is something new, in seconds.
const PERIOD: f64 = 1.0;

/// What may happen.
enum Happening {
    Counted(Box<Count>),
    /// The daemon says no more.
    Ended(String),
    Key(KeyEvent),
    Resized,
    /// Somebody wants us to end.
    Signal,
}

/// Shows the screen until somebody has seen enough.
///
/// # Errors
/// No daemon, no terminal, or the daemon has ended.
pub fn top(control: &Path) -> Result<()> {
    let counts = client::ask(control, &Request::Count { seconds: PERIOD })?;
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("top needs a terminal; `dns-proxy status` and `dns-proxy watch` do without");
    }
    let (sender, happenings) = channel();
    // Threads take the mask from here.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    spawn(&sender, move |sender| wait_for(&signals, sender));
    spawn(&sender, |sender| read_counts(counts, sender));
    spawn(&sender, read_keys);
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // From here on the terminal is ours, until `restore`, in a panic too.
    let mut terminal = ratatui::try_init().context("cannot take the terminal over")?;
    let ended = run(&mut terminal, &happenings, colours);
    ratatui::restore();
    ended
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    happenings: &Receiver<Happening>,
    colours: bool,
) -> Result<()> {
    let mut model = Model::new(colours);
    loop {
        terminal.draw(|frame| screen::draw(frame, &model)).context("cannot draw")?;
        match happenings.recv()? {
            Happening::Counted(count) => model.counted(*count),
            Happening::Ended(reason) => bail!(reason),
            Happening::Resized => {}
            Happening::Signal => return Ok(()),
            Happening::Key(key) => match model.key(key) {
                Flow::On => {}
                Flow::End => return Ok(()),
            },
        }
    }
}

fn spawn(sender: &Sender<Happening>, work: impl FnOnce(&Sender<Happening>) + Send + 'static) {
    let sender = sender.clone();
    // They end with the process.
    thread::spawn(move || work(&sender));
}

fn wait_for(signals: &SigSet, sender: &Sender<Happening>) {
    if signals.wait().is_ok() {
        let _: Result<(), _> = sender.send(Happening::Signal);
    }
}

fn read_counts(mut counts: Answer, sender: &Sender<Happening>) {
    loop {
        let happening = match counts.line() {
            Ok(Some(count)) => Happening::Counted(Box::new(count)),
            Ok(None) => Happening::Ended("the daemon has ended".to_owned()),
            Err(error) => Happening::Ended(error.to_string()),
        };
        let is_last = matches!(happening, Happening::Ended(_));
        if sender.send(happening).is_err() || is_last {
            return;
        }
    }
}

fn read_keys(sender: &Sender<Happening>) {
    while let Ok(event) = event::read() {
        let happening = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => Happening::Key(key),
            Event::Resize(..) => Happening::Resized,
            Event::Key(_)
            | Event::Mouse(_)
            | Event::Paste(_)
            | Event::FocusGained
            | Event::FocusLost => continue,
        };
        if sender.send(happening).is_err() {
            return;
        }
    }
    let _: Result<(), _> = sender.send(Happening::Signal);
}
