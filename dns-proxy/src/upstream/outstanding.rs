//! A query that waits for its answer, wherever it was sent and however often.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::{ExchangeError, Response};
use crate::wire::{self, HEADER_LEN, Question};

/// What whoever asked gets.
type Outcome = Result<Response, ExchangeError>;

/// Shared by whoever waits for the answer and by all who owe it: connections, or the pool while
/// there is none. One thread, so no locks.
pub(super) struct Outstanding {
    message: Vec<u8>,
    question_end: usize,
    /// When an answer is of no use any more.
    pub(super) deadline: Instant,
    /// How many connections owe it.
    pub(super) owed_by: Cell<u8>,
    /// The upstream that was asked last, by its index.
    pub(super) asked: Cell<usize>,
    /// It was asked of another upstream too.
    pub(super) hedged: Cell<bool>,
    /// How many connections ended for want of a good answer to it, or with it unanswered and without
    /// having answered anything.
    pub(super) suspicion: Cell<u8>,
    state: RefCell<State>,
}

enum State {
    Waiting(Option<Waker>),
    Settled(Outcome),
    /// The outcome was taken, or nobody wants it any more.
    Over,
}

/// Resolves to the outcome; dropping it calls the query off.
pub(super) struct Answer(Rc<Outstanding>);

impl Outstanding {
    /// A query, and the answer to it.
    pub(super) fn new(message: Vec<u8>, deadline: Instant) -> (Rc<Self>, Answer) {
        let query = Rc::new(Self {
            question_end: Question::read(&message).map_or(HEADER_LEN, |question| question.end),
            message,
            deadline,
            owed_by: Cell::new(0),
            asked: Cell::new(0),
            hedged: Cell::new(false),
            suspicion: Cell::new(0),
            state: RefCell::new(State::Waiting(None)),
        });
        (Rc::clone(&query), Answer(query))
    }

    /// The message; its transaction id is the client's.
    pub(super) fn message(&self) -> &[u8] {
        &self.message
    }

    /// Whether a message with the right transaction id answers it.
    pub(super) fn is_answered_by(&self, message: &[u8]) -> bool {
        wire::answers(message, &self.message[HEADER_LEN..self.question_end])
    }

    /// A connection ended, and it may be the reason.
    pub(super) fn suspect(&self) {
        self.suspicion.update(|suspicion| suspicion.saturating_add(1));
    }

    /// Somebody still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(*self.state.borrow(), State::Waiting(_))
    }

    /// Tells whoever waits, unless that was done before.
    pub(super) fn settle(&self, outcome: Outcome) {
        let mut state = self.state.borrow_mut();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Settled(outcome);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl Future for Answer {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.0.state.borrow_mut();
        match std::mem::replace(&mut *state, State::Over) {
            State::Settled(outcome) => Poll::Ready(outcome),
            State::Waiting(_) => {
                *state = State::Waiting(Some(context.waker().clone()));
                Poll::Pending
            }
            State::Over => Poll::Ready(Err(ExchangeError::Timeout)),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        *self.0.state.borrow_mut() = State::Over;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::wire::rcode;

    const QUERY: &[u8] = b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";

    fn outstanding() -> (Rc<Outstanding>, Answer) {
        Outstanding::new(QUERY.to_vec(), Instant::now() + Duration::from_secs(1))
    }

    fn reply(question: &[u8], rcode: u8) -> Vec<u8> {
        let counts = [0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0];
        [&[0, 0, 0x81, 0x80 | rcode], &counts[..], question].concat()
    }

    #[test]
    fn an_answer_has_the_question_unless_it_is_an_error() {
        let (query, _answer) = outstanding();
        assert!(query.is_answered_by(&reply(b"\x01A\0\0\x01\0\x01", 0)));
        assert!(!query.is_answered_by(&reply(b"\x01b\0\0\x01\0\x01", 0)));
        assert!(query.is_answered_by(&reply(b"", rcode::SERVFAIL)));
        assert!(!query.is_answered_by(&reply(b"", rcode::NOERROR)));
    }

    #[test]
    fn a_query_is_settled_once_and_called_off_by_dropping_its_answer() {
        let (query, answer) = outstanding();
        let [first, second] = [1, 2].map(|n| {
            let by = ([127, 0, 0, 1], 853).into();
            Ok(Response { message: vec![n], authenticated: true, by })
        });
        query.settle(first.clone());
        query.settle(second);
        assert!(!query.is_wanted());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(Pin::new(&mut { answer }).poll(&mut context), Poll::Ready(first));

        let (query, answer) = outstanding();
        assert!(query.is_wanted());
        drop(answer);
        assert!(!query.is_wanted());
    }
}
