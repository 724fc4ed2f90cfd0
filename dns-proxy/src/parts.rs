//! An upstream's answer in its parts: what goes to clients as it is, and what is hop by hop.

use crate::wire::{self, HEADER_LEN, Question, rr_type};

/// Where the parts of an answer are.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The two octets of header flags.
    pub flags: [u8; 2],
    /// Records of the answer, authority and additional section, without OPT.
    pub counts: [u16; 3],
    /// The question, empty if there is none.
    pub question: &'a [u8],
    /// The records that go to clients as they are, if OPT is the last.
    pub body: &'a [u8],
    /// All records.
    pub records: &'a [u8],
    /// The OPT record.
    pub opt: Option<Opt<'a>>,
    /// Nothing stands behind the OPT record, if there is one.
    pub opt_is_last: bool,
}

/// What an upstream's OPT record says.
#[derive(Clone, Copy, Debug)]
pub struct Opt<'a> {
    /// The upper eight bits of the response code (RFC 6891 section 6.1.3).
    pub extended_rcode: u8,
    /// Its options.
    pub options: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Finds them; `None` if the answer is malformed.
    pub fn read(answer: &'a [u8]) -> Option<Self> {
        let [questions, answers, authority, mut additional] = wire::counts(answer)?;
        let question_end = match questions {
            // Some servers send errors without the question.
            0 => HEADER_LEN,
            1 => Question::read(answer)?.end,
            _ => return None,
        };
        let before_additional = u32::from(answers) + u32::from(authority);
        let (mut end, mut body_end) = (question_end, question_end);
        let (mut opt, mut opt_is_last) = (None, true);
        for index in 0..before_additional + u32::from(additional) {
            let record = wire::record_at(answer, end)?;
            end = record.end;
            if record.rr_type == rr_type::OPT && index >= before_additional {
                if opt.is_some() {
                    return None;
                }
                let extended_rcode = *answer.get(record.fixed + 4)?;
                opt = Some(Opt { extended_rcode, options: &answer[record.data..end] });
            } else {
                opt_is_last = opt.is_none();
                body_end = end;
            }
        }
        // Records whose names point at a question that is not there cannot be given one.
        if questions == 0 && body_end > question_end {
            return None;
        }
        additional -= u16::from(opt.is_some());
        Some(Self {
            flags: [answer[2], answer[3]],
            counts: [answers, authority, additional],
            question: &answer[HEADER_LEN..question_end],
            body: &answer[question_end..body_end],
            records: &answer[question_end..end],
            opt,
            opt_is_last,
        })
    }
}
