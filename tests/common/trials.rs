//! How the tests that share a stand are named and run: one runtime for all of them.

/// Names tests by their path: what is forgotten here is dead code, and the compiler says so.
macro_rules! trials {
    ($runtime:ident: $($room:ident { $($test:ident,)* })*) => {
        vec![$($({
            let handle = $runtime.handle().clone();
            let name = concat!(stringify!($room), "::", stringify!($test));
            libtest_mimic::Trial::test(name, move || Ok(handle.block_on($room::$test())))
        },)*)*]
    };
}
