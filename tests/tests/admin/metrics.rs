//! `/metrics`, as Prometheus' own tools see it; the alert rules and the dashboard that are made for it.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    Daemon, Stage,
    artifacts::tool,
    clients::dig,
    http::{self, Response},
    process::output,
};

use crate::place::{ADMIN, LIMIT, Place, ask};

fn promtool() -> Result<PathBuf> {
    tool("prometheus", "usr/bin/promtool")
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// The value of a series, by all that stands before it.
fn value(metrics: &Response, series: &str) -> Result<f64> {
    let mut lines = metrics.body.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = value.with_context(|| format!("no {series} in:\n{}", metrics.body))?;
    Ok(value.parse()?)
}

/// Lets Prometheus' linter read it.
fn check(metrics: &Response) -> Result<()> {
    let mut linter = Command::new(promtool()?);
    linter.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut linter = linter.stderr(Stdio::piped()).spawn()?;
    linter.stdin.take().context("piped")?.write_all(metrics.body.as_bytes())?;
    let done = linter.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success() && said.is_empty(), "{said}\n{}", metrics.body);
    Ok(())
}

#[test]
fn figures_say_what_happened_and_no_names() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let _daemon = place.daemon(&["--cache-size=4MiB"])?;
    let client = place.client()?;
    for (name, rcode) in [("www", 0), ("www", 0), ("nx", 3), ("servfail", 2)] {
        let name = format!("{name}.example.test");
        ensure!(ask(&client, &name)? == rcode, "{name}");
    }
    ensure!(ask(&client, "localhost")? == 0);
    let metrics = place.get("/metrics")?;
    check(&metrics)?;
    let answers = |labels: &str| {
        value(&metrics, &format!("dns_proxy_answers_total{{transport=\"udp\",{labels}}}"))
    };
    let upstream = "route=\"encrypted\",source=\"upstream\"";
    ensure!(answers(&format!("{upstream},rcode=\"NOERROR\""))? == 1.0);
    ensure!(answers(&format!("{upstream},rcode=\"NXDOMAIN\""))? == 1.0);
    ensure!(answers(&format!("{upstream},rcode=\"SERVFAIL\""))? == 1.0);
    ensure!(answers("route=\"encrypted\",source=\"cache\",rcode=\"NOERROR\"")? == 1.0);
    ensure!(answers("route=\"local\",source=\"local\",rcode=\"NOERROR\"")? == 1.0);
    for (series, expected) in [
        ("dns_proxy_queries_total", 5.0),
        ("dns_proxy_cache_lookups_total{result=\"hit\"}", 1.0),
        ("dns_proxy_cache_limit_bytes", f64::from(4 << 20)),
        ("dns_proxy_answer_duration_seconds_count{source=\"upstream\"}", 3.0),
        ("dns_proxy_upstream_up{upstream=\"127.0.0.1:853#dns.test\"}", 1.0),
        ("dns_proxy_upstream_answers_total{upstream=\"127.0.0.1:853#dns.test\"}", 3.0),
        ("dns_proxy_plaintext_total{reason=\"route\"}", 0.0),
    ] {
        let found = value(&metrics, series)?;
        ensure!(found == expected, "{series} {found}, not {expected}");
    }
    ensure!(!metrics.body.contains("example"), "a name:\n{}", metrics.body);
    Ok(())
}

#[test]
fn open_metrics_are_given_to_who_prefers_them() -> Result<()> {
    let place = Place::new()?;
    let _daemon = place.daemon(&[])?;
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let fields = format!("Host: {ADMIN}\r\n{accept}");
    let metrics = http::get_with(&place.netns, ADMIN, "/metrics", &fields)?;
    let content = metrics.field("content-type").context("a content type")?;
    ensure!(content.starts_with("application/openmetrics-text; version=1.0.0"), "{content}");
    ensure!(metrics.body.ends_with("# EOF\n"), "{}", metrics.body);
    ensure!(!place.get("/metrics")?.body.contains("# EOF"));
    Ok(())
}

#[test]
fn alert_rules_fire_when_they_should() -> Result<()> {
    let rules = deploy("prometheus/alerts.yaml");
    output(Command::new(promtool()?).args(["check", "rules"]).arg(&rules))?;
    let tests = deploy("prometheus/alerts.test.yaml");
    output(Command::new(promtool()?).args(["test", "rules"]).arg(&tests)).map(drop)
}

/// Every name of ours in a text, without what a histogram's series end with.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("dns_proxy_") || word.starts_with("process_"));
    ours.map(|word| word.trim_end_matches("_bucket")).collect()
}

#[test]
fn all_that_rules_and_dashboard_name_is_there() -> Result<()> {
    let stage = Stage::new()?;
    let container = stage.world.container("app")?;
    let daemon = stage.daemon(&[&container])?;
    daemon.wait_for_log("admin: ", LIMIT)?;
    dig(&container, &["example.test", "@8.8.8.8"])?;
    let metrics = http::get(stage.world.host(), ADMIN, "/metrics")?;
    check(&metrics)?;
    let families: BTreeSet<_> = metrics
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_whitespace().next())
        .collect();
    for file in ["prometheus/alerts.yaml", "grafana/dns-proxy.json"] {
        let text = fs::read_to_string(deploy(file)).with_context(|| file)?;
        let named = names(&text);
        ensure!(named.len() >= 8, "{file} names {named:?}");
        for name in named {
            ensure!(families.contains(name), "{file}: there is no {name} in {families:?}");
        }
    }
    ensure!(value(&metrics, "dns_proxy_queries_intercepted_total")? == 1.0);
    ensure!(value(&metrics, "dns_proxy_plaintext_total{reason=\"leak\"}")? == 0.0);
    ensure!(daemon.stop()?.success());
    Ok(())
}

#[test]
fn load_does_not_fail_it() -> Result<()> {
    let place = Place::new()?;
    let _upstream = place.upstream()?;
    let daemon: Daemon = place.daemon(&["--cache-size=4MiB"])?;
    let client = place.client()?;
    let query =
        dns_proxy_tests::wire::query(7, "www.example.test", hickory_proto::rr::RecordType::A)?;
    for _ in 0..50 {
        for _ in 0..200 {
            client.send(&query)?;
        }
        ensure!(place.get("/healthz")?.code == 200);
    }
    check(&place.get("/metrics")?)?;
    ensure!(daemon.stop()?.success());
    Ok(())
}
