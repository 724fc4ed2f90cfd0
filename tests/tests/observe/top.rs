//! `dns-proxy top` on a real terminal: tmux's.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Daemon, Stage, clients::dig, eventually, process::output};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(10);

/// A terminal with a shell in it, on a server of its own that is gone when this is dropped.
struct Terminal {
    dir: tempfile::TempDir,
}

impl Terminal {
    /// In which a command runs; afterwards it says with what, and how the terminal is.
    fn run(width: u16, height: u16, command: &str) -> Result<Self> {
        let terminal = Self { dir: tempfile::tempdir()? };
        let (width, height) = (width.to_string(), height.to_string());
        let script = format!("printf 'before\\n'; {command}; echo ended with $?; stty -a; cat");
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, "sh", "-c", &script])?;
        Ok(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(self.dir.path().join("tmux")).args(["-f", "/dev/null"]);
        command.env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
        output(command.args(args)).context("if there is no tmux: cargo xtask setup")
    }

    fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    fn keys(&self, keys: &str) -> Result<()> {
        self.tmux(&["send-keys", keys]).map(drop)
    }

    /// Waits until something is to be seen.
    fn shows(&self, wanted: &str) -> Result<()> {
        let is_there = || self.screen().is_ok_and(|screen| screen.contains(wanted));
        ensure!(eventually(LIMIT, is_there), "no {wanted:?} in:\n{}", self.screen()?);
        Ok(())
    }

    /// The terminal is as it was: what was to be seen is there again, and keys are echoed.
    fn is_restored(&self, status: i32) -> Result<()> {
        self.shows(&format!("ended with {status}"))?;
        let screen = self.screen()?;
        ensure!(screen.contains("before"), "another screen:\n{screen}");
        for setting in [" icanon", " echo "] {
            ensure!(screen.contains(setting) && !screen.contains(&setting.replacen(' ', " -", 1)));
        }
        let cursor = self.tmux(&["display-message", "-p", "#{cursor_flag} #{alternate_on}"])?;
        ensure!(cursor.trim() == "1 0", "cursor and other screen: {cursor}");
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _: Result<_> = self.tmux(&["kill-server"]);
    }
}

fn top(daemon: &Daemon) -> Result<String> {
    let program = Daemon::program()?;
    Ok(format!("{} top --control {}", program.display(), daemon.control().display()))
}

#[test]
fn top_shows_askers_and_names_at_any_size_and_ends_cleanly() -> Result<()> {
    let stage = Stage::new()?;
    let (one, two) = (stage.world.container("one")?, stage.world.container("two")?);
    let args = ["--cache-size=8MiB", "--route=lab.test=original"];
    let daemon = stage.daemon_with(&[&one, &two], &args)?;
    let terminal = Terminal::run(140, 30, &top(&daemon)?)?;
    terminal.shows("intercepted")?;
    for name in ["a.example.test", "a.example.test", "x.lab.test"] {
        dig(&one, &[name, "@8.8.8.8"])?;
    }
    dig(&two, &["b.example.test", "@8.8.8.8"])?;
    let ends = ["one", "two"].map(|name| format!("/{name} "));
    let [path, other] = ends.each_ref().map(String::as_str);
    for wanted in [path, other, "a.example.test", "x.lab.test", "dns.test", "4 intercepted"] {
        terminal.shows(wanted)?;
    }
    terminal.shows("1 plaintext by route")?;
    let coloured = terminal.tmux(&["capture-pane", "-p", "-e"])?;
    let before = coloured.split("1 plaintext by route").next().unwrap_or_default();
    let sequence = before.rsplit('\u{1b}').next().unwrap_or_default();
    ensure!(["[31m", "[38;5;1m"].contains(&sequence), "not red: {sequence:?}");

    terminal.keys("s")?;
    terminal.shows("sort: total")?;
    terminal.keys("/")?;
    terminal.keys("two")?;
    terminal.keys("Enter")?;
    terminal.shows("/ filter: two")?;
    ensure!(!terminal.screen()?.contains(path), "{}", terminal.screen()?);
    terminal.keys("Escape")?;
    terminal.shows(path)?;

    for (width, height) in [(60, 15), (30, 8), (10, 3), (200, 50)] {
        let (w, h) = (width.to_string(), height.to_string());
        terminal.tmux(&["resize-window", "-x", &w, "-y", &h])?;
        terminal.shows(if width == 10 { "too small" } else { "dns-proxy 0" })?;
        let screen = terminal.screen()?;
        ensure!(screen.lines().all(|line| line.chars().count() <= width), "{screen}");
    }
    terminal.keys("q")?;
    terminal.is_restored(0)
}

#[test]
fn the_terminal_is_restored_however_top_ends() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let command = top(&daemon)?;

    let interrupted = Terminal::run(80, 24, &command)?;
    interrupted.shows("q quit")?;
    interrupted.keys("C-c")?;
    interrupted.is_restored(0)?;

    let terminated = Terminal::run(80, 24, &command)?;
    terminated.shows("q quit")?;
    let shell = terminated.tmux(&["display-message", "-p", "#{pane_pid}"])?;
    let children = output(Command::new("ps").args(["-o", "pid=", "--ppid", shell.trim()]))?;
    kill(Pid::from_raw(children.trim().parse()?), Signal::SIGTERM)?;
    terminated.is_restored(0)?;

    let orphaned = Terminal::run(80, 24, &command)?;
    orphaned.shows("q quit")?;
    thread::sleep(Duration::from_millis(200));
    ensure!(daemon.stop()?.success());
    orphaned.is_restored(1)?;
    orphaned.shows("the daemon has ended")
}

#[test]
fn without_a_terminal_top_says_what_else_there_is() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    let said = daemon.ask(&["top"])?;
    ensure!(said.status.code() == Some(1));
    ensure!(String::from_utf8_lossy(&said.stderr).contains("dns-proxy watch"), "{said:?}");
    Ok(())
}
