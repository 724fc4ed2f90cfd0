//! What a person reads: numbered acts, short lines, marks; and what was wrong, to say at the end.

use std::{
    env,
    io::{self, IsTerminal as _, Stdout, Write as _},
    time::Duration,
};

use anyhow::Result;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";

/// The story so far.
#[derive(Debug)]
pub(crate) struct Report {
    out: Stdout,
    colour: bool,
    acts: usize,
    failed: Vec<String>,
}

/// Something that must be so.
#[derive(Clone, Debug)]
pub(crate) struct Check {
    /// Whether it is.
    pub(crate) holds: bool,
    /// Its line in the story.
    pub(crate) says: String,
    /// What to say at the end if it is not.
    pub(crate) otherwise: String,
}

impl Report {
    /// An empty one; coloured on a terminal, unless `NO_COLOR` is set (no-color.org).
    pub(crate) fn on(out: Stdout) -> Self {
        let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colour: out.is_terminal() && !no_color, out, acts: 0, failed: Vec::new() }
    }

    /// What all of it is about.
    pub(crate) fn title(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(BOLD, text);
        writeln!(self.out, "{text}")
    }

    /// Begins an act.
    pub(crate) fn act(&mut self, text: &str) -> io::Result<()> {
        self.acts += 1;
        let text = self.paint(BOLD, &format!("{}. {text}", self.acts));
        writeln!(self.out, "\n{text}")
    }

    /// A line.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "     {text}")
    }

    /// The first line of a table.
    pub(crate) fn header(&mut self, text: &str) -> io::Result<()> {
        let text = self.paint(DIM, text);
        self.line(&text)
    }

    /// A line that must be so.
    pub(crate) fn check(&mut self, check: &Check) -> Result<()> {
        let mark = if check.holds {
            self.paint(GREEN, "✓")
        } else {
            self.failed.push(check.otherwise.clone());
            self.paint(RED, "✗")
        };
        Ok(writeln!(self.out, "   {mark} {}", check.says)?)
    }

    /// The end; says whether all was as it should be.
    pub(crate) fn end(mut self, told: Result<()>, took: Duration) -> io::Result<bool> {
        if let Err(error) = told {
            self.failed.push(format!("{error:#}"));
        }
        writeln!(self.out, "\nIt took {:.1} s.", took.as_secs_f64())?;
        for failed in &self.failed {
            let text = self.paint(RED, &format!("demo: failed: {failed}"));
            writeln!(&self.out, "{text}")?;
        }
        if self.failed.is_empty() {
            let text = "demo: everything above was measured, and is as it should be";
            let text = self.paint(GREEN, text);
            writeln!(self.out, "{text}")?;
        }
        Ok(self.failed.is_empty())
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A time, to read.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// A command as a user would type it.
pub(crate) fn shell_words(words: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=#@,+".contains(c);
    let quoted = words.iter().map(|word| {
        if !word.is_empty() && !word.starts_with('#') && word.chars().all(plain) {
            (*word).to_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_if_a_shell_would_change_them() {
        let words = ["run", "--upstream", "1.1.1.1:853#dns.test", "--cgroup=a/*", "#", "it's", ""];
        assert_eq!(
            shell_words(&words),
            r"run --upstream 1.1.1.1:853#dns.test '--cgroup=a/*' '#' 'it'\''s' ''"
        );
    }
}
