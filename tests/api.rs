//! The API, as people and the operator meet it: the CRDs, and the admission policies, against a real API server.

mod api {
    mod schema;
}
