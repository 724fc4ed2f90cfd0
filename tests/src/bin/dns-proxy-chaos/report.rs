//! The table.

use crate::scene::Tally;

/// What came of one fault.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) tally: Tally,
    /// Packets in plaintext on any interface of the host.
    pub(crate) leaked: usize,
    /// Pins and routes after the daemon has stopped.
    pub(crate) leftovers: usize,
    /// Resident memory of the daemon, in bytes, before and after.
    pub(crate) memory: Option<(u64, u64)>,
    /// What was promised held.
    pub(crate) good: bool,
}

pub(crate) fn print_head() {
    println!(
        "{:<58} {:>7} {:>9} {:>9} {:>7} {:>6} {:>5} {:>9} {:>9}  {:>11}",
        "what",
        "asked",
        "encrypted",
        "plaintext",
        "refused",
        "failed",
        "lost",
        "leaked",
        "left",
        "MiB"
    );
}

impl Row {
    pub(crate) fn print(&self) {
        let Tally { asked, encrypted, plaintext, refused, failed, lost } = self.tally;
        let memory = self.memory.map_or_else(String::new, |(before, after)| {
            format!("{:.1} {:.1}", mebibytes(before), mebibytes(after))
        });
        println!(
            "{:<58} {asked:>7} {encrypted:>9} {plaintext:>9} {refused:>7} {failed:>6} {lost:>5} \
             {:>9} {:>9}  {memory:>11}{}",
            self.what,
            self.leaked,
            self.leftovers,
            if self.good && self.leftovers == 0 { "" } else { "  NOT AS PROMISED" }
        );
    }

    pub(crate) fn is_good(&self) -> bool {
        self.good && self.leftovers == 0
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
