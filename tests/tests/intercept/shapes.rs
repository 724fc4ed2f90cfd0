//! Every shape of socket: what it sees with its DNS redirected is what it saw without.

use anyhow::{Result, ensure};
use dns_proxy_tests::container::INTERFACE;

use crate::scene::{Scene, same_with_and_without};

#[test]
fn connected_udp() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "udp-connected 8.8.8.8 example.test",
            "udp-connected 2001:4860:4860::8888 example.test",
            "udp-connected ::ffff:8.8.8.8 example.test",
        ],
    )
}

#[test]
fn one_unconnected_socket_asks_several_nameservers() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "udp-unconnected example.test 8.8.8.8 9.9.9.9 8.8.4.4",
            "udp-unconnected example.test 2001:4860:4860::8888 2620:fe::fe",
            "udp-unconnected example.test ::ffff:8.8.8.8 2620:fe::fe ::ffff:9.9.9.9",
        ],
    )
}

#[test]
fn messages_with_control_data_and_several_in_one_call() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "sendmsg example.test 8.8.8.8 9.9.9.9",
            "sendmsg example.test 2001:4860:4860::8888 2620:fe::fe",
            "sendmsg example.test ::ffff:8.8.8.8 2620:fe::fe",
            "sendmmsg example.test 8.8.8.8 9.9.9.9 8.8.4.4 1.1.1.1",
            "sendmmsg example.test 2001:4860:4860::8888 2620:fe::fe",
            "sendmmsg example.test ::ffff:8.8.8.8 2620:fe::fe",
        ],
    )
}

#[test]
fn tcp() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "tcp 8.8.8.8 example.test",
            "tcp 2620:fe::fe example.test",
            "tcp ::ffff:8.8.8.8 example.test",
        ],
    )
}

#[test]
fn tcp_fast_open() -> Result<()> {
    const ROWS: [&str; 6] = [
        "fast-open-sendto example.test 8.8.8.8",
        "fast-open-sendmsg example.test ::ffff:8.8.8.8",
        "fast-open-connect example.test 8.8.8.8",
        "fast-open-sendto example.test 2620:fe::fe",
        "fast-open-sendmsg example.test 2620:fe::fe",
        "fast-open-connect example.test 2620:fe::fe",
    ];
    // Asks for a cookie first (1), or sends the query in the SYN without (1 and 4, see ip-sysctl).
    for mode in ["1", "5"] {
        let scene = Scene::new()?;
        scene.container.netns().sysctl("net/ipv4/tcp_fastopen", mode)?;
        same_with_and_without(&scene, &ROWS)?;
    }
    Ok(())
}

#[test]
fn multipath_tcp() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &[
            "mptcp example.test 8.8.8.8",
            "mptcp example.test 2620:fe::fe",
            "mptcp example.test ::ffff:8.8.8.8",
        ],
    )
}

#[test]
fn io_uring_from_the_caller_from_a_worker_and_from_the_poller() -> Result<()> {
    let mut rows = Vec::new();
    for who in ["", "-worker", "-poller"] {
        for shape in ["connect", "tcp", "sendmsg", "sendmsg-zc"] {
            for server in ["8.8.8.8", "2620:fe::fe", "::ffff:8.8.8.8"] {
                rows.push(format!("uring-{shape}{who} example.test {server}"));
            }
        }
    }
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    same_with_and_without(&Scene::new()?, &rows)
}

#[test]
fn ipv6_only_sockets_say_the_same_of_mapped_nameservers() -> Result<()> {
    same_with_and_without(
        &Scene::new()?,
        &["only-v6 example.test ::ffff:8.8.8.8", "tcp 8.8.8.8 example.test"],
    )
}

#[test]
fn peer_names_are_what_was_dialled() -> Result<()> {
    let row = "peer-names 8.8.8.8 2001:4860:4860::8888 ::ffff:8.8.8.8";
    same_with_and_without(&Scene::new()?, &[row, "tcp 8.8.8.8 example.test"])
}

#[test]
fn a_packets_arrival_shows_loopback() -> Result<()> {
    let scene = Scene::new()?;
    let without = scene.see("sendmsg example.test 8.8.8.8")?;
    let own = format!("to={} device={INTERFACE}", scene.container.addresses().v4);
    ensure!(without.contains(&own), "{without}");
    let intercepted = scene.intercept()?;
    scene.answered("sendmsg example.test 8.8.8.8", &["to=127.0.0.1 device=lo"])?;
    scene.answered("sendmsg example.test 2620:fe::fe", &["to=::1 device=lo"])?;
    intercepted.end()
}
