//! The whole: the real binary against a real API server and real sshds, with a stand-in for AWS.
//!
//! ```text
//! kubectl as alice ─▶ kube-apiserver ◀─ instance-access controller ─▶ AWS stand-in ◀─ sshd ◀─ ssh as alice
//!                          └─▶ History: every version of every request   └─▶ journal: every call
//! ```
//! Grants last two minutes at least, and most of a test is waiting for the end: all tests run at once, whatever the
//! number of cores. Those that only look share one lab; those that kill the controller share another and take turns.
//! Every test ends with the promises that hold for any request (`Request::keeps_its_promises`).
//!
//! With `INSTANCE_ACCESS_WHOLE_DIR` set, logs and audit trails stay there.

mod controller;
mod history;
mod login;
mod request;
mod stand;

use libtest_mimic::{Arguments, Trial};

/// Names tests by their path: what is forgotten here is dead code, and the compiler says so.
macro_rules! trials {
    ($runtime:ident: $($room:ident { $($test:ident,)* })*) => {
        vec![$($({
            let handle = $runtime.handle().clone();
            let name = concat!(stringify!($room), "::", stringify!($test));
            Trial::test(name, move || Ok(handle.block_on($room::$test())))
        },)*)*]
    };
}

fn main() -> std::process::ExitCode {
    // The tests' own Kubernetes client speaks TLS; two crates would otherwise each pick a provider.
    rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing was installed before");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let trials = trials! { runtime:
        login {
            a_request_lets_its_owner_in_until_it_ends_and_no_longer,
        }
    };
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    runtime.block_on(stand::end());
    conclusion.exit_code()
}
