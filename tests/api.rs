//! The API, as people and the operator meet it: the CRDs and the admission policies, against a real API server.

mod common;
#[path = "common/counts.rs"]
mod counts;

mod api {
    mod bounds;
    mod decision;
    mod delegates;
    mod examples;
    mod finalizer;
    mod gitops;
    mod identity;
    mod immutable;
    mod ledger;
    mod padding;
    mod schema;
    mod sessions;
    mod stands;
    mod status;
    mod without_mutating;
    mod world;
}
