//! The handling of the daemon, with a stand-in of a few lines: a Perl script that talks to the
//! service manager and logs as the daemon does.

use anyhow::{Result, ensure};
use dns_proxy_tests::{Daemon, Netns, require_root_and_bpf};
use nix::sys::signal::Signal;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);

/// Says READY, logs a namespace as ready, and as released when it gets a SIGUSR1.
const GOOD: &str = r#"
use Socket;
$| = 1;
my ($netns) = @ARGV;
$SIG{USR1} = sub { print "INFO namespace released netns=$netns\n" };
$SIG{TERM} = sub { print STDERR "bye\n"; exit 3 };
socket(my $s, AF_UNIX, SOCK_DGRAM, 0) or die;
send($s, "STATUS=starting\n", 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die;
send($s, "READY=1\nSTATUS=ready", 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET})) or die;
print "INFO namespace ready netns=$netns cgroup=/a\n";
print "environment ", join(",", grep { /^DNS_PROXY_/ } keys %ENV), "\n";
sleep 1 while 1;
"#;

fn start(netns: &Netns, script: &str) -> Result<Daemon> {
    let inode = netns.inode()?.to_string();
    Daemon::start_command(netns.command("perl"), &["-e", script, &inode])
}

#[test]
fn a_daemon_is_watched_from_start_to_stop() -> Result<()> {
    require_root_and_bpf();
    let netns = Netns::new()?;
    let daemon = start(&netns, GOOD)?;
    daemon.wait_until_serving(&netns)?;
    daemon.signal(Signal::SIGUSR1)?;
    daemon.wait_until_released(&netns)?;
    daemon.wait_for_log("environment", LIMIT)?;
    assert!(daemon.rss()? > 100_000);
    assert!(daemon.fds()? >= 3);
    let log = daemon.log().clone();
    assert_eq!(daemon.stop()?.code(), Some(3));
    assert!(log.wait_until(LIMIT, |lines| lines.iter().any(|line| line == "bye")));
    Ok(())
}

#[test]
fn a_daemon_that_ends_before_it_is_ready_shows_its_log() -> Result<()> {
    require_root_and_bpf();
    let error = start(&Netns::new()?, "print STDERR qq(no kernel\n); exit 2").expect_err("dead");
    let error = error.to_string();
    ensure!(error.contains("exit status: 2") && error.contains("no kernel"), "{error}");
    Ok(())
}

#[test]
fn a_killed_daemon_is_gone_when_the_call_returns() -> Result<()> {
    require_root_and_bpf();
    let daemon = start(&Netns::new()?, GOOD)?;
    let proc = format!("/proc/{}", daemon.pid());
    daemon.kill9()?;
    assert!(!std::path::Path::new(&proc).exists());
    Ok(())
}
