//! What the command line says: mistakes get exit code 2, name what is wrong and how to mend it;
//! what goes wrong on the machine gets 1.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{Daemon, Netns, PlainServer, Zone, process::output, require_root_and_bpf};

use crate::place::Place;

/// The configuration is wrong.
const USAGE: i32 = 2;
/// The configuration is fine, the machine is not.
const RUNTIME: i32 = 1;

/// A command line, perhaps with environment variables, and all that must be in the message.
struct Case<'a> {
    args: &'a str,
    variables: &'a [(&'a str, &'a str)],
    code: i32,
    said: &'a [&'a str],
}

const fn flags<'a>(args: &'a str, said: &'a [&'a str]) -> Case<'a> {
    Case { args, variables: &[], code: USAGE, said }
}

const fn variables<'a>(variables: &'a [(&'a str, &'a str)], said: &'a [&'a str]) -> Case<'a> {
    Case { args: "run --listen 127.0.0.1:53", variables, code: USAGE, said }
}

/// Runs each to its end; all that are not as they should be are reported together.
fn check(netns: &Netns, cases: &[Case<'_>]) -> Result<()> {
    let mut wrong = Vec::new();
    for case in cases {
        let mut command = netns.command(Daemon::program()?);
        command.envs(case.variables.iter().copied());
        let args: Vec<&str> = case.args.split_whitespace().collect();
        let (code, said) = run(command, &args)
            .with_context(|| format!("`{}` {:?}", case.args, case.variables))
            .unwrap_or_else(|error| (None, format!("{error:#}")));
        let missing: Vec<_> = case.said.iter().filter(|part| !said.contains(**part)).collect();
        if code != Some(case.code) || !missing.is_empty() {
            let (args, variables) = (case.args, case.variables);
            wrong.push(format!("`{args}` {variables:?}: {code:?}, lacks {missing:?}:\n{said}"));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    Ok(())
}

/// The exit code and all that was printed.
fn run(command: Command, args: &[&str]) -> Result<(Option<i32>, String)> {
    let mut daemon = Daemon::launch(command, args)?;
    let status = daemon.wait()?;
    let log = daemon.log().clone();
    // Its pipes are closed, but the threads that read them may still be at it.
    drop(daemon);
    let mut text = String::new();
    dns_proxy_tests::eventually(std::time::Duration::from_secs(1), || {
        let settled = !text.is_empty() && text == log.text();
        text = log.text();
        settled
    });
    Ok((status.code(), text))
}

#[test]
fn mistakes_on_the_command_line_are_named_with_their_remedy() -> Result<()> {
    require_root_and_bpf();
    let l = "run --listen 127.0.0.1:53";
    let upstream = |text: &str| format!("{l} --upstream {text}");
    let with = |text: &str| format!("{l} {text}");
    let forms = "ADDR[:PORT][#NAME]";
    let pin = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let lines: Vec<(String, Vec<&str>)> = vec![
        (String::new(), vec!["Usage:"]),
        ("fly".into(), vec!["fly", "--help"]),
        ("run".into(), vec!["--cgroup", "--help"]),
        (with("--fly"), vec!["--fly", "--help"]),
        (with("extra"), vec!["extra", "--help"]),
        (upstream("dns.quad9.net"), vec!["dns.quad9.net", "not an IP address", forms]),
        (upstream("dns.quad9.net"), vec!["put its address in front", "ADDR#NAME"]),
        (upstream("1.1.1"), vec!["1.1.1", forms]),
        (upstream("1.1.1.1:99999"), vec!["1.1.1.1:99999", forms]),
        (upstream("1.1.1.1:0"), vec!["1.1.1.1:0", "port 0"]),
        (upstream("[2620:fe::fe"), vec!["[2620:fe::fe", forms]),
        (upstream("https://1.1.1.1/dns-query"), vec!["https://1.1.1.1", "tls://"]),
        (upstream("quic://1.1.1.1"), vec!["quic://1.1.1.1", "tls://"]),
        (upstream("1.1.1.1#no_!name"), vec!["no_!name", "host name"]),
        (upstream("1.1.1.1,"), vec!["--upstream", forms]),
        (with("--upstream-timeout 2"), vec!["--upstream-timeout", "`2`", "such as 2s"]),
        (with("--upstream-timeout soon"), vec!["soon", "such as 2s"]),
        (with("--upstream-timeout=-1s"), vec!["`-1s`", "such as 2s"]),
        (with("--upstream-timeout 1ms"), vec!["1ms", "10ms", "60s"]),
        (with("--upstream-timeout 1h"), vec!["1h", "10ms", "60s"]),
        (with("--pin 1.1.1.1"), vec!["`1.1.1.1`", "ADDR[:PORT]=sha256/BASE64"]),
        (with("--pin one.one=sha256/AAAA"), vec!["sha256/AAAA", "32 octets"]),
        (with(&format!("--pin one.one={pin}")), vec!["`one.one`", "ADDR[:PORT]"]),
        (with(&format!("--pin 9.9.9.9={pin}")), vec!["9.9.9.9=sha256/", "no upstream is at"]),
        (with(&format!("--pin 1.1.1.1:8853={pin}")), vec!["1.1.1.1:8853=sha256/", "no upstream"]),
        (with("--profile lax"), vec!["lax", "strict", "opportunistic"]),
        (with("--tls-min 1.1"), vec!["1.1", "1.2", "1.3"]),
        (with("--workers 0"), vec!["0", "1..=1024"]),
        (with("--workers many"), vec!["many"]),
        (with("--log loud"), vec!["loud"]),
        (with("--route corp"), vec!["`corp`", "ZONE=TARGET"]),
        (with("--route =original"), vec!["a zone is missing", "corp.example"]),
        (with("--route *.corp=original"), vec!["`*.corp`", "without `*`"]),
        (with("--route a..b=original"), vec!["`a..b`", "empty label"]),
        (with("--route corp=orginal"), vec!["`orginal`", "original, ADDR[:PORT], tls://"]),
        (with("--route corp=ns.corp"), vec!["`ns.corp`", "ADDR[:PORT]"]),
        (with("--route corp=10.0.0.1:0"), vec!["`10.0.0.1:0`", "port 0"]),
        (with("--route corp=https://10.0.0.1"), vec!["https://10.0.0.1", "tls://"]),
        (with("--route a=refuse --route A=original"), vec!["--route", "`a` has two routes"]),
        (with("--route corp=127.0.0.1"), vec!["--route to 127.0.0.1:53 leads back to us"]),
        (
            "run --listen 0.0.0.0:53 --route a=127.0.0.1".into(),
            vec!["--listen 0.0.0.0:53 is there"],
        ),
        (with("--upstream 127.0.0.1:53"), vec!["--upstream 127.0.0.1:53 leads back to us"]),
        (with("--route corp=127.64.0.1:61053"), vec!["leads back to us", "stand for"]),
        ("run --unit getty@.service".into(), vec!["`getty@.service`", "getty@*.service"]),
        ("run --unit a/b".into(), vec!["`a/b`", "--cgroup"]),
        ("run --container a/b".into(), vec!["`a/b`", "not a name"]),
        ("run --container-label =x".into(), vec!["`=x`", "KEY=VALUE"]),
        ("run --pod-selector a=b=c".into(), vec!["`a=b=c`", "app=web"]),
        ("run --pod-namespace x --kubeconfig /missing".into(), vec!["/missing"]),
        ("run --container a --container-socket tcp://b".into(), vec!["tcp://b", "Unix socket"]),
        ("run --scope everything".into(), vec!["everything", "host", "kubernetes"]),
        ("exec --route corp -- true".into(), vec!["`corp`", "ZONE=TARGET"]),
        (with("--ca /missing/ca.pem"), vec!["/missing/ca.pem", "PEM"]),
        (with("--ca /"), vec!["--ca /", "PEM"]),
        (with("--ca /etc/hostname"), vec!["/etc/hostname", "PEM"]),
        (with("--no-system-roots"), vec!["--ca"]),
        (with("--exclude-cgroup a"), vec!["--cgroup"]),
        (with("--allow-from 10.0.0.0/99"), vec!["10.0.0.0/99"]),
        (with("--allow-from everyone"), vec!["everyone"]),
        ("run --allow-from 10.0.0.0/8 --cgroup /".into(), vec!["--listen"]),
        ("run --listen localhost:53".into(), vec!["localhost:53"]),
        ("run --listen 127.0.0.1".into(), vec!["127.0.0.1"]),
        ("run --listen 127.0.0.1:65536".into(), vec!["127.0.0.1:65536"]),
        ("run --cgroup a/../b".into(), vec!["a/../b", "below the root"]),
        ("run --cgroup a//b".into(), vec!["a//b", "below the root"]),
        ("run --cgroup a/**/b".into(), vec!["a/**/b", "one level"]),
        ("run --cgroup=".into(), vec!["--cgroup", "`/` selects everything"]),
        ("run --cgroup / --cgroup-root /tmp".into(), vec!["/tmp", "cgroup v2"]),
        ("run --cgroup / --cgroup-root /missing".into(), vec!["/missing", "cgroup v2"]),
        ("run --cgroup / --fail maybe".into(), vec!["maybe", "open", "closed"]),
        ("run --cgroup / --fail closed --guard off".into(), vec!["--guard on"]),
        ("run --cgroup / --fail closed --guard count".into(), vec!["--guard on"]),
        (with("--fail closed"), vec!["--cgroup"]),
        ("exec --cgroup-root /missing -- true".into(), vec!["/missing", "cgroup v2"]),
        ("exec".into(), vec!["<CMD>"]),
        ("exec true".into(), vec!["true", "-- <CMD>"]),
        ("exec --cgroup / -- true".into(), vec!["--cgroup"]),
        ("exec --upstream nowhere -- true".into(), vec!["nowhere", forms]),
        ("exec --ca /missing/ca.pem -- true".into(), vec!["/missing/ca.pem", "PEM"]),
        ("completion tcsh".into(), vec!["tcsh", "bash", "zsh"]),
    ];
    let cases: Vec<_> = lines.iter().map(|(args, said)| flags(args, said)).collect();
    check(&Netns::new()?, &cases)
}

#[test]
fn mistakes_in_the_environment_are_named_too() -> Result<()> {
    require_root_and_bpf();
    let both_off = [("DNS_PROXY_ENABLE_UDP", "0"), ("DNS_PROXY_ENABLE_TCP", "0")];
    let cases = [
        variables(&[("DNS_PROXY_UPSTREAM", "dns.quad9.net")], &["dns.quad9.net", "not an IP"]),
        variables(&[("DNS_PROXY_UPSTREAM_TIMEOUT", "2")], &["`2`", "such as 2s"]),
        variables(&[("DNS_PROXY_WORKERS", "0")], &["1..=1024"]),
        variables(&[("DNS_PROXY_LOG", "loud")], &["loud"]),
        variables(&[("DNS_PROXY_ALLOW_FROM", "10/8,all")], &["--allow-from"]),
        variables(&[("DNS_PROXY_CGROUP", "a,b/../c")], &["b/../c"]),
        variables(&[("DNS_PROXY_CGROUP", "a"), ("DNS_PROXY_FAIL", "shut")], &["shut", "closed"]),
        variables(
            &[("DNS_PROXY_CGROUP", "a"), ("DNS_PROXY_FAIL", "closed"), ("DNS_PROXY_GUARD", "off")],
            &["--guard on"],
        ),
        variables(&[("DNS_PROXY_NO_SYSTEM_ROOTS", "perhaps")], &["perhaps"]),
        variables(&[("DNS_PROXY_PIN", "1.1.1.1")], &["sha256/BASE64"]),
        variables(&[("DNS_PROXY_PROFILE", "lax")], &["lax", "opportunistic"]),
        variables(&[("DNS_PROXY_CA", "/missing/ca.pem")], &["/missing/ca.pem"]),
        variables(
            &[("DNS_PROXY_UPSTREAM_SERVER", "dns.google")],
            &["DNS_PROXY_UPSTREAM_SERVER", "dns.google", "DNS_PROXY_UPSTREAM"],
        ),
        variables(&[("DNS_PROXY_UPSTREAM_PORT", "0")], &["DNS_PROXY_UPSTREAM_PORT", "65535"]),
        variables(&[("DNS_PROXY_UPSTREAM_PORT", "tls")], &["DNS_PROXY_UPSTREAM_PORT", "tls"]),
        variables(&[("DNS_PROXY_ENABLE_TCP", "maybe")], &["DNS_PROXY_ENABLE_TCP", "maybe"]),
        variables(&[("DNS_PROXY_ENABLE_UDP", "yes")], &["DNS_PROXY_ENABLE_UDP", "yes"]),
        // It would listen on nothing and call itself ready.
        variables(&both_off, &["DNS_PROXY_ENABLE_UDP", "DNS_PROXY_ENABLE_TCP"]),
    ];
    check(&Netns::new()?, &cases)?;
    let cases = [Case {
        args: "run",
        variables: &[("DNS_PROXY_LISTEN", "everywhere")],
        code: USAGE,
        said: &["everywhere", "--listen"],
    }];
    check(&Netns::new()?, &cases)
}

#[test]
fn what_is_wrong_with_the_machine_is_no_usage_error() -> Result<()> {
    let place = Place::new()?;
    let taken: &[_] = &["127.0.0.1:5300".parse()?];
    let _other = PlainServer::start_on(&place.netns, taken, Zone::Plaintext)?;
    let runtime = |args, said| Case { args, variables: &[], code: RUNTIME, said };
    let cases = [
        runtime("run --listen 127.0.0.1:5300", &["127.0.0.1:5300", "in use", "ss -lntup"][..]),
        runtime("run --listen 192.0.2.1:53", &["192.0.2.1:53", "ssign requested address"]),
    ];
    check(&place.netns, &cases)
}

/// However many workers share the port: two daemons would each get some of the queries.
#[test]
fn a_second_daemon_at_the_same_address_is_told_that_it_is_taken() -> Result<()> {
    let place = Place::new()?;
    let args = ["run", "--listen", "127.0.0.1:53", "--workers", "2"];
    let _first = Daemon::start_command(place.netns.command(Daemon::program()?), &args)?;
    let (code, said) = run(place.netns.command(Daemon::program()?), &args)?;
    ensure!(code == Some(RUNTIME) && said.contains("in use"), "{code:?}: {said}");
    Ok(())
}

/// An address that is not ours is no reason to send the operator looking for who has the port.
#[test]
fn the_remedy_fits_what_went_wrong() -> Result<()> {
    let place = Place::new()?;
    let args = ["run", "--listen", "192.0.2.1:53"];
    let (_, said) = run(place.netns.command(Daemon::program()?), &args)?;
    ensure!(!said.contains("ss -lntup"), "{said}");
    Ok(())
}

#[test]
fn missing_privileges_are_said_clearly() -> Result<()> {
    let place = Place::new()?;
    // Where anybody may run it.
    let dir = tempfile::Builder::new().permissions(permissions(0o755)).tempdir()?;
    let program = dir.path().join("dns-proxy");
    fs::copy(Daemon::program()?, &program)?;
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let none = ["--bounding-set=-all", "--inh-caps=-all"];
    for (who, args, said) in [
        (&nobody[..], &["run", "--cgroup", "/"][..], &["root", "CAP_"][..]),
        (&[], &["run", "--cgroup", "/"], &["root", "CAP_"]),
        (&nobody, &["exec", "--", "true"], &["root"]),
        (&nobody, &["run", "--listen", "127.0.0.1:53"], &["127.0.0.1:53", "CAP_NET_BIND_SERVICE"]),
    ] {
        let mut command = place.netns.command("setpriv");
        command.args(none).args(who).arg(&program);
        let (code, text) = run(command, args)?;
        ensure!(code == Some(RUNTIME), "{who:?} {args:?}: {code:?}\n{text}");
        let clear = said.iter().any(|part| text.contains(part));
        ensure!(clear && !text.contains("panicked"), "{who:?} {args:?}:\n{text}");
    }
    Ok(())
}

fn permissions(mode: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(mode)
}

/// A forwarder alone needs no privilege but for its port.
#[test]
fn a_forwarder_on_a_high_port_runs_as_nobody() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let dir = tempfile::Builder::new().permissions(permissions(0o755)).tempdir()?;
    let (program, ca) = (dir.path().join("dns-proxy"), dir.path().join("ca.pem"));
    fs::copy(Daemon::program()?, &program)?;
    fs::copy(place.pki.ca_file(), &ca)?;
    let mut command = place.netns.command("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"])
        .arg(&program)
        .args(["run", "--listen", "127.0.0.1:5300", "--upstream", "127.0.0.1:853#dns.test", "--ca"])
        .arg(&ca);
    // The socket of the service manager is in a directory of root's: nobody cannot tell it.
    let daemon = Daemon::launch(command, &["--no-system-roots"])?;
    daemon.wait_for_log(" ready upstreams=", crate::place::LIMIT)?;
    place.udp_to("127.0.0.1:5300")?.resolve("www.example.test")
}

#[test]
fn the_help_mentions_every_flag_and_its_variable() -> Result<()> {
    let shared = ["upstream", "upstream-timeout", "ca", "no-system-roots", "cgroup-root"];
    let trust = ["pin", "profile", "tls-min", "strip-ecs"];
    let shared = [&shared[..], &trust, &["workers", "log"]].concat();
    let own = ["cgroup", "exclude-cgroup", "listen", "allow-from"];
    let help = |args: &[&str]| output(Command::new(Daemon::program()?).args(args));
    for (command, flags) in [("run", [&shared[..], &own].concat()), ("exec", shared.clone())] {
        let text = help(&[command, "--help"])?;
        for flag in flags {
            let variable = format!("DNS_PROXY_{}", flag.replace('-', "_").to_uppercase());
            let named = text.contains(&format!("--{flag}")) && text.contains(&variable);
            ensure!(named, "--{flag} is not in the help of {command}:\n{text}");
        }
        ensure!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
    let text = help(&["--help"])?;
    for command in ["run", "exec", "completion"] {
        ensure!(text.contains(command), "{text}");
        ensure!(help(&["help", command])?.contains("Usage:"));
    }
    ensure!(help(&["--version"])?.starts_with("dns-proxy "));
    Ok(())
}

#[test]
fn completion_scripts_are_accepted_by_their_shells() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let script = dir.path().join("completion");
    let completion = |shell| output(Command::new(Daemon::program()?).args(["completion", shell]));
    fs::write(&script, completion("bash")?)?;
    output(Command::new("bash").arg("-n").arg(&script))?;
    let loaded =
        output(Command::new("bash").args(["-c", "source $0; complete -p dns-proxy"]).arg(&script))?;
    ensure!(loaded.contains("dns-proxy"), "{loaded}");
    for shell in ["zsh", "fish"] {
        ensure!(completion(shell)?.contains("upstream-timeout"), "{shell}");
    }
    Ok(())
}

#[test]
fn a_full_disk_is_an_error_and_no_panic() -> Result<()> {
    let mut command = Command::new(Daemon::program()?);
    command.args(["completion", "bash"]).stdout(fs::File::create("/dev/full")?);
    let done = command.output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.code() == Some(RUNTIME) && !said.contains("panicked"), "{said}");
    Ok(())
}
