//! Bad input and bad days: each ends in a clear status or a clear refusal, nothing is lost, and what can heal does.
//!
//! ```text
//! stand/         an API server, AWS, and the real controller as a process; most tests share one
//! input          what people write wrong            policies     who may not, and rules with mistakes
//! aws            AWS refuses, hangs, lies           outlast      …and the grant ends on time all the same
//! api_server     away, frozen, conflicts            audit        the disk is full
//! crash          kill -9 under load                 hostile      people who try
//! keys           that cannot be delivered          unreadable   a decision that may be a no
//! leaders        several controllers, of which one leads
//! upgrade        of what guards the requests, under live grants
//! traces         a collector of spans that hangs
//! disaster       etcd restored, the API server away for long, the operator removed
//! flood          ten thousand of everything; it takes all of the machine, so it comes last and alone
//! ```
//! The tests wait far more than they work, since a grant lives for a minute at least. So they run many at once, which
//! Rust's own harness cannot be told from inside a test; hence libtest-mimic.

mod api_server;
mod audit;
mod aws;
mod crash;
mod disaster;
mod flood;
mod hostile;
mod input;
mod keys;
mod leaders;
mod outlast;
mod policies;
mod stand;
mod traces;
mod unreadable;
mod upgrade;

#[path = "../common/collector.rs"]
mod collector;
#[path = "../common/long_trail.rs"]
mod long_trail;

use libtest_mimic::{Arguments, Trial};

/// Tests at once: all of those that wait for an end, and some.
const THREADS: usize = 40;

/// A list of tests, each an async function of no arguments.
macro_rules! days {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), Box::pin($name()) as crate::stand::Day)),*]
    };
}
pub(crate) use days;

fn main() {
    // Two crates would otherwise each pick a provider of TLS.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    lab::pace::begin();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts");
    let days = [
        // The longest first.
        outlast::days(),
        disaster::days(),
        leaders::days(),
        upgrade::days(),
        traces::days(),
        api_server::days(),
        audit::days(),
        crash::days(),
        aws::days(),
        keys::days(),
        input::days(),
        policies::days(),
        unreadable::days(),
        hostile::days(),
        stand::days(),
    ];
    let trial = |(name, day): (&'static str, stand::Day)| {
        let runtime = runtime.handle().clone();
        Trial::test(name, move || runtime.block_on(day).map_err(|error| format!("{error:#}").into()))
    };
    let conclusion = libtest_mimic::run(&arguments, days.into_iter().flatten().map(trial).collect());
    if let Err(error) = runtime.block_on(stand::close_shared()) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
    let alone = libtest_mimic::run(&arguments, flood::days().into_iter().map(trial).collect());
    conclusion.exit_if_failed();
    alone.exit();
}
