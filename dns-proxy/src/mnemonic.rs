//! What people call types, classes and response codes (IANA's registry of DNS parameters).

/// Types that are asked for in practice.
const TYPES: [(u16, &str); 34] = [
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (13, "HINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (18, "AFSDB"),
    (24, "SIG"),
    (25, "KEY"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (37, "CERT"),
    (39, "DNAME"),
    (43, "DS"),
    (44, "SSHFP"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (50, "NSEC3"),
    (51, "NSEC3PARAM"),
    (52, "TLSA"),
    (59, "CDS"),
    (60, "CDNSKEY"),
    (61, "OPENPGPKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
];
/// Response codes that fit into a header.
const RCODES: [&str; 12] = [
    "NOERROR",
    "FORMERR",
    "SERVFAIL",
    "NXDOMAIN",
    "NOTIMP",
    "REFUSED",
    "YXDOMAIN",
    "YXRRSET",
    "NXRRSET",
    "NOTAUTH",
    "NOTZONE",
    "DSOTYPENI",
];

/// A type's name, or `TYPE65280` (RFC 3597 section 5).
pub fn type_name(number: u16) -> String {
    let known = TYPES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("TYPE{number}"), |(_, name)| (*name).to_owned())
}

/// The type of that name, in either form and any case.
pub fn type_number(name: &str) -> Option<u16> {
    let name = name.to_ascii_uppercase();
    let known = TYPES.iter().find(|(_, known)| *known == name).map(|(number, _)| *number);
    known.or_else(|| name.strip_prefix("TYPE")?.parse().ok())
}

/// A response code's name, or `RCODE13`.
pub fn rcode_name(number: u8) -> String {
    let known = RCODES.get(usize::from(number));
    known.map_or_else(|| format!("RCODE{number}"), |name| (*name).to_owned())
}

/// The response code of that name, in any case.
pub fn rcode_number(name: &str) -> Option<u8> {
    let name = name.to_ascii_uppercase();
    let known = (0..16).find(|number| rcode_name(*number) == name);
    known.or_else(|| name.parse().ok().filter(|number| *number < 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_name_that_leads_back_to_it() {
        for number in 0..=u16::MAX {
            assert_eq!(type_number(&type_name(number)), Some(number));
        }
        for number in 0..16 {
            assert_eq!(rcode_number(&rcode_name(number)), Some(number));
        }
        assert_eq!((type_number("aaaa"), rcode_number("nxdomain")), (Some(28), Some(3)));
        assert_eq!((type_number("TYPE"), rcode_number("16")), (None, None));
    }
}
