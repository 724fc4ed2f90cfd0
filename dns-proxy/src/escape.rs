//! What somebody else chose, made fit for a terminal and a log.

use std::fmt::Write as _;

/// The text with what is no printable character written as an escape, so that nobody's name moves a
/// cursor or breaks a line.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_format(c) {
            let _ = write!(plain, "\\u{{{:x}}}", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Characters that change how others are shown: marks of direction, separators of lines, joiners.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A name on the wire, uncompressed, in presentation form (RFC 1035 section 5.1, RFC 4343 section 2.1),
/// without the last dot unless it is the root. What is not a whole name ends where it ends.
pub fn name(wire: &[u8]) -> String {
    let mut text = String::with_capacity(wire.len());
    let mut rest = wire;
    while let Some((length, tail)) = rest.split_first() {
        let Some((label, tail)) = tail.split_at_checked(usize::from(*length)) else {
            break;
        };
        if label.is_empty() {
            break;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for octet in label {
            match octet {
                b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                    text.push('\\');
                    text.push(char::from(*octet));
                }
                b'!'..=b'~' => text.push(char::from(*octet)),
                _ => {
                    let _ = write!(text, "\\{octet:03}");
                }
            }
        }
        rest = tail;
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_show_as_they_are_written_in_zone_files() {
        let cases: [(&[u8], &str); 6] = [
            (b"\0", "."),
            (b"\x07example\x03com\0", "example.com"),
            (b"\x03a.b\x04test\0", "a\\.b.test"),
            (b"\x05\x1b[2Jx\x04test\0", "\\027[2Jx.test"),
            (b"\x02\xc3\xa4\0", "\\195\\164"),
            (b"\x09short", "."),
        ];
        for (wire, text) in cases {
            assert_eq!(name(wire), text);
        }
    }

    #[test]
    fn nothing_that_a_terminal_would_obey_is_left() {
        assert_eq!(plain("a\x1b[31mb\nc\u{202e}d"), "a\\u{1b}[31mb\\u{a}c\\u{202e}d");
        assert_eq!(plain("/docker/süß"), "/docker/süß");
    }
}
