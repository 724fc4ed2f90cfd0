//! What passes byte for byte, what is ours, and what is refused.

use anyhow::{Context as _, Result, ensure};
use dns_proxy_tests::{
    DotServer, Orders, Reply, Zone, eventually,
    zone::{Transport, UNKNOWN_DATA},
};

use crate::{
    packets::{
        A, AD, AXFR, BADVERS, CD, COOKIE, DO, EXTENDED_ERROR, FORMERR, IXFR, KEEPALIVE, NOERROR,
        NOTIMP, NXDOMAIN, PADDING, RD, REFUSED, SERVFAIL, Summary, TXT, UNKNOWN, add_additional,
        flags_of, id_of, message, name, opt, option, plain_opt, query, question, record, tsig,
    },
    place::{LIMIT, NAME, NAMED_UPSTREAM, Place, Setting, UPSTREAM},
};

/// Octets of the OPT record at the end of what our server answers to a padded query.
const SERVER_OPT: usize = 11 + 4 + 32;
/// An option nobody has defined.
const PRIVATE: u16 = 65_001;
const ID: u16 = 0x1234;

/// A client's query in its parts.
struct Case {
    what: &'static str,
    name: &'static str,
    qtype: u16,
    flags: u16,
    /// Payload size, flags, options that pass and options that do not.
    edns: Option<(u16, u16, Vec<u8>, Vec<u8>)>,
}

impl Case {
    fn new(what: &'static str, name: &'static str, qtype: u16, flags: u16) -> Self {
        Self { what, name, qtype, flags, edns: None }
    }

    fn edns(mut self, flags: u16, passing: &[u8], hop_by_hop: &[u8]) -> Self {
        self.edns = Some((1232, flags, passing.to_vec(), hop_by_hop.to_vec()));
        self
    }

    fn query(&self) -> Vec<u8> {
        let question = question(self.name, self.qtype);
        match &self.edns {
            None => message(ID, self.flags, &[&question], &[]),
            Some((size, flags, passing, hop_by_hop)) => {
                let opt = opt(*size, [0, 0], *flags, &[&passing[..], hop_by_hop].concat());
                message(ID, self.flags, &[&question], &[&opt])
            }
        }
    }

    /// What the upstream should see, but for the id.
    fn upstream(&self) -> Vec<u8> {
        let question = question(self.name, self.qtype);
        let (flags, passing) = match &self.edns {
            None => (0, Vec::new()),
            Some((_, flags, passing, _)) => (*flags, passing.clone()),
        };
        let keepalive = option(KEEPALIVE, &[]);
        let unpadded = 12 + question.len() + 11 + passing.len() + keepalive.len() + 4;
        let padding = vec![0; unpadded.next_multiple_of(128) - unpadded];
        let options = [passing, keepalive, option(PADDING, &padding)].concat();
        let opt = opt(1232, [0, 0], flags, &options);
        message(ID, self.flags, &[&question], &[&opt])
    }

    /// What the client should see of an answer that ends in our server's OPT record.
    fn answer(&self, sent: &[u8]) -> Vec<u8> {
        let mut expected = [&ID.to_be_bytes(), &sent[2..sent.len() - SERVER_OPT]].concat();
        match &self.edns {
            None => add_additional(&mut expected, -1),
            Some((_, flags, ..)) => expected.extend(opt(1232, [0, 0], flags & DO, &[])),
        }
        expected
    }
}

fn cases() -> Vec<Case> {
    let private = option(PRIVATE, b"opaque");
    let subnet = option(8, b"\x00\x01\x18\x00\xc0\x00\x02");
    let cookie = option(COOKIE, b"COOKIE!!");
    let hop_by_hop = [&cookie[..], &option(KEEPALIVE, &[]), &option(PADDING, &[0; 20])].concat();
    vec![
        Case::new("no EDNS", "www.example.test", A, RD),
        Case::new("no recursion", "www.example.test", A, 0),
        Case::new("AD", "www.example.test", A, RD | AD),
        Case::new("CD", "www.example.test", A, RD | CD),
        Case::new("the reserved flag", "www.example.test", A, RD | 0x40),
        Case::new("mixed case", "wWw.ExAmPlE.tEsT", A, RD),
        Case::new("unknown type", "example.test", UNKNOWN, RD),
        Case::new("the root", "", A, RD),
        Case::new("NXDOMAIN", "nx.example.test", A, RD),
        Case::new("NODATA", "nodata.example.test", A, RD),
        Case::new("SERVFAIL", "servfail.example.test", A, RD),
        Case::new("REFUSED", "refused.example.test", A, RD),
        Case::new("an alias", "alias.example.test", A, RD),
        Case::new("EDNS", "www.example.test", A, RD).edns(0, &[], &[]),
        Case::new("DO", "www.example.test", A, RD).edns(DO, &[], &[]),
        Case::new("DO and unknown EDNS flags", "a.test", A, RD).edns(DO | 0x4001, &[], &[]),
        Case::new("CD and DO", "www.example.test", A, RD | CD).edns(DO, &[], &[]),
        Case::new("unknown option", "www.example.test", A, RD).edns(0, &private, &[]),
        Case::new("the client's subnet", "a.test", A, RD).edns(0, &subnet, &[]),
        Case::new("hop-by-hop options", "a.test", A, RD).edns(0, &private, &hop_by_hop),
        Case::new("NXDOMAIN, EDNS", "nx.example.test", A, RD).edns(DO, &[], &[]),
        Case::new("unknown type, EDNS", "example.test", UNKNOWN, RD).edns(0, &[], &cookie),
    ]
}

#[test]
fn queries_and_answers_pass_byte_for_byte_but_for_what_is_hop_by_hop() -> Result<()> {
    let setting = Setting::new()?;
    let (udp, mut tcp) = (setting.place.udp()?, setting.place.tcp()?);
    for case in cases() {
        for over_tcp in [false, true] {
            let query = case.query();
            let answer = if over_tcp { tcp.ask(&query)? } else { udp.ask(&query)? };
            let journal = setting.upstream.journal();
            let seen = &journal.queries.last().context("upstream saw nothing")?.message;
            ensure!(seen[2..] == case.upstream()[2..], "{}: upstream saw {seen:02x?}", case.what);
            let sent = Zone::Encrypted.answer(seen, Transport::Tcp).context("no answer")?;
            let expected = case.answer(&sent);
            ensure!(answer == expected, "{}: {answer:02x?}, not {expected:02x?}", case.what);
        }
    }
    Ok(())
}

#[test]
fn negative_answers_and_errors_keep_their_code_and_their_soa() -> Result<()> {
    let setting = Setting::new()?;
    for (name, rcode, authority) in [
        ("nx.example.test", NXDOMAIN, 1),
        ("nodata.example.test", NOERROR, 1),
        ("servfail.example.test", SERVFAIL, 0),
        ("refused.example.test", REFUSED, 0),
    ] {
        let answer = Summary::of(&setting.place.udp()?.ask(&query(ID, name, A, &[]))?)?;
        ensure!((answer.rcode, answer.authority) == (rcode, authority), "{name}: {answer:?}");
    }
    Ok(())
}

#[test]
fn ids_towards_the_upstream_are_not_the_clients() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    for n in 0..8 {
        client.ask(&query(ID, &format!("n{n}.example.test"), A, &[]))?;
    }
    let journal = setting.upstream.journal();
    let mut ids =
        journal.queries.iter().map(|seen| id_of(&seen.message)).collect::<Result<Vec<_>>>()?;
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() > 6, "{ids:?}");
    Ok(())
}

#[test]
fn a_signed_query_passes_intact_but_for_its_id() -> Result<()> {
    let setting = Setting::new()?;
    for additional in [&[&tsig(ID)[..]][..], &[&plain_opt(), &tsig(ID)]] {
        let asked = query(ID, "www.example.test", A, additional);
        let answer = setting.place.udp()?.ask(&asked)?;
        ensure!(id_of(&answer)? == ID);
        let journal = setting.upstream.journal();
        let seen = &journal.queries.last().context("upstream saw nothing")?.message;
        ensure!(seen[2..] == asked[2..], "upstream saw {seen:02x?}");
    }
    Ok(())
}

/// EDNS Client Subnet, of which nothing is left if the operator wants so.
#[test]
fn the_clients_subnet_is_passed_on_unless_it_is_to_be_stripped() -> Result<()> {
    let subnet = option(8, b"\0\x01\x18\0\xc0\0\x02");
    for (more, expected) in [(&[][..], true), (&["--strip-ecs"], false)] {
        let setting = Setting::with(more)?;
        let opt = opt(1232, [0, 0], 0, &subnet);
        for additional in [&opt, &plain_opt()] {
            setting.place.udp()?.ask(&query(ID, "www.example.test", A, &[additional]))?;
        }
        let seen = setting.upstream.journal().queries;
        let passed = seen[0].message.windows(subnet.len()).any(|window| window == &subnet[..]);
        ensure!(passed == expected, "{more:?}: {:02x?}", seen[0].message);
        ensure!(seen.iter().all(|seen| seen.length == 128), "{seen:?}");
    }
    Ok(())
}

/// An answer that validates, and is signed if the query is.
fn authentic(asked: &[u8]) -> Vec<u8> {
    let mut answer = Zone::Encrypted.answer(asked, Transport::Tcp).unwrap_or_default();
    answer[3] |= AD as u8;
    if asked.windows(8).any(|window| window == b"\x03key\x04tes") {
        answer.extend(tsig(ID));
        add_additional(&mut answer, 1);
    }
    answer
}

#[test]
fn ad_comes_only_to_those_who_know_it() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(authentic)));
    let asked = question("www.example.test", A);
    let dnssec = opt(1232, [0, 0], DO, &[]);
    for (query, expected) in [
        (message(ID, RD, &[&asked], &[]), false),
        (message(ID, RD, &[&asked], &[&plain_opt()]), false),
        (message(ID, RD | CD, &[&asked], &[]), false),
        (message(ID, RD | AD, &[&asked], &[]), true),
        (message(ID, RD, &[&asked], &[&dnssec]), true),
    ] {
        let answer = Summary::of(&setting.place.udp()?.ask(&query)?)?;
        ensure!(answer.authentic == expected, "{query:02x?}: {answer:?}");
    }
    Ok(())
}

/// The signature covers the header, so AD too (RFC 8945 section 4.3.3, RFC 5625 section 4.5).
#[test]
fn the_answer_to_a_signed_query_is_intact_but_for_its_id() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(authentic)));
    let asked = query(ID, "www.example.test", A, &[&tsig(ID)]);
    let answer = setting.place.udp()?.ask(&asked)?;
    let journal = setting.upstream.journal();
    let sent = authentic(&journal.queries[0].message);
    ensure!(answer[2..] == sent[2..], "{answer:02x?}, not {sent:02x?}");
    Ok(())
}

#[test]
fn what_is_no_query_gets_the_error_that_says_so() -> Result<()> {
    let setting = Setting::new()?;
    let asked = question("www.example.test", A);
    let one = [&asked[..]];
    let version_1 = opt(1232, [0, 1], 0, &[]);
    let looped = message(ID, RD, &[b"\xc0\x0c\0\x01\0\x01"], &[]);
    let forward = message(ID, RD, &[b"\x01a\xc0\x10\0\x01\0\x01"], &[]);
    let cut = message(ID, RD, &[&asked[..9]], &[]);
    let mut missing = message(ID, RD, &one, &[]);
    missing[11] = 1;
    let reserved_label = message(ID, RD, &[b"\x41a\0\0\x01\0\x01"], &[]);
    let long_name = question(&["x".repeat(63).as_str(); 4].join("."), A);
    let cases: [(&str, Vec<u8>, u16); 17] = [
        ("no question", message(ID, RD, &[], &[]), FORMERR),
        ("two questions", message(ID, RD, &[&asked, &asked], &[]), FORMERR),
        ("a loop in the question", looped, FORMERR),
        ("a pointer in the question", forward, FORMERR),
        ("a question cut short", cut, FORMERR),
        ("a record that is not there", missing, FORMERR),
        ("a reserved kind of label", reserved_label, FORMERR),
        ("a name of 257 octets", message(ID, RD, &[&long_name], &[]), FORMERR),
        ("two OPT records", message(ID, RD, &one, &[&plain_opt(), &plain_opt()]), FORMERR),
        (
            "a broken option",
            message(ID, RD, &one, &[&opt(1232, [0, 0], 0, b"\0\x0a\0\x09x")]),
            FORMERR,
        ),
        ("IQUERY", message(ID, 1 << 11, &one, &[]), NOTIMP),
        ("STATUS", message(ID, 2 << 11, &[], &[]), NOTIMP),
        ("NOTIFY", message(ID, 4 << 11, &one, &[]), NOTIMP),
        ("UPDATE", message(ID, 5 << 11, &one, &[]), NOTIMP),
        ("DSO", message(ID, 6 << 11, &[], &[]), NOTIMP),
        ("an unassigned operation", message(ID, 15 << 11, &one, &[&plain_opt()]), NOTIMP),
        ("EDNS version 1", message(ID, RD, &one, &[&version_1]), BADVERS),
    ];
    let (udp, mut tcp) = (setting.place.udp()?, setting.place.tcp()?);
    for (what, query, rcode) in cases {
        for answer in [udp.ask(&query)?, tcp.ask(&query)?] {
            let summary = Summary::of(&answer).with_context(|| what.to_owned())?;
            ensure!(summary.rcode == rcode, "{what}: {summary:?}");
            ensure!(id_of(&answer)? == ID && answer[2] & 0x80 != 0, "{what}: {answer:02x?}");
            ensure!((flags_of(&answer) ^ flags_of(&query)) & 0x7800 == 0, "{what}: its operation");
            ensure!(summary.opt == (rcode == BADVERS), "{what}: {summary:?}");
        }
    }
    ensure!(setting.upstream.journal().queries.is_empty(), "some went upstream");
    Ok(())
}

#[test]
fn zone_transfers_are_refused_clearly() -> Result<()> {
    let setting = Setting::new()?;
    for qtype in [AXFR, IXFR] {
        let asked = query(ID, "example.test", qtype, &[&plain_opt()]);
        let answer = Summary::of(&setting.place.tcp()?.ask(&asked)?)?;
        ensure!(answer.rcode == REFUSED, "{answer:?}");
        ensure!(answer.extended_error.as_ref().is_some_and(|error| error.0 == 21), "{answer:?}");
    }
    ensure!(setting.upstream.journal().queries.is_empty());
    Ok(())
}

#[test]
fn responses_and_garbage_are_ignored() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    let mut response = query(ID, "www.example.test", A, &[]);
    response[2] |= 0x80;
    let mut notify = response.clone();
    notify[2] |= 4 << 3;
    for message in [&response[..], &notify, b"", b"x", &[0; 11], &[0xff; 12], &[0xff; 4_000]] {
        client.is_ignored(message).with_context(|| format!("{message:02x?}"))?;
    }
    let mut client = setting.place.tcp()?;
    client.send(&response)?;
    client.send(b"")?;
    client.resolve("after.example.test")
}

#[test]
fn answers_that_do_not_fit_are_truncated_over_udp_and_whole_over_tcp() -> Result<()> {
    let setting = Setting::new()?;
    let (udp, mut tcp) = (setting.place.udp()?, setting.place.tcp()?);
    let with = |size| opt(size, [0, 0], DO, &[]);
    for (opt, limit) in [
        (None, 512),
        (Some(with(0)), 512),
        (Some(with(512)), 512),
        (Some(with(1232)), 1232),
        // Never so much that it would be fragmented (RFC 9715).
        (Some(with(65_535)), 1232),
    ] {
        let additional: Vec<&[u8]> = opt.iter().map(Vec::as_slice).collect();
        let asked = query(ID, "big.example.test", TXT, &additional);
        let cut = udp.ask(&asked)?;
        let summary = Summary::of(&cut)?;
        ensure!(summary.truncated && summary.opt == opt.is_some(), "{summary:?}");
        ensure!(cut.len() <= limit, "{} octets", cut.len());
        let whole = Summary::of(&tcp.ask(&asked)?)?;
        ensure!(!whole.truncated && whole.answers == 1, "{whole:?}");
        ensure!(whole.opt == opt.is_some(), "{whole:?}");
    }
    Ok(())
}

/// Answers whose length is all that matters.
fn of_length<const LENGTH: usize>(asked: &[u8]) -> Vec<u8> {
    let end = 12 + name("www.example.test").len() + 4;
    let mut answer = message(0, 0x8180, &[&asked[12..end]], &[]);
    answer[..2].copy_from_slice(&asked[..2]);
    answer[7] = 1;
    let data = vec![b'x'; LENGTH - answer.len() - 12];
    answer.extend(record(b"\xc0\x0c", UNKNOWN, &data));
    answer
}

#[test]
fn an_answer_of_exactly_the_limit_fits() -> Result<()> {
    let setting = Setting::new()?;
    let client = setting.place.udp()?;
    let asked = question("www.example.test", UNKNOWN);
    let cases = [
        (Reply::crafted(of_length::<512>), None, false),
        (Reply::crafted(of_length::<513>), None, true),
        (Reply::crafted(of_length::<501>), Some(512), false), // 11 octets are our OPT record's
        (Reply::crafted(of_length::<502>), Some(512), true),
        (Reply::crafted(of_length::<1221>), Some(4096), false),
        (Reply::crafted(of_length::<1222>), Some(4096), true),
    ];
    for (reply, size, truncated) in cases {
        setting.upstream.order(Orders::always(reply));
        let opt = size.map(|size| opt(size, [0, 0], 0, &[]));
        let additional: Vec<&[u8]> = opt.iter().map(Vec::as_slice).collect();
        let answer = client.ask(&message(ID, RD, &[&asked], &additional))?;
        ensure!(Summary::of(&answer)?.truncated == truncated, "{} octets", answer.len());
    }
    Ok(())
}

/// The longest message there is has no room for what we would add to it.
#[test]
fn the_longest_answer_is_not_a_problem() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(of_length::<65_535>)));
    let asked = query(ID, "www.example.test", UNKNOWN, &[]);
    let whole = Summary::of(&setting.place.tcp()?.ask(&asked)?)?;
    ensure!(!whole.truncated && whole.answers == 1);
    let asked = query(ID, "www.example.test", UNKNOWN, &[&plain_opt()]);
    ensure!(Summary::of(&setting.place.tcp()?.ask(&asked)?)?.truncated);
    Ok(())
}

/// A query that leaves no room for padding must not be sent with a length that is not its own: the
/// upstream would take its rest for other queries.
#[test]
fn the_longest_queries_do_not_garble_the_stream() -> Result<()> {
    let setting = Setting::new()?;
    let other = setting.place.udp()?;
    for length in [65_300, 65_408, 65_409, 65_480, 65_520, 65_535] {
        let bare =
            query(ID, "www.example.test", A, &[&opt(1232, [0, 0], 0, &option(PRIVATE, &[]))]);
        let data = vec![0; length - bare.len()];
        let long = option(PRIVATE, &data);
        let asked = query(ID, "www.example.test", A, &[&opt(1232, [0, 0], 0, &long)]);
        ensure!(asked.len() == length);
        setting.place.tcp()?.ask(&asked).with_context(|| format!("{length} octets"))?;
        other.resolve(&format!("after-{length}.example.test"))?;
    }
    let journal = setting.upstream.journal();
    ensure!(journal.accepted == 1, "the connection broke {} times", journal.accepted - 1);
    for seen in &journal.queries {
        let ours = seen.name.starts_with("after-") || seen.name == "www.example.test";
        ensure!(ours, "upstream saw {} {}", seen.name, seen.qtype);
    }
    Ok(())
}

/// An answer with an A record for `www.example.test` and these, of which one may be an OPT record.
fn answer_with(asked: &[u8], additional: &[&[u8]]) -> Vec<u8> {
    let end = 12 + name("www.example.test").len() + 4;
    // What the daemon asks for itself has a shorter name.
    let mut answer = message(0, 0x8180, &[&asked[12..end.min(asked.len())]], &[]);
    answer[..2].copy_from_slice(&asked[..2]);
    answer[7] = 1;
    answer.extend(record(b"\xc0\x0c", A, &[10, 0, 0, 1]));
    additional.iter().for_each(|record| answer.extend_from_slice(record));
    answer[11] = additional.len() as u8;
    answer
}

/// After the OPT record: a compressed owner in mixed case, and data that nobody may touch.
fn opt_in_the_middle(asked: &[u8]) -> Vec<u8> {
    let first = record(&name("Ns.Other.Test"), A, &[10, 0, 0, 2]);
    let last = record(b"\xc0\x0c", UNKNOWN, UNKNOWN_DATA);
    answer_with(asked, &[&first, &plain_opt(), &last])
}

#[test]
fn an_opt_record_in_the_middle_of_an_answer_changes_nothing_else() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(opt_in_the_middle)));
    let owner = name("Ns.Other.Test");
    for (additional, expected) in [(&[][..], 2), (&[&plain_opt()[..]], 3)] {
        let answer = setting.place.udp()?.ask(&query(ID, "www.example.test", A, additional))?;
        let summary = Summary::of(&answer)?;
        ensure!((summary.rcode, summary.answers) == (NOERROR, 1), "{summary:?}");
        ensure!(summary.opt != additional.is_empty(), "{summary:?}");
        ensure!(answer[11] == expected, "{} additional records", answer[11]);
        let holds = |part: &[u8]| answer.windows(part.len()).any(|window| window == part);
        ensure!(holds(UNKNOWN_DATA) && holds(&owner), "{answer:02x?}");
    }
    Ok(())
}

/// A code that takes EDNS to say: BADCOOKIE, with an extended error.
fn bad_cookie(asked: &[u8]) -> Vec<u8> {
    let options = option(EXTENDED_ERROR, b"\0\x12Prohibited");
    let mut answer = answer_with(asked, &[&opt(1232, [1, 0], 0, &options)]);
    answer[3] |= 7;
    answer
}

#[test]
fn extended_codes_and_errors_reach_clients_that_understand_them() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(bad_cookie)));
    let client = setting.place.udp()?;
    let answer = Summary::of(&client.ask(&query(ID, "www.example.test", A, &[&plain_opt()]))?)?;
    ensure!(answer.rcode == 23, "{answer:?}");
    ensure!(answer.extended_error == Some((18, "Prohibited".to_owned())), "{answer:?}");
    let answer = Summary::of(&client.ask(&query(ID, "www.example.test", A, &[]))?)?;
    ensure!(answer.rcode == SERVFAIL && !answer.opt, "{answer:?}");
    Ok(())
}

fn refused_without_question(asked: &[u8]) -> Vec<u8> {
    let mut answer = message(0, 0x8185, &[], &[]);
    answer[..2].copy_from_slice(&asked[..2]);
    answer
}

#[test]
fn an_error_without_its_question_is_given_it_back() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(refused_without_question)));
    let asked = query(ID, "wWw.example.test", A, &[]);
    let answer = setting.place.udp()?.ask(&asked)?;
    ensure!(answer[12..] == asked[12..], "{answer:02x?}");
    ensure!(Summary::of(&answer)?.rcode == REFUSED);
    Ok(())
}

fn in_lower_case(asked: &[u8]) -> Vec<u8> {
    let mut answer = Zone::Encrypted.answer(asked, Transport::Tcp).unwrap_or_default();
    let end = 12 + name("www.example.test").len();
    answer[12..end].make_ascii_lowercase();
    answer
}

#[test]
fn the_question_comes_back_in_the_clients_own_case() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(in_lower_case)));
    let asked = query(ID, "wWw.ExAmPlE.tEsT", A, &[]);
    let answer = setting.place.udp()?.ask(&asked)?;
    ensure!(answer[12..asked.len()] == asked[12..], "{answer:02x?}");
    Ok(())
}

/// It says there are records where there are none.
fn cut_short(asked: &[u8]) -> Vec<u8> {
    let mut answer = answer_with(asked, &[]);
    answer[9] = 1;
    answer
}

#[test]
fn a_malformed_answer_is_a_servfail_with_a_reason() -> Result<()> {
    let setting = Setting::new()?;
    setting.upstream.order(Orders::always(Reply::crafted(cut_short)));
    let asked = query(ID, "www.example.test", A, &[&plain_opt()]);
    let answer = Summary::of(&setting.place.udp()?.ask(&asked)?)?;
    ensure!(answer.rcode == SERVFAIL && answer.extended_error.is_some(), "{answer:?}");
    Ok(())
}

/// The reason that rustls gives lists every name in the certificate.
#[test]
fn an_error_of_ours_fits_the_client_too() -> Result<()> {
    let place = Place::new()?;
    let names: Vec<String> = (0..60).map(|n| format!("a-rather-long-name-{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let identity = place.pki.server(&names)?;
    let _server = DotServer::start(&place.netns, &[UPSTREAM.parse()?], &identity)?;
    ensure!(!names.contains(&NAME));
    let _daemon = place.daemon(&[NAMED_UPSTREAM], &["--upstream-timeout", "300ms"])?;
    for size in [512, 1232] {
        let opt = opt(size, [0, 0], 0, &[]);
        let answer = place.udp()?.ask(&query(ID, "www.example.test", A, &[&opt]))?;
        ensure!(answer.len() <= usize::from(size), "{} octets for {size}", answer.len());
        ensure!(Summary::of(&answer)?.rcode == SERVFAIL);
    }
    Ok(())
}

/// A record behind the OPT record is odd, but no reason to send the client's cookie upstream or to
/// go without padding.
#[test]
fn hop_by_hop_options_do_not_pass_whatever_follows_them() -> Result<()> {
    let setting = Setting::new()?;
    let cookie = opt(1232, [0, 0], 0, &option(COOKIE, b"COOKIE!!"));
    let odd = record(&name("odd.test"), UNKNOWN, b"x");
    setting.place.udp()?.ask(&query(ID, "www.example.test", A, &[&cookie, &odd]))?;
    ensure!(eventually(LIMIT, || !setting.upstream.journal().queries.is_empty()));
    let journal = setting.upstream.journal();
    let seen = &journal.queries[0];
    ensure!(!seen.message.windows(8).any(|window| window == b"COOKIE!!"), "the cookie passed");
    ensure!(seen.length.is_multiple_of(128), "{} octets", seen.length);
    Ok(())
}
