//! What the daemon tells of itself: how it is, who asked what, and that nothing leaked.

mod audit;
mod records;
mod status;
mod top;
mod watch;
